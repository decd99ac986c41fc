"""Dead letters once more through the current pipeline, without ever doubling a row.

A letter goes on where it failed: its row enters the stage it had arrived at, and only the sinks behind
that stage see it; the others have had their share of the record. Letters get sequence numbers, and a
sink's fence holds the last one it has, in the commit that adds their rows, so a replay that is killed is
taken up by the next one. One stage's letters are queued, sent and settled before the next stage's.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from typing import TypeVar

import pyarrow as pa
import trio

from conveyord.core.errors import ConveyordError, RecordError
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import MAIN, DeadLetterPolicy, Edge, Pipeline
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Rejected, Sink, Source
from conveyord.engine.copies import SOURCE
from conveyord.engine.dead_lettering import LetterBox, now_micros, row_of
from conveyord.engine.gate import Gate
from conveyord.engine.graph import Graph, Link, Node, run_graph
from conveyord.engine.leftovers import Point, held_below, is_behind, point_of
from conveyord.engine.local_run import RunRequest
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.plan import Assembly, assemble, keeps_provenance
from conveyord.engine.preparation import open_letters
from conveyord.engine.provenance import with_provenance
from conveyord.engine.registry import Registry
from conveyord.engine.routing import Exit
from conveyord.storage.dead_letters.letters import Selection, StoredLetter
from conveyord.storage.locks import owned

T = TypeVar("T")

LETTERS_PER_BATCH = 1_000
SOURCE_NUMBER = -1
"""The queue's number in the graph: no stage of a plan has it."""


@dataclass(slots=True)
class ReplayReport:
    """What became of the letters of one pipeline.

    replayed: their rows are where they belong. failed_again: still dead letters, perhaps of a later stage.
    waiting: a sink has not passed their record yet, so a normal run must come first. unusable: their content
    is damaged, was never kept, or their stage is gone. error: why the replay ended early; the next goes on.
    """

    pipeline: str
    replayed: int = 0
    failed_again: int = 0
    waiting: int = 0
    unusable: int = 0
    error: ConveyordError | None = None
    stage: str | None = None


class _NoConfig(OperatorConfig):
    """There is nothing to configure."""


