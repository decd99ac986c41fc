"""What a damaged or half-written queue gives when it is opened: an intact prefix, the rest in quarantine."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from conveyord.core.errors import StorageFull
from conveyord.storage.spill.examination import examine
from conveyord.storage.spill.ledger import LEDGER_FILE, SLOT_BYTES, read_ledger
from conveyord.storage.spill.quarantine import quarantined_files
from conveyord.storage.spill.recovery import repair
from conveyord.storage.spill.segments import SEGMENT_HEADER_BYTES
from tests.storage.spill_rig import (
    batch,
    drain,
    files_of,
    fill,
    flip,
    frames_of,
    meta,
    opened,
    segments,
    values_in,
)

FRAMES = 10


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A closed queue of ten frames in several segments."""
    path = tmp_path / "q"
    with opened(path) as queue:
        fill(queue, range(FRAMES))
        assert len(segments(path)) >= 3
    return path


def restore(directory: Path, files: dict[str, bytes]) -> None:
    for name in set(files_of(directory)) - set(files):
        (directory / name).unlink()
    for name, content in files.items():
        (directory / name).write_bytes(content)


def check_goes_on(directory: Path, expected: list[int]) -> None:
    """The queue holds `expected`, takes more behind it, and the next recovery finds nothing to mend."""
    with opened(directory) as queue:
        fill(queue, [100])
        assert drain(queue) == [*expected, 100]
    with opened(directory) as queue:
        assert queue.recovered.quarantined == ()
        assert queue.recovered.torn_bytes == 0
        assert drain(queue) == [*expected, 100]


def test_a_tail_torn_at_any_byte_is_cut_off_and_counted(directory: Path) -> None:
    files = files_of(directory)
    last = segments(directory)[-1]
    places = frames_of(last)
    first_value = int(last.stem) - 1
    for size in range(0, len(files[last.name]), 7):
        restore(directory, files)
        os.truncate(last, size)
        kept = [first_value + index for index, (_, end) in enumerate(places) if end <= size]
        with opened(directory) as queue:
            header_end = SEGMENT_HEADER_BYTES if size >= SEGMENT_HEADER_BYTES else 0
            intact_end = max([end for _, end in places if end <= size], default=header_end)
            assert queue.recovered.torn_bytes == size - intact_end
            assert queue.recovered.quarantined == ()
            assert drain(queue) == [*range(first_value), *kept]
    check_goes_on(directory, [*range(first_value), *kept])


@pytest.mark.parametrize("size", [1, 40, 5_000])
def test_a_tail_of_zeros_is_torn_not_damaged(directory: Path, size: int) -> None:
    with segments(directory)[-1].open("ab") as file:
        file.write(bytes(size))
    with opened(directory) as queue:
        assert queue.recovered.torn_bytes == size
        assert queue.recovered.quarantined == ()
        assert drain(queue) == list(range(FRAMES))


def test_a_new_segment_of_zeros_is_torn(directory: Path) -> None:
    (directory / f"{FRAMES + 1:020d}.seg").write_bytes(bytes(500))
    check_goes_on(directory, list(range(FRAMES)))


@pytest.mark.parametrize("index", [0, 1, -1])
def test_any_flipped_bit_ends_the_prefix_before_its_frame(directory: Path, index: int) -> None:
    files = files_of(directory)
    path = segments(directory)[index]
    first = int(path.stem) - 1
    places = frames_of(path)
    for offset in (*range(0, 110, 7), *range(110, len(files[path.name]), 61)):
        restore(directory, files)
        flip(path, offset, bit=offset % 8)
        intact = first + sum(end <= offset for _, end in places)
        with opened(directory) as queue:
            found = queue.recovered
            assert drain(queue) == list(range(intact))
        assert found.frames == intact
        assert found.quarantined[0].segment == path.name
        header_end = SEGMENT_HEADER_BYTES if offset >= SEGMENT_HEADER_BYTES else 0
        assert found.quarantined[0].offset == max([header_end, *(end for _, end in places if end <= offset)])
        later = [each.name for each in sorted(directory.glob("*.seg"))]
        assert later == [name for name in sorted(files) if name.endswith(".seg")][: len(later)]
    check_goes_on(directory, list(range(intact)))


