"""The `kafka` source over a fake, the mock and a real Kafka: where it begins, what it sends, what it keeps count of."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from conveyord.core.errors import ConfigError, RecordError, Refused, Retryable
from conveyord.core.flow.positions import Position, Positions
from conveyord.core.flow.record_log import TopicPartition
from conveyord.core.flow.tally import Tally
from tests.engine.graph_rig import fast_clock
from tests.engine.source_rig import Letters
from tests.kafka.cluster import Record, eventually
from tests.kafka.log_rig import FakeLogs, Logs
from tests.kafka.mock import Beyond
from tests.kafka.source_rig import (
    AT_MS,
    NOTHING,
    Run,
    Sinks,
    fence_after,
    kafka_source,
    numbered,
    one_by_one,
    partition,
    ran,
    running,
)


def at(topic: str, offset: int, run: Run) -> Positions:
    """A fence that has the first partition of a topic up to an offset, marked as `run` marked it."""
    return Positions({partition(topic): Position(offset, run.sinks.positions()[partition(topic)].mark)})


# ---------------------------------------------------------------------------- where it begins


async def test_it_reads_all_partitions_from_the_start_and_ends_at_their_ends(
    logs: Logs, hasty_clock: MockClock
) -> None:
    topic = logs.topic(3)
    logs.cluster.produce(topic, [record for p in range(3) for record in numbered(10, first=100 * p, partition=p)])
    run = await ran(logs, topics=topic)
    assert sorted(run.sinks.column("n")) == [100 * p + n for p in range(3) for n in range(10)]
    assert {one.name: found.offset for one, found in run.sinks.positions().items()} == {
        f"{topic}[{p}]": 10 for p in range(3)
    }
    assert run.sinks.tally == Tally(read=30)
    assert (run.source.health.records, run.source.health.lag_records) == (30, 0)


async def test_it_begins_at_the_end_and_reads_what_comes(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(5))
    async with running(logs, topics=topic, start="latest") as run:
        await run.until(lambda: run.source.health.partitions == 1)
        logs.cluster.produce(topic, numbered(3, first=5))
        await run.until_rows(3)
        await run.stop()
    assert run.sinks.column("n") == [5, 6, 7]


async def test_it_begins_where_the_group_is(logs: Logs, hasty_clock: MockClock) -> None:
    topic, group = logs.topic(2), logs.group()
    logs.cluster.produce(topic, [*numbered(5), *numbered(5, first=10, partition=1)])
    tail = logs.tail(group=group)
    tail.assign({TopicPartition(topic, 0): 0})
    tail.commit({TopicPartition(topic, 0): Position(3)}, wait=True)
    run = await ran(logs, topics=topic, start="committed", group_id=group)
    assert sorted(run.sinks.column("n")) == [3, 4, 10, 11, 12, 13, 14]


@pytest.mark.beyond_mock(Beyond.TIMES)
async def test_it_begins_at_a_time(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(10))
    run = await ran(logs, topics=topic, start="2025-06-15T15:06:46.500Z")
    assert run.sinks.column("n") == [7, 8, 9]


async def test_it_begins_at_offsets_that_are_given(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic(2)
    logs.cluster.produce(topic, [*numbered(5), *numbered(5, first=10, partition=1)])
    run = await ran(logs, topics=topic, start_offsets={f"{topic}[0]": 4})
    assert sorted(run.sinks.column("n")) == [4, 10, 11, 12, 13, 14]


async def test_an_offset_beyond_the_end_is_refused(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(2))
    with pytest.raises(ConfigError, match="begin at offset 100, but the partition ends at 2"):
        await ran(logs, topics=topic, start_offsets={f"{topic}[0]": 100})


async def test_a_start_in_a_partition_that_is_not_there_is_refused_before_anything_is_read(logs: Logs) -> None:
    topic = logs.topic(2)
    source, _ = kafka_source(logs, {"topics": topic, "start_offsets": {f"{topic}[2]": 4}})
    with pytest.raises(ConfigError, match=r"has 2 partitions, .*\[2\] is not one of them"):
        await source.check()


async def test_the_end_may_move_while_it_is_asked_for(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    logs.log.asked = lambda method: logs.log.produce(topic, numbered(1)) and None if method == "offsets_at" else None
    async with running(logs, topics=topic, start="latest") as run:
        await run.until(lambda: run.source.health.partitions == 1)
        await run.stop()


async def test_a_topic_that_is_not_there_may_come(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    with pytest.raises(Retryable, match="'absent' is not there"):
        await ran(logs, topics="absent")


async def test_it_stops_at_the_ends_that_it_saw_at_the_start(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    logs.log.produce(topic, numbered(10))
    firsts = count(10, 5)

    def more(_asked: object) -> None:
        logs.log.produce(topic, numbered(5, first=next(firsts)))

    logs.log.asked = lambda method: more(method) if method != "topics" else None
    logs.log.polled = more
    run = await ran(logs, topics=topic)
    rows = len(run.sinks.rows)
    assert run.sinks.column("n") == list(range(rows))
    assert rows == run.sinks.positions()[partition(topic)].offset == 15, "the first look at the ends is what counts"


async def test_an_empty_topic_ends_at_once(logs: Logs, hasty_clock: MockClock) -> None:
    run = await ran(logs, topics=logs.topic())
    assert run.sinks.batches == []


# ---------------------------------------------------------------------------- from fences


@settings(max_examples=15)
@given(st.data())
def test_from_any_fences_each_sink_gets_each_record_once(data: st.DataObject) -> None:
    logs = FakeLogs()
    topic = logs.topic(2)
    counts = [data.draw(st.integers(0, 20)) for _ in range(2)]
    for number, records in enumerate(counts):
        for n in range(records):
            logs.log.skip_offsets(topic, number, data.draw(st.sampled_from([0, 0, 0, 2])))
            logs.log.produce(topic, numbered(1, first=n, partition=number))
    incarnation = logs.log.reader().topics([topic])[topic].incarnation
    ends = [extent.end for extent in logs.log.extents(topic).values()]
    fences = []
    for _ in range(data.draw(st.integers(1, 3))):
        held = {number: data.draw(st.one_of(st.none(), st.integers(0, end))) for number, end in enumerate(ends)}
        fences.append(
            Positions({partition(topic, n): Position(at, incarnation) for n, at in held.items() if at is not None})
        )

    async def main() -> None:
        run = await ran(logs, topics=topic, fences=tuple(fences), batch_rows=data.draw(st.integers(1, 6)))
        expected = {partition(topic, number): end for number, end in enumerate(ends) if end}
        for fence in fences:
            after = fence_after(fence, run.sinks.batches)
            assert {one: found.offset for one, found in after.items() if found.offset} == expected
        lowest = {
            number: min(
                fence[partition(topic, number)].offset if partition(topic, number) in fence else 0 for fence in fences
            )
            for number in range(2)
        }
        due = sorted(
            json.loads(record.value or b"")["n"] + 100 * number
            for number, one in enumerate(logs.log.there[topic].partitions)
            for offset, record in one.held.items()
            if offset >= lowest[number]
        )
        sent = [
            row["n"] + 100 * batch.spans[0].partition.name.endswith("[1]")
            for batch in run.sinks.batches
            for row in batch.data.to_pylist()
        ]
        assert sorted(sent) == due
        assert run.sinks.tally.read == len(due)

    trio.run(main, clock=fast_clock())


async def test_it_goes_on_where_it_was_over_a_retry_and_a_new_run(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic(2)
    logs.cluster.produce(topic, [*numbered(20), *numbered(20, first=100, partition=1)])
    first = await ran(logs, topics=topic, batch_rows=4)
    half = fence_after(NOTHING, first.sinks.batches[: len(first.sinks.batches) // 2])
    logs.cluster.produce(topic, numbered(5, first=20))
    second = await ran(logs, topics=topic, batch_rows=4, fences=(half, first.sinks.positions()))
    both = [*first.sinks.batches[: len(first.sinks.batches) // 2], *second.sinks.batches]
    assert sorted(n for batch in both for n in batch.data.column("n").to_pylist()) == [*range(25), *range(100, 120)]
    after = fence_after(first.sinks.positions(), second.sinks.batches)
    assert {found.offset for found in after.values()} == {25, 20}


async def test_a_broker_that_does_not_answer_for_a_while_costs_nothing(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    logs.log.produce(topic, numbered(10))
    failures = iter([Retryable("nobody answers")])

    def poll(_tail: Any) -> None:
        if len(run.sinks.rows) >= 4 and (error := next(failures, None)) is not None:
            raise error

    logs.log.polled = poll
    async with running(logs, topics=topic, again=True, batch_rows=4) as run:
        await run.until_rows(10)
        logs.log.produce(topic, numbered(5, first=10))
        await run.until_rows(15)
        await run.stop()
    assert run.calls == 2
    assert run.sinks.column("n") == list(range(15))


# ---------------------------------------------------------------------------- bad records, tombstones, columns


BAD = [
    Record(value=b'{"n": 0}', key=b"a", partition=0),
    Record(value=b"\x00poison", key=b"b", partition=0),
    Record(value=None, key=b"c", partition=0),
    Record(value=b'{"n": 3}', key=b"d", partition=0),
    Record(value=b"", key=b"e", partition=0),
    Record(value=b'{"n": 5}', key=b"f", partition=0),
]


async def test_it_stops_at_a_bad_record_behind_what_is_before_it(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, BAD)
    async with running(logs, topics=topic) as run:
        await run.end()
    assert isinstance(run.error, RecordError)
    assert run.error.place == f"{topic}[0] (offset 1)"
    assert run.sinks.column("n") == [0]
    assert run.sinks.positions()[partition(topic)].offset == 1
    assert run.sinks.tally == Tally(read=1)
    with pytest.raises(RecordError):
        await ran(logs, topics=topic, fences=(run.sinks.positions(),))


async def test_bad_records_are_passed_over_and_counted(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, BAD)
    run = await ran(logs, topics=topic, skip_bad=True)
    assert run.sinks.column("n") == [0, 3, 5]
    assert run.sinks.tally == Tally(read=6, skipped=2, filtered=1)


async def test_bad_records_become_dead_letters_with_their_bytes(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, BAD)
    letters = Letters()
    run = await ran(logs, topics=topic, letters=letters)
    assert run.sinks.column("n") == [0, 3, 5]
    assert run.sinks.tally == Tally(read=6, dead=2, filtered=1)
    found = [(one.place.record.offset, one.place.record.raw) for one in letters.rejected]
    assert found == [(1, b"\x00poison"), (4, b"")]
    places = [
        batch.origin.place_of(row).record.offset
        for batch in run.sinks.batches
        if batch.origin
        for row in range(batch.data.num_rows)
    ]
    assert places == [0, 3, 5]


async def test_a_value_that_is_too_large_is_a_bad_record(logs: Logs, hasty_clock: MockClock) -> None:
    topic, letters = logs.topic(), Letters()
    large = b'{"n": 1, "x": "%s"}' % (b"x" * 5000)
    logs.cluster.produce(topic, [b'{"n": 0}', large, b'{"n": 2}'])
    run = await ran(logs, topics=topic, letters=letters, max_record_bytes=4096)
    assert run.sinks.column("n") == [0, 2]
    assert [one.error.code for one in letters.rejected] == ["RECORD_TOO_LARGE"]


async def test_tombstones_are_kept_as_rows_of_nulls_on_request(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, BAD)
    run = await ran(logs, topics=topic, skip_bad=True, tombstones="keep", columns=["key", "offset"])
    assert run.sinks.rows == [
        {"n": 0, "kafka_key": "a", "kafka_offset": 0},
        {"n": None, "kafka_key": "c", "kafka_offset": 2},
        {"n": 3, "kafka_key": "d", "kafka_offset": 3},
        {"n": 5, "kafka_key": "f", "kafka_offset": 5},
    ]
    assert run.sinks.tally == Tally(read=6, skipped=2)


async def test_a_topic_of_tombstones_moves_positions(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, [Record(value=None, key=b"k", partition=0)] * 5)
    run = await ran(logs, topics=topic)
    assert run.sinks.tally == Tally(read=5, filtered=5)
    assert run.sinks.positions()[partition(topic)].offset == 5


async def test_what_stands_beside_values_comes_as_columns_and_provenance(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic(2)
    headers = (("trace", b"\xff"), ("none", None))
    logs.cluster.produce(topic, [Record(value=b'{"n": 1}', key=b"k", headers=headers, timestamp_ms=AT_MS, partition=1)])
    columns = ["key", "headers", "timestamp", "topic", "partition", "offset"]
    run = await ran(logs, topics=topic, columns=columns, key_format="bytes", context={"provenance": True})
    (row,) = run.sinks.rows
    assert row.pop("kafka_timestamp").timestamp() * 1000 == AT_MS
    assert row == {
        "n": 1,
        "kafka_key": b"k",
        "kafka_headers": list(headers),
        "kafka_topic": topic,
        "kafka_partition": 1,
        "kafka_offset": 0,
        "_source": "in",
        "_partition": f"{topic}[1]",
        "_offset": 0,
    }


@pytest.mark.beyond_mock(Beyond.ABORTED)
async def test_only_what_was_committed_is_read_and_positions_pass_the_rest(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce_aborted(topic, [b"taken back"] * 2)
    logs.cluster.produce_committed(topic, numbered(2))
    logs.cluster.produce_aborted(topic, [b"taken back"])
    eventually(lambda: logs.cluster.extents(topic, stable=True)[0].end == 8, "the markers are not there")
    run = await ran(logs, topics=topic)
    assert run.sinks.column("n") == [0, 1]
    assert run.sinks.positions()[partition(topic)].offset == 8


# ---------------------------------------------------------------------------- gaps


async def gap(logs: Logs, *, left: int = 2) -> tuple[str, Positions]:
    """A topic of which a sink has three records, and the next five are gone."""
    topic = logs.topic()
    one_by_one(logs, topic, numbered(3))
    fence = (await ran(logs, topics=topic)).sinks.positions()
    one_by_one(logs, topic, numbered(5 + left, first=3))
    logs.cluster.delete_records(topic, 0, before=8)
    return topic, fence


@pytest.mark.parametrize("left", [2, 0])
async def test_offsets_that_are_gone_become_a_dead_letter(logs: Logs, hasty_clock: MockClock, left: int) -> None:
    topic, fence = await gap(logs, left=left)
    letters = Letters()
    run = await ran(logs, topics=topic, fences=(fence,), letters=letters)
    assert run.sinks.column("n") == list(range(8, 8 + left))
    assert [(one.error.code, one.place.record.offset) for one in letters.rejected] == [("OFFSETS_GONE", 3)]
    assert run.sinks.tally == Tally(read=1 + left, dead=1)
    assert fence_after(fence, run.sinks.batches)[partition(topic)].offset == 8 + left
    assert run.source.health.gaps == 5


async def test_offsets_that_are_gone_are_passed_over_on_request(logs: Logs, hasty_clock: MockClock) -> None:
    topic, fence = await gap(logs)
    run = await ran(logs, topics=topic, fences=(fence,), skip_bad=True)
    assert run.sinks.tally == Tally(read=3, skipped=1)


@pytest.mark.parametrize("left", [2, 0])
async def test_offsets_that_are_gone_stop_the_run(logs: Logs, hasty_clock: MockClock, left: int) -> None:
    topic, fence = await gap(logs, left=left)
    with pytest.raises(RecordError, match="5 offsets from 3 on were deleted"):
        await ran(logs, topics=topic, fences=(fence,))


async def test_a_committed_offset_that_is_gone_is_a_gap(logs: Logs, hasty_clock: MockClock) -> None:
    topic, group, letters = logs.topic(), logs.group(), Letters()
    one_by_one(logs, topic, numbered(6))
    tail = logs.tail(group=group)
    tail.assign({TopicPartition(topic, 0): 0})
    tail.commit({TopicPartition(topic, 0): Position(2)}, wait=True)
    logs.cluster.delete_records(topic, 0, before=4)
    run = await ran(logs, topics=topic, start="committed", group_id=group, letters=letters)
    assert run.sinks.column("n") == [4, 5]
    assert [(one.error.code, one.place.record.offset) for one in letters.rejected] == [("OFFSETS_GONE", 2)]


async def test_what_goes_while_the_pipeline_is_full_is_a_gap(hasty_clock: MockClock) -> None:
    logs, letters = FakeLogs(), Letters()
    topic = logs.topic()
    large = b'{"n": %d, "x": "' + b"x" * 300_000 + b'"}'
    logs.log.produce(topic, [large % n for n in range(20)])
    sinks = Sinks(is_full=True)
    async with running(logs, sinks=sinks, letters=letters, topics=topic, prefetch=1024 * 1024, batch_rows=1) as run:
        await run.until(lambda: run.source.health.pauses > 0 and logs.log.polls["paused"] > 5)
        fetched = run.source.health.records
        logs.log.produce(topic, numbered(4, first=20))
        logs.log.delete_records(topic, 0, before=20)
        sinks.let()
        await run.until_rows(fetched + 4)
        await run.stop()
    assert run.sinks.column("n") == [*range(fetched), 20, 21, 22, 23]
    assert [(one.error.code, one.place.record.offset) for one in letters.rejected] == [("OFFSETS_GONE", fetched)]
    assert run.sinks.tally == Tally(read=fetched + 5, dead=1)


async def test_a_sink_that_is_beyond_the_end_is_refused(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(3))
    first = await ran(logs, topics=topic)
    with pytest.raises(Refused, match="up to offset 50, but the partition ends at 3"):
        await ran(logs, topics=topic, fences=(at(topic, 50, first),))


# ---------------------------------------------------------------------------- while the pipeline is full


async def test_polling_goes_on_while_a_full_pipeline_has_it_paused(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    value = b'{"n": %d, "x": "' + b"x" * 100_000 + b'"}'
    logs.log.produce(topic, [value % n for n in range(60)])
    sinks = Sinks(is_full=True)
    async with running(logs, sinks=sinks, topics=topic, prefetch=1024 * 1024, batch_rows=2) as run:
        await run.until(lambda: logs.log.polls["paused"] > 10)
        assert run.source.health.records < 60
        sinks.let()
        await run.until_rows(60)
        await run.stop()
    assert run.sinks.column("n") == list(range(60))
    assert run.source.health.pauses > 0


# ---------------------------------------------------------------------------- types


async def test_types_are_those_of_the_first_records_of_each_topic_and_are_kept_over_runs(
    logs: Logs, hasty_clock: MockClock
) -> None:
    topics = [logs.topic(), logs.topic()]
    logs.cluster.produce(topics[0], [b'{"a": 1}'])
    logs.cluster.produce(topics[1], [b'{"a": "text"}'])
    first = await ran(logs, topics=topics)
    types = {batch.spans[0].partition.name: batch.data.schema.field("a").type for batch in first.sinks.batches}
    assert {name: str(kind) for name, kind in types.items()} == {
        f"{topics[0]}[0]": "int64",
        f"{topics[1]}[0]": "string",
    }
    for topic in topics:
        logs.cluster.produce(topic, [b'{"a": "other"}'])
    second = await ran(logs, topics=topics, fences=(first.sinks.positions(),))
    rows = {batch.spans[0].partition.name: batch.data.to_pylist()[0] for batch in second.sinks.batches}
    assert rows[f"{topics[1]}[0]"] == {"a": "other"}
    assert rows[f"{topics[0]}[0]"].pop("a") is None
    assert list(rows[f"{topics[0]}[0]"].values()) == ["other"]


@pytest.mark.timeout(60)
async def test_a_topic_without_more_records_is_not_waited_for(logs: Logs, still_clock: MockClock) -> None:
    """Types are settled from what there is, as soon as that is known to be all: no time has to pass."""
    topic = logs.topic(2)
    logs.cluster.produce(topic, numbered(3))
    run = await ran(logs, topics=topic, linger="0s")
    assert len(run.sinks.rows) == 3


@pytest.mark.parametrize("hole", ["tombstones", "offsets"])
async def test_types_wait_for_values_and_are_not_settled_without_any(hasty_clock: MockClock, hole: str) -> None:
    logs = FakeLogs()
    topic = logs.topic()
    if hole == "tombstones":
        logs.log.produce(topic, [Record(value=None, key=b"k", partition=0)] * 3)
    else:
        logs.log.skip_offsets(topic, 0, 3)
    async with running(logs, topics=topic, batch_rows=1) as run:
        await run.until(lambda: sum(span.end - span.first for span in run.sinks.spans) == 3)
        logs.log.produce(topic, [b'{"a": 1}', b'{"a": 1.5}'])
        await run.until_rows(2)
        await run.stop()
    assert run.sinks.rows == [{"a": 1.0}, {"a": 1.5}]


async def test_columns_that_come_later_are_added(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    async with running(logs, topics=topic) as run:
        for number, value in enumerate((b'{"a": 1}', b'{"a": 2, "b": "x"}', b'{"a": 3}')):
            logs.cluster.produce(topic, [value])
            await run.until_rows(number + 1)
        await run.stop()
    assert run.sinks.rows == [{"a": 1}, {"a": 2, "b": "x"}, {"a": 3, "b": None}]


# ---------------------------------------------------------------------------- watermarks


async def test_watermarks_follow_event_time_and_the_slowest_partition(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic(2)
    options = {"event_time": "kafka_timestamp", "columns": ["timestamp"], "lateness": "1s", "idle": "1h"}
    async with running(logs, topics=topic, **options) as run:
        logs.log.produce(topic, numbered(10))
        await run.until_rows(10)
        assert run.sinks.watermarks == [], "a partition of which nothing is known holds event time"
        logs.log.produce(topic, numbered(6, partition=1))
        await run.until_rows(16)
        await run.until(lambda: bool(run.sinks.watermarks))
        assert run.sinks.watermarks[-1] == (AT_MS + 5000 - 1000) * 1000
        logs.log.produce(topic, numbered(20, first=10, partition=1))
        await run.until(lambda: run.sinks.watermarks[-1] == (AT_MS + 9000 - 1000) * 1000)
        assert run.sinks.watermarks == sorted(set(run.sinks.watermarks))
        await run.stop()


async def test_a_partition_without_records_holds_event_time_only_until_it_is_idle(hasty_clock: MockClock) -> None:
    logs = FakeLogs()
    topic = logs.topic(2)
    options = {"event_time": "kafka_timestamp", "columns": ["timestamp"], "lateness": "0s", "idle": "20s"}
    async with running(logs, topics=topic, **options) as run:
        await run.until(lambda: run.source.health.partitions == 2)
        await trio.sleep(25)
        logs.log.produce(topic, numbered(10))
        await run.until(lambda: run.sinks.watermarks[-1:] == [(AT_MS + 9000) * 1000])
        await run.stop()


async def test_an_event_time_that_is_no_time_is_said(logs: Logs, hasty_clock: MockClock) -> None:
    topic = logs.topic()
    logs.cluster.produce(topic, numbered(1))
    with pytest.raises(ConfigError, match="event_time: the column 'n' is int64"):
        await ran(logs, topics=topic, event_time="n")