class QueuedLetters(Source):
    """The queued letters of one stage, by sequence number."""

    Config = _NoConfig

    def __init__(
        self,
        context: OperatorContext,
        *,
        reader: Source | None,
        partition: Partition,
        box: LetterBox,
        point: Callable[[StoredLetter], bool],
    ) -> None:
        """reader: the source itself, for letters that never became rows. partition: by which sinks remember
        how far they are. point: whether a letter goes on here.
        """
        super().__init__(_NoConfig(), context)
        self._reader = reader
        self._partition = partition
        self._box = box
        self._point = point
        self.sent_up_to = 0
        self.unusable = 0

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`. Rows of one shape go together; where a sink is, a batch ends."""
        held = [fence[self._partition].offset if self._partition in fence else 0 for fence in fences]
        at = min(held)
        group = _Group()
        async with aclosing(self._queued(at)) as queued:
            async for number, stored in queued:
                if drain.is_set():
                    break
                if stored.damage or (stored.letter.row is None and stored.letter.raw is None):
                    await self._box.ask(self._box.store.withdraw, [stored.id])
                    self.unusable += 1
                    continue
                row = await self._row(stored, fences)
                if row is None:
                    group.read += 1
                    group.dead += 1
                    continue
                if group.rows and (not row.schema.equals(group.rows[0].schema) or len(group.rows) == LETTERS_PER_BATCH):
                    at = await self._send(out, group, at)
                    group = _Group()
                group.rows.append(row)
                group.places.append(_place(stored))
                group.read += 1
                group.end = number
                if number in held:
                    at = await self._send(out, group, at)
                    group = _Group()
        if group.rows:
            await self._send(out, group, at)

    async def _queued(self, at: int) -> AsyncGenerator[tuple[int, StoredLetter], None]:
        """The queue beyond `at`, a page at a time."""
        while page := await self._box.ask(self._box.store.queued, self.context.pipeline, at, LETTERS_PER_BATCH):
            for number, stored in page:
                if self._point(stored):
                    yield number, stored
            at = page[-1][0]

    async def _send(self, out: Outlet, group: _Group, at: int) -> int:
        """Send a group that follows on `at`. Returns where it ends."""
        span = Span(self._partition, at, group.end)
        tally = Tally(read=group.read, dead=group.dead)
        data = await self.context.in_thread(pa.concat_batches, group.rows)
        await out.send(data, (span,), tally, raw_bytes=0, place_of=group.places.__getitem__)
        self.sent_up_to = group.end
        return group.end

    async def _row(self, stored: StoredLetter, fences: Sequence[Positions]) -> pa.RecordBatch | None:
        """A letter's row; None if its record still cannot be read, and then it is a dead letter again."""
        letter = stored.letter
        if letter.row is not None:
            return await self.context.in_thread(row_of, letter.row)
        assert self._reader is not None
        assert letter.raw is not None
        states = [fence.states.get(letter.key.partition.source) for fence in fences]
        state = next((state for state in states if state is not None), None)
        try:
            row = await self.context.in_thread(self._reader.decode, letter.raw, state)
        except RecordError as error:
            assert self.context.dead_letters is not None
            await self.context.dead_letters.put([Rejected(_place(stored), error)])
            return None
        if self.context.provenance:
            row = with_provenance(row, letter.key.partition, pa.array([letter.key.offset], pa.int64()))
        return row


@dataclass(slots=True)
class _Group:
    """Rows that will be one batch, up to the sequence number `end`."""

    rows: list[pa.RecordBatch] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    read: int = 0
    dead: int = 0
    end: int = 0


def _place(stored: StoredLetter) -> Place:
    key = stored.letter.key
    return Place(RecordRef(key.partition, key.offset, stored.letter.raw), key.part)


@dataclass(frozen=True, slots=True)
class _Session:
    """The operators of one pipeline with its sinks open, good for one run."""

    assembly: Assembly
    held: Mapping[str, Positions | None]


class _Replaying:
    """One pipeline whose letters are replayed. The data directory is ours."""

    def __init__(self, request: RunRequest, registry: Registry, pipeline: Pipeline, box: LetterBox) -> None:
        # Without a policy of its own, a letter that fails again is still a letter.
        self._pipeline = pipeline if pipeline.dlq is not None else replace(pipeline, dlq=DeadLetterPolicy())
        self._request = request
        self._registry = registry
        self._settings = request.settings()
        self._box = box
        self.report = ReplayReport(pipeline.identity)

    async def run(self, selection: Selection, drain: trio.Event) -> None:
        """What an earlier replay left first, then what is selected, stage by stage."""
        for point in await self._box.ask(self._left):
            await self._send(point, drain)
        for point, ids in (await self._chosen(selection)).items():
            if self.report.error is not None or drain.is_set():
                return
            chosen = Selection(ids=tuple(ids))
            await self._box.ask(self._box.store.queue_replay, self._pipeline.identity, chosen)
            await self._send(point, drain)

    def _left(self) -> set[Point]:
        """Where letters are queued that an earlier replay did not settle. Blocking."""
        found = self._box.store.select(Selection(pipeline=self._pipeline.identity), payloads=False)
        points = {point_of(stored, self._pipeline) for stored in found if stored.state == "queued"}
        return {point for point in points if point is not None}

    async def _chosen(self, selection: Selection) -> dict[Point, list[int]]:
        """The letters that can be replayed, by where they go on."""
        wanted = replace(selection, pipeline=self._pipeline.identity)
        chosen: dict[Point, list[int]] = {}
        async with AsyncExitStack() as stack:
            session = await self._open(stack)

        def sort() -> None:
            for stored in self._box.store.select(wanted, payloads=False):
                point = point_of(stored, self._pipeline)
                if stored.state != "dead":
                    continue
                if point is None:
                    self.report.unusable += 1
                elif not is_behind(stored, held_below(self._pipeline, point, session.held)):
                    self.report.waiting += 1
                else:
                    chosen.setdefault(point, []).append(stored.id)

        await self._box.ask(sort)
        return chosen

    async def _open(self, stack: AsyncExitStack) -> _Session:
        assembly = assemble([self._pipeline], self._registry, self._settings, self._box)
        held = {}
        for node in assembly.plan.nodes:
            operator = assembly.operators[node.number]
            if isinstance(operator, Sink):
                stack.push_async_callback(operator.close)
                held[node.stage.name] = await operator.open()
        return _Session(assembly, held)

    async def _send(self, point: Point, drain: trio.Event) -> None:
        """Send the queued letters of one stage, and settle what every sink behind it has."""
        identity = self._pipeline.identity
        name = point.stage if point.output is None else f"{point.stage}.{point.output}"
        partition = Partition(SOURCE, name)
        async with AsyncExitStack() as stack:
            session = await self._open(stack)
            below = held_below(self._pipeline, point, session.held)
            done = min((positions[partition].offset if partition in positions else 0 for positions in below), default=0)
            self.report.replayed += await self._box.ask(self._box.store.settle_replays, identity, done, now_micros())
            source, graph = self._graph(point, session, partition, below)
            before = self._box.counts[identity]
            failures = await run_graph(
                graph, channel_capacity=self._request.channel_capacity, threads=self._settings.threads, drain=drain
            )
            self.report.failed_again += self._box.counts[identity] - before
            self.report.unusable += source.unusable
        if failures.all:
            first = failures.all[0]
            self.report.error, self.report.stage = first.error, first.stage
            return
        self.report.replayed += await self._box.ask(
            self._box.store.settle_replays, identity, source.sent_up_to, now_micros()
        )

    def _graph(
        self,
        point: Point,
        session: _Session,
        partition: Partition,
        below: list[Positions],
    ) -> tuple[QueuedLetters, Graph]:
        """The part of the pipeline behind `point`, with the queue as its source."""
        plan, members = session.assembly.plan, frozenset([self._pipeline.identity])
        start = plan.node_of(self._pipeline.identity, point.stage)
        operator = session.assembly.operators[start.number]
        rows_enter = point.output is None and start.stage.kind != "source"
        reader = operator if isinstance(operator, Source) else None
        context = replace(operator.context, stage=SOURCE)

        def here(stored: StoredLetter) -> bool:
            return point_of(stored, self._pipeline) == point

        source = QueuedLetters(context, reader=reader, partition=partition, box=self._box, point=here)
        outlet = TrackedOutlet([])
        fences = tuple(below) or (Positions(),)
        nodes = [Node(SOURCE_NUMBER, source, members, outlet=outlet, fences=fences, output=point.output or MAIN)]
        links = []
        if rows_enter:
            links = [Link(SOURCE_NUMBER, start.number, Exit(Edge(SOURCE, point.stage), members))]
        reached = self._pipeline.below(point.stage, None if rows_enter else point.output or MAIN)
        for node in plan.nodes:
            if node.stage.name not in reached:
                continue
            gate = None
            if node.stage.kind == "sink":
                held = session.held[node.stage.name]
                gate = Gate(node.stage.name, held, names={}, keeps_provenance=keeps_provenance(node.stage))
            nodes.append(Node(node.number, session.assembly.operators[node.number], members, gate=gate))
            for edge in plan.edges_to(node.number):
                leaving = session.assembly.exits[edge]
                if plan.nodes[edge.source].stage.name in reached:
                    links.append(Link(edge.source, node.number, leaving))
                elif edge.source == start.number and leaving.edge.output == (point.output or MAIN):
                    links.append(Link(SOURCE_NUMBER, node.number, leaving))
        return source, Graph(tuple(nodes), tuple(links))


async def replay(
    request: RunRequest, registry: Registry, selection: Selection, *, drain: trio.Event
) -> list[ReplayReport]:
    """Replay the selected letters of every pipeline of `request`, one pipeline after the other.

    Raises what keeps a pipeline from being put together. Once one replay has failed, the rest is left.
    """
    reports = []
    async with AsyncExitStack() as stack:
        stack.enter_context(owned(request.data_dir))
        box = await open_letters(request.settings(), request.limits, stack)
        for pipeline in request.pipelines:
            replaying = _Replaying(request, registry, pipeline, box)
            await replaying.run(selection, drain)
            reports.append(replaying.report)
            if replaying.report.error is not None:
                break
    return reports
