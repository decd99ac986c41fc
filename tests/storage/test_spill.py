"""The spill queue without crashes: order, settling, budget, full disks, names."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Corrupt, Refused, Retryable, StorageFull
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.spill.budget import SpillBudget
from conveyord.storage.spill.frames import FrameMeta, decode_meta, encode_meta
from conveyord.storage.spill.names import NAME_BYTES_MAX, escaped, queue_directory, queues_in
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
    value_of,
    values_in,
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "spill" / "ns%2Fp" / "a"


def test_frames_come_in_the_order_they_went_in_across_segments(directory: Path) -> None:
    with opened(directory) as queue:
        assert fill(queue, range(20)) == list(range(1, 21))
        assert len(segments(directory)) == 5
        assert drain(queue) == list(range(20))
        assert queue.read() is None


def test_reading_and_appending_take_turns(directory: Path) -> None:
    with opened(directory) as queue:
        for value in range(30):
            fill(queue, [value])
            assert drain(queue) == [value]
            queue.settle(queue.last - value % 3)


def test_every_kind_of_batch_comes_back_equal(directory: Path) -> None:
    kinds = [
        pa.record_batch({"a": pa.array([], pa.int64())}),
        pa.record_batch([pa.array([1, 2, 3])], schema=pa.schema([pa.field("a", pa.int64(), metadata={"k": "v"})])),
        pa.record_batch({"d": pa.array(["x", "y", "x"]).dictionary_encode()}),
        pa.record_batch({"n": pa.array([{"a": [1, None]}, None])}).slice(1),
        pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([]))),
        pa.record_batch({"b": pa.array([b"\x00" * 100_000, None])}),
    ]
    with opened(directory) as queue:
        for data in kinds:
            queue.append(FrameMeta((), Tally()), data)
    with opened(directory) as queue:
        for data in kinds:
            read = queue.read()
            assert read is not None
            assert read[2].equals(data, check_metadata=True)
            assert read[2].num_rows == data.num_rows


def test_a_frame_larger_than_a_segment_gets_one_of_its_own(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, [0])
        queue.append(meta(1), batch(1, size=50_000))
        fill(queue, [2])
        assert [len(frames_of(path)) for path in segments(directory)] == [1, 1, 1]
        assert drain(queue) == [0, 1, 2]


def test_settled_segments_are_unlinked_and_their_bytes_given_back(directory: Path) -> None:
    budget = SpillBudget(10**6)
    with opened(directory, budget=budget) as queue:
        fill(queue, range(12))
        held, files = budget.in_use, len(segments(directory))
        assert held == queue.bytes == sum(path.stat().st_size for path in segments(directory))
        queue.settle(6)
        assert len(segments(directory)) < files
        assert budget.in_use == queue.bytes < held
        queue.settle(12)
        assert segments(directory) == []
        assert budget.in_use == 0
        assert fill(queue, [12]) == [13]
    assert budget.in_use == 0


def test_no_file_that_was_unlinked_is_kept_open(directory: Path) -> None:
    """It would take its space for as long."""
    with opened(directory) as queue:
        fill(queue, range(6))
        drain(queue)
        queue.settle(6)
        links = [
            os.readlink(f"/proc/self/fd/{number}") for number in range(200) if os.path.islink(f"/proc/self/fd/{number}")
        ]
        assert [link for link in links if link.startswith(str(directory))] == [str(directory / "ledger")]


def test_settling_is_remembered_and_settling_again_changes_nothing(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(10))
        queue.settle(3)
        queue.settle(2)
        assert queue.settled == 3
    assert values_in(directory) == list(range(3, 10))


def test_frames_that_are_settled_unread_are_passed_over(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(12))
        assert value_of(queue.read()) == 0
        queue.settle(2)
        assert value_of(queue.read()) == 2
        queue.settle(9)
        assert drain(queue) == [9, 10, 11]


def test_numbers_go_on_after_everything_was_settled_and_the_queue_opened_again(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(5))
        queue.discard_all()
    with opened(directory) as queue:
        assert (queue.settled, queue.last, queue.frames) == (5, 5, 0)
        assert fill(queue, [7]) == [6]


def test_metas_tell_what_was_recovered_without_reading_it(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(12))
        queue.settle(4)
    with opened(directory) as queue:
        assert list(queue.metas()) == [(value + 1, meta(value)) for value in range(4, 12)]
        assert queue.recovered.frames == 8
        assert drain(queue) == list(range(4, 12))
        assert len(list(queue.metas())) == 8


@pytest.mark.parametrize("kept", range(2, 13))
def test_what_is_discarded_is_gone_and_its_numbers_come_again(directory: Path, kept: int) -> None:
    budget = SpillBudget(10**6)
    with opened(directory, budget=budget) as queue:
        fill(queue, range(12))
        assert [value_of(queue.read()) for _ in range(6)] == list(range(6))
        queue.settle(2)
        queue.discard_after(kept)
        assert queue.last == kept
        assert budget.in_use == queue.bytes == sum(path.stat().st_size for path in segments(directory))
        assert fill(queue, [100, 101]) == [kept + 1, kept + 2]
        assert drain(queue) == [*range(6, kept), 100, 101]
    assert values_in(directory) == [*range(2, kept), 100, 101]


def test_another_definition_discards_what_lies_there(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(9))
        queue.settle(2)
    with opened(directory, digest="b") as queue:
        assert "another definition" in queue.recovered.discarded
        assert queue.read() is None
        fill(queue, [9])
    with opened(directory, digest="b") as queue:
        assert queue.recovered.discarded is None
        assert drain(queue) == [9]


def test_at_the_budget_an_append_is_refused_and_changes_nothing(directory: Path) -> None:
    with opened(directory, budget=3_000, segment_bytes=1_000) as queue:
        with pytest.raises(StorageFull, match=r"spill\.budget"):
            fill(queue, range(100))
        held, before = queue.last, files_of(directory)
        with pytest.raises(StorageFull):
            fill(queue, [held])
        assert files_of(directory) == before
        queue.settle(held - 1)
        fill(queue, [held])
        assert drain(queue)[-2:] == [held - 1, held]


def test_a_budget_is_shared_and_recovered_bytes_are_charged(directory: Path, tmp_path: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(8))
    budget = SpillBudget(1_000)
    with opened(directory, budget=budget) as queue, opened(tmp_path / "other", budget=budget) as other:
        assert budget.in_use == queue.bytes > budget.bytes_max
        assert budget.available == 0
        with pytest.raises(StorageFull):
            fill(other, [0])
        queue.settle(8)
        fill(other, [0])


def test_a_frame_that_can_never_fit_is_refused_for_good(directory: Path) -> None:
    with opened(directory, budget=3_000) as queue, pytest.raises(Refused, match=r"raise spill\.budget"):
        queue.append(meta(0), batch(0, size=10_000))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("before", [0, 1, 4])
def test_a_write_that_fails_half_way_is_cut_back(
    directory: Path, monkeypatch: pytest.MonkeyPatch, code: int, before: int
) -> None:
    budget = SpillBudget(10**6)
    with opened(directory, budget=budget) as queue:
        fill(queue, range(before))
        files, held = files_of(directory), budget.in_use
        whole = os.pwritev

        def half(descriptor: int, parts: list[memoryview], offset: int) -> int:
            if len(parts) == 1:
                raise OSError(code, os.strerror(code))
            return whole(descriptor, [*parts[:1], parts[1][:5]], offset)

        with monkeypatch.context() as patched:
            patched.setattr(os, "pwritev", half)
            with pytest.raises(Retryable if code == errno.EIO else StorageFull):
                queue.append(meta(77), batch(77))
        assert files_of(directory) == files
        assert budget.in_use == held
        fill(queue, range(before, 9))
        assert drain(queue) == list(range(9))


def test_what_cannot_be_cut_back_at_once_is_cut_before_anything_follows(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "read-only")

    with opened(directory) as queue:
        fill(queue, [0])
        whole = os.pwritev

        def then_refuse(descriptor: int, parts: list[memoryview], offset: int) -> int:
            patched.setattr(os, "pwritev", refuse)
            return whole(descriptor, parts[:1], offset)

        with monkeypatch.context() as patched:
            patched.setattr(os, "ftruncate", refuse)
            patched.setattr(os, "pwritev", then_refuse)
            for value in (1, 2):
                with pytest.raises(StorageFull):
                    fill(queue, [value])
        assert segments(directory)[0].stat().st_size > queue.bytes  # the leftover is there
        queue.append(meta(1), batch(1, size=2_000))
        assert [len(frames_of(path)) for path in segments(directory)] == [1, 1]
        assert drain(queue) == [0, 1]


def test_settling_works_on_a_full_disk(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that settling does may need a new block: it must only write within the ledger's size."""
    with opened(directory) as queue:
        fill(queue, range(9))
        size = (directory / "ledger").stat().st_size
        real_open, real_write = os.open, os.pwritev

        def no_new_file(path: object, flags: int, *rest: object, **named: object) -> int:
            assert not flags & (os.O_CREAT | os.O_TRUNC)
            return real_open(path, flags, *rest, **named)

        def no_growth(descriptor: int, parts: list[memoryview], offset: int) -> int:
            assert offset + sum(map(len, parts)) <= os.fstat(descriptor).st_size
            return real_write(descriptor, parts, offset)

        with monkeypatch.context() as patched:
            patched.setattr(os, "open", no_new_file)
            patched.setattr(os, "pwritev", no_growth)
            for number in range(1, 10):
                queue.settle(number)
        assert (directory / "ledger").stat().st_size == size
        assert segments(directory) == []


