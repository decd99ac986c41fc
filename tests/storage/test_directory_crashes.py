"""A run that writes files is stopped at every step in turn; the next one must make them whole.

Every call that changes the file system or waits for it is a step. A crash before step k+1 is a crash after
step k, so stopping before each covers both sides.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from conveyord.core.planning import fence as fences
from conveyord.storage import commit_log
from conveyord.storage.parquet_dir.sealing import SealedFile
from tests.storage.crash_rig import Crashed, crashing
from tests.storage.directory_rig import KINDS, ROWS, Run, leftovers, offsets

# A killed process does not close its files either.
pytestmark = [
    pytest.mark.usefixtures("unclosed_files"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS: list[tuple[Any, str]] = [
    (os, "open"),
    (os, "fsync"),
    (os, "link"),
    (os, "ftruncate"),
    (os, "mkdir"),
    (os, "pwritev"),
    (os, "rename"),
    (os, "unlink"),
    (SealedFile, "write"),
    (SealedFile, "close"),
]
BEFORE, STOPPED, AFTER = 3, 5, 6  # commits that are there, that the stopped run was to reach, and the next
STRIDE = 13


@pytest.fixture(autouse=True)
def _everything_happens_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commit_log, "MANIFESTS_KEPT", 2)
    monkeypatch.setattr(fences, "INLINE_MAX", 2)
    monkeypatch.setattr(fences, "KEPT_INLINE", 1)


def scenario(root: Path, kind: str, commits: int) -> list[int]:
    """Commit until so many are there. Returns those that were acknowledged; the last may be only half of the rows."""
    run, acknowledged = Run(root, kind), []
    try:
        run.open()
        while run.next_offset < commits * ROWS:
            acknowledged.append(run.commit_next())
        run.write(run.next_offset)  # and some that are not committed
        run.close()
    except BaseException:
        run.die()
        raise
    return acknowledged


def whole(root: Path, kind: str) -> int:
    """Assert that the files hold what their manifest says, exactly. Returns how many commits that are."""
    run = Run(root, kind).open()
    try:
        assert offsets(root) == list(range(run.next_offset))
        assert not leftovers(root)
        return run.next_offset // ROWS
    finally:
        run.close()


def crash_and_recover(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch, at: int, *, before: int) -> None:
    if before:
        scenario(root, kind, before)
    with crashing(monkeypatch, STEPS, at), pytest.raises(Crashed):
        scenario(root, kind, STOPPED)
    seen = offsets(root) if kind in {"parquet", "partitioned"} and root.exists() else []
    assert len(seen) == len(set(seen)), "a reader saw a row twice"
    landed = whole(root, kind)
    assert before <= landed <= STOPPED
    assert len(seen) <= landed * ROWS, "a reader saw rows that went away again"
    scenario(root, kind, AFTER)
    assert whole(root, kind) == AFTER


def sweep(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, *, stride: int, first: int = 0, before: int = BEFORE
) -> None:
    if before:
        scenario(tmp_path / "count", kind, before)
    with crashing(monkeypatch, STEPS, None) as crasher:
        scenario(tmp_path / "count", kind, STOPPED)
    names = crasher.names
    assert {"fsync", "rename", "open", "unlink"} <= set(names)
    for at in range(first, len(names), stride):
        try:
            crash_and_recover(tmp_path / f"at-{at}", kind, monkeypatch, at, before=before)
        except AssertionError as error:
            raise AssertionError(f"stopped before step {at} ({names[at]}): {error}") from error


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_at_steps_all_along_its_way_is_made_whole_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sweep(tmp_path, kind, monkeypatch, stride=STRIDE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_run_that_is_stopped_is_made_whole_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    sweep(tmp_path, kind, monkeypatch, stride=3 * STRIDE, first=1, before=0)


@pytest.mark.check
@pytest.mark.parametrize("before", [0, BEFORE])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_stopped_at_every_single_step_is_made_whole_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, before: int
) -> None:
    sweep(tmp_path, kind, monkeypatch, stride=1, before=before)


@pytest.mark.parametrize("kind", KINDS)
def test_recovery_itself_may_be_stopped_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Each attempt to open gets one step further than the one before."""
    root = tmp_path / "run"
    scenario(root, kind, BEFORE)
    scenario(tmp_path / "count", kind, BEFORE)
    with crashing(monkeypatch, STEPS, None) as crasher:
        scenario(tmp_path / "count", kind, BEFORE + 1)
    at = max(number for number, name in enumerate(crasher.names) if name == "rename")
    with crashing(monkeypatch, STEPS, at), pytest.raises(Crashed):
        scenario(root, kind, AFTER)
    for steps in range(0, 60, 3):
        try:
            with crashing(monkeypatch, STEPS, steps):
                scenario(root, kind, BEFORE)
        except Crashed:
            continue
        break
    assert whole(root, kind) >= BEFORE
