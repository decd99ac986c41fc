"""The sink `kafka` with a transactional id: who reads committed records sees each row once, whatever happened."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
import trio
from confluent_kafka import KafkaError, KafkaException

from conveyord.core.errors import ConfigError, Corrupt, Refused, Retryable
from conveyord.core.flow.positions import Partition, Position, Span
from conveyord.engine.messages import Eos, Message
from conveyord.operators.sink_kafka import KafkaSink
from tests.kafka.broker import Broker, missing
from tests.kafka.cluster import Cluster, Record
from tests.kafka.sink_rig import FILE, Letters, Reading, committed, held_by, numbers, ran, sink_to

ANSWER_SECONDS = 60


class Running:
    """A sink that is fed by hand: what `given` has been sent is committed when `committed` returns."""

    def __init__(self, sink: KafkaSink, send: trio.MemorySendChannel[Message], done: trio.Event) -> None:
        self.sink, self._send, self._done = sink, send, done
        self.error: BaseException | None = None

    async def give(self, message: Message) -> None:
        await self._send.send(message)

    async def committed(self, count: int) -> None:
        with trio.fail_after(ANSWER_SECONDS):
            while self.sink.report().commits < count and not self._done.is_set():
                await trio.sleep(0.01)

    async def ended(self) -> BaseException | None:
        with trio.fail_after(ANSWER_SECONDS):
            await self._done.wait()
        return self.error


async def running(nursery: trio.Nursery, stack: AsyncExitStack, sink: KafkaSink) -> Running:
    send, receive = trio.open_memory_channel[Message](4)
    done = trio.Event()
    found = Running(sink, send, done)
    stack.push_async_callback(sink.close)
    await sink.open()

    async def run() -> None:
        try:
            await sink.run(receive)
        except Exception as error:  # noqa: BLE001 - the test looks at it
            found.error = error
        done.set()

    nursery.start_soon(run)
    return found


def transactional(cluster: Cluster, topic: str, data_dir: Path, **options: Any) -> KafkaSink:
    return sink_to(cluster, topic, data_dir, transactional_id=topic, **{"commit": {"every": "50ms"}, **options})


async def test_positions_are_in_the_cluster(kafka: Cluster, tmp_path: Path) -> None:
    topic, reading = kafka.fresh_topic(partitions=3), Reading()
    sink = transactional(kafka, topic, tmp_path / "a")
    await ran(sink, reading.numbers(1, 2, 3), reading.numbers(), reading.numbers(4))
    assert sorted(committed(kafka, topic)) == [1, 2, 3, 4]
    assert reading.settled == 3
    held = await held_by(transactional(kafka, topic, tmp_path / "b"))
    assert (dict(held), held.states) == ({FILE: Position(30)}, {"in": "at 30"})
    assert not await held_by(transactional(kafka, topic, tmp_path / "b", stage="other"))
    await ran(transactional(kafka, topic, tmp_path / "b"), Reading(30).numbers(5))
    assert sorted(committed(kafka, topic)) == [1, 2, 3, 4, 5]


async def test_rows_without_records_still_move_positions(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, topic, data_dir), Reading().numbers())
    assert dict(await held_by(transactional(kafka, topic, data_dir))) == {FILE: Position(10)}


async def test_a_dry_run_disturbs_nobody_and_makes_nothing(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    await held_by(transactional(kafka, topic, data_dir))
    assert f"conveyord-positions.{topic}" not in kafka.admin.list_topics(timeout=10).topics
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        reading = Reading()
        one = await running(nursery, stack, transactional(kafka, topic, data_dir))
        await one.give(reading.numbers(1))
        await one.committed(1)
        await held_by(transactional(kafka, topic, data_dir))
        await one.give(reading.numbers(2))
        await one.give(Eos())
        assert await one.ended() is None
    assert committed(kafka, topic) == [1, 2]


async def test_the_topic_of_positions_is_compacted(kafka: Cluster, data_dir: Path) -> None:
    from confluent_kafka.admin import ConfigResource, ResourceType

    topic = kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, topic, data_dir, positions_topic=f"{topic}-at"), Reading().numbers(1))
    (answer,) = kafka.admin.describe_configs([ConfigResource(ResourceType.TOPIC, f"{topic}-at")]).values()
    assert answer.result(10)["cleanup.policy"].value == "compact"


async def test_many_positions_are_found_again(kafka: Cluster, data_dir: Path) -> None:
    topic, reading = kafka.fresh_topic(partitions=1), Reading()
    spans = tuple(Span(Partition("in", f"file-{number:05d}"), 0, number + 1, "m" * 40) for number in range(9_000))

    def covering(some: tuple[Span, ...]) -> Any:
        return replace(reading.numbers(1), spans=some)

    batches = [covering(spans[first : first + 1_500]) for first in range(0, 9_000, 1_500)]
    await ran(transactional(kafka, topic, data_dir, commit={"rows": 1}), *batches)
    held = await held_by(transactional(kafka, topic, data_dir))
    assert dict(held) == {span.partition: span.position for span in spans}
    await ran(transactional(kafka, topic, data_dir), Reading().numbers(2))
    assert len(await held_by(transactional(kafka, topic, data_dir))) == 9_001


async def test_positions_are_taken_over_under_a_new_name(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, topic, data_dir), Reading().numbers(1))
    for _ in range(2):  # the second time it was done before
        adopting = transactional(kafka, topic, data_dir, pipeline="default/q", adopt_from="default/p")
        assert dict(await ran(adopting)) == {FILE: Position(10)}
    assert not await held_by(transactional(kafka, topic, data_dir))
    with pytest.raises(Refused, match="no positions to take over"):
        await held_by(transactional(kafka, topic, data_dir, pipeline="default/r", adopt_from="default/p"))


# ---------------------------------------------------------------------------- others with the same id


async def test_a_second_run_shuts_the_first_out_and_no_row_is_doubled(
    kafka: Cluster, data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    topic = kafka.fresh_topic(partitions=1)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        mine, theirs = Reading(), Reading(10)
        first = await running(nursery, stack, transactional(kafka, topic, data_dir))
        await first.give(mine.numbers(1))
        await first.committed(1)
        second = await running(nursery, stack, transactional(kafka, topic, data_dir))
        await second.give(theirs.numbers(2))
        await second.committed(1)
        await first.give(mine.numbers(2))
        error = await first.ended()
        assert isinstance(error, Refused)
        assert "another run of default/p has taken over" in str(error)
        assert mine.settled == 1
        await second.give(theirs.numbers(3))
        await second.give(Eos())
        assert await second.ended() is None
    assert committed(kafka, topic) == [1, 2, 3]
    assert "FATAL" not in capfd.readouterr().err, "what librdkafka prints by itself where a producer is shut out"


async def test_what_another_commits_while_a_run_starts_is_not_sent_twice(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, topic, data_dir), Reading().numbers(1))
    late = transactional(kafka, topic, data_dir)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(late.close)
        await late.open()
        await ran(transactional(kafka, topic, data_dir), Reading(10).numbers(2))
        _, receive = trio.open_memory_channel[Message](1)
        with pytest.raises(Retryable, match="committed while this one was starting"):
            await late.run(receive)
    assert committed(kafka, topic) == [1, 2]


async def test_a_producer_that_only_was_silent_for_too_long_goes_on(kafka: Cluster, data_dir: Path) -> None:
    """Its broker shuts it out as if somebody had taken over: that somebody did not write positions."""
    topic = kafka.fresh_topic(partitions=1)
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        reading = Reading()
        one = await running(nursery, stack, transactional(kafka, topic, data_dir))
        await one.give(reading.numbers(1))
        await one.committed(1)
        kafka.producer(transactional_id=topic).init_transactions(30)
        await one.give(reading.numbers(2))
        await one.give(Eos())
        assert await one.ended() is None
    assert committed(kafka, topic) == [1, 2]


async def test_what_a_killed_run_left_open_is_ended_by_the_next(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, topic, data_dir), Reading().numbers(1))
    left = kafka.begin(topic, [b'{"n":99}'], transaction=topic)
    held = await ran(transactional(kafka, topic, data_dir), Reading(10).numbers(2))
    assert dict(held) == {FILE: Position(10)}
    assert committed(kafka, topic) == [1, 2]
    del left


# ---------------------------------------------------------------------------- faults on the way


class Fault:
    """Makes a call of a producer fail: `before` it does anything, or `after` it has done it. Used up once."""

    def __init__(self, call: str, when: str) -> None:
        self.call, self.when, self.left = call, when, 1

    def around(self, name: str, work: Any) -> Any:
        if name != self.call or not self.left:
            return work()
        self.left -= 1
        if self.when == "after":
            work()
        raise KafkaException(KafkaError(KafkaError._TIMED_OUT, "nobody answered", retriable=True))


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Fault:
    found = Fault(*request.param)

    class Faulty(confluent_kafka.Producer):
        def begin_transaction(self) -> Any:
            return found.around("begin", super().begin_transaction)

        def commit_transaction(self, timeout: float) -> Any:
            return found.around("commit", lambda: super(Faulty, self).commit_transaction(timeout))

        def abort_transaction(self, timeout: float) -> Any:
            return found.around("abort", lambda: super(Faulty, self).abort_transaction(timeout))

    monkeypatch.setattr(confluent_kafka, "Producer", Faulty)
    return found


@pytest.mark.parametrize(
    "fault",
    [("begin", "before"), ("begin", "after"), ("commit", "before"), ("commit", "after")],
    indirect=True,
    ids="-".join,
)
async def test_a_transaction_whose_end_is_unknown_is_looked_up(kafka: Cluster, data_dir: Path, fault: Fault) -> None:
    topic = kafka.fresh_topic(partitions=1)
    fault.left = 0
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        reading = Reading()
        one = await running(nursery, stack, transactional(kafka, topic, data_dir))
        await one.give(reading.numbers(1))
        await one.committed(1)
        fault.left = 1
        await one.give(reading.numbers(2, 3))
        await one.committed(2)
        await one.give(reading.numbers(4))
        await one.give(Eos())
        assert await one.ended() is None
    assert fault.left == 0
    assert committed(kafka, topic) == [1, 2, 3, 4]
    assert dict(await held_by(transactional(kafka, topic, data_dir))) == {FILE: Position(30)}


@pytest.mark.parametrize("fault", [("commit", "before"), ("commit", "after")], indirect=True, ids="-".join)
async def test_becoming_the_writer_is_tried_again(kafka: Cluster, data_dir: Path, fault: Fault) -> None:
    topic = kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, topic, data_dir), Reading().numbers(1))
    assert fault.left == 0
    assert committed(kafka, topic) == [1]


async def test_cancelled_it_leaves_nothing_of_what_was_not_committed(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    reading = Reading()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        one = await running(nursery, stack, transactional(kafka, topic, data_dir, commit={"every": "1h"}))
        await one.give(reading.numbers(1, 2))
        nursery.cancel_scope.cancel()
    assert committed(kafka, topic) == []
    assert reading.settled == 0


async def test_dead_letters_are_there_before_the_transaction_that_covers_them(kafka: Cluster, data_dir: Path) -> None:
    topic, reading = kafka.fresh_topic(partitions=1), Reading()
    seen: list[list[int]] = []

    class Watching(Letters):
        async def put(self, rejected: Any) -> None:
            seen.append(numbers(kafka, topic))
            await super().put(rejected)

    letters = Watching()
    rows = reading.batch({"n": [1, 2, 3], "text": ["a", "x" * 20_000, "b"]})
    sink = transactional(kafka, topic, data_dir, letters=letters, max_record_bytes=10_000)
    await ran(sink, rows)
    assert (seen, letters.codes) == ([[]], {2: "RECORD_TOO_LARGE"})
    assert committed(kafka, topic) == [1, 3]


# ---------------------------------------------------------------------------- the topic of positions


async def test_a_topic_of_positions_that_forgets_is_refused(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    kafka.create_topic(f"{topic}-at", partitions=1)
    with pytest.raises(ConfigError, match=r"cleanup\.policy must be compact"):
        await ran(transactional(kafka, topic, data_dir, positions_topic=f"{topic}-at"), Reading().numbers(1))
    assert committed(kafka, topic) == []


async def test_a_fence_that_is_damaged_is_never_guessed(kafka: Cluster, data_dir: Path) -> None:
    topic = kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, topic, data_dir), Reading().numbers(1))
    (*_, last) = kafka.read(f"conveyord-positions.{topic}")
    kafka.produce(f"conveyord-positions.{topic}", [Record(key=last.key, value=b"{}", partition=0)])
    with pytest.raises(Corrupt, match=f"conveyord-positions.{topic}"):
        await held_by(transactional(kafka, topic, data_dir))


async def test_sinks_may_share_a_topic_of_positions(kafka: Cluster, data_dir: Path) -> None:
    one, other = kafka.fresh_topic(partitions=1), kafka.fresh_topic(partitions=1)
    await ran(transactional(kafka, one, data_dir, positions_topic=f"{one}-at"), Reading().numbers(1))
    await ran(transactional(kafka, other, data_dir, positions_topic=f"{one}-at"), Reading(20).numbers(2))
    # The fences are far from the end then.
    kafka.produce(f"{one}-at", [Record(key=b"another", value=b"x", partition=0) for _ in range(2_000)])
    assert dict(await held_by(transactional(kafka, one, data_dir, positions_topic=f"{one}-at"))) == {FILE: Position(10)}
    assert dict(await held_by(transactional(kafka, other, data_dir, positions_topic=f"{one}-at"))) == {
        FILE: Position(30)
    }


@pytest.mark.check
@pytest.mark.kafka
@pytest.mark.skipif(missing() is not None, reason="no broker of our own")
async def test_looking_makes_no_topic_where_the_broker_makes_what_is_named(tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    making = Broker(tmp_path / "broker", settings={"auto.create.topics.enable": "true"})
    making.start()
    try:
        given: Any = {"transactional_id": "a", "create_topic": {"partitions": 2}, "max_record_bytes": None}
        await held_by(sink_to(making, "t", tmp_path, **given))
        assert not making.admin.list_topics(timeout=10).topics
        await ran(sink_to(making, "t", tmp_path, **given), Reading().numbers(1))
        await ran(sink_to(making, "u", tmp_path), Reading().numbers(1))
        assert (len(making.extents("t")), len(making.extents("u"))) == (2, 3)
        assert committed(making, "t") == numbers(making, "u") == [1]
    finally:
        making.kill()
