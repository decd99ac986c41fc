"""Runs the stages of a graph as tasks joined by bounded channels.

How a stage ends decides how the others do, without anyone cancelling anyone:

    a stage returns       its outbound channels close; what follows gets Eos, drains and finishes
    a stage wants no more its inbound channel closes, and the stage before it lets go of that branch alone
    a stage fails         the same downstream; its inbound channel closes, so the stage before it finds
                          nobody listening (BrokenResourceError), lets go of every branch of the same
                          pipelines, and stops once no branch is left, and so on upstream; a source that has
                          nothing to send, and so would not find out, is told to drain
    the run is cancelled  every stage is cancelled; nothing more is committed
    a source raises Superseded
                          the same: what was sent is another process's to commit

So whatever was sent before a failure is still written and committed by every sink but one that failed itself,
other pipelines that share a stage go on, and the failure is reported with the stage's name once everything
has come to rest.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from conveyord.core.errors import ConveyordError, Retryable, Superseded
from conveyord.core.flow.positions import Positions
from conveyord.core.pipeline.graph import MAIN
from conveyord.engine.channel import open_channel
from conveyord.engine.contracts import Operator, Sink, Source, Transform
from conveyord.engine.failures import Failures
from conveyord.engine.fan_in import FanIn
from conveyord.engine.fan_out import Branch, Branches, End, Removed, Way
from conveyord.engine.gate import Gate
from conveyord.engine.inbound import StageInbound
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.routing import Exit
from conveyord.engine.spilling import SpillWay
from conveyord.runtime.nurseries import unwrapped
from conveyord.storage.spill.queue import SpillQueue

log = structlog.get_logger(__name__)

FINISH_SECONDS = 10.0  # to settle what spilled: a sync or two, unless the disk hangs


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One stage, ready to run.

    members: the pipelines it belongs to. gate: of a sink. outlet and fences: of a source. follows: it
    belongs to what runs beside the pipelines and ends after them, told by `drain`. removed: counted while
    it runs. output: by which its batches leave.
    """

    number: int
    operator: Operator
    members: frozenset[str]
    gate: Gate | None = None
    outlet: TrackedOutlet | None = None
    fences: tuple[Positions, ...] = ()
    follows: bool = False
    removed: Removed = field(default_factory=Removed)
    output: str = MAIN


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """An edge between two nodes, by number. queue: where it spills to, if it does."""

    source: int
    target: int
    exit: Exit
    queue: SpillQueue | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Stages and the edges between them; acyclic, and each node after those it gets rows from.

    Links into a node are in the order of the definition.
    """

    nodes: tuple[Node, ...]
    links: tuple[Link, ...]


async def run_graph(
    graph: Graph, *, channel_capacity: int, threads: trio.CapacityLimiter, drain: trio.Event
) -> Failures:
    """Run every stage to its end and return what failed. Anything but a ConveyordError propagates.

    channel_capacity: messages that may wait on an edge; at the limit the upstream waits. drain: once set,
    sources stop reading.
    """
    failures = Failures()
    wiring = _Wiring(graph, failures, channel_capacity=channel_capacity, threads=threads)
    finished = trio.Event()
    try:
        with unwrapped():
            async with trio.open_nursery() as beside:
                abandon = beside.cancel_scope.cancel
                for node in graph.nodes:
                    if node.follows:
                        beside.start_soon(_stage, node, wiring, finished, failures, abandon)
                async with trio.open_nursery() as nursery:
                    for node in graph.nodes:
                        if not node.follows:
                            nursery.start_soon(_stage, node, wiring, drain, failures, abandon)
                    for link, way in wiring.spills:
                        nursery.start_soon(_spill, link, way, failures)
                finished.set()
    finally:
        # What is not settled now comes again with the next run, and is dropped at the gate.
        with trio.move_on_after(FINISH_SECONDS, shield=True):
            for _, way in wiring.spills:
                await trio.to_thread.run_sync(way.finish, abandon_on_cancel=True)
    return failures


class _Wiring:
    """The channels of a graph, and the ends of them that each stage gets."""

    def __init__(
        self, graph: Graph, failures: Failures, *, channel_capacity: int, threads: trio.CapacityLimiter
    ) -> None:
        self.ends = {node.number: End() for node in graph.nodes}
        self.inbound: dict[int, StageInbound] = {}
        self.outbound: dict[int, Branches] = {}
        self.spills: list[tuple[Link, SpillWay]] = []
        branches: dict[int, list[Branch]] = {node.number: [] for node in graph.nodes}
        sources = _sources_through(graph)
        for node in graph.nodes:
            links = [link for link in graph.links if link.target == node.number]
            if not links:
                continue
            send, receive = open_channel(channel_capacity)
            self.inbound[node.number] = StageInbound(receive, node.gate)
            ways: list[Way] = [send]
            if len(links) > 1:
                fan_in = FanIn(
                    send,
                    inputs=len(links),
                    wanted=_inputs_of([sources[link.source] for link in links]),
                    capacity=channel_capacity,
                    threads=threads,
                    has_failed=partial(failures.cover, node.members),
                )
                failures.watch(fan_in.wake)
                ways = [fan_in.entry(number) for number in range(len(links))]
            for link, way in zip(links, ways, strict=True):
                if link.queue is not None:
                    name = f"{link.exit.edge.source} -> {link.exit.edge.target}"
                    way = SpillWay(way, link.queue, name=name, threads=threads)
                    self.spills.append((link, way))
                branches[link.source].append(Branch(link.exit, way, self.ends[link.target]))
        for node in graph.nodes:
            if branches[node.number]:
                self.outbound[node.number] = Branches(
                    branches[node.number], node.operator.context, node.removed, failures, main=node.output
                )


def _sources_through(graph: Graph) -> dict[int, frozenset[str]]:
    """For every node, the sources whose batches pass through it, by the name in their spans."""
    found: dict[int, frozenset[str]] = {}
    for node in graph.nodes:
        above = [found[link.source] for link in graph.links if link.target == node.number]
        own = frozenset([node.operator.context.stage]) if isinstance(node.operator, Source) else frozenset[str]()
        found[node.number] = own.union(*above)
    return found


def _inputs_of(sources: Sequence[frozenset[str]]) -> dict[str, frozenset[int]]:
    """By source, the inputs that it comes in by. sources: by input."""
    return {
        source: frozenset(number for number, some in enumerate(sources) if source in some)
        for source in frozenset[str]().union(*sources)
    }


async def _stage(
    node: Node, wiring: _Wiring, drain: trio.Event, failures: Failures, abandon: Callable[[], None]
) -> None:
    """Run one stage under the rules at the top of this file. abandon: cancels all of them."""
    inbound, outbound = wiring.inbound.get(node.number), wiring.outbound.get(node.number)
    try:
        with unwrapped():
            match node.operator:
                case Source():
                    assert outbound is not None
                    await _read_while_wanted(node, outbound, drain, failures)
                case Transform() as transform:
                    assert inbound is not None
                    assert outbound is not None
                    await transform.run(inbound, outbound)
                case Sink() as sink:
                    assert inbound is not None
                    await sink.run(inbound)
        wiring.ends[node.number].content = True
    except trio.BrokenResourceError:
        # The stages after this one ended, and say why themselves if they failed.
        wiring.ends[node.number].content = outbound is not None and outbound.content
    except ConveyordError as error:
        context = node.operator.context
        failures.add(context.stage, error, members=node.members, names=context.names)
        if isinstance(error, Superseded):
            abandon()
    except Exception as error:  # a bug, which goes on its way with the name of the stage
        error.add_note(f"in the stage {node.operator.context.stage!r}, {type(node.operator).__name__}")
        raise
    finally:
        if inbound is not None:
            inbound.close()
        if outbound is not None:
            outbound.close()


async def _read_while_wanted(node: Node, outbound: Branches, drain: trio.Event, failures: Failures) -> None:
    """Run a source until its end, until `drain` is set, or until every pipeline that it belongs to has failed."""
    stop = trio.Event()

    async def stop_after(wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        stop.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop_after, drain.wait)
        nursery.start_soon(stop_after, partial(failures.wait_all, node.members))
        await _read(node, outbound, stop)
        nursery.cancel_scope.cancel()


async def _read(node: Node, outbound: Branches, drain: trio.Event) -> None:
    """Run a source, and again from where it got to as often as its policy allows, if it raises Retryable."""
    assert isinstance(node.operator, Source)
    assert node.outlet is not None
    outlet = node.outlet.over(outbound, unit=node.operator.unit)
    retries, fences = node.operator.context.retries, node.fences
    failed = 0
    while True:
        before = outlet.batches
        try:
            await node.operator.run(outlet, fences=fences, drain=drain)
            return
        except Retryable as error:
            failed = 1 if outlet.batches > before else failed + 1
            if failed > retries.count_max or drain.is_set() or outlet.is_sending:
                raise
            wait_seconds = retries.backoff.delay_seconds(failed, retries.random)
            log.warning("a source failed and is tried again", stage=node.operator.context.stage, reason=str(error))
            with trio.move_on_after(wait_seconds):
                await drain.wait()
            fences = tuple(outlet.passed(fence) for fence in node.fences)


async def _spill(link: Link, way: SpillWay, failures: Failures) -> None:
    try:
        await way.drain()
    except ConveyordError as error:
        failures.add(f"{link.exit.edge.source} -> {link.exit.edge.target}", error, members=link.exit.members)
