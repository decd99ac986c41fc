"""The harness starts `conveyord` by forking: what comes out is what a new process gives."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.e2e.harness import CONVEYORD, Job, Running, lines


def test_a_forked_command_is_as_a_new_one(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("kind: Pipeline\nspec: {source: {type: file_jsnl}}\n")
    command = [str(CONVEYORD), "validate", "bad.yaml"]
    environment = {"CONVEYORD_CONFIG": "none.toml", "COLUMNS": "60"}
    forked, new = (Running(command, tmp_path, environment, is_new=is_new).wait() for is_new in (False, True))
    assert (forked.code, forked.out, forked.err) == (new.code, new.out, new.err)
    assert forked.code == 2


def test_a_forked_command_can_be_killed(tmp_path: Path) -> None:
    job = Job(tmp_path, sink={"commit": {"rows": 1}})
    job.source = {**job.source, "follow": True}
    (job.input / "a.jsonl").write_bytes(lines(range(10)))
    running = job.start()
    assert running.saw("committed"), running.wait().err
    running.send(signal.SIGKILL)
    assert running.wait().code == -signal.SIGKILL
    job.holds(range(10))
