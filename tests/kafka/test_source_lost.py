"""The `kafka` source when its group takes it for dead: it goes on if nobody else read on, and says so if one may."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from conveyord.core.errors import Superseded
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import TopicPartition
from tests.kafka.fake_log import FakeTail
from tests.kafka.log_rig import FakeLogs, Member
from tests.kafka.source_rig import Run, Sinks, numbered, running
from tests.kafka.test_source_groups import SHARED, Other, two_partitions


async def test_a_member_that_is_taken_for_dead_with_work_unsettled_is_superseded(hasty_clock: MockClock) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(settles=False)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, **SHARED) as run:
        await run.until_rows(12)
        tail = run.ports.tails[0]
        assert isinstance(tail, FakeTail)
        logs.log.expel(tail)
        await run.end()
    assert isinstance(run.error, Superseded)
    assert "took this member for dead" in str(run.error)


async def test_a_member_that_is_taken_for_dead_while_a_batch_is_on_its_way_is_superseded(
    hasty_clock: MockClock,
) -> None:
    logs, group, sinks = FakeLogs(), "g", Sinks(is_full=True)
    topic = two_partitions(logs, 6)
    async with running(logs, sinks=sinks, topics=topic, group_id=group, **SHARED) as run:
        await run.until(lambda: run.source.health.records == 12)
        await trio.sleep(5)
        tail = run.ports.tails[0]
        assert isinstance(tail, FakeTail)
        logs.log.expel(tail)
        await run.end()
    assert isinstance(run.error, Superseded)
    assert sinks.rows == []


async def test_a_member_that_is_taken_for_dead_with_everything_settled_goes_on(hasty_clock: MockClock) -> None:
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 6)
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:
        await run.until_rows(12)
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 6, 1: 6})
        tail = run.ports.tails[0]
        assert isinstance(tail, FakeTail)
        logs.log.expel(tail)
        await run.until(lambda: run.source.health.rebalances > 0)
        logs.log.produce(topic, numbered(3, first=50))
        await run.until_rows(15)
        await run.stop()
    assert sorted(run.sinks.column("n")) == [*range(6), 50, 51, 52, *range(100, 106)]


async def lost_untold(run: Run, logs: FakeLogs) -> None:
    """Have the group take a run for dead that has rows which the group was never told of."""
    await run.until_rows(12)
    await trio.sleep(1)
    tail = run.ports.tails[0]
    assert isinstance(tail, FakeTail)
    logs.log.expel(tail)


async def test_who_was_taken_for_dead_and_is_given_everything_back_goes_on(hasty_clock: MockClock) -> None:
    """As the only member of a group whose brokers were away for longer than its session."""
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 6)
    logs.log.refuses_commits = True
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:
        await lost_untold(run, logs)
        await run.until(lambda: run.source.health.rebalances > 0)
        logs.log.refuses_commits = False
        logs.log.produce(topic, numbered(3, first=50))
        await run.until_rows(15)
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 9, 1: 6})
        await run.stop()
    assert sorted(run.sinks.column("n")) == [*range(6), 50, 51, 52, *range(100, 106)]


@pytest.mark.parametrize(("gives_back", "offset"), [(False, 3), (True, 3), (True, 6)])
async def test_who_was_taken_for_dead_says_what_another_member_may_have_read_again(
    hasty_clock: MockClock, offset: int, *, gives_back: bool
) -> None:
    """It keeps one partition; or gives both back, having committed what it read of them, and be it all of it."""
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 6)
    logs.log.refuses_commits = True
    other = logs.log.tail(group=group)
    member = Member(logs.reader(), group)
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:

        def take(tail: FakeTail) -> None:
            if tail is run.ports.tails[0] and tail.lost and not member.told:
                logs.log.refuses_commits = False
                other.subscribe([topic], member)
                other.poll(0.0)
                assert member.at == dict.fromkeys(partitions, 0)
                member.at = dict.fromkeys(partitions, offset)
                if gives_back:
                    other.close()
                else:
                    logs.log.polled = lambda tail: other.poll(0.0) and None if tail is run.ports.tails[0] else None

        partitions = [TopicPartition(topic, number) for number in range(2)]
        logs.log.polled = take
        await lost_untold(run, logs)
        await run.end()
    assert isinstance(run.error, Superseded)
    assert "was not told what was read" in str(run.error)
    assert f"{topic}[0] up to 6" in str(run.error)
    assert "taken" not in str(run.error)
    assert f"{topic}[1] up to 6" in str(run.error)


async def test_what_was_on_its_way_to_the_group_when_it_took_a_run_for_dead_was_told_by_no_other(
    hasty_clock: MockClock,
) -> None:
    """A broker that hung takes what it was sent before when it goes on."""
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 4)
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 4, 1: 4})
        (_, told), *_ = [one for one in logs.log.commits if set(one[1].values()) != {0}][::-1]
        logs.log.refuses_commits = True
        logs.log.produce(topic, [record for p in range(2) for record in numbered(2, first=100 * p + 4, partition=p)])

        def arrive(tail: FakeTail) -> None:
            if tail.lost:
                late = {place: Position(5, position.mark) for place, position in told.items()}
                logs.log.group(group).committed.update(late)
                logs.log.refuses_commits = False

        logs.log.polled = arrive
        await lost_untold(run, logs)
        await run.until(lambda: logs.log.group_offsets(group, topic) == {0: 6, 1: 6})
        await run.stop()
    assert sorted(run.sinks.column("n")) == [*range(6), *range(100, 106)]


async def test_who_was_taken_for_dead_and_is_given_nothing_says_what_is_owed_at_the_end(hasty_clock: MockClock) -> None:
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 6)
    logs.log.refuses_commits = True
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:

        def keep_out(tail: FakeTail) -> None:
            if tail.lost:
                logs.log.dealt = lambda _group: {}  # type: ignore[method-assign]

        logs.log.polled = keep_out
        await lost_untold(run, logs)
        await trio.sleep(5)
        run.drain.set()
        await run.end()
    assert isinstance(run.error, Superseded)
    assert f"{topic}[0] up to 6, {topic}[1] up to 6: the group took this member for dead" in str(run.error)


async def test_what_the_group_refuses_to_be_told_while_partitions_go_is_said(hasty_clock: MockClock) -> None:
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 6)
    logs.log.refuses_commits = True
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:
        await run.until_rows(12)
        other = Other(logs, group, topic)
        await run.end()
        await run.until(other.has(2))
    assert isinstance(run.error, Superseded)
    assert f"{topic}[0] up to 6, {topic}[1] up to 6: refused" in str(run.error), "also what it had left at the end"
    assert len(run.sinks.rows) == 12


async def test_a_member_that_read_nothing_owes_nothing(hasty_clock: MockClock) -> None:
    logs, group = FakeLogs(), "g"
    topic = two_partitions(logs, 0)
    logs.log.refuses_commits = True
    async with running(logs, topics=topic, group_id=group, **SHARED) as run:
        await run.until(lambda: run.source.health.partitions == 2)
        other = Other(logs, group, topic)
        await run.until(other.has(1))
        await run.stop()
