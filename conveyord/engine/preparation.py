"""Opens what pipelines need and works out from where each goes on: everything before the first record."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from conveyord import __version__
from conveyord.core.errors import ConfigError, ConveyordError, Refused
from conveyord.core.flow.positions import Partition, Positions
from conveyord.core.pipeline.graph import Edge, Pipeline
from conveyord.core.pipeline.optimiser import PlanEdge, canonical
from conveyord.engine.contracts import OperatorContext, Sink
from conveyord.engine.copies import SOURCE as COPIES
from conveyord.engine.copies import DeadLetterCopies
from conveyord.engine.dead_lettering import LetterBox, now_micros
from conveyord.engine.gate import Gate
from conveyord.engine.graph import Graph, Link, Node
from conveyord.engine.leftovers import Lacks, Standing, copied_to, followed
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.plan import Assembly, RunSettings, assemble, keeps_provenance
from conveyord.engine.registry import Registry
from conveyord.engine.rereading import Rereading
from conveyord.engine.routing import Exit
from conveyord.engine.summary import RunProgress
from conveyord.storage.dead_letters.store import DeadLetterStore
from conveyord.storage.spill.budget import SpillBudget
from conveyord.storage.spill.names import queue_directory
from conveyord.storage.spill.queue import SpillQueue

log = structlog.get_logger(__name__)

Held = dict[int, Positions | None]
"""What each sink holds, by node."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the disk may hold beside tables, in bytes, and how long letters are kept (None: for ever)."""

    dead_letter_bytes: int
    dead_letter_seconds: float | None
    spill_bytes: int


@dataclass(frozen=True, slots=True)
class Prepared:
    """A graph that is ready to run, and what its figures are taken from."""

    graph: Graph
    assembly: Assembly
    box: LetterBox
    rereading: Rereading

    async def finish(self) -> None:
        """Let go of the letters that nobody needs any more, after a run in which nothing failed. See `Rereading`.

        If that fails, the next run or replay does it.
        """
        outlets = [node.outlet for node in self.graph.nodes if node.outlet is not None]
        if all(outlet.is_settled for outlet in outlets):
            try:
                await self.rereading.end()
            except ConveyordError as error:
                log.warning("dead letters of records that were read again are listed still", reason=str(error))

    def nodes_of(self, pipeline: str) -> list[Node]:
        """The nodes of one pipeline; what runs beside it is left out."""
        return [node for node in self.graph.nodes if pipeline in node.members and not node.follows]

    def sinks_of(self, pipeline: str) -> list[Sink]:
        """The sinks of one pipeline, in the order of its definition."""
        return [node.operator for node in self.nodes_of(pipeline) if isinstance(node.operator, Sink)]


async def open_letters(settings: RunSettings, limits: Limits, stack: AsyncExitStack) -> LetterBox:
    """The dead letters of the data directory, whose lock the caller holds. Closed with `stack`."""
    store = await trio.to_thread.run_sync(
        lambda: DeadLetterStore(
            settings.data_dir,
            budget_bytes=limits.dead_letter_bytes,
            retention_seconds=limits.dead_letter_seconds,
            at_micros=now_micros(),
        )
    )
    stack.callback(store.close)
    return LetterBox(store, settings.threads)


async def open_sinks(assembly: Assembly, stack: AsyncExitStack, held: Held | None = None) -> Held:
    """Open every sink. Returns what each holds, by node, under its pipeline's own names. Closed with `stack`.

    held: where to put that, also if a sink raises. Raises Refused and ConfigError for sinks and sources that do not
    fit together.
    """
    held = {} if held is None else held
    _check_destinations(assembly)
    for number, operator in assembly.operators.items():
        stack.push_async_callback(operator.close)
        if isinstance(operator, Sink):
            held[number] = await operator.open()
    _check_sources(assembly, held)
    return held


