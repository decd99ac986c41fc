"""Dead letters once more through the current pipeline, without ever doubling a row.

A letter goes on where it failed: its row enters the stage it had arrived at, once for each sink that lacks it, and
only the stages on the way to that sink see it. Letters of one stage for one sink are a *lane*. They get sequence
numbers, and the sink's fence holds the last one it has, in the commit that adds their rows, so a replay that is
killed is taken up by the next one. Sinks know nothing of one another: one that is away, or whose table is another
one, holds up nobody.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial

import trio

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.dead_letters import KEEPS_NONE, LetterKey
from conveyord.core.flow.positions import Partition, Position, Positions
from conveyord.core.pipeline.graph import MAIN, DeadLetterPolicy, Edge, Pipeline
from conveyord.engine.contracts import Source
from conveyord.engine.copies import SOURCE
from conveyord.engine.dead_lettering import LetterBox, now_micros
from conveyord.engine.gate import Gate
from conveyord.engine.graph import Graph, Link, Node, run_graph
from conveyord.engine.lanes import Discard, QueuedLetters, partition_of
from conveyord.engine.leftovers import Lacks, Point, Standing, copied_to, let_go_of_arrived, point_of
from conveyord.engine.local_run import RunRequest
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.plan import Assembly, assemble, keeps_provenance
from conveyord.engine.preparation import open_letters, open_sinks, standings_of
from conveyord.engine.registry import Registry
from conveyord.engine.routing import Exit
from conveyord.storage.dead_letters.letters import Claim, Lane, Selection, StoredLetter
from conveyord.storage.locks import owned

SOURCE_NUMBER = -1
"""The queue's number in the graph: no stage of a plan has one below zero."""


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What became of the letters of one pipeline.

    replayed: all their rows are where they belong. failed_again: still dead letters, perhaps of a later stage.
    waiting: a sink has not passed their record yet, so a normal run must come first. absent: how many wait for a
    stage or a sink that the definition does not have, by its name; other sinks may have got them. unusable: their
    content is damaged or was never kept. held_back: they are what became of letters that were damaged since, which
    come first once they are mended. error: why the replay ended early; the next goes on.
    """

    pipeline: str
    replayed: int = 0
    failed_again: int = 0
    waiting: int = 0
    absent: Mapping[str, int] = field(default_factory=dict)
    unusable: int = 0
    held_back: int = 0
    error: ConveyordError | None = None
    stage: str | None = None


@dataclass(slots=True)
class _Outcome:
    """What became of letters so far, by their ids, or by the keys under which they failed again."""

    settled: set[int] = field(default_factory=set)
    failed: set[LetterKey] = field(default_factory=set)
    failed_ids: set[int] = field(default_factory=set)
    waiting: set[int] = field(default_factory=set)
    absent: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    unusable: set[int] = field(default_factory=set)
    held_back: set[int] = field(default_factory=set)
    error: ConveyordError | None = None
    stage: str | None = None


@dataclass(frozen=True, slots=True)
class _Session:
    """The operators of one pipeline with its sinks open, good for one run."""

    assembly: Assembly
    standings: Mapping[str, Standing]


class _Replaying:
    """One pipeline whose letters are replayed. The data directory is ours."""

    def __init__(self, request: RunRequest, registry: Registry, pipeline: Pipeline, box: LetterBox) -> None:
        # Without a policy of its own, a letter that fails again is still a letter.
        self._pipeline = pipeline if pipeline.dlq is not None else replace(pipeline, dlq=DeadLetterPolicy())
        self._request = request
        self._registry = registry
        self._settings = request.settings()
        self._box = box
        self._outcome = _Outcome()
        self._held_up: set[Lane] = set()

    async def run(self, selection: Selection, drain: trio.Event) -> ReplayReport:
        """What an earlier replay left first, then what is selected, lane by lane."""
        identity = self._pipeline.identity
        async with AsyncExitStack() as stack:
            standings = (await self._open(stack)).standings
        lacks = Lacks(self._pipeline, standings)
        copied = copied_to(self._pipeline, standings)
        await self._box.ask(partial(let_go_of_arrived, self._box.store, self._pipeline, lacks, copied_to=copied))
        for lane in await self._box.ask(self._left, lacks):
            if not await self._send(lane, drain):
                return await self._report()
        for lane, claims in (await self._box.ask(self._chosen, lacks, selection)).items():
            await self._box.ask(partial(self._box.store.queue, identity, claims, above=_highest(standings)))
            if not await self._send(lane, drain):
                break
        return await self._report()

    def _left(self, lacks: Lacks) -> list[Lane]:
        """Where letters are queued that an earlier replay did not settle, lowest number first. Blocking.

        A lane waits if its sink is not past a record in it: the table was emptied, or is not the one that it was. A
        run takes such letters from the lane, unless the former table is back by then.
        """
        lanes: dict[Lane, int] = {}
        for stored in self._stored():
            key = stored.letter.key
            for sink, number in stored.claims.items():
                if number is None or lacks.absent(key, sink) is not None:
                    continue
                lane = Lane(key.pipeline, key.stage, sink)
                lanes[lane] = min(number, lanes.get(lane, number))
                if not lacks.is_past(key, sink):
                    self._held_up.add(lane)
        return sorted(lanes.keys() - self._held_up, key=lambda lane: lanes[lane])

    def _chosen(self, lacks: Lacks, selection: Selection) -> dict[Lane, list[Claim]]:
        """What can be replayed of the selected letters, by lane; the rest is counted. Blocking."""
        # What failed in a later stage is forgotten once the letter it came from is sent again. One that was damaged is
        # taken from its lane, but may be sent again too: it is typed anew, or its file restored.
        came_from = Selection(ids=tuple({stored.came_from for stored in self._stored(selection)}))
        origins = list(self._stored(came_from))
        on_their_way = {
            Claim(origin.id, sink): origin.letter.key
            for origin in origins
            for sink, number in origin.claims.items()
            if number is not None
        }
        perhaps_sent = {Claim(origin.id, sink) for origin in origins for sink in origin.claims}
        chosen: dict[Lane, list[Claim]] = {}
        for stored in self._stored(selection):
            key = stored.letter.key
            for sink, number in stored.claims.items():
                before = on_their_way.get(Claim(stored.came_from, sink))
                lane = Lane(key.pipeline, key.stage, sink)
                missing = None if before is None else lacks.absent(before, sink)
                if (missing := missing or lacks.absent(key, sink)) is not None:
                    self._outcome.absent[missing].add(stored.id)
                elif before is not None or lane in self._held_up or not lacks.is_past(key, sink):
                    self._outcome.waiting.add(stored.id)
                elif Claim(stored.came_from, sink) in perhaps_sent:
                    self._outcome.held_back.add(stored.id)
                elif number is None:
                    chosen.setdefault(lane, []).append(Claim(stored.id, sink))
        return chosen

    def _stored(self, selection: Selection | None = None) -> Iterator[StoredLetter]:
        wanted = replace(selection or Selection(), pipeline=self._pipeline.identity)
        return self._box.store.select(wanted, payloads=False)

    async def _open(self, stack: AsyncExitStack) -> _Session:
        assembly = assemble([self._pipeline], self._registry, self._settings, self._box)
        held = await open_sinks(assembly, stack)
        return _Session(assembly, standings_of(assembly, self._pipeline, held))

    async def _send(self, lane: Lane, drain: trio.Event) -> bool:
        """Send the queued letters of one lane, and settle what its sink has. Returns whether to go on with others."""
        store, ask, outcome = self._box.store, self._box.ask, self._outcome
        async with AsyncExitStack() as stack:
            session = await self._open(stack)
            point = point_of(lane.stage, self._pipeline)
            assert point is not None, "a lane is made where the definition has its stage"
            # A sink that keeps no positions gets what is queued, and nothing that went before is sent again.
            waiting = await ask(store.queued, lane, 0, 1)
            if not waiting:
                return not drain.is_set()
            number, stored = waiting[0]
            origin = stored.letter.key.partition
            sinks = {name: one for name, one in session.standings.items() if one.claimant(origin) == lane.sink}
            share = None if lane.sink == KEEPS_NONE else next(iter(sinks.values())).share_of(origin)
            partition = partition_of(point, share)
            start_at = Positions({partition: Position(number - 1)})
            source, graph = self._graph(lane, point, session, sinks, partition, start_at)
            fence = graph.nodes[0].fences[0]
            done = fence[partition].offset if partition in fence else 0
            outcome.settled.update(await ask(store.settle, lane, done, now_micros()))
            again = await ask(store.untold, lane, partition, done)
            copied = copied_to(self._pipeline, session.standings)
            await ask(partial(store.give_up, self._pipeline.identity, again, copied_to=copied))
            self._box.admissions[self._pipeline.identity] = source.admit
            failures = await run_graph(
                graph, channel_capacity=self._request.channel_capacity, threads=self._settings.threads, drain=drain
            )
        outcome.failed |= source.failed
        outcome.failed_ids |= source.failed_ids
        outcome.unusable |= source.unusable
        if failures.all:
            outcome.error, outcome.stage = failures.all[0].error, failures.all[0].stage
            return False
        outcome.settled.update(await ask(store.settle, lane, source.sent_up_to, now_micros()))
        return not drain.is_set()

    def _graph(
        self,
        lane: Lane,
        point: Point,
        session: _Session,
        sinks: Mapping[str, Standing],
        partition: Partition,
        start_at: Positions,
    ) -> tuple[QueuedLetters, Graph]:
        """The way from a point of the pipeline to the lane's sinks, with the queue as its source.

        partition: the lane's. start_at: for sinks that keep no positions.
        """
        plan, members = session.assembly.plan, frozenset([self._pipeline.identity])
        start = plan.node_of(self._pipeline.identity, point.stage)
        operator = session.assembly.operators[start.number]
        rows_enter = point.output is None and start.stage.kind != "source"
        source = QueuedLetters(
            replace(operator.context, stage=SOURCE),
            lane=lane,
            partition=partition,
            reader=operator if isinstance(operator, Source) else None,
            box=self._box,
            copied_to=copied_to(self._pipeline, session.standings),
        )
        output = point.output or MAIN
        fences = tuple(one.held for one in sinks.values() if one.held is not None) or (start_at,)
        reached = self._pipeline.below(point.stage, None if rows_enter else output)
        on_the_way = {name for name in reached if self._pipeline.below(name) & sinks.keys()}
        nodes = [Node(SOURCE_NUMBER, source, members, outlet=TrackedOutlet([]), fences=fences, output=output)]
        for node in plan.nodes:
            name = node.stage.name
            if name in on_the_way:
                gate = None
                if name in sinks:
                    gate = Gate(name, sinks[name].held, names={}, keeps_provenance=keeps_provenance(node.stage))
                nodes.append(Node(node.number, session.assembly.operators[node.number], members, gate=gate))
        links = [Link(SOURCE_NUMBER, start.number, Exit(Edge(SOURCE, point.stage), members))] if rows_enter else []
        for edge in plan.edges:
            leaving, target = session.assembly.exits[edge], edge.target
            if plan.nodes[edge.source].stage.name in on_the_way:
                above = edge.source
            elif edge.source == start.number and leaving.edge.output == output:
                above = SOURCE_NUMBER
            else:
                continue
            if leaving.edge.target not in on_the_way:  # it takes its rows all the same, as `otherwise` depends on that
                target = SOURCE_NUMBER - len(nodes)
                nodes.append(Node(target, Discard(replace(operator.context, stage=leaving.edge.target)), members))
            links.append(Link(above, target, leaving))
        return source, Graph(tuple(nodes), tuple(links))

    async def _report(self) -> ReplayReport:
        outcome = self._outcome
        arrived = outcome.settled - outcome.failed_ids
        asked = Selection(ids=tuple(arrived | outcome.held_back))
        lacking = await self._box.ask(lambda: {stored.id for stored in self._stored(asked)})
        return ReplayReport(
            self._pipeline.identity,
            replayed=len(arrived - lacking),
            failed_again=len(outcome.failed),
            waiting=len(outcome.waiting),
            absent={name: len(ids) for name, ids in outcome.absent.items()},
            unusable=len(outcome.unusable),
            held_back=len(outcome.held_back & lacking),
            error=outcome.error,
            stage=outcome.stage,
        )


def _highest(standings: Mapping[str, Standing]) -> int:
    """The highest sequence number that a sink holds."""
    held = [one.held.of_source(SOURCE) for one in standings.values() if one.held is not None]
    # One of them says how many letters were copied. Being above that does no harm.
    return max((lane.offset for lanes in held for lane in lanes.values()), default=0)


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
            reports.append(await _Replaying(request, registry, pipeline, box).run(selection, drain))
            if reports[-1].error is not None:
                break
    return reports
