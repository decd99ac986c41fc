"""A run that follows growing and rotated files, killed while it does."""

from __future__ import annotations

import random
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import Job, lines

SEED = 20240601
KILLS = 4


@pytest.mark.check
@pytest.mark.timeout(600)
def test_every_line_is_there_once_while_logs_grow_and_rotate_and_the_run_is_killed(tmp_path: Path) -> None:
    source = {"type": "file_jsonl", "path": "in/log*", "follow": True, "poll_every": "20ms"}
    job = Job(tmp_path, source=source, sink={"commit": {"rows": 500, "every": "0.1s"}})
    log, written, rng = job.input / "log", 0, random.Random(SEED)

    def write(count: int) -> None:
        nonlocal written
        with log.open("ab") as out:
            for number in range(written, written + count):
                line = lines([number])
                out.write(line[:9])  # in two parts, so that a look may fall between them
                out.flush()
                out.write(line[9:])
        written += count

    write(1000)
    for turn in range(KILLS + 1):
        running = job.start()
        assert running.until(lambda: len(job.ids()) > written // 2)
        for _ in range(3):
            write(rng.randint(1, 700))
            if rng.random() < 0.5:
                log.rename(job.input / f"log.{written}")
                write(rng.randint(1, 100))
        if turn < KILLS:
            assert running.killed_after(rng.uniform(0.0, 0.4))
            write(50)
            log.rename(job.input / f"log.{written}")
            write(50)
    assert running.until(lambda: len(job.ids()) >= written)
    running.send(signal.SIGTERM)
    running.wait().orderly(0)
    job.holds(range(written))
    job.audit()