def test_what_is_quarantined_is_kept_with_a_note(directory: Path) -> None:
    paths = segments(directory)
    content = {path.name: path.read_bytes() for path in paths}
    start, _ = frames_of(paths[1])[1]
    flip(paths[1], start + 50)
    with opened(directory) as queue:
        damaged, *orphans = queue.recovered.quarantined
    assert (damaged.segment, damaged.offset) == (paths[1].name, start)
    assert "wrong checksum" in damaged.reason
    assert len(damaged.kept.read_bytes()) == len(content[paths[1].name]) - start
    note = json.loads(damaged.kept.with_suffix(".json").read_text())
    assert (note["segment"], note["offset"], note["reason"]) == (paths[1].name, start, damaged.reason)
    assert [each.segment for each in orphans] == [path.name for path in paths[2:]]
    for each in orphans:
        assert paths[1].name in each.reason
        assert each.kept.read_bytes() == content[each.segment]


def test_nothing_behind_a_missing_segment_is_returned(directory: Path) -> None:
    paths = segments(directory)
    paths[1].unlink()
    first_missing = int(paths[1].stem)
    with opened(directory) as queue:
        assert [each.segment for each in queue.recovered.quarantined] == [path.name for path in paths[2:]]
        assert f"frame {first_missing} should come next" in queue.recovered.quarantined[0].reason
        assert drain(queue) == list(range(first_missing - 1))
    check_goes_on(directory, list(range(first_missing - 1)))


def test_a_missing_first_segment_leaves_nothing_to_read(directory: Path) -> None:
    segments(directory)[0].unlink()
    check_goes_on(directory, [])


def test_a_segment_cut_at_the_end_of_a_frame_is_a_gap(directory: Path) -> None:
    path = segments(directory)[0]
    os.truncate(path, frames_of(path)[1][1])
    check_goes_on(directory, [0, 1])


def test_a_segment_torn_in_the_middle_of_the_queue_is_damage(directory: Path) -> None:
    path = segments(directory)[0]
    os.truncate(path, frames_of(path)[1][1] + 5)
    count = len(segments(directory))
    with opened(directory) as queue:
        assert queue.recovered.torn_bytes == 0
        assert len(queue.recovered.quarantined) == count
    check_goes_on(directory, [0, 1])


def test_a_segment_under_the_name_of_another_is_not_read(directory: Path) -> None:
    paths = segments(directory)
    paths[0].write_bytes(paths[1].read_bytes())
    check_goes_on(directory, [])


def test_frames_swapped_within_a_segment_are_not_read_out_of_order(directory: Path) -> None:
    path = segments(directory)[0]
    content = path.read_bytes()
    (first, middle), (_, end) = frames_of(path)[:2]
    path.write_bytes(content[:first] + content[middle:end] + content[first:middle] + content[end:])
    check_goes_on(directory, [])


@pytest.mark.parametrize("damage", ["missing", "empty", "both slots"])
def test_without_a_ledger_reading_starts_at_the_first_segment(directory: Path, damage: str) -> None:
    with opened(directory) as queue:
        queue.settle(FRAMES - 2)
        first = int(segments(directory)[0].stem)
    ledger = directory / LEDGER_FILE
    if damage == "missing":
        ledger.unlink()
    elif damage == "empty":
        ledger.write_bytes(b"")
    else:
        flip(ledger, 9)
        flip(ledger, SLOT_BYTES + 9)
    assert read_ledger(directory) is None
    check_goes_on(directory, list(range(first - 1, FRAMES)))


@pytest.mark.parametrize("offset", range(0, 28, 3))
@pytest.mark.parametrize("slot", [0, 1])
def test_one_damaged_slot_costs_at_most_the_last_settling(directory: Path, slot: int, offset: int) -> None:
    with opened(directory) as queue:
        queue.settle(1)
        queue.settle(2)
    flip(directory / LEDGER_FILE, slot * SLOT_BYTES + offset, bit=3)
    assert read_ledger(directory) in {1, 2}


def test_segments_below_the_ledger_are_unlinked_whatever_they_hold(directory: Path) -> None:
    paths = segments(directory)
    content = paths[0].read_bytes()
    with opened(directory) as queue:
        queue.settle(int(paths[2].stem))
    paths[0].write_bytes(content[:-9])
    paths[1].write_bytes(b"nonsense")
    with opened(directory) as queue:
        assert segments(directory)[0] == paths[2]
        assert queue.recovered.quarantined == ()
        assert drain(queue) == list(range(int(paths[2].stem), FRAMES))


