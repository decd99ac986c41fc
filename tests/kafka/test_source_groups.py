"""The `kafka` source and its group: what the group is told, and what happens when partitions go to another member."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from conveyord.core.errors import ConveyordError, RecordError, Retryable, Superseded
from conveyord.core.flow.positions import Position, Positions
from conveyord.core.flow.record_log import TopicPartition
from conveyord.core.flow.tally import Tally
from tests.engine.source_rig import Letters
from tests.kafka.cluster import Record
from tests.kafka.fake_log import FakeTail
from tests.kafka.log_rig import FakeLogs, Logs, Member
from tests.kafka.mock import Beyond
from tests.kafka.source_rig import NOTHING, Run, Sinks, fence_after, numbered, partition, running

SHARED = {"assignment": "group", "release_timeout": "20s"}


def committed(logs: FakeLogs, group: str) -> dict[str, list[int]]:
    """What was committed for a group, by partition, in order."""
    found: dict[str, list[int]] = {}
    for name, offsets in logs.log.commits:
        if name == group:
            for place, offset in offsets.items():
                found.setdefault(str(place), []).append(offset.offset)
    return found


def told(logs: Logs, group: str, topic: str) -> dict[int, int]:
    """The offsets of a group, by partition."""
    places = [TopicPartition(topic, number) for number in logs.cluster.extents(topic)]
    reader = logs.open_reader()
    found = reader.committed(group, places)
    reader.close()
    return {place.number: position.offset for place, position in found.items()}


class Other:
    """Another member of a group, which reads nothing on: it takes what it is given and keeps it."""

    def __init__(self, logs: FakeLogs, group: str, topic: str) -> None:
        self.member = Member(logs.reader(), group)
        self.tail: FakeTail = logs.log.tail(group=group)
        self.tail.subscribe([topic], self.member)

    def has(self, count: int) -> Callable[[], bool]:
        def polled() -> bool:
            self.tail.poll(0.0)
            return len(self.member.owned) == count

        return polled


def two_partitions(logs: Logs, count: int) -> str:
    topic = logs.topic(2)
    logs.cluster.produce(topic, [record for p in range(2) for record in numbered(count, first=100 * p, partition=p)])
    return topic


# ---------------------------------------------------------------------------- what it is told


async def test_the_group_follows_what_every_sink_has(logs: Logs, hasty_clock: MockClock) -> None:
    topic, group, sinks = logs.topic(), logs.group(), Sinks(settles=False)
    logs.cluster.produce(topic, numbered(10))
    async with running(logs, sinks=sinks, topics=topic, group_id=group, batch_rows=4) as run:
        await run.until_rows(10)
        await trio.sleep(5)
        assert max(told(logs, group, topic).values(), default=0) == 0
        sinks.settle(1)
        floor = sinks.batches[0].spans[0].end
        await run.until(lambda: told(logs, group, topic) == {0: floor})
        sinks.settles = True
        sinks.settle()
        await run.until(lambda: told(logs, group, topic) == {0: 10})
        await run.stop()


async def test_a_group_is_told_at_the_end_what_every_sink_has(logs: Logs, hasty_clock: MockClock) -> None:
    topic, group = logs.topic(), logs.group()
    logs.cluster.produce(topic, numbered(10))
    async with running(logs, topics=topic, group_id=group, follow=False, commit_group_every="1h") as run:
        await run.end()
    assert run.error is None
    assert told(logs, group, topic) == {0: 10}


async def test_the_offsets_of_a_group_never_go_back(hasty_clock: MockClock) -> None:
    """A new sink reads from the start, beside one that has everything."""
    logs, group = FakeLogs(), "g"
    topic, place = logs.topic(), TopicPartition
    logs.log.produce(topic, numbered(10))
    logs.log.commit_group(group, {place(topic, 0): 8})
    async with running(logs, topics=topic, group_id=group, batch_rows=2) as run:
        await run.until_rows(10)
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 10})
        await run.stop()
    offsets = committed(logs, group)[f"{topic}[0]"]
    assert offsets == sorted(offsets)
    assert min(offsets) > 8


def keep_rows(sinks: Sinks) -> None:
    """Have the sinks commit as far as there are rows: a batch without any they commit when they come to it."""
    numbers = [number for number, batch in enumerate(sinks.unsettled, start=1) if batch.tally.rows]
    sinks.settle(max(numbers, default=0))


@pytest.mark.beyond_mock(Beyond.ABORTED)
async def test_the_group_passes_offsets_without_records_before_any_sink_commits_them(
    logs: Logs, hasty_clock: MockClock
) -> None:
    topic, group, sinks = logs.topic(), logs.group(), Sinks(settles=False)
    logs.cluster.produce_committed(topic, numbered(4))
    async with running(logs, sinks=sinks, topics=topic, group_id=group) as run:
        await run.until_rows(4)
        logs.cluster.produce_aborted(topic, [b"taken back"] * 2)
        await run.until(lambda: run.sinks.positions()[partition(topic)].offset == 8)
        assert max(told(logs, group, topic).values(), default=0) == 0, "what is before is in no sink yet"
        keep_rows(sinks)
        await run.until(lambda: told(logs, group, topic) == {0: 8})
        assert sinks.unsettled, "no sink had to commit for that"
        logs.cluster.produce(topic, numbered(2, first=4))
        await run.until_rows(6)
        await trio.sleep(5)
        assert told(logs, group, topic) == {0: 8}
        keep_rows(sinks)
        await run.until(lambda: told(logs, group, topic) == {0: 10})
        sinks.settles = True
        await run.stop()


@pytest.mark.beyond_mock(Beyond.ABORTED)
@pytest.mark.parametrize("options", [SHARED, {"start": "committed"}], ids=["shared", "alone"])
async def test_who_begins_where_the_group_is_passes_the_marker_that_stands_there(
    logs: Logs, hasty_clock: MockClock, options: dict[str, str]
) -> None:
    """Its own table has nothing of the partition: what is before was another's."""
    topic, group, sinks = logs.topic(), logs.group(), Sinks(settles=False)
    logs.cluster.produce_committed(topic, numbered(4))
    tail, place = logs.tail(group=group), TopicPartition(topic, 0)
    tail.assign({place: 0})
    tail.commit({place: Position(4)}, wait=True)
    tail.close()
    async with running(logs, sinks=sinks, topics=topic, group_id=group, **options) as run:
        await run.until(lambda: told(logs, group, topic) == {0: 5})
        logs.cluster.produce(topic, numbered(2, first=4))
        await run.until_rows(2)
        await trio.sleep(5)
        assert told(logs, group, topic) == {0: 5}, "no sink has these yet"
        sinks.settles = True
        sinks.settle()
        await run.stop()
    assert told(logs, group, topic) == {0: 7}


