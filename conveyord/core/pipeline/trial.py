"""A pipeline rewritten so that one of its tests can be run: rows come from the test and end with the test.

Stages to which rows are given get them from a source of the test's own; what led to them before is cut.
Sources that are given nothing stay empty. Sinks collect, and so does a further sink at every source,
transform and output of which rows are expected. What runs is what lies between: a stage from which no
expected row can come is left out, unless dead letters are expected, which may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.checks import DEAD_LETTERS, resolve_output
from conveyord.core.pipeline.graph import Edge, Pipeline, PipelineTest, Stage
from conveyord.core.retry import Backoff

GIVEN = "given rows"
"""The type of the sources that emit given rows. Their options are `rows`."""

COLLECTED = "collected rows"
"""The type of the sinks that keep what arrives."""

AT_ONCE = Backoff(base_seconds=0.001, cap_seconds=0.001)
"""Retries are counted as the pipeline says, but nobody waits for them."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What to run for a test, and where its outcome is found.

    collectors: by key of `expect`, the sink stage that collects those rows. dead_letters: the key under
    which dead letters are expected, None if none are. unreached: keys to which no given row can come.
    """

    pipeline: Pipeline
    collectors: Mapping[str, str]
    dead_letters: str | None
    unreached: frozenset[str]


def trial_of(pipeline: Pipeline, test: PipelineTest) -> Trial:
    """The pipeline that runs `test`, which names only what `pipeline` has.

    Raises ConfigError if the test asks for what cannot be.
    """
    names = {stage.name for stage in pipeline.stages}
    copies = pipeline.dlq.sink if pipeline.dlq is not None else None
    if copies in test.given:
        raise ConfigError(f"rows cannot be given to {copies!r}: it receives dead letters only")
    letters = [key for key in test.expect if key == copies or (key == DEAD_LETTERS and key not in names)]
    if len(letters) > 1:
        raise ConfigError(f"{' and '.join(map(repr, letters))} both mean the dead letters; expect one of them")
    expected = {key: resolve_output(key, names) for key in test.expect if key not in letters}
    reached = _below(pipeline, test.given)
    wanted = {stage for stage, _ in expected.values()}
    kept = _above(pipeline, test.given, wanted | reached if letters else wanted)
    kept.discard(copies or "")
    stages, edges = _between(pipeline, test, kept)
    collectors = {}
    for key, (name, output) in expected.items():
        if pipeline.stage(name).kind == "sink":
            collectors[key] = name
        else:
            collectors[key] = f"expected of {key}"
            stages.append(Stage(collectors[key], "sink", COLLECTED))
            edges.append(Edge(name, collectors[key], output))
    return Trial(
        pipeline=replace(
            pipeline,
            stages=tuple(stages),
            edges=tuple(edges),
            dlq=None if pipeline.dlq is None else replace(pipeline.dlq, sink=None, retry=AT_ONCE),
            tests=(),
        ),
        collectors=collectors,
        dead_letters=next(iter(letters), None),
        unreached=frozenset(key for key, (name, _) in expected.items() if name not in reached),
    )


def _between(pipeline: Pipeline, test: PipelineTest, kept: Collection[str]) -> tuple[list[Stage], list[Edge]]:
    """The stages that run, and the edges between them."""
    stages, edges, ends = list[Stage](), list[Edge](), list[Stage]()
    for stage in pipeline.stages:
        if stage.name not in kept:
            continue
        rows = list(test.given.get(stage.name, ()))
        if stage.kind == "source":
            stages.append(Stage(stage.name, "source", GIVEN, {"rows": rows}))
            continue
        if stage.name in test.given:
            stages.append(Stage(f"given to {stage.name}", "source", GIVEN, {"rows": rows}))
            edges.append(Edge(f"given to {stage.name}", stage.name))
        stages.append(Stage(stage.name, "sink", COLLECTED) if stage.kind == "sink" else stage)
    leftover = {(edge.source, edge.output) for edge in pipeline.edges if edge.otherwise and edge.target in kept}
    for edge in pipeline.edges:
        runs = edge.target in kept and edge.target not in test.given
        if edge.source in kept and runs:
            edges.append(replace(edge, on_slow="block"))
        elif edge.source in kept and edge.when is not None and (edge.source, edge.output) in leftover:
            # It leads nowhere here, but what it takes must not go the way of `otherwise`.
            ends.append(Stage(f"beside {len(ends) + 1}", "sink", COLLECTED))
            edges.append(replace(edge, target=ends[-1].name, on_slow="block"))
    return [*stages, *ends], edges


def _below(pipeline: Pipeline, given: Collection[str]) -> set[str]:
    """The stages that given rows can come to. Every edge points forward."""
    reached = set(given)
    for stage in pipeline.stages:
        if any(edge.source in reached for edge in pipeline.edges_to(stage.name)):
            reached.add(stage.name)
    return reached


def _above(pipeline: Pipeline, given: Collection[str], wanted: Collection[str]) -> set[str]:
    """`wanted`, and the stages whose rows come to them. What leads to a stage with given rows is cut."""
    above = set(wanted)
    for stage in reversed(pipeline.stages):
        if stage.name in above and stage.name not in given:
            above.update(edge.source for edge in pipeline.edges_to(stage.name))
    return above
