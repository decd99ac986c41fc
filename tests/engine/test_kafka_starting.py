"""Where reading begins in a partition: nothing is passed over silently, and every sink can drop what it has whole."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Partition, Position, Positions
from conveyord.core.flow.record_log import Extent, Topic, TopicPartition
from conveyord.engine.kafka.starting import Beginning, OnRecreated, beginning, digest_of, gap_sentence, same_log

PLACE = TopicPartition("t", 3)
PLAIN = Partition("in", "t[3]")
TOPIC = Topic("t", "cluster/new", (3,))
RENEWED = Partition("in", f"t[3]@{digest_of('cluster/new')}")


def fences(*held: int | None, mark: str = "cluster/new", name: Partition = PLAIN) -> list[Positions]:
    return [Positions({} if at is None else {name: Position(at, mark)}) for at in held]


def began(held: list[Positions], extent: Extent, **more: Any) -> Beginning:
    given: dict[str, Any] = {"first": extent.first, "handed_over": None, "on_recreated": "fail", **more}
    return beginning("in", PLACE, TOPIC, extent, held=held, **given)


# ---------------------------------------------------------------------------- one sink


def test_a_sink_with_nothing_begins_where_it_is_told() -> None:
    assert began(fences(None), Extent(0, 9), first=4) == Beginning(PLAIN, "cluster/new", 4)


def test_a_sink_goes_on_where_it_is() -> None:
    found = began(fences(5), Extent(2, 9), first=9)
    assert (found.at, found.cuts, found.skip_to, found.lost_to, found.fetch_at) == (5, (5,), None, None, 5)


def test_the_slowest_sink_decides_and_the_others_are_cuts() -> None:
    found = began(fences(7, 5, 7), Extent(0, 9))
    assert (found.at, found.cuts) == (5, (5, 7))
    found = began(fences(7, None), Extent(0, 9), first=2)
    assert (found.at, found.cuts) == (2, (7,))


def test_what_is_gone_is_told() -> None:
    found = began(fences(3), Extent(6, 9))
    assert (found.at, found.lost_to, found.fetch_at) == (3, 6, 6)
    found = began(fences(None), Extent(6, 9), first=4)
    assert (found.at, found.lost_to, found.fetch_at) == (4, 6, 6)


def test_what_another_member_read_is_passed_over() -> None:
    found = began(fences(3), Extent(0, 9), handed_over=6)
    assert (found.at, found.skip_to, found.fetch_at) == (3, 6, 6)
    assert began(fences(None), Extent(0, 9), handed_over=6).at == 6
    assert began(fences(None), Extent(0, 9), handed_over=6, first=9).at == 6, "where the others are, not at the end"
    gone = began(fences(None), Extent(8, 9), handed_over=6)
    assert (gone.at, gone.lost_to) == (6, 8), "a gap is told, whoever meets it"
    assert began(fences(7), Extent(0, 9), handed_over=6).skip_to is None


def test_a_sink_beyond_the_end_is_refused() -> None:
    with pytest.raises(Refused, match="up to offset 10, but the partition ends at 9"):
        began(fences(10), Extent(0, 9))


def test_a_beginning_beyond_the_end_is_refused() -> None:
    with pytest.raises(ConfigError, match="offset 10, but the partition ends at 9"):
        began(fences(None), Extent(0, 9), first=10)


@pytest.mark.parametrize("has", [None, 3])
def test_a_group_beyond_the_end_is_refused(has: int | None) -> None:
    with pytest.raises(ConfigError, match="the group has read up to offset 10, but the partition ends at 9"):
        began(fences(has), Extent(0, 9), handed_over=10)


# ---------------------------------------------------------------------------- incarnations


def test_another_topic_of_that_name_is_refused_or_read_beside_the_old_one() -> None:
    old = fences(5, mark="cluster/old")
    with pytest.raises(Refused, match="made anew"):
        began(old, Extent(0, 9))
    found = began(old, Extent(1, 9), first=9, on_recreated="restart")
    assert (found.partition, found.mark, found.at, found.cuts) == (RENEWED, "cluster/new", 1, ())
    both = [Positions({**old[0], RENEWED: Position(4, "cluster/new")})]
    found = began(both, Extent(0, 9), on_recreated="restart")
    assert (found.partition, found.at, found.cuts) == (RENEWED, 4, (4,))


def test_a_mark_without_an_id_may_be_of_any_topic_in_its_cluster() -> None:
    assert same_log("c/a", "c/a")
    assert same_log("c", "c/a")
    assert same_log("c/a", "c")
    assert not same_log("c/a", "c/b")
    assert not same_log("c/a", "d/a")
    assert not same_log("c", "d")


def test_incarnations_are_told_apart_by_eight_digits() -> None:
    assert len(digest_of("c/a")) == 8
    assert digest_of("c/a") != digest_of("c/b")


def test_a_gap_is_said_with_its_size_and_both_ends() -> None:
    assert gap_sentence(PLACE, 5, 6).startswith("1 offset from 5 on were deleted")
    assert "t[3] begins at 12 now" in gap_sentence(PLACE, 5, 12)


# ---------------------------------------------------------------------------- any

OFFSETS = st.integers(0, 30)


@given(
    st.lists(st.one_of(st.none(), OFFSETS), min_size=1, max_size=4),
    st.tuples(OFFSETS, OFFSETS).map(sorted),
    OFFSETS,
    st.one_of(st.none(), OFFSETS),
)
@example([0], [0, 0], 0, 1)  # only the group is beyond the end
def test_every_offset_is_read_skipped_told_as_gone_or_held_by_every_sink(
    held: list[int | None], extent: list[int], first: int, handed_over: int | None
) -> None:
    """What lies beyond the end is refused, whoever says that it is there: sinks, the group or the definition."""
    first_there, end = extent
    known = [at for at in held if at is not None]
    said = (0 if known else first) if handed_over is None else handed_over
    furthest = max(known, default=0)
    if max(said, furthest) > end:
        refusal, beyond = (Refused, furthest) if furthest > end else (ConfigError, said)
        with pytest.raises(refusal, match=f"offset {beyond}, but the partition ends at {end};"):
            began(fences(*held), Extent(first_there, end), first=first, handed_over=handed_over)
        return
    found = began(fences(*held), Extent(first_there, end), first=first, handed_over=handed_over)
    wanted_from = [first if at is None else at for at in held]
    if known:
        assert found.at == min(wanted_from)
    else:
        assert found.at == (first if handed_over is None else handed_over)
    assert set(found.cuts) == set(known)
    assert found.fetch_at >= first_there, "there is something to fetch, or nothing at all"
    between = range(found.at, found.fetch_at)
    if between:
        is_gone = found.lost_to is not None and found.lost_to == first_there == found.fetch_at
        is_skipped = found.skip_to is not None and found.skip_to == handed_over == found.fetch_at
        assert is_gone or is_skipped
    if found.skip_to is not None:
        assert found.skip_to > max(known), "no sink is told to skip what it has, and none to read what another has"


@given(st.sampled_from(["fail", "restart"]), st.lists(st.one_of(st.none(), OFFSETS), min_size=1, max_size=3))
def test_positions_of_the_same_incarnation_are_never_doubted(on_recreated: OnRecreated, held: list[int | None]) -> None:
    found = began(fences(*held), Extent(0, 30), on_recreated=on_recreated)
    assert found.partition == PLAIN