async def test_the_group_does_not_pass_records_of_which_no_row_came(hasty_clock: MockClock) -> None:
    """What filters them, or the definition, may be another in the next run."""
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = logs.topic()
    logs.log.produce(topic, numbered(2))
    async with running(logs, sinks=sinks, topics=topic, group_id=group) as run:
        await run.until_rows(2)
        logs.log.produce(topic, [Record(value=None, key=b"k", partition=0)] * 3)
        await run.until(lambda: run.sinks.positions()[partition(topic)].offset == 5)
        logs.log.skip_offsets(topic, 0, 2)
        await run.until(lambda: run.sinks.positions()[partition(topic)].offset == 7)
        keep_rows(sinks)
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 2})
        await trio.sleep(5)
        assert logs.log.group_offsets(group, topic) == {0: 2}
        sinks.settle(1)
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 7})
        sinks.settles = True
        sinks.settle()
        await run.stop()


@pytest.mark.parametrize("why", ["retry", "gap"])
async def test_what_no_sink_has_is_not_told_although_reading_began_again_behind_it(
    hasty_clock: MockClock, why: str
) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = logs.topic()
    logs.log.produce(topic, numbered(5))
    failures = [Retryable("nobody answers")] * (why == "retry")

    def poll(tail: FakeTail) -> None:
        if len(sinks.rows) == 5 and failures:
            raise failures.pop()
        if len(sinks.rows) == 5 and why == "gap" and not logs.log.there[topic].partitions[0].first:
            logs.log.skip_offsets(topic, 0, 2)
            logs.log.produce(topic, numbered(2, first=7))
            logs.log.delete_records(topic, 0, before=7)

    logs.log.polled = poll
    options = {"topics": topic, "group_id": group, "again": True, "letters": Letters()}
    async with running(logs, sinks=sinks, **options) as run:
        await run.until_rows(5)
        if why == "retry":
            await run.until(lambda: run.calls == 2 and run.source.health.partitions == 1)
            logs.log.produce(topic, numbered(2, first=5))
        await run.until_rows(7)
        await trio.sleep(5)
        assert logs.log.group_offsets(group, topic) == {}
        sinks.settles = True
        sinks.settle()
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: logs.log.extents(topic)[0].end})
        await run.stop()


