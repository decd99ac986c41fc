"""Dead letters once more through the current pipeline, without ever doubling a row.

A letter goes on where it failed: its row enters the stage it had arrived at, and only the sinks that lack
it see it; the others have had their share of the record. Letters get sequence numbers, and a sink's fence
holds the last one it has, in the commit that adds their rows, so a replay that is killed is taken up by the
next one. Letters of one stage for the same sinks are a *lane*: queued, sent and settled before the next.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.positions import Positions
from conveyord.core.pipeline.graph import MAIN, DeadLetterPolicy, Edge, Pipeline
from conveyord.engine.contracts import Sink, Source
from conveyord.engine.copies import SOURCE
from conveyord.engine.dead_lettering import LetterBox, now_micros
from conveyord.engine.gate import Gate
from conveyord.engine.graph import Graph, Link, Node, run_graph
from conveyord.engine.lanes import Lane, LaneLetters, QueuedLetters, Shut
from conveyord.engine.leftovers import Lacks, copied_to, point_of
from conveyord.engine.local_run import RunRequest
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.plan import Assembly, assemble, keeps_provenance
from conveyord.engine.preparation import open_letters
from conveyord.engine.registry import Registry
from conveyord.engine.routing import Exit
from conveyord.storage.dead_letters.letters import Selection, StoredLetter
from conveyord.storage.locks import owned

SOURCE_NUMBER = -1
"""The queue's number in the graph: no stage of a plan has it."""


