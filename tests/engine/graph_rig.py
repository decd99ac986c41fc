"""Graphs of real and in-memory operators, run in this process. `World` is what outlives a run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pyarrow as pa
import trio
from trio.testing import MockClock

from conveyord.core.errors import BatchError, RecordError, Retryable, StorageFull
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import DeadLetterPolicy, Edge, Pipeline, Stage
from conveyord.core.retry import Backoff
from conveyord.engine import local_run
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import (
    Inbound,
    Operator,
    OperatorConfig,
    OperatorContext,
    Outbound,
    Outlet,
    Rejected,
    Sink,
    SinkReport,
    Source,
    Transform,
)
from conveyord.engine.failures import Failures
from conveyord.engine.graph import Node, run_graph
from conveyord.engine.messages import Batch, Eos
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.preparation import Limits, Prepared, prepare
from conveyord.engine.registry import Registry, installed
from conveyord.engine.summary import RunProgress
from conveyord.storage.dead_letters.letters import StoredLetter
from conveyord.storage.dead_letters.store import DeadLetterStore

GIGABYTE = 1024**3
RECORD_BYTES = 10  # what a record takes in its source; its offset is its number times that
RETRY = Backoff(base_seconds=0.1, cap_seconds=1.0)
DLQ = DeadLetterPolicy(max_retries=3, retry=RETRY)

Row = dict[str, Any]


@dataclass
class Kept:
    """What a sink has durably. It takes rows and positions in one step, as a table does."""

    rows: list[Row] = field(default_factory=list)
    positions: Positions = field(default_factory=Positions)


@dataclass
class World:
    """What a run reads, keeps and trips over. Faults are used up."""

    tables: dict[str, list[Row]] = field(default_factory=dict)
    sinks: dict[tuple[str, str], Kept] = field(default_factory=dict)
    delays: Random | None = None
    """Delays of sources, stages and sinks are drawn from it; None: none."""
    calls: Counter[str] = field(default_factory=Counter)
    """How often the work of each stage was run."""
    source_faults: dict[str, list[int]] = field(default_factory=dict)
    """By source, numbers of records before which it raises Retryable, once for each mention."""
    sink_faults: dict[tuple[str, str], int] = field(default_factory=dict)
    """By sink, how many rows it takes before its disk is full, once."""
    reads: Counter[str] = field(default_factory=Counter)
    """How often each source was started."""
    on_commit: Callable[[], None] = lambda: None
    watchers: list[Callable[[], None]] = field(default_factory=list)
    """Called after every commit of any sink."""

    def kept(self, pipeline: str, sink: str) -> Kept:
        return self.sinks.setdefault((pipeline, sink), Kept())

    async def pause(self) -> None:
        await trio.sleep(0 if self.delays is None else self.delays.choice([0, 0, 0.01, 0.1, 1.0]))

    def registry(self) -> Registry:
        """The installed operators, and those of this file bound to this world."""
        own = {
            f"{kind}.{name}": type(operator.__name__, (operator,), {"world": self})
            for (kind, name), operator in RIG.items()
        }
        return RigRegistry(installed().by_name, own)


@dataclass(frozen=True)
class RigRegistry(Registry):
    own: Mapping[str, type[Operator]] = field(default_factory=dict)

    def operator(self, kind: Any, type_name: str) -> type[Operator]:
        found = self.own.get(f"{kind}.{type_name}")
        return super().operator(kind, type_name) if found is None else found


# ---------------------------------------------------------------------------- source


class RowsConfig(OperatorConfig):
    """Reads a table of the world. A row with `bad` cannot be decoded."""

    table: str = "t"
    batch_rows: int = 4
    partitions: int = 1


SCHEMA = pa.schema([("n", pa.int64()), ("v", pa.int64()), ("k", pa.string()), ("o", pa.struct([("x", pa.int64())]))])


def raw_of(row: Row) -> bytes:
    return json.dumps(row, sort_keys=True).encode()


class RowsSource(Source):
    Config = RowsConfig
    pure = True
    unit = "bytes"
    world: ClassVar[World]

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        self.world.reads[self.context.stage] += 1
        count = self.config.partitions
        table = self.world.tables[self.config.table]
        lanes = [
            self._lane(out, Partition(self.context.stage, f"p{number}"), table[number::count], fences, drain)
            for number in range(count)
        ]
        while lanes:  # a batch of each in turn
            lanes = [lane for lane in lanes if await lane()]

    def _lane(
        self, out: Outlet, partition: Partition, rows: list[Row], fences: tuple[Positions, ...], drain: trio.Event
    ) -> Callable[[], Awaitable[bool]]:
        held = [fence[partition].offset // RECORD_BYTES if partition in fence else 0 for fence in fences]
        at = min(held)

        async def step() -> bool:
            nonlocal at
            if at >= len(rows) or drain.is_set():
                return False
            await self.world.pause()
            end = min([at + self.config.batch_rows, len(rows), *(each for each in held if each > at)])
            await self._send(out, partition, rows, at, end)
            at = end
            return True

        return step

    async def _send(self, out: Outlet, partition: Partition, rows: list[Row], at: int, end: int) -> None:
        numbers, rejected = [], []
        faults = self.world.source_faults.get(self.context.stage, [])
        for number in range(at, end):
            if number in faults:
                faults.remove(number)
                raise Retryable(f"record {number} is away")
            if rows[number].get("bad"):
                place = Place(RecordRef(partition, number * RECORD_BYTES, raw_of(rows[number])))
                error = RecordError(f"{partition.name}:{number}", "bad")
                if self.context.dead_letters is None:
                    if numbers:
                        await self._put(out, partition, rows, numbers, at, number, 0)
                    raise error
                rejected.append(Rejected(place, error))
            else:
                numbers.append(number)
        if rejected:
            assert self.context.dead_letters is not None
            await self.context.dead_letters.put(rejected)
        await self._put(out, partition, rows, numbers, at, end, len(rejected))

    async def _put(
        self, out: Outlet, partition: Partition, rows: list[Row], numbers: list[int], at: int, end: int, dead: int
    ) -> None:
        def place_of(row: int) -> Place:
            number = numbers[row]
            return Place(RecordRef(partition, number * RECORD_BYTES, raw_of(rows[number])))

        span = Span(partition, at * RECORD_BYTES, end * RECORD_BYTES)
        await out.send(
            pa.RecordBatch.from_pylist([rows[number] for number in numbers], SCHEMA),
            (span,),
            Tally(read=end - at, dead=dead),
            raw_bytes=(end - at) * RECORD_BYTES,
            states={self.context.stage: f"at {end}"},
            place_of=place_of if self.context.dead_letters is not None else None,
        )


# ---------------------------------------------------------------------------- transforms


class BrittleConfig(OperatorConfig):
    """Fails on rows whose `column` is among `poison`; on `away` it raises Retryable instead."""

    column: str = "v"
    poison: tuple[int, ...] = ()
    away: tuple[int, ...] = ()
    away_times: int | None = None
    bug: bool = False


class Brittle(BatchTransform):
    Config = BrittleConfig
    pure = True
    world: ClassVar[World]

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._times_left = self.config.away_times

    def row_wise(self, data: pa.RecordBatch) -> bool:
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        self.world.calls[self.context.stage] += 1
        values = set(data.column(self.config.column).to_pylist())
        if values & set(self.config.away) and self._times_left != 0:
            if self._times_left is not None:
                self._times_left -= 1
            raise Retryable("what the stage needs is away")
        if values & set(self.config.poison):
            if self.config.bug:
                raise ZeroDivisionError("a bug")
            raise BatchError("a value is poison")
        return data


class RepeatConfig(OperatorConfig):
    """Makes `n % 3` rows of each."""


class Repeat(BatchTransform):
    Config = RepeatConfig
    pure = True

    def row_wise(self, data: pa.RecordBatch) -> bool:
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        numbers = [row for row, n in enumerate(data.column("n").to_pylist()) for _ in range(n % 3)]
        return data.take(pa.array(numbers, pa.int64()))


class Reverse(BatchTransform):
    """Turns each batch round: no row of its result can be told where it came from."""

    Config = RepeatConfig
    pure = True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        return data.take(pa.array(range(data.num_rows - 1, -1, -1), pa.int64()))


class Slow(Transform):
    """Delays what passes."""

    Config = RepeatConfig
    world: ClassVar[World]

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        async for message in inbound:
            if isinstance(message, Eos):
                return
            await self.world.pause()
            await outbound.send(message)


# ---------------------------------------------------------------------------- sink


class KeepConfig(OperatorConfig):
    """Commits after so many batches, and at the end."""

    commit_batches: int = 1


class Keep(Sink):
    Config = KeepConfig
    delivery = "exactly-once"
    world: ClassVar[World]

    async def open(self) -> Positions:
        self._key = (self.context.pipeline, self.context.stage)
        self._kept = self.world.kept(*self._key)
        self._taken: list[Batch] = []
        self._rows = self._commits = 0
        return self._kept.positions

    async def run(self, inbound: Inbound) -> None:
        async for message in inbound:
            if isinstance(message, Eos):
                await self._commit()
                return
            if not isinstance(message, Batch):
                continue
            await self.world.pause()
            assert message.tally.rows == message.data.num_rows, message
            self.taken += message.tally
            self._rows += message.data.num_rows
            full = self.world.sink_faults.get(self._key)
            if full is not None and self._rows > full:
                del self.world.sink_faults[self._key]
                raise StorageFull("disk full")
            self._taken.append(message)
            if len(self._taken) >= self.config.commit_batches:
                await self._commit()

    async def _commit(self) -> None:
        await self.world.pause()
        positions = self._kept.positions
        rows = list(self._kept.rows)
        for batch in self._taken:
            states = {**positions.states, **batch.states}
            # Raises ValueError if the batch leaves a gap, or comes twice.
            positions = Positions(positions.advanced(batch.spans), states)
            rows += batch.data.to_pylist()
        self._kept.positions, self._kept.rows = positions, rows
        self._commits += 1
        for watcher in self.world.watchers:
            watcher()
        taken, self._taken = self._taken, []
        for batch in taken:
            batch.ack.settle()
            self.world.on_commit()

    def report(self) -> SinkReport:
        return SinkReport(self.context.stage, self._rows, 0, self._commits)


RIG: dict[tuple[str, str], type[Operator]] = {
    ("source", "rows"): RowsSource,
    ("transform", "brittle"): Brittle,
    ("transform", "repeat"): Repeat,
    ("transform", "reverse"): Reverse,
    ("transform", "slow"): Slow,
    ("sink", "keep"): Keep,
}


# ---------------------------------------------------------------------------- pipelines and runs


def stage(name: str, kind: Any, type_name: str, **options: Any) -> Stage:
    return Stage(name, kind, type_name, options)


def source(name: str = "in", **options: Any) -> Stage:
    return stage(name, "source", "rows", **options)


def transform(name: str, type_name: str, **options: Any) -> Stage:
    return stage(name, "transform", type_name, **options)


def sink(name: str = "out", **options: Any) -> Stage:
    return stage(name, "sink", "keep", **options)


def pipeline(
    stages: Iterable[Stage],
    edges: Iterable[Edge | tuple[str, str]],
    *,
    name: str = "p",
    dlq: DeadLetterPolicy | None = DLQ,
) -> Pipeline:
    made = tuple(edge if isinstance(edge, Edge) else Edge(*edge) for edge in edges)
    return Pipeline("default", name, tuple(stages), made, dlq=dlq)


def line(*stages: Stage, name: str = "p", dlq: DeadLetterPolicy | None = DLQ) -> Pipeline:
    """Stages one after the other."""
    names = [each.name for each in stages]
    return pipeline(stages, pairwise(names), name=name, dlq=dlq)


def numbered(count: int, **more: Any) -> list[Row]:
    """Rows that can be told apart: `n` counts, `v` is 0 to 9 in turn."""
    return [{"n": n, "v": n % 10, "k": "abc"[n % 3], "o": {"x": n}, **more} for n in range(count)]


@dataclass
class Outcome:
    """What came of one run."""

    failures: Failures
    prepared: Prepared
    progress: dict[str, RunProgress]
    letters: list[StoredLetter]

    def failed(self, pipeline: str = "default/p") -> list[tuple[str, str]]:
        return [(failure.stage, str(failure.error)) for failure in self.failures.of(pipeline)]

    def node(self, stage: str) -> Node:
        return next(node for node in self.prepared.graph.nodes if node.operator.context.stage == stage)

    def letters_of(self, pipeline: str = "default/p") -> list[StoredLetter]:
        return [stored for stored in self.letters if stored.letter.key.pipeline == pipeline]


async def run(
    world: World,
    pipelines: Sequence[Pipeline] | Pipeline,
    data_dir: Path,
    *,
    capacity: int = 2,
    threads: int = 2,
    spill_bytes: int = GIGABYTE,
    letter_bytes: int = GIGABYTE,
    skip_bad: bool = False,
    drain: trio.Event | None = None,
    watch: Callable[[Prepared], Awaitable[None]] | None = None,
) -> Outcome:
    """Run `pipelines` together to their end. watch: run beside, and cancelled with the end."""
    pipelines = (pipelines,) if isinstance(pipelines, Pipeline) else tuple(pipelines)
    registry, limits = world.registry(), Limits(letter_bytes, None, spill_bytes)
    request = local_run.RunRequest(pipelines, data_dir, capacity, threads, limits, skip_bad)
    drain = trio.Event() if drain is None else drain
    progress, settings = local_run.progress_of(request, registry), request.settings()
    async with AsyncExitStack() as stack:
        prepared = await prepare(pipelines, registry, settings, limits, progress, stack)
        ahead: dict[str, str] = {}
        world.on_commit = lambda: ahead.update(floors_ahead(prepared))
        async with trio.open_nursery() as nursery:
            if watch is not None:
                nursery.start_soon(watch, prepared)
            failures = await run_graph(prepared.graph, channel_capacity=capacity, threads=settings.threads, drain=drain)
            nursery.cancel_scope.cancel()
        if not failures.all:
            await prepared.finish()
        local_run._update(prepared, progress)
        # A pipeline that failed does not hold the floor of a source that others go on reading.
        assert not [text for pipeline, text in ahead.items() if not failures.of(pipeline)], ahead
    return Outcome(failures, prepared, progress, await trio.to_thread.run_sync(letters_in, data_dir))


def letters_in(data_dir: Path) -> list[StoredLetter]:
    """Every dead letter of a data directory."""
    with DeadLetterStore(data_dir, budget_bytes=GIGABYTE, retention_seconds=None, at_micros=0) as store:
        return list(store.select())


def run_now(world: World, pipelines: Sequence[Pipeline] | Pipeline, data_dir: Path, **settings: Any) -> Outcome:
    """`run` under the fast clock."""

    async def main() -> Outcome:
        return await run(world, pipelines, data_dir, **settings)

    return trio.run(main, clock=fast_clock())


def fast_clock() -> MockClock:
    """Seconds pass in 50 ms.

    A clock that jumps whenever no task is ready would take a thread at work for idleness: every periodic task
    spins then, and every deadline passes before a thread can meet it.
    """
    return MockClock(rate=20)


def floors_ahead(prepared: Prepared) -> Iterator[tuple[str, str]]:
    """By pipeline, where a source may forget what is not durable in every sink that gets its records."""
    for node in prepared.graph.nodes:
        if node.outlet is None or node.follows:
            continue
        for number, operator in prepared.assembly.operators.items():
            if not isinstance(operator, Keep) or number not in prepared.assembly.sinks_below(node.number):
                continue
            own = prepared.assembly.names[operator.context.pipeline]
            positions = operator._kept.positions
            for partition, position in node.outlet.floor.items():
                held = positions.get(Partition(own[partition.source], partition.name))
                if held is None or held.offset < position.offset:
                    yield operator.context.pipeline, f"{operator.context.stage}: {partition} {position} {held}"