async def test_who_asks_for_no_group_commits_nothing(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = two_partitions(logs, 3)
    async with running(logs, topics=topic, follow=False) as run:
        await run.end()
    assert logs.log.commits == []


async def test_a_commit_that_failed_is_made_again(hasty_clock: MockClock) -> None:
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 5)
    logs.log.commit_errors.extend([Retryable("the group is in a rebalance")] * 2)
    async with running(logs, topics=topic, group_id=group) as run:
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 5, 1: 5})
        await run.until(lambda: run.source.health.errors["UNAVAILABLE"] == 2)
        await run.stop()


async def test_another_member_goes_on_at_what_is_settled_although_a_commit_failed(hasty_clock: MockClock) -> None:
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 5)
    logs.log.commit_errors.append(Retryable("the group is in a rebalance"))
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:
        await run.until(lambda: not logs.log.commit_errors)
        other = Other(logs, group, topic)
        await run.until(other.has(1))
        await run.stop()
    assert set(other.member.at.values()) == {5}


async def test_what_is_committed_late_is_not_committed_for_another_member(hasty_clock: MockClock) -> None:
    """A commit is asked for, then the partitions go, and what was asked for must not come behind that."""
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 8)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, batch_rows=2, **SHARED) as run:
        await run.until_rows(16)
        other: list[Other] = []

        def join(tail: FakeTail) -> None:
            if not other and tail is run.ports.tails[0] and len(sinks.unsettled) < 8:
                other.append(Other(logs, group, topic))

        logs.log.polled = join
        while sinks.unsettled:
            sinks.settle(1)
            await trio.sleep(0.7)
        sinks.settles = True
        await run.until(lambda: bool(other) and other[0].has(1)())
        await trio.sleep(5)
        await run.stop()
    for offsets in committed(logs, group).values():
        assert offsets == sorted(offsets)


# ---------------------------------------------------------------------------- handing over


@pytest.mark.beyond_mock(Beyond.HANDOVER)
async def test_two_runs_share_a_topic_and_each_record_lands_once(logs: Logs, hasty_clock: MockClock) -> None:
    group = logs.group()
    topic = two_partitions(logs, 20)
    async with running(logs, topics=topic, group_id=group, batch_rows=3, **SHARED) as first:
        await first.until_rows(40)
        async with running(logs, topics=topic, group_id=group, batch_rows=3, **SHARED) as second:
            await second.until(lambda: second.source.health.partitions == 1 and first.source.health.partitions == 1)
            logs.cluster.produce(topic, [r for p in range(2) for r in numbered(20, first=100 * p + 20, partition=p)])
            await first.until(lambda: len(first.sinks.rows) + len(second.sinks.rows) >= 80)
            await first.stop()
            await second.until(lambda: second.source.health.partitions == 2)
            logs.cluster.produce(topic, [r for p in range(2) for r in numbered(5, first=100 * p + 40, partition=p)])
            await second.until(lambda: len(first.sinks.rows) + len(second.sinks.rows) >= 90)
            await second.stop()
    assert sorted([*first.sinks.column("n"), *second.sinks.column("n")]) == [
        100 * p + n for p in range(2) for n in range(45)
    ]
    assert first.source.health.rebalances + second.source.health.rebalances > 0