def test_a_ledger_ahead_of_its_segments_wins(directory: Path) -> None:
    """A power cut can take frames whose settling was synced."""
    with opened(directory) as queue:
        queue.settle(FRAMES - 1)
    path = segments(directory)[-1]
    os.truncate(path, frames_of(path)[0][1])
    with opened(directory) as queue:
        assert (queue.settled, queue.last) == (FRAMES - 1, FRAMES - 1)
        assert fill(queue, [50]) == [FRAMES]
    assert values_in(directory) == [50]


def test_the_quarantine_is_bounded_and_gives_up_the_oldest_first(directory: Path) -> None:
    with opened(directory) as queue:
        queue.discard_all()
    limit, expired = 3_000, 0
    for round_ in range(6):
        with opened(directory, quarantine_bytes=limit) as queue:
            queue.append(meta(round_), batch(round_, size=600))
        flip(segments(directory)[0], 200)
        with opened(directory, quarantine_bytes=limit) as queue:
            newest = queue.recovered.quarantined[0].kept
            expired += queue.recovered.expired
        held = quarantined_files(directory)
        assert sum(size for _, size, _ in held) <= limit
        assert held[-1][2] == newest
    assert expired > 0
    assert {path.suffix for path in (directory / "quarantine").iterdir()} == {".bad", ".json"}
    assert len(list((directory / "quarantine").iterdir())) == 2 * len(held)


def test_what_is_damaged_outlives_what_merely_followed_it(directory: Path) -> None:
    paths = segments(directory)
    size = paths[0].stat().st_size
    flip(paths[0], 3)
    with opened(directory, quarantine_bytes=size) as queue:
        assert [each.kept is not None for each in queue.recovered.quarantined] == [True, *[False] * (len(paths) - 1)]
    check_goes_on(directory, [])


def test_what_does_not_fit_into_the_quarantine_is_reported_as_gone(directory: Path) -> None:
    flip(segments(directory)[0], 3)
    with opened(directory, quarantine_bytes=10) as queue:
        assert all(each.kept is None for each in queue.recovered.quarantined)
    assert quarantined_files(directory) == []
    check_goes_on(directory, [])


def test_a_full_disk_does_not_keep_a_damaged_queue_from_opening(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = segments(directory)[0]
    flip(path, frames_of(path)[1][0] + 1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", full)
        patched.setattr("conveyord.storage.spill.quarantine.shutil.copyfileobj", full)
        with opened(directory) as queue:
            assert all(each.kept is None for each in queue.recovered.quarantined)
    assert quarantined_files(directory) == []
    check_goes_on(directory, [0])


def test_a_read_only_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(StorageFull, match="mount it writable"):
        opened(tmp_path / "q")


def test_files_of_others_are_left_alone(directory: Path) -> None:
    (directory / "notes.txt").write_text("mine")
    (directory / "1.seg").write_text("not a segment")
    assert values_in(directory) == list(range(FRAMES))
    assert (directory / "notes.txt").read_text() == "mine"


def test_examining_changes_nothing(directory: Path) -> None:
    flip(segments(directory)[1], 100)
    files = files_of(directory)
    for verify in (True, False):
        examine(directory, verify=verify)
    assert files_of(directory) == files


def test_examining_a_queue_that_is_emptied_meanwhile_finds_no_damage(directory: Path) -> None:
    with opened(directory) as queue:
        found = examine(
            directory, verify=True, on_frame=lambda _, place: queue.settle(min(place.header.number + 5, FRAMES))
        )
        assert (found.settled, found.last, found.fault) == (8, FRAMES, None)  # the second segment was gone


def test_a_repair_does_what_opening_does_and_nothing_the_second_time(directory: Path) -> None:
    path, behind = segments(directory)[1:]
    flip(path, frames_of(path)[0][0] + 70)
    made = repair(directory)
    assert made.frames == int(path.stem) - 1
    assert [each.segment for each in made.quarantined] == [path.name, behind.name]
    again = repair(directory)
    assert (again.frames, again.quarantined, again.torn_bytes) == (made.frames, (), 0)
    assert values_in(directory) == list(range(made.frames))
