"""A pipeline as a graph of stages: what every form of definition is lowered to, and what a driver runs.

Plain frozen data. Whoever builds a `Pipeline` has checked it (conveyord/core/pipeline/checks.py); nothing
here validates. Options are JSON values, as the operator's model takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from conveyord.core.retry import Backoff

StageKind = Literal["source", "transform", "sink"]
OnSlow = Literal["block", "spill"]
Mode = Literal["stream", "batch"]
TablePolicy = Literal["evolve", "freeze"]
SchemaPolicy = Literal["evolve", "freeze", "discard_row", "discard_value"]

MAIN = ""
"""The name of the output that every source and transform has. Others are the operator's `outputs`."""

RETRIES_MAX = 3
RETRY = Backoff(base_seconds=0.1, cap_seconds=10.0)


@dataclass(frozen=True, slots=True)
class Stage:
    """One operator with its options. `name` is unique within its pipeline and stored with positions."""

    name: str
    kind: StageKind
    type: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Edge:
    """Rows of `output` of the stage `source` go to the stage `target`.

    when: a SQL condition on one row; only rows for which it is true go this way. A row goes every way
    that takes it. otherwise: only rows that no conditional edge of the same output took. A row that no
    edge takes is counted as filtered. on_slow: what happens while the target does not keep up: `block`
    slows the source down, and with it every other branch; `spill` puts batches on disk.
    """

    source: str
    target: str
    output: str = MAIN
    when: str | None = None
    otherwise: bool = False
    on_slow: OnSlow = "block"


@dataclass(frozen=True, slots=True)
class DeadLetterPolicy:
    """What happens to records that fail for ever. A pipeline without one stops at the first.

    sink: the stage that receives copies. max_retries: attempts after the first, for failures that may
    pass; the wait between them is `retry`.
    """

    sink: str | None = None
    max_retries: int = RETRIES_MAX
    retry: Backoff = RETRY


@dataclass(frozen=True, slots=True)
class SchemaContract:
    """What happens with what a sink's table has no place for. The table of a `dlq.sink` is not bound by it.

    tables: whether a missing table is created. columns: a field that the table lacks, at any depth. types: a
    value that its column cannot give back exactly; `evolve` widens the column, or adds one beside it.
    `freeze` and `discard_row` make the row a dead letter, `discard_value` leaves the value out and counts it.
    """

    tables: TablePolicy = "evolve"
    columns: SchemaPolicy = "evolve"
    types: SchemaPolicy = "evolve"


@dataclass(frozen=True, slots=True)
class PipelineTest:
    """Rows given and rows expected, by stage (or `stage.output`). Rows are JSON objects.

    given: at a source, what it emits; at a transform or sink, what arrives there. expect: at a source or
    transform, what it emits; at a sink, what arrives there.
    """

    name: str
    given: Mapping[str, Sequence[Mapping[str, Any]]]
    expect: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A checked pipeline: an acyclic graph in which every stage lies between a source and a sink.

    Stages are in an order in which every edge points forward. The dead-letter sink, if there is one, is
    a stage without edges.
    """

    namespace: str
    name: str
    stages: tuple[Stage, ...]
    edges: tuple[Edge, ...]
    mode: Mode = "stream"
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    dlq: DeadLetterPolicy | None = None
    schema: SchemaContract = SchemaContract()
    tests: tuple[PipelineTest, ...] = ()
    enabled: bool = True
    """Whether it is meant to run. A pipeline that is not has been checked all the same."""

    @property
    def identity(self) -> str:
        """`namespace/name`: what fences, runs and dead letters are kept under."""
        return f"{self.namespace}/{self.name}"

    def stage(self, name: str) -> Stage:
        """The stage of that name. KeyError if there is none."""
        found = next((stage for stage in self.stages if stage.name == name), None)
        if found is None:
            raise KeyError(name)
        return found

    def of_kind(self, kind: StageKind) -> tuple[Stage, ...]:
        """The stages of one kind, in order."""
        return tuple(stage for stage in self.stages if stage.kind == kind)

    def edges_from(self, name: str) -> tuple[Edge, ...]:
        """The edges that leave the stage `name`, in the order of the definition."""
        return tuple(edge for edge in self.edges if edge.source == name)

    def below(self, name: str, output: str | None = None) -> frozenset[str]:
        """The stages that rows of `name` can reach: by every output, and `name` itself, unless one is given."""
        reached = {edge.target for edge in self.edges_from(name) if edge.output == output}
        if output is None:
            reached = {name}
        for stage in self.stages:
            if any(edge.source in reached for edge in self.edges_to(stage.name)):
                reached.add(stage.name)
        return frozenset(reached)

    def edges_to(self, name: str) -> tuple[Edge, ...]:
        """The edges that enter the stage `name`, in the order of the definition."""
        return tuple(edge for edge in self.edges if edge.target == name)
