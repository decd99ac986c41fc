"""Positions of sinks without a fence of their own: durable when stored, whole after a crash, told apart by sink."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Corrupt, Refused, StorageFull
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.storage.run_positions import POSITIONS_FILE, RunPositions, SinkKey
from tests.storage.power_cut_rig import Disk
from tests.storage.run_positions_child import KEY, PARTITIONS

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("run_positions_child.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
A, B = PARTITIONS


@pytest.fixture
def positions(data_dir: Path) -> Iterator[RunPositions]:
    with closing(RunPositions(data_dir)) as opened:
        yield opened


def stored(data_dir: Path, key: SinkKey = KEY) -> Positions | None:
    with closing(RunPositions(data_dir)) as opened:
        return opened.load(key)


def test_what_was_never_stored_is_none(positions: RunPositions) -> None:
    assert positions.load(KEY) is None


def test_what_was_stored_is_found_by_the_next_run(data_dir: Path, positions: RunPositions) -> None:
    positions.store(KEY, [Span(A, 0, 10, "m"), Span(A, 10, 20, "n"), Span(B, 5, 6)], {"in": "s", "other": "t"})
    positions.store(KEY, [Span(B, 6, 9)], {"in": "u"})
    found = stored(data_dir)
    assert found == {A: Position(20, "n"), B: Position(9)}
    assert found.states == {"in": "u", "other": "t"}


def test_a_state_without_positions_is_kept(data_dir: Path, positions: RunPositions) -> None:
    positions.store(KEY, [], {"in": "s"})
    assert stored(data_dir).states == {"in": "s"}


@pytest.mark.parametrize("span", [Span(A, 11, 12), Span(A, 9, 12), Span(A, 0, 5)])
def test_a_gap_or_a_step_back_is_refused_and_changes_nothing(positions: RunPositions, span: Span) -> None:
    positions.store(KEY, [Span(A, 0, 10)], {"in": "s"})
    with pytest.raises(ValueError, match="span starts at"):
        positions.store(KEY, [Span(B, 0, 1), span], {"in": "t"})
    assert positions.load(KEY) == {A: Position(10)}
    assert positions.load(KEY).states == {"in": "s"}


@pytest.mark.parametrize(
    "other",
    [
        SinkKey("default/q", KEY.stage, KEY.destination),
        SinkKey(KEY.pipeline, "more", KEY.destination),
        SinkKey(KEY.pipeline, KEY.stage, "https://example.org/other"),
    ],
)
def test_another_pipeline_stage_or_destination_has_its_own(positions: RunPositions, other: SinkKey) -> None:
    positions.store(KEY, [Span(A, 0, 10)], {"in": "s"})
    assert positions.load(other) is None
    positions.store(other, [Span(A, 0, 3)], {})
    assert positions.load(KEY) == {A: Position(10)}
    assert positions.load(other).states == {}


names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
steps = st.lists(st.tuples(st.sampled_from(range(3)), names, st.integers(0, 2**40), names, names), max_size=12)


@given(steps)
def test_a_store_remembers_what_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, str, int, str, str]]
) -> None:
    data_dir = tmp_path_factory.mktemp("positions")
    keys = [SinkKey("p", f"s{number}", "d") for number in range(3)]
    expected = {key: Positions() for key in keys}
    with closing(RunPositions(data_dir)) as opened:
        for number, name, length, mark, state in steps:
            key, partition = keys[number], Partition("in", name)
            held = expected[key].get(partition)
            first = 0 if held is None else held.offset
            span = Span(partition, first, first + length, mark)
            opened.store(key, [span], {"in": state})
            expected[key] = Positions(expected[key].advanced([span]), {"in": state})
    for key in keys:
        found = stored(data_dir, key)
        assert (found or Positions()) == expected[key]
        assert (found or Positions()).states == expected[key].states


def test_sinks_of_one_process_store_side_by_side(data_dir: Path) -> None:
    keys = [SinkKey("p", f"s{number}", "d") for number in range(4)]

    def work(key: SinkKey) -> None:
        with closing(RunPositions(data_dir)) as opened:
            for at in range(25):
                opened.store(key, [Span(A, at, at + 1)], {"in": str(at)})

    threads = [threading.Thread(target=work, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stored(data_dir, key) for key in keys] == [{A: Position(25)}] * 4


# -------------------------------------------------------------------- renamed pipelines


def test_a_renamed_pipeline_takes_its_positions_over_once_and_for_all(positions: RunPositions) -> None:
    positions.store(KEY, [Span(A, 0, 10, "m")], {"in": "s"})
    renamed = SinkKey("default/new", KEY.stage, KEY.destination)
    for _ in range(2):
        assert positions.take_over(renamed, KEY.pipeline) == {A: Position(10, "m")}
        assert positions.load(renamed).states == {"in": "s"}
        assert positions.load(KEY) is None


def test_there_must_be_something_to_take_over_and_nothing_in_its_way(positions: RunPositions) -> None:
    with pytest.raises(Refused, match="'out' to https://example.org/: a/b has no positions to take over"):
        positions.take_over(KEY, "a/b")
    positions.store(KEY, [Span(A, 0, 10)], {})
    positions.store(SinkKey("a/b", KEY.stage, KEY.destination), [Span(A, 0, 5)], {})
    with pytest.raises(Refused, match="both a/b and default/p have positions"):
        positions.take_over(KEY, "a/b")


# -------------------------------------------------------------------- faults and crashes


def test_a_damaged_file_is_named_with_what_deleting_it_would_mean(data_dir: Path) -> None:
    (data_dir / POSITIONS_FILE).write_bytes(b"not a database" * 100)
    with pytest.raises(Corrupt, match="positions.db: the positions of sinks cannot be read .*sent every record again"):
        RunPositions(data_dir)


def test_a_file_of_a_newer_conveyord_is_refused(data_dir: Path) -> None:
    with closing(sqlite3.connect(data_dir / POSITIONS_FILE)) as connection:
        connection.execute("PRAGMA user_version = 9")
    with pytest.raises(Corrupt, match="its version is 9, this conveyord knows 1"):
        RunPositions(data_dir)


def test_a_full_disk_stops_and_keeps_what_was_stored(data_dir: Path, positions: RunPositions) -> None:
    positions.store(KEY, [Span(A, 0, 10)], {"in": "s"})
    (pages,) = positions._connection.execute("PRAGMA page_count").fetchone()
    positions._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StorageFull, match="free space and run again, no position that was stored is lost"):
        positions.store(KEY, [Span(A, 10, 20)], {"in": "x" * 100_000})
    assert stored(data_dir) == {A: Position(10)}


def test_the_commits_are_synced_and_no_wal_is_used(data_dir: Path, positions: RunPositions) -> None:
    """With a WAL, two sinks that make a checkpoint at once could lose it (SQLite before 3.51.3)."""
    assert positions._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert positions._connection.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    positions.store(KEY, [Span(A, 0, 10)], {})
    assert not (data_dir / f"{POSITIONS_FILE}-wal").exists()


def check(data_dir: Path, acknowledged: int) -> int:
    """That everything acknowledged is there, and all of the last step or nothing of it."""
    found = stored(data_dir)
    if found is None:
        assert acknowledged == 0
        return 0
    at = found[A].offset
    assert found == {A: Position(at, f"mark {at}"), B: Position(at, f"mark {at}")}
    assert found.states == {"in": f"state {at}"}
    assert at >= acknowledged
    return at


def killed_after(data_dir: Path, lines: int) -> int:
    """The last offset that a child acknowledged before it was killed."""
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(data_dir)], cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    said = [child.stdout.readline() for _ in range(lines)]
    child.send_signal(signal.SIGKILL)
    said += child.stdout.read().splitlines(keepends=True)
    child.stdout.close()
    child.wait()
    return int([line for line in said if line.endswith("\n")][-1])


@pytest.mark.parametrize("kills", [3, pytest.param(25, marks=pytest.mark.check)])
def test_no_acknowledged_position_is_lost_by_sigkill(data_dir: Path, kills: int) -> None:
    random, reached = Random(7), 0
    for _ in range(kills):
        acknowledged = killed_after(data_dir, random.randint(1, 40))
        assert acknowledged > reached
        reached = check(data_dir, acknowledged)


def cut_while_storing(disk: Disk, data_dir: Path, *arguments: str) -> int:
    """The last offset that was acknowledged before the power went."""
    return max([0, *map(int, disk.cut_under(CHILD, data_dir, disk.mount_point, *arguments))])


@pytest.mark.check
def test_after_a_power_cut_every_acknowledged_position_is_there(disk: Disk) -> None:
    data_dir, reached = disk.mount_point / "data", 0
    for number in range(6):
        acknowledged = cut_while_storing(disk, data_dir, str(0.02 + 0.13 * number))
        reached = check(data_dir, acknowledged)
    assert reached > 20, "hardly anything was stored: the cuts came too early"


@pytest.mark.check
def test_without_its_syncs_the_same_cut_loses_positions(disk: Disk) -> None:
    """The negative control: it shows that the cut takes what was not synced."""
    data_dir = disk.mount_point / "data"
    acknowledged = cut_while_storing(disk, data_dir, "0.4", "careless")
    assert acknowledged > 0
    with pytest.raises((AssertionError, Corrupt)):
        check(data_dir, acknowledged)