@dataclass(slots=True)
class ReplayReport:
    """What became of the letters of one pipeline.

    replayed: their rows are where they belong. failed_again: still dead letters, perhaps of a later stage.
    waiting: a sink has not passed their record yet, so a normal run must come first. absent: how many wait for a
    stage or a sink that the definition does not have, by its name. behind: how many must not pass queued ones of
    their stage that wait so. unusable: their content is damaged or was never kept. error: why the replay ended
    early; the next goes on.
    """

    pipeline: str
    replayed: int = 0
    failed_again: int = 0
    waiting: int = 0
    absent: Counter[str] = field(default_factory=Counter)
    behind: int = 0
    unusable: int = 0
    error: ConveyordError | None = None
    stage: str | None = None


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
        self._highest = 0  # sequence number that a sink holds
        self._blocked: set[str] = set()  # stages with letters that are queued and have to wait: none may pass them
        self.report = ReplayReport(pipeline.identity)

    async def run(self, selection: Selection, drain: trio.Event) -> None:
        """What an earlier replay left first, then what is selected, lane by lane."""
        identity = self._pipeline.identity
        for lane in await self._left():
            await self._send(lane, drain)
            if self.report.error is not None or drain.is_set():
                return
        for lane, ids in (await self._chosen(selection)).items():
            queue = partial(self._box.store.queue_replay, identity, Selection(ids=tuple(ids)), above=self._highest)
            await self._box.ask(queue)
            await self._send(lane, drain)
            if self.report.error is not None or drain.is_set():
                return

    async def count_absent(self, selection: Selection) -> None:
        """Count the letters that are left because the definition has no place for them."""
        async with AsyncExitStack() as stack:
            lacks = Lacks(self._pipeline, (await self._open(stack)).held)

        def count() -> None:
            for stored in self._box.store.select(replace(selection, pipeline=self._pipeline.identity), payloads=False):
                self.report.absent.update(lacks.absent(stored.letter))

        await self._box.ask(count)

    async def _left(self) -> list[Lane]:
        """Where letters are queued that an earlier replay did not settle, lowest number first."""
        async with AsyncExitStack() as stack:
            lacks = Lacks(self._pipeline, (await self._open(stack)).held)

        def found() -> list[Lane]:
            lanes: dict[Lane, int] = {}
            for stored in self._box.store.select(Selection(pipeline=self._pipeline.identity), payloads=False):
                if stored.sequence is None:
                    continue
                lane = self._lane(stored, lacks)
                if lane is None:
                    self._blocked.add(stored.letter.key.stage)
                else:
                    lanes[lane] = min(stored.sequence, lanes.get(lane, stored.sequence))
            return sorted(lanes, key=lambda lane: lanes[lane])

        return await self._box.ask(found)

    def _lane(self, stored: StoredLetter, lacks: Lacks) -> Lane | None:
        """Where a letter goes on; None if it has to wait for a stage or a sink that is not there.

        A letter goes to all its sinks or to none. If it went to some, numbers of several lanes would interleave once
        the others are back, and a fence, which is one number, could not tell what a sink has of them.
        """
        point, sinks = point_of(stored.letter.key, self._pipeline), lacks.meant(stored.letter)
        if point is None or sinks is None or lacks.absent(stored.letter):
            return None
        return Lane(point, sinks)

    async def _chosen(self, selection: Selection) -> dict[Lane, list[int]]:
        """The letters that can be replayed, by lane."""
        wanted = replace(selection, pipeline=self._pipeline.identity)
        chosen: dict[Lane, list[int]] = {}
        async with AsyncExitStack() as stack:
            lacks = Lacks(self._pipeline, (await self._open(stack)).held)

        def sort() -> None:
            for stored in self._box.store.select(wanted, payloads=False):
                if stored.state != "dead":
                    continue
                lane = self._lane(stored, lacks)
                if lane is None:
                    continue
                if stored.letter.key.stage in self._blocked:
                    self.report.behind += 1
                elif lacks.past(stored.letter.key, lane.sinks) != lane.sinks:
                    self.report.waiting += 1
                else:
                    chosen.setdefault(lane, []).append(stored.id)

        await self._box.ask(sort)
        return chosen

    async def _open(self, stack: AsyncExitStack) -> _Session:
        assembly = assemble([self._pipeline], self._registry, self._settings, self._box)
        held = {}
        for node in assembly.plan.nodes:
            operator = assembly.operators[node.number]
            if isinstance(operator, Sink):
                stack.push_async_callback(operator.close)
                held[node.stage.name] = positions = await operator.open()
                lanes = {} if positions is None else positions.of_source(SOURCE)
                # One of that name is no lane: it says how many letters were copied.
                known = [lane.offset for name, lane in lanes.items() if name != self._pipeline.identity]
                self._highest = max([self._highest, *known])
        return _Session(assembly, held)

    async def _send(self, lane: Lane, drain: trio.Event) -> None:
        """Send the queued letters of one lane, and settle what every sink of it has."""
        store, ask, identity = self._box.store, self._box.ask, self._pipeline.identity
        async with AsyncExitStack() as stack:
            session = await self._open(stack)
            lacks = Lacks(self._pipeline, session.held)
            queued = await ask(self._queued_in, lane, lacks)
            selection = Selection(ids=tuple(queued))
            fences = [positions for sink in sorted(lane.sinks) if (positions := session.held[sink]) is not None]
            done = min((one[lane.partition].offset if lane.partition in one else 0 for one in fences), default=0)
            settle = partial(store.settle_replays, identity, selection=selection, sinks=lane.sinks)
            self.report.replayed += await ask(settle, done, now_micros())
            failing = LaneLetters(lane, lacks, session.held, queued)
            copied = copied_to(self._pipeline, session.held)
            await ask(partial(failing.drop_unsent, store, identity, copied_to=copied))
            self._box.admissions[identity] = failing.admit
            numbers = {stored.id: stored.sequence for stored in queued.values() if stored.sequence is not None}
            source, graph = self._graph(lane, session, numbers, tuple(fences))
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
        settled = await ask(settle, source.sent_up_to, now_micros())
        self.report.replayed += settled - len(failing.moved)

    def _queued_in(self, lane: Lane, lacks: Lacks) -> dict[int, StoredLetter]:
        """The queued letters of a lane by id, without what they hold. Blocking."""
        found = self._box.store.select(Selection(pipeline=self._pipeline.identity), payloads=False)
        return {stored.id: stored for stored in found if stored.sequence and self._lane(stored, lacks) == lane}

    def _graph(
        self, lane: Lane, session: _Session, numbers: Mapping[int, int], fences: tuple[Positions, ...]
    ) -> tuple[QueuedLetters, Graph]:
        """The part of the pipeline behind the lane's point, with the queue as its source."""
        plan, members, point = session.assembly.plan, frozenset([self._pipeline.identity]), lane.point
        start = plan.node_of(self._pipeline.identity, point.stage)
        operator = session.assembly.operators[start.number]
        rows_enter = point.output is None and start.stage.kind != "source"
        source = QueuedLetters(
            replace(operator.context, stage=SOURCE),
            reader=operator if isinstance(operator, Source) else None,
            partition=lane.partition,
            box=self._box,
            numbers=numbers,
        )
        outlet = TrackedOutlet([])
        fences = fences or (Positions(),)
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
                name, held = node.stage.name, session.held[node.stage.name]
                kind = Gate if held is None or name in lane.sinks else Shut
                gate = kind(name, held, names={}, keeps_provenance=keeps_provenance(node.stage))
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
            await replaying.count_absent(selection)
            reports.append(replaying.report)
            if replaying.report.error is not None:
                break
    return reports
