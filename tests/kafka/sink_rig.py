"""A `kafka` sink without a pipeline around it: batches go in, and what a topic holds comes out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import trio
from confluent_kafka import KafkaError, KafkaException

from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.retry import Backoff
from conveyord.engine.contracts import OperatorContext, Rejected, Retries
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators.sink_kafka import KafkaSink, KafkaSinkConfig
from tests.kafka.broker import Broker
from tests.kafka.cluster import ANSWER_SECONDS_MAX, Cluster, Record, eventually

FILE = Partition("in", "a.jsonl")
RETRIES = Retries(count_max=3, backoff=Backoff(base_seconds=0.01, cap_seconds=0.05), random=Random(1))
RECORD_BYTES = 1_000_000  # said, so that nobody asks the topic: the mock would not answer


class Letters:
    """What a sink set aside."""

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []

    async def put(self, rejected: Sequence[Rejected]) -> None:
        self.rejected += rejected

    @property
    def codes(self) -> dict[int, str]:
        """By the column `n` of the rows."""
        return {one.row.to_pylist()[0]["n"]: one.error.code for one in self.rejected if one.row is not None}


class Reading:
    """Batches as a source would send them from `at` on, ten offsets each, and whether they are settled."""

    def __init__(self, at: int = 0) -> None:
        self.settled = 0
        self._at = at

    def batch(self, data: pa.RecordBatch | dict[str, Any]) -> Batch:
        def settle() -> None:
            self.settled += 1

        rows = pa.record_batch(data) if isinstance(data, dict) else data
        first, self._at = self._at, self._at + 10
        return Batch(
            rows, (Span(FILE, first, self._at),), Tally(read=rows.num_rows), Ack(settle), {"in": f"at {self._at}"}
        )

    def numbers(self, *numbers: int) -> Batch:
        return self.batch({"n": pa.array(numbers, pa.int64())})


def sink_to(
    cluster: Cluster, topic: str, data_dir: Path, *, letters: Letters | None = None, **options: Any
) -> KafkaSink:
    """A sink; `pipeline`, `stage` and `adopt_from` go into its context."""
    own = {name: options.pop(name) for name in ("pipeline", "stage", "adopt_from", "retries") if name in options}
    given = {"brokers": cluster.bootstrap, "topic": topic, "max_record_bytes": RECORD_BYTES, **options}
    context = OperatorContext(
        own.pop("pipeline", "default/p"),
        own.pop("stage", "out"),
        data_dir,
        trio.CapacityLimiter(2),
        dead_letters=letters,
        **{"retries": RETRIES, **own},
    )
    return KafkaSink(KafkaSinkConfig.model_validate(given), context)


async def ran(sink: KafkaSink, *batches: Message) -> Positions:
    """Open a sink, run it to the end of these batches, and close it. Returns what it held before."""
    send, receive = trio.open_memory_channel[Message](len(batches) + 1)
    for message in (*batches, Eos()):
        await send.send(message)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        held = await sink.open()
        await sink.run(receive)
    return held


async def held_by(sink: KafkaSink) -> Positions:
    """What a sink holds when it is opened."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        return await sink.open()


def values(cluster: Cluster, topic: str, **how: Any) -> list[Any]:
    """The values of a topic as JSON, by partition and offset."""
    return [None if found.value is None else json.loads(found.value) for found in cluster.read(topic, **how)]


def numbers(cluster: Cluster, topic: str, **how: Any) -> list[int]:
    """The column `n` of them."""
    return [value["n"] for value in values(cluster, topic, **how)]


def committed(cluster: Cluster, topic: str) -> list[int]:
    """`numbers`, once no transaction is undecided: brokers mark a topic's records a moment after the commit."""
    eventually(lambda: cluster.extents(topic) == cluster.extents(topic, stable=True), "a transaction is open")
    return numbers(cluster, topic)


@contextmanager
def paused(broker: Broker) -> Iterator[None]:
    """Freeze a broker. After that it is waited for: its controller shuts it out for a moment, because it was silent,
    and partitions get a new leader epoch one by one, which the broker learns a little later than its clients.
    """
    before = set(broker.admin.list_topics(timeout=ANSWER_SECONDS_MAX).topics)
    broker.pause()
    try:
        yield
    finally:
        broker.resume()
        eventually(partial(_can_make_topics, broker), "the broker makes no topics")
        for topic in before:
            broker.extents(topic)


def _can_make_topics(broker: Broker) -> bool:
    try:
        broker.fresh_topic("awake", partitions=1)
    except KafkaException as error:
        if error.args[0].code() not in {KafkaError.INVALID_REPLICATION_FACTOR, KafkaError._TIMED_OUT}:
            raise
        return False
    return True


def by_key(records: Sequence[Record]) -> dict[bytes | None, list[Record]]:
    found: dict[bytes | None, list[Record]] = {}
    for record in records:
        found.setdefault(record.key, []).append(record)
    return found