def test_a_segment_that_cannot_be_unlinked_is_tried_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "not permitted")

    budget = SpillBudget(10**6)
    with opened(directory, budget=budget) as queue:
        fill(queue, range(9))
        with monkeypatch.context() as patched:
            patched.setattr(os, "unlink", refuse)
            patched.setattr(Path, "unlink", refuse)
            queue.settle(9)
        assert budget.in_use == queue.bytes > 0
        fill(queue, [9])
        assert drain(queue) == [9]
        queue.settle(10)
        assert budget.in_use == 0


def test_a_bit_that_flips_while_the_queue_is_open_is_never_returned(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(6))
        queue.settle(1)
        path = segments(directory)[0]
        start, end = frames_of(path)[1]
        original = path.read_bytes()
        for offset in range(start, end):
            flip(path, offset, bit=offset % 8)
            with pytest.raises(Corrupt, match=r"\.seg.*byte \d+.*run again"):
                queue.read()
            path.write_bytes(original)
        assert drain(queue) == list(range(1, 6))


def test_a_segment_that_vanishes_while_the_queue_is_open_is_an_error_and_no_bug(directory: Path) -> None:
    with opened(directory) as queue:
        fill(queue, range(6))
        segments(directory)[0].unlink()
        with pytest.raises(Retryable, match="run again"):
            queue.read()