async def _adopt(
    former: str, pipelines: Sequence[Pipeline], box: LetterBox, assembly: Assembly, stack: AsyncExitStack
) -> Held:
    """Take over the letters of `former`, and open the sinks, which do so with its positions. See `open_sinks`.

    Letters come first: if this is cut short, a sink without positions refuses to go on or reads everything, and
    the run is started with `--adopt` once more. Nobody would notice letters that were left under the former name.
    So where there were letters and no sink had anything to take over, they are those of another pipeline.
    """
    taken = {one.identity: await box.ask(box.store.take_over, former, one.identity) for one in pipelines}
    held: Held = {}
    failure: ConveyordError | None = None
    try:
        await open_sinks(assembly, stack, held)
    except ConveyordError as error:
        failure = error
    took_over = _took_over(assembly, held)
    if failure is None and took_over is False and any(taken.values()):
        failure = Refused(
            f"{pipelines[0].identity}: every sink holds positions of its own, and none of {former}, whose dead letters "
            "were left to it; run without --adopt, or give the name that this pipeline had before"
        )
    elif failure is None or took_over or (took_over is None and any(held.values())):
        for identity, letters in taken.items():
            if letters:
                log.info("dead letters were taken over", pipeline=identity, former=former, letters=len(letters))
        if failure is None:
            return held
        raise failure
    for identity, letters in taken.items():  # no sink took anything over, and perhaps the name was wrong
        await box.ask(partial(box.store.take_over, identity, former, only=letters))
    raise failure


def _took_over(assembly: Assembly, held: Held) -> bool | None:
    """Whether a sink that was opened took positions of a former name over; None if that cannot be told."""
    sinks = [operator for number, operator in assembly.operators.items() if held.get(number) is not None]
    told = [sink.took_over for sink in sinks if isinstance(sink, Sink)]
    if any(told):
        return True
    return None if not told or None in told else False


async def prepare(
    pipelines: Sequence[Pipeline],
    registry: Registry,
    settings: RunSettings,
    limits: Limits,
    progress: Mapping[str, RunProgress],
    stack: AsyncExitStack,
) -> Prepared:
    """Construct, open and connect everything. What is opened here is closed with `stack`.

    progress: by pipeline. Raises a ConveyordError for whatever cannot work.
    """
    # Also without `dlq`: an earlier definition may have left letters of records that are read again.
    box = await open_letters(settings, limits, stack)
    assembly = assemble(pipelines, registry, settings, box)
    if settings.adopt_from is None:
        held = await open_sinks(assembly, stack)
    else:
        held = await _adopt(settings.adopt_from, pipelines, box, assembly, stack)
    budget = SpillBudget(limits.spill_bytes)
    queues = {
        edge: await trio.to_thread.run_sync(_open_queue, assembly, settings, edge, budget)
        for edge in assembly.plan.edges
        if edge.edge.on_slow == "spill"
    }
    reached = await trio.to_thread.run_sync(_reached, assembly, held, queues)
    rereading = Rereading(box)
    for pipeline in pipelines:
        standings = standings_of(assembly, pipeline, held, reached)
        lacks = Lacks(pipeline, standings)
        box.admissions[pipeline.identity] = lacks.admit
        names = {own: run for run, own in assembly.names[pipeline.identity].items()}
        await rereading.begin(pipeline, lacks, names=names, copied_to=copied_to(pipeline, standings))
    nodes = [_node(assembly, number, held, reached, progress, rereading) for number in assembly.operators]
    links = [Link(edge.source, edge.target, assembly.exits[edge], queues.get(edge)) for edge in assembly.plan.edges]
    beside: list[Node] = []
    for pipeline in pipelines:
        _add_copies(nodes, links, beside, assembly, pipeline, held, box, settings)
    return Prepared(Graph((*beside, *nodes), tuple(links)), assembly, box, rereading)


