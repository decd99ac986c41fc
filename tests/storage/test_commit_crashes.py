"""A run is stopped at every step in turn; the next one, from the table alone, must make it whole.

Every call to the catalog, to the file system below the warehouse and to the ledger is a step. A crash
before step k+1 is a crash after step k, so stopping before each covers both sides.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog.sql import SqlCatalog

from conveyord.core.flow.positions import Partition, Position, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.planning import fence as fences
from conveyord.storage.lake import commit, fileio, ledger
from tests.storage.crash_rig import Crashed, crashing
from tests.storage.lake_rig import (
    PARTITION,
    ROWS_PER_BATCH,
    Run,
    assert_exactly_once,
    files_on_disk,
    files_reachable,
    load,
)

# A killed process does not close its files either.
pytestmark = [
    pytest.mark.usefixtures("unclosed_files"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STEPS: list[tuple[Any, str]] = [
    (SqlCatalog, "load_table"),
    (SqlCatalog, "commit_table"),
    (SqlCatalog, "create_table"),
    (fileio, "sync_directory"),
    (fileio.DurableOutputStream, "__init__"),
    (fileio.DurableOutputStream, "write"),
    (fileio.DurableOutputStream, "close"),
    (fileio.DurableFileIO, "delete"),
    (ledger.Ledger, "write"),
    (Path, "unlink"),
]


PARTS = 8  # of the full sweep: each well below the time at which a test counts as stuck


def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that happens now and then happens all the time."""
    monkeypatch.setattr(commit, "EVERY_COMMITS", 2)
    monkeypatch.setattr(fences, "INLINE_MAX", 2)
    monkeypatch.setattr(fences, "KEPT_INLINE", 1)


def next_batch(run: Run) -> None:
    """Three rows, and one more finished file to remember."""
    run.committer._maintenance._snapshots_kept = 2
    fence = run.committer.fence
    first = fence.positions.get(PARTITION, Position(0)).offset
    spans = [
        Span(PARTITION, first, first + ROWS_PER_BATCH, "m"),
        Span(Partition("source", f"finished-{fence.n}"), 0, 9, "m"),
    ]
    following = fence.advanced(spans, Tally(read=ROWS_PER_BATCH), ROWS_PER_BATCH)
    run.committer.commit(run.files(first), following, spec_id=0, schema_id=0)


def scenario(data_dir: Path, batches: int) -> None:
    run = Run(data_dir).open()
    try:
        while run.committer.fence.n < batches:
            next_batch(run)
    finally:
        run.close()


def crash_and_recover(data_dir: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    scenario(data_dir, 3)
    with crashing(monkeypatch, STEPS, at), pytest.raises(Crashed):
        scenario(data_dir, 6)
    table = load(data_dir)
    assert table is not None
    landed = assert_exactly_once(table)
    assert 3 <= landed <= 6
    scenario(data_dir, 8)
    table = load(data_dir)
    assert table is not None
    assert assert_exactly_once(table) == 8
    reachable, present = files_reachable(table), files_on_disk(table)
    assert reachable <= present, "something that the table names was deleted"
    assert not present - reachable, "garbage that nothing will ever delete"


def count_steps(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    scenario(data_dir, 3)
    with crashing(monkeypatch, STEPS, None) as crasher:
        scenario(data_dir, 6)
    return crasher.names


def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, stride: int, first: int = 0) -> None:
    small_limits(monkeypatch)
    names = count_steps(tmp_path / "count", monkeypatch)
    assert {"commit_table", "close", "delete", "write", "unlink", "sync_directory"} <= set(names)
    for at in range(first, len(names), stride):
        try:
            crash_and_recover(tmp_path / f"at-{at}", monkeypatch, at)
        except AssertionError as error:
            raise AssertionError(f"stopped before step {at} ({names[at]}): {error}") from error


def test_a_run_stopped_at_steps_all_along_its_way_is_made_whole_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(tmp_path, monkeypatch, stride=61)


@pytest.mark.check
@pytest.mark.parametrize("first", range(PARTS))
def test_a_run_stopped_at_every_single_step_is_made_whole_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    sweep(tmp_path, monkeypatch, first=first, stride=PARTS)


def test_a_run_stopped_while_it_creates_the_table_is_made_whole_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with crashing(monkeypatch, STEPS, None) as crasher:
        scenario(tmp_path / "count", 1)
    for at in range(0, len(crasher.names), 19):
        data_dir = tmp_path / f"at-{at}"
        with crashing(monkeypatch, STEPS, at), pytest.raises(Crashed):
            scenario(data_dir, 1)
        scenario(data_dir, 2)
        table = load(data_dir)
        assert table is not None
        assert assert_exactly_once(table) == 2, crasher.names[at]
