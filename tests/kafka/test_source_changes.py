"""What the `kafka` source does when topics and partitions come, go and are made anew."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from conveyord.core.errors import Refused, Retryable
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import TopicPartition
from conveyord.core.flow.tally import Tally
from tests.engine.source_rig import Letters
from tests.kafka.log_rig import FakeLogs, Logs
from tests.kafka.mock import Beyond
from tests.kafka.source_rig import Sinks, fence_after, numbered, partition, ran, running

# ---------------------------------------------------------------------------- made anew


@pytest.mark.beyond_mock(Beyond.ADMIN)
async def test_a_topic_made_anew_between_runs_is_refused(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(3))
    first = await ran(logs, topics=topic)
    logs.cluster.delete_topic(topic)
    logs.cluster.create_topic(topic, partitions=1)
    logs.cluster.produce(topic, numbered(5, first=10))
    with pytest.raises(Refused, match="deleted and made anew. Set on_recreated"):
        await ran(logs, topics=topic, fences=(first.sinks.positions(),))


@pytest.mark.beyond_mock(Beyond.ADMIN)
async def test_a_topic_made_anew_is_read_from_its_start_on_request_and_only_once(
    logs: Logs, hasty_clock: MockClock
) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(3))
    first = await ran(logs, topics=topic)
    logs.cluster.delete_topic(topic)
    logs.cluster.create_topic(topic, partitions=1)
    logs.cluster.produce(topic, numbered(2, first=10))
    options = {"topics": topic, "on_recreated": "restart", "start": "latest"}
    second = await ran(logs, **options, fences=(first.sinks.positions(),))
    assert second.sinks.column("n") == [10, 11]
    fence = fence_after(first.sinks.positions(), second.sinks.batches)
    assert fence[partition(topic)].offset == 3, "what is held of the old one stays beside it"
    logs.cluster.produce(topic, numbered(1, first=12))
    third = await ran(logs, **options, fences=(fence,))
    assert third.sinks.column("n") == [12]


@pytest.mark.beyond_mock(Beyond.ADMIN)
@pytest.mark.parametrize("options", [{"assignment": "group"}, {"start": "committed"}], ids=["shared", "committed"])
async def test_a_groups_offset_of_the_topic_before_says_nothing_of_the_new_one(
    logs: Logs, hasty_clock: MockClock, options: dict[str, str]
) -> None:
    """Brokers keep offsets by a topic's name, and take those of a reader that has not heard that it was made anew."""
    topic, group = logs.topic(), logs.group()
    logs.cluster.produce(topic, numbered(3))
    before = logs.reader().topics([topic])[topic].incarnation
    logs.cluster.delete_topic(topic)
    logs.cluster.create_topic(topic, partitions=1)
    logs.cluster.produce(topic, numbered(5, first=10))
    tail, place = logs.tail(group=group), TopicPartition(topic, 0)
    tail.assign({place: 0})
    tail.commit({place: Position(3, before)}, wait=True)
    tail.close()
    async with running(logs, topics=topic, group_id=group, **options) as run:
        await run.until_rows(5)
        await run.stop()
    assert run.sinks.column("n") == [10, 11, 12, 13, 14]


@pytest.mark.beyond_mock(Beyond.ADMIN)
async def test_a_topic_made_anew_while_it_is_read_is_refused(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(3))
    async with running(logs, topics=topic) as run:
        await run.until_rows(3)
        logs.cluster.delete_topic(topic)
        logs.cluster.create_topic(topic, partitions=1)
        await run.end()
    assert isinstance(run.error, Refused)
    assert topic in str(run.error)


@pytest.mark.parametrize("by_pattern", [False, True])
@pytest.mark.parametrize("is_noticed", [False, True])
async def test_a_topic_made_anew_while_it_is_read_is_read_anew_on_request(
    hasty_clock: MockClock, *, by_pattern: bool, is_noticed: bool
) -> None:
    """is_noticed: the source looks for topics while there is none of that name."""
    logs = FakeLogs()
    topic, sinks = logs.topic(), Sinks()
    logs.log.produce(topic, numbered(3))
    options = {"topics": f"^{topic}" if by_pattern else topic, "on_recreated": "restart", "batch_rows": 1}
    async with running(logs, sinks=sinks, again=True, **options) as run:
        await run.until_rows(3)
        sinks.is_full = True
        logs.log.produce(topic, numbered(3, first=3))
        await run.until(lambda: run.source.health.records == 6)
        looks = logs.log.looks
        logs.log.delete_topic(topic)
        if is_noticed:
            await run.until(lambda: logs.log.looks > looks + 2)
        logs.log.create_topic(topic, partitions=1)
        logs.log.produce(topic, numbered(4, first=10))
        await run.until(lambda: logs.log.looks > looks + 4 or run.calls > 1)
        sinks.let()
        await run.until(lambda: run.sinks.column("n")[-1:] == [13])
        logs.log.produce(topic, numbered(2, first=14))
        await run.until(lambda: run.sinks.column("n")[-1:] == [15])
        await run.stop()
    rows = run.sinks.column("n")
    assert rows[-6:] == [10, 11, 12, 13, 14, 15]
    assert rows[:-6] == list(range(len(rows) - 6))
    names = {span.partition.name for span in run.sinks.spans}
    assert len(names) == 2
    old = [
        row["n"]
        for batch in run.sinks.batches
        if batch.spans[0].partition == partition(topic)
        for row in batch.data.to_pylist()
    ]
    assert old == rows[:-6], "records of one incarnation went by the name of another"


