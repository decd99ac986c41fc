"""Which stages of pipelines that run together are run once for all of them.

Two stages of different pipelines become one node of the plan if they cannot be told apart by what they
emit: the same kind, type and options, the same `salt`, and the same inbound edges from nodes that are
shared themselves. Since a stage is recognised by its parents, this is a trie over the common prefixes
of any subset of the pipelines, and on graphs it is hash-consing. Laws, each with a test of its name:

- A pipeline sees what it saw alone: the plan restricted to one pipeline is that pipeline.
- No stage is shared that anyone has not declared pure (`salt` gives None), and no sink ever.
- Two stages of one pipeline are never merged, however alike: their rows count twice.
- A row goes along an edge only if no condition beside it fails, and along `otherwise` only if none took
  it. A node is shared only where the conditions beside its edges are the same, and edges know their
  pipelines, so that the conditions of one pipeline never take rows from another.
- What is shared does not depend on the order of the pipelines; only the numbers do.
- The plan costs time and space linear in the stages and edges given, plus, at an `otherwise`, the
  conditions beside it.

Options are compared as JSON with sorted keys: 1, 1.0 and true differ, the order of keys does not count.
Stages are not compared by name; who shares a stage under several names finds them in its members.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from conveyord.core.pipeline.graph import Edge, Pipeline, Stage

Salt = Callable[[Pipeline, Stage], str | None]
"""What a stage does beyond its type and options, as text; None if it must not be shared.

Everything of a pipeline that changes what its stages emit belongs in here: its mode, what it does with
bad records. Equal text is taken as proof that both pipelines want the same.
"""


@dataclass(frozen=True, slots=True)
class Member:
    """A stage of a pipeline that a node stands for. `pipeline` is the identity, `namespace/name`."""

    pipeline: str
    stage: str


@dataclass(frozen=True, slots=True)
class PlanNode:
    """A stage that is run once. `members` are in the order of the pipelines; `stage` is the first one's."""

    number: int
    stage: Stage
    members: tuple[Member, ...]

    @property
    def pipelines(self) -> tuple[str, ...]:
        """The identities of the pipelines that share this node."""
        return tuple(member.pipeline for member in self.members)

    @property
    def shared(self) -> bool:
        """Whether more than one pipeline uses it."""
        return len(self.members) > 1