async def test_a_partition_goes_only_when_every_sink_has_what_was_sent_of_it(hasty_clock: MockClock) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, batch_rows=2, **SHARED) as run:
        await run.until_rows(12)
        other = Other(logs, group, topic)
        await run.until(lambda: any(batch.within_seconds == 0.0 for batch in sinks.batches))
        assert other.member.owned == set()
        sinks.settle()
        await run.until(other.has(1))
        (place,) = other.member.owned
        assert other.member.at[place] == 6
        sinks.settles = True
        logs.log.produce(topic, numbered(3, first=50, partition=1 - place.number))
        await run.until_rows(15)
        await run.stop()


async def test_a_partition_goes_at_once_if_only_offsets_without_records_are_in_no_sink(hasty_clock: MockClock) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, **SHARED) as run:
        await run.until_rows(12)
        for number in range(2):
            logs.log.skip_offsets(topic, number, 3)
        await run.until(lambda: {at.offset for at in run.sinks.positions().values()} == {9})
        keep_rows(sinks)
        assert sinks.unsettled
        other = Other(logs, group, topic)
        await run.until(other.has(1))
        assert set(other.member.at.values()) == {9}
        assert sinks.unsettled
        await run.stop()
    assert not [batch for batch in sinks.batches if batch.within_seconds is not None]


async def test_a_handover_that_cannot_settle_supersedes_and_commits_nothing_more(hasty_clock: MockClock) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 6)
    async with running(
        logs, sinks=sinks, topics=topic, group_id=group, batch_rows=2, **{**SHARED, "release_timeout": "1s"}
    ) as run:
        await run.until_rows(12)
        other = Other(logs, group, topic)
        await run.end()
        assert isinstance(run.error, Superseded)
        assert "release_timeout (1.0 s)" in str(run.error)
    await trio.sleep(1)
    assert other.has(2)()
    assert [max(offsets) for offsets in committed(logs, group).values()] in ([], [0], [0, 0])
    assert set(other.member.at.values()) == {0}


# ---------------------------------------------------------------------------- leaving


async def drained(run: Run) -> None:
    run.drain.set()


async def poisoned(run: Run) -> None:
    run.ports.logs.cluster.produce(str(run.source.config.topics), [b"poison"])


async def refused(run: Run) -> None:
    logs = run.ports.logs
    assert isinstance(logs, FakeLogs)

    def poll(tail: FakeTail) -> None:
        if tail is run.ports.tails[0]:
            raise Retryable("the coordinator is away")

    logs.log.polled = poll


@pytest.mark.parametrize("leave", [drained, poisoned, refused])
async def test_who_leaves_a_group_has_what_was_sent_settled_before(hasty_clock: MockClock, leave: Any) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, batch_rows=2, **SHARED) as run:
        await run.until_rows(12)
        other = Other(logs, group, topic)
        await leave(run)
        for _ in range(20):
            other.tail.poll(0.0)
            await trio.sleep(0.1)
        assert not run.ended.is_set()
        assert other.member.owned == set()
        sinks.settles = True
        sinks.settle()
        await run.end()
    expected: dict[Any, type[ConveyordError] | None] = {drained: None, poisoned: RecordError, refused: Retryable}
    assert (type(run.error) if run.error else None) == expected[leave]
    logs.log.polled = lambda _tail: None
    assert other.has(2)()
    assert set(other.member.at.values()) == {6}


@pytest.mark.parametrize("leave", [drained, poisoned, refused])
async def test_who_leaves_a_group_with_work_unsettled_is_superseded(hasty_clock: MockClock, leave: Any) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, **{**SHARED, "release_timeout": "1s"}) as run:
        await run.until_rows(12)
        await leave(run)
        await run.end()
    assert isinstance(run.error, Superseded)