@pytest.mark.beyond_mock(Beyond.ADMIN)
@pytest.mark.parametrize("options", [{}, {"assignment": "group"}], ids=["alone", "shared"])
async def test_a_topic_made_anew_and_shorter_is_read_anew(
    logs: Logs, hasty_clock: MockClock, options: dict[str, str]
) -> None:
    """The position in the old one lies beyond the end of the new one: that is neither a gap nor a loss."""
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(8))
    settings = {
        "topics": topic,
        "on_recreated": "restart",
        "discover_every": "60s",
        "group_id": logs.group(),
        **options,
    }
    async with running(logs, again=True, **settings) as run:
        await run.until_rows(8)
        logs.cluster.delete_topic(topic)
        logs.cluster.create_topic(topic, partitions=1)
        logs.cluster.produce(topic, numbered(2, first=10))
        await run.until(lambda: run.sinks.column("n")[-1:] == [11])
        await run.stop()
    assert run.sinks.column("n") == [*range(8), 10, 11]
    assert run.letters.rejected == []


async def test_a_topic_that_is_to_be_made_anew_is_waited_for(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    logs.log.produce(topic, numbered(3))
    async with running(logs, again=True, topics=topic, on_recreated="restart") as run:
        await run.until_rows(3)
        logs.log.delete_topic(topic)
        await run.until(lambda: run.calls == 2)
        looks = logs.log.looks
        await run.until(lambda: logs.log.looks > looks + 20)
        assert run.calls == 2, "it gave up and was begun again"
        logs.log.create_topic(topic, partitions=1)
        logs.log.produce(topic, numbered(2, first=10))
        await run.until(lambda: run.sinks.column("n")[-1:] == [11])
        await run.stop()


async def test_a_source_that_waits_for_a_topic_can_be_stopped(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    logs.log.produce(topic, numbered(3))
    async with running(logs, again=True, topics=topic, on_recreated="restart") as run:
        await run.until_rows(3)
        logs.log.delete_topic(topic)
        await run.until(lambda: run.calls == 2)
        await run.stop()
        assert run.calls == 2


@pytest.mark.beyond_mock(Beyond.MISSING)
async def test_a_topic_that_is_deleted_while_it_is_read_is_refused(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(3))
    async with running(logs, topics=topic) as run:
        await run.until_rows(3)
        logs.cluster.delete_topic(topic)
        await run.end()
    assert isinstance(run.error, Refused)
    assert "deleted while it was read" in str(run.error)


@pytest.mark.beyond_mock(Beyond.MISSING)
async def test_a_topic_of_a_pattern_may_go(logs: Logs, hasty_clock: MockClock) -> None:
    stem = logs.group()
    topics = [f"{stem}-a", f"{stem}-b"]
    for topic in topics:
        logs.cluster.create_topic(topic, partitions=1)
        logs.cluster.produce(topic, numbered(2))
    async with running(logs, topics=f"^{stem}-.*") as run:
        await run.until_rows(4)
        logs.cluster.delete_topic(topics[0])
        await run.until(lambda: run.source.health.partitions == 1)
        logs.cluster.produce(topics[1], numbered(2, first=10))
        await run.until_rows(6)
        await run.stop()


@pytest.mark.parametrize("by_pattern", [False, True])
async def test_a_look_that_lets_records_go_is_at_their_own_topics(hasty_clock: MockClock, *, by_pattern: bool) -> None:
    logs = FakeLogs()
    for name in ("x-a", "x-b", "x-c"):
        logs.log.create_topic(name, partitions=1)
    topics = "^x-.*" if by_pattern else ["x-a", "x-b", "x-c"]
    async with running(logs, topics=topics, discover_every="1h") as run:
        await run.until(lambda: run.source.health.partitions == 3)
        looks = logs.log.looks
        logs.log.produce("x-b", numbered(3))
        await run.until_rows(3)
        assert set(logs.log.looked_for[looks:]) == {frozenset({"x-b"})}
        await run.stop()


# ---------------------------------------------------------------------------- new ones


@pytest.mark.beyond_mock(Beyond.ADMIN)
async def test_partitions_that_are_added_are_read_from_their_start(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(2))
    async with running(logs, topics=topic, start="latest") as run:
        await run.until(lambda: run.source.health.partitions == 1)
        logs.cluster.add_partitions(topic, 3)
        logs.cluster.produce(topic, [*numbered(2, first=10, partition=1), *numbered(2, first=20, partition=2)])
        await run.until_rows(4)
        await run.stop()
    assert sorted(run.sinks.column("n")) == [10, 11, 20, 21]


async def test_new_topics_are_read_if_the_pattern_takes_them(logs: Logs, hasty_clock: MockClock) -> None:
    stem = logs.group()
    logs.cluster.create_topic(f"{stem}-a", partitions=1)
    logs.cluster.produce(f"{stem}-a", numbered(1))
    async with running(logs, topics=f"^{stem}-[a-z]", exclude=[f"{stem}-x", "^.*-y"]) as run:
        await run.until_rows(1)
        for number, letter in enumerate(["b", "x", "y", "1", "bb"], start=1):
            logs.cluster.create_topic(f"{stem}-{letter}", partitions=1)
            logs.cluster.produce(f"{stem}-{letter}", numbered(1, first=10 * number))
        await run.until_rows(2)
        looks = run.source.health.partitions
        await run.stop()
    assert (run.sinks.column("n"), looks) == ([0, 10], 2)


async def test_a_pattern_that_nothing_matches_yet_waits(logs: Logs, hasty_clock: MockClock) -> None:
    stem = logs.group()
    async with running(logs, topics=f"^{stem}-.*") as run:
        logs.cluster.create_topic(f"{stem}-a", partitions=1)
        logs.cluster.produce(f"{stem}-a", numbered(1))
        await run.until_rows(1)
        await run.stop()


@pytest.mark.parametrize("method", ["extents", "topics"])
async def test_new_partitions_are_found_although_nobody_answered_at_first(hasty_clock: MockClock, method: str) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    failures = iter([Retryable("nobody answers")] * 2)

    def fail(asked: str) -> None:
        if len(logs.log.there[topic].partitions) > 1 and asked == method and (error := next(failures, None)):
            raise error

    logs.log.asked = fail
    async with running(logs, topics=topic) as run:
        await run.until(lambda: run.source.health.partitions == 1)
        logs.log.add_partitions(topic, 2)
        logs.log.produce(topic, numbered(2, partition=1))
        await run.until_rows(2)
        assert run.source.health.errors["UNAVAILABLE"] == 2
        await run.stop()
    assert run.calls == 1


@pytest.mark.parametrize("follow", [True, False])
async def test_a_partition_of_which_nothing_comes_for_too_long_ends_the_session(
    hasty_clock: MockClock, *, follow: bool
) -> None:
    logs = FakeLogs()
    topic = logs.topic(2)
    logs.log.produce(topic, [*numbered(3), *numbered(2, first=10, partition=1)])
    logs.log.unreadable.add(TopicPartition(topic, 1))
    async with running(logs, topics=topic, follow=follow, outage_timeout="5s") as run:
        await run.end()
    assert run.sinks.column("n") == [0, 1, 2]
    assert isinstance(run.error, Retryable)
    assert f"{topic}[1]: nothing has come from offset 0 on for longer than outage_timeout (5.0 s)" in str(run.error)


async def test_a_cluster_that_is_silent_for_too_long_ends_the_session(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    is_down = False

    def fail(_asked: str) -> None:
        if is_down:
            raise Retryable("nobody answers")

    logs.log.asked = fail
    async with running(logs, topics=topic, outage_timeout="5s") as run:
        await run.until(lambda: run.source.health.partitions == 1)
        is_down = True
        await run.end()
    assert isinstance(run.error, Retryable)
    assert "outage_timeout (5.0 s)" in str(run.error)


async def test_offsets_that_go_at_the_very_beginning_are_a_gap(hasty_clock: MockClock) -> None:
    """Between the look at a partition, which decides where it begins, and the first fetch."""
    logs, letters = FakeLogs(), Letters()
    topic = logs.topic()
    logs.log.produce(topic, numbered(10))

    def clean(_tail: object) -> None:
        if not logs.log.there[topic].partitions[0].first:
            logs.log.delete_records(topic, 0, before=4)

    logs.log.polled = clean
    run = await ran(logs, topics=topic, letters=letters)
    assert run.sinks.column("n") == [4, 5, 6, 7, 8, 9]
    assert [one.place.record.offset for one in letters.rejected] == [0]
    assert run.sinks.tally == Tally(read=7, dead=1)


async def test_a_partition_is_let_go_of_when_its_topic_is_gone(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    logs.log.create_topic("x-a", partitions=1)
    logs.log.create_topic("x-b", partitions=1)
    async with running(logs, topics="^x-.*") as run:
        await run.until(lambda: run.source.health.partitions == 2)
        logs.log.delete_topic("x-a")
        await run.until(lambda: run.source.health.partitions == 1)
        assert set(run.ports.tails[0].ends()) == {TopicPartition("x-b", 0)}
        await run.stop()