spans = st.builds(
    lambda source, name, first, length, mark: Span(Partition(source, name), first, first + length, mark),
    st.text(),
    st.text(),
    st.integers(0, 2**62),
    st.integers(0, 2**62),
    st.text(),
)
counts = st.integers(0, 2**62)


@given(
    st.builds(
        FrameMeta,
        st.lists(spans).map(tuple),
        st.builds(Tally, read=counts, skipped=counts, filtered=counts, added=counts),
        st.dictionaries(st.text(), st.text()),
    )
)
def test_a_meta_comes_back_as_it_was(made: FrameMeta) -> None:
    assert decode_meta(encode_meta(made)) == made


@pytest.mark.parametrize("packed", [b"", b"\xc1", b"\x93\x90\x81\xa4what\x01\x80", b"\x93\x01\x80\x80"])
def test_the_meta_of_another_version_is_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="another version"):
        decode_meta(packed)


@given(st.lists(st.text(), min_size=2, max_size=2, unique=True))
def test_names_become_different_single_safe_components(names: list[str]) -> None:
    parts = [escaped(name) for name in names]
    assert parts[0] != parts[1]
    for part in parts:
        assert part not in {"", ".", ".."} and "/" not in part and "\0" not in part
        assert len(part.encode()) <= 255


@pytest.mark.parametrize("name", ["ns/p", "..", ".", ".a", "a b", "é\n", "a~b", "x%2Fy", "p" * NAME_BYTES_MAX])
def test_a_queue_is_listed_under_its_own_name(tmp_path: Path, name: str) -> None:
    directory = queue_directory(tmp_path, pipeline=name, edge="a->b")
    directory.mkdir(parents=True)
    assert list(queues_in(tmp_path)) == [(name, "a->b", directory)]
    assert directory.parent.parent == tmp_path / "spill"
