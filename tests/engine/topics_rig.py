"""Topics in memory, read into the sink `iceberg_topics` from where it is, and its tables looked at afterwards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import trio
from pyiceberg.table import Table

from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.flow.topics import topic_of
from conveyord.core.pipeline.table_template import TableTemplate
from conveyord.core.planning.fence import decode, fence_key
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.gate import Gate
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators.sink_iceberg_topics import IcebergTopicsConfig, IcebergTopicsSink
from conveyord.storage.lake.catalog import open_embedded

PIPELINE = "ns/p"
SOURCE = "kafka"
TEMPLATE = "raw.{topic}"

Log = Mapping[str, int]
"""How many records each partition has, by its name."""


def sink_in(data_dir: Path, *, context: Mapping[str, Any] | None = None, **options: Any) -> IcebergTopicsSink:
    made = OperatorContext(**{
        "pipeline": PIPELINE, "stage": "sink", "data_dir": data_dir, "threads": trio.CapacityLimiter(1),
        **(context or {}),
    })  # fmt: skip
    return IcebergTopicsSink(IcebergTopicsConfig(**{"table": TEMPLATE, **options}), made)


def partition(name: str, source: str = SOURCE) -> Partition:
    return Partition(source, name)


def rows_of(name: str, first: int, end: int) -> pa.RecordBatch:
    """Records `first` to `end` of a partition. Every topic has a column of its own."""
    own = f"of_{topic_of(partition(name))}"
    numbers = range(first, end)
    return pa.record_batch({"partition": [name] * (end - first), "offset": numbers, own: numbers})


@dataclass
class Acks:
    """What was settled, by partition, and how many batches were not."""

    settled: dict[str, int] = field(default_factory=dict)
    open: int = 0

    def of(self, span: Span) -> Ack:
        self.open += 1
        return Ack(lambda: self._settle(span))

    def _settle(self, span: Span) -> None:
        self.open -= 1
        assert self.settled.get(span.partition.name, span.first) == span.first
        self.settled[span.partition.name] = span.end


def batch_of(span: Span, acks: Acks | None = None, *, states: Mapping[str, str] | None = None) -> Batch:
    data = rows_of(span.partition.name, span.first, span.end)
    ack = Ack(lambda: None) if acks is None else acks.of(span)
    return Batch(data, (span,), Tally(read=data.num_rows), ack, states or {}, unit="offsets")


def spans_of(log: Log, held: Positions, *, size: int, source: str = SOURCE) -> list[list[Span]]:
    """By partition, what is to be read beyond `held`, in spans of `size` records."""
    lanes = []
    for name, end in log.items():
        where = partition(name, source)
        first = held[where].offset if where in held else 0
        lanes.append([Span(where, at, min(at + size, end), "m") for at in range(first, end, size)])
    return lanes


def interleaved(lanes: Sequence[Sequence[Span]], random: Random) -> list[Span]:
    """The spans of all lanes, those of each in order."""
    left = [list(lane) for lane in lanes if lane]
    mixed = []
    while left:
        lane = random.choice(left)
        mixed.append(lane.pop(0))
        left = [lane for lane in left if lane]
    return mixed


async def ended(sink: IcebergTopicsSink, *messages: Message) -> None:
    """Run an open sink and close it, as the engine does."""
    send, receive = trio.open_memory_channel[Message](len(messages) + 1)
    for message in messages:
        await send.send(message)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        await sink.run(receive)


async def written(
    sink: IcebergTopicsSink, log: Log, *, random: Random | None = None, size: int = 3, acks: Acks | None = None
) -> IcebergTopicsSink:
    """Read `log` into `sink` from where it is, and close it."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        held = await sink.open()
        spans = interleaved(spans_of(log, held, size=size), random or Random(1))
        gate = Gate("sink", held, names={})
        batches = [gate.admit(batch_of(span, acks)) for span in spans]
        send, receive = trio.open_memory_channel[Message](len(batches) + 1)
        for batch in (*batches, Eos()):
            assert batch is not None, "the feed starts where the sink is"
            await send.send(batch)
        await sink.run(receive)
    return sink


# ------------------------------------------------------------------------------ looking at the tables


def tables(data_dir: Path, namespace: str = "raw") -> dict[str, Table]:
    """The tables of a namespace by their names."""
    catalog = open_embedded(data_dir)
    try:
        if not catalog.namespace_exists(namespace):
            return {}
        return {name[-1]: catalog.load_table(name) for name in catalog.list_tables(namespace)}
    finally:
        catalog.close()


def rows_in(table: Table) -> list[tuple[str, int]]:
    found = table.scan().to_arrow()
    return sorted(zip(found["partition"].to_pylist(), found["offset"].to_pylist(), strict=True))


def fence_of(table: Table, pipeline: str = PIPELINE) -> dict[str, int]:
    """How far the fence says each partition is."""
    fence = decode(table.properties[fence_key(pipeline)], where="test")
    return {one.name: position.offset for one, position in fence.positions.items()}


def assert_rows_are_the_fence(table: Table, name: str) -> dict[str, int]:
    """Each record below the fence is there once, none above it, and all are of the table's topic."""
    fence = fence_of(table)
    assert rows_in(table) == sorted((one, offset) for one, end in fence.items() for offset in range(end)), name
    assert {TableTemplate(TEMPLATE).table_of(str(topic_of(partition(one)))) for one in fence} <= {f"raw.{name}"}
    columns = {column for column in table.schema().column_names if column.startswith("of_")}
    assert len(columns) == 1, f"the columns of another topic are in {name}: {columns}"
    return fence


def assert_whole(data_dir: Path, log: Log) -> None:
    """Every record of `log` is in its topic's table, once."""
    fences: dict[str, int] = {}
    for name, table in tables(data_dir).items():
        fences |= assert_rows_are_the_fence(table, name)
    assert fences == {name: end for name, end in log.items() if end}