def _node(
    assembly: Assembly,
    number: int,
    held: Mapping[int, Positions | None],
    reached: Mapping[int, Positions | None],
    progress: Mapping[str, RunProgress],
    rereading: Rereading,
) -> Node:
    plan_node, operator = assembly.plan.nodes[number], assembly.operators[number]
    members = frozenset(plan_node.pipelines)
    if plan_node.stage.kind == "source":
        outlet = TrackedOutlet([progress[identity] for identity in plan_node.pipelines], rereading.sent)
        return Node(number, operator, members, outlet=outlet, fences=_fences(assembly, number, reached))
    if plan_node.stage.kind == "sink":
        (pipeline,) = plan_node.pipelines
        gate = Gate(
            plan_node.stage.name,
            held[number],
            names=assembly.names[pipeline],
            keeps_provenance=keeps_provenance(plan_node.stage),
        )
        return Node(number, operator, members, gate=None if gate.is_open else gate)
    return Node(number, operator, members)


def _fences(assembly: Assembly, source: int, reached: Mapping[int, Positions | None]) -> tuple[Positions, ...]:
    """What the sinks below a source will have, under the run's names. Sinks that keep no positions do not count."""
    found = []
    for number in assembly.sinks_below(source):
        positions = reached[number]
        if positions is not None:
            (pipeline,) = assembly.plan.nodes[number].pipelines
            found.append(_renamed(positions, {own: run for run, own in assembly.names[pipeline].items()}))
    return tuple(found) or (Positions(),)


def _renamed(positions: Positions, names: Mapping[str, str]) -> Positions:
    """`positions` with their sources under other names."""
    return Positions(
        {Partition(names.get(p.source, p.source), p.name): position for p, position in positions.items()},
        {names.get(source, source): state for source, state in positions.states.items()},
    )


def _check_destinations(assembly: Assembly) -> None:
    """Refuse two sinks of one pipeline that keep their positions in one place."""
    taken: dict[tuple[str, str], str] = {}
    for number, operator in assembly.operators.items():
        if not isinstance(operator, Sink) or operator.destination is None:
            continue
        node = assembly.plan.nodes[number]
        other = taken.setdefault((node.pipelines[0], operator.destination), node.stage.name)
        if other != node.stage.name:
            raise ConfigError(
                f"pipeline {node.pipelines[0]}: the sinks {other!r} and {node.stage.name!r} both write to "
                f"{operator.destination}; lead both branches to one sink, or give one another table"
            )


def _check_sources(assembly: Assembly, held: Mapping[int, Positions | None]) -> None:
    """Refuse a fence that names a source its pipeline does not have: its records would be read again."""
    for number, positions in held.items():
        (pipeline,) = assembly.plan.nodes[number].pipelines
        own = set(assembly.names[pipeline].values())
        named = {partition.source for partition in positions or ()} - {COPIES}
        unknown = min(named - own, default=None)
        if unknown is not None:
            raise Refused(
                f"pipeline {pipeline}: the sink {assembly.plan.nodes[number].stage.name!r} holds positions of the "
                f"source {unknown!r}, but the pipeline has {', '.join(sorted(map(repr, own)))}; "
                "give the source its former name, or rename the pipeline to start anew"
            )


def standings_of(
    assembly: Assembly,
    pipeline: Pipeline,
    held: Mapping[int, Positions | None],
    reached: Mapping[int, Positions | None] | None = None,
) -> dict[str, Standing]:
    """How far each sink of a pipeline is, by its name, under the pipeline's own names of sources.

    held, reached: by node; see `Standing`.
    """
    found = {}
    for stage in pipeline.of_kind("sink"):
        number = assembly.plan.node_of(pipeline.identity, stage.name).number
        operator = assembly.operators[number]
        assert isinstance(operator, Sink)
        found[stage.name] = Standing(
            operator.destination or stage.name,
            held[number],
            None if reached is None else reached[number],
            share_of=operator.share_of,
        )
    return found


