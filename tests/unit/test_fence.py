"""The fence: what is stored reads back, what moves to the archive is not lost, garbage is refused."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Corrupt
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.planning import fence as fences
from conveyord.core.planning.fence import ArchiveRef, Fence, decode, encode, encode_archive

WHERE = "table t, property f"


def advance(fence: Fence, name: str, *, to: int, rows: int = 1) -> Fence:
    partition = Partition("source", name)
    known = {**fence.archived, **fence.inline}.get(partition, Position(0))
    span = Span(partition, known.offset, to, mark="m")
    return fence.advanced([span], Tally(read=rows), rows)


def archived(fence: Fence) -> Fence:
    """What storage does: move what has outgrown the property."""
    positions = fence.outgrown()
    if positions is None:
        return fence
    body, digest = encode_archive(positions)
    moved = fence.with_archive(ArchiveRef("somewhere", digest, len(positions)), positions)
    return decode(encode(moved), where=WHERE).loaded(body)


def test_a_fence_counts_batches_and_sums_what_they_held() -> None:
    fence = advance(advance(Fence(0), "a", to=10, rows=3), "b", to=5, rows=4)
    assert (fence.n, fence.rows, fence.tally.read) == (2, 7, 7)
    assert fence.positions[Partition("source", "a")] == Position(10, "m")


def test_a_span_that_leaves_a_gap_is_refused() -> None:
    fence = advance(Fence(0), "a", to=10)
    with pytest.raises(ValueError, match="span starts at 11, fence is at 10"):
        fence.advanced([Span(Partition("source", "a"), 11, 12)], Tally(), 0)


def test_an_archived_position_still_refuses_a_gap() -> None:
    fence = Fence(0)
    for number in range(fences.INLINE_MAX + 1):
        fence = archived(advance(fence, f"f{number}", to=10))
    assert Partition("source", "f0") in fence.archived
    with pytest.raises(ValueError, match="fence is at 10"):
        fence.advanced([Span(Partition("source", "f0"), 0, 20)], Tally(), 0)


def test_a_file_that_grows_after_it_was_archived_comes_back_inline() -> None:
    fence = Fence(0)
    for number in range(fences.INLINE_MAX + 1):
        fence = archived(advance(fence, f"f{number}", to=10))
    fence = advance(fence, "f0", to=30)
    assert fence.positions[Partition("source", "f0")].offset == 30
    assert decode(encode(fence), where=WHERE).inline[Partition("source", "f0")].offset == 30


def test_writing_archives_costs_a_bounded_number_of_positions_per_file() -> None:
    fence, written, files = Fence(0), 0, 1_500
    for number in range(files):
        grown = advance(fence, f"f{number}", to=1)
        fence = archived(grown)
        written += len(fence.archived) if fence.archive != grown.archive else 0
        assert len(fence.inline) <= fences.INLINE_CEILING
    assert written / files < 12
    assert len(fence.positions) == files


def test_an_altered_archive_is_corrupt_and_says_what_to_do() -> None:
    positions = Positions({Partition("s", "a"): Position(1)})
    body, digest = encode_archive(positions)
    fence = Fence(1, archive=ArchiveRef("file:///x", digest, 1))
    with pytest.raises(Corrupt, match=r"file:///x.*digest.*restore"):
        fence.loaded(body + b" ")


def test_an_archive_that_lists_fewer_than_the_fence_says_is_corrupt() -> None:
    body, digest = encode_archive(Positions())
    with pytest.raises(Corrupt, match="holds 0 positions"):
        Fence(1, archive=ArchiveRef("x", digest, 1)).loaded(body)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "{}",
        '{"version":2}',
        '{"version":"1"}',
        '{"version":1}',
        encode(Fence(3)).replace('"n":3', '"n":-3'),
        encode(Fence(3)).replace('"n":3', '"n":true'),
        encode(Fence(3)).replace('"n":3', '"n":3.0'),
        encode(Fence(3)).replace('"positions":[]', '"positions":[["s","p",1]]'),
        encode(Fence(3)).replace('"positions":[]', '"positions":[["s","p",1,""],["s","p",2,""]]'),
        encode(Fence(3)).replace('"tally":[0,0,0,0]', '"tally":[0,0,0]').replace("tally", "tale"),
    ],
)
def test_what_this_version_cannot_have_written_is_refused_by_a_sentence(text: str) -> None:
    with pytest.raises(Corrupt, match=r"table t, property f: .*restore"):
        decode(text, where=WHERE)


@given(st.text(max_size=80))
def test_no_text_makes_decoding_fail_in_another_way(text: str) -> None:
    with suppress(Corrupt):
        decode(text, where=WHERE)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda c: st.lists(c, max_size=4)))
def test_no_wrong_type_in_a_field_makes_decoding_fail_in_another_way(value: object) -> None:
    body = json.loads(encode(Fence(3)))
    for key in (*body, "archive"):
        with suppress(Corrupt):
            decode(json.dumps({**body, key: value}), where=WHERE)


names = st.text(max_size=6) | st.sampled_from(["a", "b", "line\u2028separator", "\udc80undecodable", 'q"\\'])


@given(st.lists(st.tuples(names, st.integers(0, 5)), max_size=150))
def test_positions_read_back_exactly_whatever_was_archived_on_the_way(steps: list[tuple[str, int]]) -> None:
    fence, expected = Fence(0), dict[Partition, Position]()
    for name, length in steps:
        partition = Partition("source", name)
        end = expected.get(partition, Position(0)).offset + length
        fence = archived(advance(fence, name, to=end))
        expected[partition] = Position(end, "m")
    assert fence.positions == Positions(expected)
    assert fence.n == fence.rows == len(steps)
    stored = decode(encode(fence), where=WHERE)
    assert stored.same_batch(fence)
