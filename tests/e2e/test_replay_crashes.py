"""A replay into files is gone before any step of its work; those that follow make every row arrive once all the same.

Every call that changes files or the letters is a step, so a crash before each covers both sides of all of them.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from conveyord.core.pipeline.graph import Pipeline
from conveyord.storage.dead_letters.store import DeadLetterStore
from tests.engine.graph_rig import letters_in, numbered, pipeline, source, stage, transform
from tests.engine.replay_rig import Flawed, counts, replayed, run
from tests.storage.directory_rig import leftovers, rows_in
from tests.storage.test_directory_crashes import STEPS as OF_FILES

STEPS: list[tuple[Any, str]] = [
    *OF_FILES,
    *((DeadLetterStore, name) for name in ("queue", "put", "settle", "give_up", "withdraw")),
]
ROWS = 24
SINKS = {"lines": "file_jsonl", "files": "parquet_dir"}
FIRST_FLAWS = {"a": set(range(2, 14))}
FLAWS_AT_THE_CRASH = {"b": {3, 7, 11}}
FLAWS_AFTERWARDS = {"b": {7}}
CRASHED = 9
STEPS_MIN = 60  # fewer would mean that they are not counted any more
STRIDE = 16
PROCESS_SECONDS = 120  # a hundred times what it takes


@dataclass(frozen=True)
class Job:
    """A pipeline into two directories, beside its data directory."""

    home: Path

    def pipeline(self) -> Pipeline:
        sinks = [
            stage(name, "sink", kind, path=str(self.home / name), commit={"rows": 3}) for name, kind in SINKS.items()
        ]
        stages = [source(), transform("a", "fussy"), transform("b", "fussy"), *sinks]
        return pipeline(stages, [("in", "a"), ("a", "b"), *(("b", name) for name in SINKS)])

    @property
    def data_dir(self) -> Path:
        return self.home / "data"

    def runs(self, bad: dict[str, set[Any]]) -> None:
        (summary,) = run(Flawed({"t": numbered(ROWS)}, bad=bad), self.data_dir, self.pipeline())
        assert summary.error is None, summary.error

    def replays(self, bad: dict[str, set[Any]]) -> tuple[int, int, int, int]:
        report = replayed(Flawed({"t": numbered(ROWS)}, bad=bad), self.data_dir, self.pipeline())
        assert report is not None
        return counts(report)


@dataclass
class Crasher:
    """Ends the process at once before step number `at`."""

    at: int
    done: Iterator[int] = field(default_factory=count)

    def watch(self) -> None:
        for owner, name in STEPS:
            setattr(owner, name, self._step(getattr(owner, name)))

    def _step(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(self.done) == self.at:
                os._exit(CRASHED)
            return work(*arguments, **options)

        return step


def cut_short(job: Job, at: int, bad: dict[str, set[Any]]) -> None:
    Crasher(at).watch()
    job.replays(bad)


def ended(job: Job) -> None:
    """All is mended, and a run and two replays end what was left."""
    job.replays({})
    job.runs({})
    assert job.replays({})[1:] == (0, 0, 0)
    assert letters_in(job.data_dir) == []


def in_a_process(work: Callable[..., None], *arguments: Any) -> bool:
    """Do it in a process of its own, forked from one that has no threads. Returns whether it came to its end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=work, args=arguments)
    process.start()
    process.join(PROCESS_SECONDS)
    assert process.exitcode in (0, CRASHED), process.exitcode
    return process.exitcode == 0


def crash_before_each(home: Path, *, first: int, stride: int) -> int:
    """Crash a replay before every so many-th step, the next one at another, and then let all of it end.

    Returns how many steps it has, about.
    """
    job, before = Job(home / "job"), home / "before"
    job.data_dir.mkdir(parents=True)
    job.runs(FIRST_FLAWS)
    shutil.copytree(job.home, before)
    for at in count(first, stride):
        shutil.rmtree(job.home)
        shutil.copytree(before, job.home)
        if in_a_process(cut_short, job, at, FLAWS_AT_THE_CRASH):
            return at
        in_a_process(cut_short, job, 5 + 7 * at % 59, FLAWS_AFTERWARDS)
        assert in_a_process(ended, job)
        for name in SINKS:
            assert sorted(row["n"] for row in rows_in(job.home / name)) == list(range(ROWS)), (name, at)
            assert not leftovers(job.home / name)
    raise AssertionError


def test_a_replay_into_files_that_is_killed_is_made_whole(tmp_path: Path) -> None:
    assert crash_before_each(tmp_path, first=8, stride=STRIDE) > STEPS_MIN


@pytest.mark.check
def test_a_replay_into_files_that_is_killed_before_any_step_is_made_whole(tmp_path: Path) -> None:
    assert crash_before_each(tmp_path, first=0, stride=1) > STEPS_MIN