@pytest.mark.parametrize("options", [{}, SHARED], ids=["alone", "shared"])
async def test_what_is_unread_when_a_group_is_left_is_told(hasty_clock: MockClock, options: dict[str, Any]) -> None:
    logs, sinks = FakeLogs(), Sinks(is_full=True)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id="g", batch_rows=2, **options) as run:
        await run.until(lambda: run.source.health.lag_records == 12)
        run.drain.set()
        sinks.let()
        await run.end()
    assert run.error is None
    health = run.source.health
    assert health.lag_records == sum(health.lags.values()) == 12 - len(sinks.rows) > 0
    assert health.partitions == 2


async def test_who_is_cancelled_leaves_at_once(hasty_clock: MockClock) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, **SHARED) as run:
        await run.until_rows(12)
        began = trio.current_time()
    assert trio.current_time() - began < 15, "it waited for sinks that were cancelled as well"
    assert run.error is None


# ---------------------------------------------------------------------------- new ones


async def test_partitions_that_are_added_are_read_from_their_start_in_a_group_too(hasty_clock: MockClock) -> None:
    logs, group = FakeLogs(), "g"
    topic = logs.topic()
    async with running(logs, topics=topic, group_id=group, start="latest", discover_every="1h", **SHARED) as run:
        await run.until(lambda: run.source.health.partitions == 1)

        def grow(tail: FakeTail) -> None:
            logs.log.polled = lambda _tail: None
            logs.log.add_partitions(topic, 2)
            logs.log.produce(topic, numbered(3, partition=1))

        logs.log.polled = grow
        await run.until_rows(3)
        await run.stop()


async def test_a_second_member_skips_what_the_first_has_read(hasty_clock: MockClock, tmp_path: Path) -> None:
    """It had the partition before, and comes to it again where the group is now."""
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 6)
    async with running(logs, topics=topic, group_id=group, **SHARED) as first:
        await first.until_rows(12)
        await first.stop()
    fence: Positions = fence_after(NOTHING, first.sinks.batches)
    logs.log.produce(topic, numbered(4, first=6))
    async with running(logs, topics=topic, group_id=group, **SHARED) as second:
        await second.until_rows(4)
        await second.stop()
    logs.log.produce(topic, numbered(2, first=10))
    letters = Letters()
    with capture_logs() as lines:
        async with running(logs, fences=(fence,), letters=letters, topics=topic, group_id=group, **SHARED) as third:
            await third.until_rows(2)
            await third.stop()
    (line,) = [one for one in lines if "partitions" in one]
    assert line["partitions"] == [f"{topic}[0]: table 6, group 10"]
    assert "the group is further than the table" in line["event"]
    assert third.sinks.column("n") == [10, 11]
    assert fence_after(fence, third.sinks.batches)[partition(topic)].offset == 12
    assert letters.rejected == []


async def test_only_what_no_member_has_read_is_told_as_gone(hasty_clock: MockClock) -> None:
    """The table is at 6, the group at 9, and the log begins at 11."""
    logs, group, letters = FakeLogs(), "g", Letters()
    topic = two_partitions(logs, 6)
    async with running(logs, topics=topic, group_id=group, **SHARED) as first:
        await first.until_rows(12)
        await first.stop()
    logs.log.produce(topic, numbered(8, first=6))
    logs.log.commit_group(group, {TopicPartition(topic, 0): 9})
    logs.log.delete_records(topic, 0, before=11)
    fence = first.sinks.positions()
    async with running(logs, fences=(fence,), letters=letters, topics=topic, group_id=group, **SHARED) as second:
        await second.until_rows(3)
        await second.stop()
    assert second.sinks.column("n") == [11, 12, 13]
    assert second.source.health.gaps == 2
    assert [one.place.record.offset for one in letters.rejected] == [9]
    assert second.sinks.tally == Tally(read=4, dead=1)
    assert fence_after(fence, second.sinks.batches)[partition(topic)].offset == 14