@dataclass(frozen=True, slots=True)
class PlanEdge:
    """An edge between nodes, by number. `edge` is the first member's; its stage names are that pipeline's.

    members: the pipelines that have this edge, which are those of the target. An edge with `otherwise`
    takes the rows that no conditional edge of the same node and output *with that member* has taken; it
    does not matter which member is asked, the conditions are the same for all.
    """

    source: int
    target: int
    edge: Edge
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Nodes, each after all of its parents and at the index of its number, and the edges between them.

    The edges into a node are in the order of every member's definition. The edges out of a node are in
    the order of their targets, which means nothing: a row goes every way that takes it. `pipelines` are
    the identities in the order they were given.
    """

    nodes: tuple[PlanNode, ...]
    edges: tuple[PlanEdge, ...]
    pipelines: tuple[str, ...]
    _outbound: Mapping[int, tuple[PlanEdge, ...]] = field(init=False, repr=False, compare=False)
    _inbound: Mapping[int, tuple[PlanEdge, ...]] = field(init=False, repr=False, compare=False)
    _by_member: Mapping[Member, PlanNode] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        outbound: defaultdict[int, list[PlanEdge]] = defaultdict(list)
        inbound: defaultdict[int, list[PlanEdge]] = defaultdict(list)
        for edge in self.edges:
            outbound[edge.source].append(edge)
            inbound[edge.target].append(edge)
        object.__setattr__(self, "_outbound", {number: tuple(edges) for number, edges in outbound.items()})
        object.__setattr__(self, "_inbound", {number: tuple(edges) for number, edges in inbound.items()})
        object.__setattr__(self, "_by_member", {member: node for node in self.nodes for member in node.members})

    def edges_from(self, number: int) -> tuple[PlanEdge, ...]:
        """The edges that leave a node."""
        return self._outbound.get(number, ())

    def edges_to(self, number: int) -> tuple[PlanEdge, ...]:
        """The edges that enter a node, in the order of the definition."""
        return self._inbound.get(number, ())

    def node_of(self, pipeline: str, stage: str) -> PlanNode:
        """The node that runs the stage `stage` of the pipeline with that identity. KeyError if there is none."""
        return self._by_member[Member(pipeline, stage)]


def unshared(_pipeline: Pipeline, _stage: Stage) -> None:
    """The salt under which every pipeline keeps its stages to itself."""
    return


def share(pipelines: Sequence[Pipeline], salt: Salt = unshared) -> Plan:
    """The plan that runs `pipelines` together, under the laws at the top of this file.

    pipelines: checked, each with another identity. Their order decides the numbers and the order of members.
    """
    assert len({pipeline.identity for pipeline in pipelines}) == len(pipelines), "a pipeline is given twice"
    building = _Building()
    for pipeline in pipelines:
        building.add(pipeline, salt)
    return building.plan(tuple(pipeline.identity for pipeline in pipelines))


class _Building:
    """Nodes by what identifies them, as pipelines are added."""

    def __init__(self) -> None:
        self._numbers: dict[Hashable, int] = {}
        self._stages: list[Stage] = []
        self._members: list[list[Member]] = []
        self._inbound: list[list[tuple[int, Edge]]] = []

    def add(self, pipeline: Pipeline, salt: Salt) -> None:
        numbers: dict[str, int] = {}
        seen: Counter[Hashable] = Counter()
        inbound: defaultdict[str, list[Edge]] = defaultdict(list)
        conditions: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        for edge in pipeline.edges:
            inbound[edge.target].append(edge)
            if edge.when is not None:
                conditions[edge.source, edge.output].add(edge.when)
        for stage in pipeline.stages:
            arriving = [(numbers[edge.source], edge) for edge in inbound[stage.name]]
            grain = None if stage.kind == "sink" else salt(pipeline, stage)
            key: Hashable
            if grain is None:
                key = (pipeline.identity, stage.name)
            else:
                ways = tuple(
                    (parent, edge.output, edge.when, edge.otherwise, edge.on_slow, _beside(edge, conditions))
                    for parent, edge in arriving
                )
                alike = (grain, stage.kind, stage.type, canonical(stage.options), ways)
                # The second of two that are alike in one pipeline is shared with the second of another.
                key = (alike, seen[alike])
                seen[alike] += 1
            number = self._numbers.setdefault(key, len(self._stages))
            if number == len(self._stages):
                self._stages.append(stage)
                self._members.append([])
                self._inbound.append(arriving)
            self._members[number].append(Member(pipeline.identity, stage.name))
            numbers[stage.name] = number

    def plan(self, pipelines: tuple[str, ...]) -> Plan:
        nodes = tuple(
            PlanNode(number, stage, tuple(members))
            for number, (stage, members) in enumerate(zip(self._stages, self._members, strict=True))
        )
        edges = tuple(
            PlanEdge(source, node.number, edge, node.pipelines)
            for node in nodes
            for source, edge in self._inbound[node.number]
        )
        return Plan(nodes, edges, pipelines)


def _beside(edge: Edge, conditions: Mapping[tuple[str, str], set[str]]) -> tuple[str, ...]:
    """The conditions on the edges of one output, in one order: they decide with it what goes along `edge`."""
    return tuple(sorted(conditions[edge.source, edge.output]))


def canonical(options: Mapping[str, Any]) -> str:
    """`options`, which are JSON values, as the same text whatever the order of their keys."""
    return json.dumps(options, sort_keys=True, separators=(",", ":"), default=_plain)


def _plain(value: object) -> dict[str, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"not a JSON value: {value!r}")