def _open_queue(assembly: Assembly, settings: RunSettings, edge: PlanEdge, budget: SpillBudget) -> SpillQueue:
    """The disk queue of an edge. Blocking. What lies there is thrown away if it was made otherwise."""
    name = f"{edge.edge.source}{'.' if edge.edge.output else ''}{edge.edge.output} to {edge.edge.target}"
    directory = queue_directory(settings.data_dir, pipeline=edge.members[0], edge=name)
    queue = SpillQueue.open(directory, digest=_digest(assembly, edge), budget=budget)
    recovered = queue.recovered
    if recovered.quarantined or recovered.torn_bytes or recovered.discarded:
        log.warning(
            "a spill was damaged or out of date; what is missing is read again",
            edge=name,
            quarantined=len(recovered.quarantined),
            torn_bytes=recovered.torn_bytes,
            discarded=recovered.discarded,
        )
    return queue


def _digest(assembly: Assembly, edge: PlanEdge) -> str:
    """Of everything that decides what goes along an edge."""
    above, numbers = [], [edge.source]
    while numbers:
        number = numbers.pop()
        stage = assembly.plan.nodes[number].stage
        context = assembly.operators[number].context
        ways = [(one.source, one.edge.output, one.edge.when) for one in assembly.plan.edges_to(number)]
        above.append((stage.kind, stage.type, canonical(stage.options), context.stage, context.provenance, str(ways)))
        numbers += [one.source for one in assembly.plan.edges_to(number)]
    conditions = [one.edge.when for one in assembly.plan.edges_from(edge.source)]
    text = json.dumps([__version__, above, edge.edge.when, edge.edge.otherwise, edge.edge.output, conditions])
    return hashlib.sha256(text.encode()).hexdigest()


def _reached(
    assembly: Assembly, held: Mapping[int, Positions | None], queues: Mapping[PlanEdge, SpillQueue]
) -> dict[int, Positions | None]:
    """What each sink will have once it has what lies in the queues before it. Blocking.

    A queue whose frames do not follow on what its sinks hold is emptied. So is one behind which, or before
    which, branches come together or another edge spills: what arrived by the other way is not known.
    """
    reached = dict(held)
    for edge, queue in queues.items():
        below = _below(assembly, edge)
        sinks = [number for number in below if number in held]
        simple = all(len(assembly.plan.edges_to(number)) == 1 for number in below) and not any(
            other is not edge and (other.target in below or edge.target in _below(assembly, other)) for other in queues
        )
        known = [positions for number in sinks if (positions := held[number]) is not None]
        after, own = None, assembly.names[edge.members[0]]
        if simple and len(edge.members) == 1 and len(known) == len(sinks):
            run = {name: run for run, name in own.items()}
            after = followed(queue.metas(), [_renamed(positions, run) for positions in known])
        if after is None:
            queue.discard_all()
        else:
            reached |= {number: _renamed(positions, own) for number, positions in zip(sinks, after, strict=True)}
    return reached


def _below(assembly: Assembly, edge: PlanEdge) -> set[int]:
    """The nodes that an edge leads to, near and far."""
    below = {edge.target}
    for node in assembly.plan.nodes:
        if any(one.source in below for one in assembly.plan.edges_to(node.number)):
            below.add(node.number)
    return below


def _add_copies(
    nodes: list[Node],
    links: list[Link],
    beside: list[Node],
    assembly: Assembly,
    pipeline: Pipeline,
    held: Mapping[int, Positions | None],
    box: LetterBox,
    settings: RunSettings,
) -> None:
    """Lead copies of a pipeline's dead letters to its `dlq.sink`, beside everything else."""
    if pipeline.dlq is None or pipeline.dlq.sink is None:
        return
    sink = assembly.plan.node_of(pipeline.identity, pipeline.dlq.sink).number
    nodes[sink] = Node(sink, nodes[sink].operator, nodes[sink].members, gate=nodes[sink].gate, follows=True)
    context = OperatorContext(pipeline.identity, COPIES, settings.data_dir, settings.threads)
    number, members = len(nodes) + len(beside), frozenset([pipeline.identity])
    fence = held[sink]
    source = Node(
        number,
        DeadLetterCopies(context, box),
        members,
        outlet=TrackedOutlet([]),
        fences=(Positions() if fence is None else fence,),
        follows=True,
    )
    beside.append(source)
    links.append(Link(number, sink, Exit(Edge(COPIES, pipeline.dlq.sink), members)))
