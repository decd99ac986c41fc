"""Tests of random pipelines: what comes out at any stage is what a plain reading of the graph says."""

from __future__ import annotations

from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.pipeline.checks import check_graph
from conveyord.core.pipeline.graph import Edge, Pipeline, PipelineTest, Stage, StageKind
from conveyord.core.pipeline.trial import trial_of
from conveyord.engine.registry import installed
from conveyord.engine.testing import Verdict, run_tests

CONDITIONS = {"n % 2 = 0": lambda n: n % 2 == 0, "n % 3 = 1": lambda n: n % 3 == 1, "n > 4": lambda n: n > 4}
TYPES = {"source": "file_jsonl", "sink": "iceberg"}
OPTIONS: dict[str, dict[str, Any]] = {
    "file_jsonl": {"path": "nowhere"},
    "iceberg": {"table": "a.b"},
    "filter": {"when": "n <> 5"},
}
Rows = list[int]


@st.composite
def pipelines(draw: st.DrawFn) -> Pipeline:
    """One or two sources, up to four transforms, one to three sinks, and edges of every kind."""
    counts: dict[StageKind, int] = {
        "source": draw(st.integers(1, 2)),
        "transform": draw(st.integers(0, 4)),
        "sink": draw(st.integers(1, 3)),
    }
    stages = [
        Stage(
            f"{kind}{number}",
            kind,
            kind_type := TYPES.get(kind) or draw(st.sampled_from(["passthrough", "filter"])),
            OPTIONS.get(kind_type, {}),
        )
        for kind, count in counts.items()
        for number in range(count)
    ]
    before = [stage for stage in stages if stage.kind != "sink"]
    ways = set()
    for place, stage in enumerate(stages):
        if stage.kind != "source":
            above = before[: min(place, len(before))]
            chosen = draw(st.lists(st.sampled_from(range(len(above))), min_size=1, max_size=3, unique=True))
            ways |= {(above[index].name, stage.name) for index in chosen}
    for stage in before:
        if not any(source == stage.name for source, _ in ways):
            ways.add((stage.name, f"sink{draw(st.integers(0, counts['sink'] - 1))}"))
    edges = []
    for source, target in draw(st.permutations(sorted(ways))):
        output = ""
        if source.startswith("transform") and _stage(stages, source).type == "filter":
            output = draw(st.sampled_from(["", "dropped"]))
        edges.append(Edge(source, target, output, when=draw(st.sampled_from([None, *CONDITIONS]))))
    for index, edge in enumerate(edges):
        beside = [one for one in edges if one is not edge and (one.source, one.output) == (edge.source, edge.output)]
        if any(one.when for one in beside) and draw(st.booleans()):
            edges[index] = Edge(edge.source, edge.target, edge.output, otherwise=True)
    return Pipeline("default", "random", tuple(stages), tuple(edges))


def _stage(stages: list[Stage], name: str) -> Stage:
    return next(stage for stage in stages if stage.name == name)


def taken(pipeline: Pipeline, edge: Edge, row: int) -> bool:
    if edge.otherwise:
        beside = [one for one in pipeline.edges_from(edge.source) if one.output == edge.output and one.when]
        return not any(CONDITIONS[one.when or ""](row) for one in beside)
    return edge.when is None or CONDITIONS[edge.when](row)


def reference(pipeline: Pipeline, cut: set[str], at: str, rows: Rows) -> dict[str, Rows]:
    """What every stage emits, or what arrives at a sink, of the rows given at one stage."""
    made: dict[str, Rows] = {}
    for stage in pipeline.stages:
        arriving = list(rows) if stage.name == at else []
        if stage.name not in cut:
            for edge in pipeline.edges_to(stage.name):
                emitted = made[f"{edge.source}.dropped" if edge.output else edge.source]
                arriving += [row for row in emitted if taken(pipeline, edge, row)]
        if stage.type == "filter":
            made[f"{stage.name}.dropped"] = [row for row in arriving if row == 5]
            arriving = [row for row in arriving if row != 5]
        made[stage.name] = arriving
    return made


@given(data=st.data(), pipeline=pipelines())
def test_what_comes_out_anywhere_is_what_the_graph_says(data: st.DataObject, pipeline: Pipeline) -> None:
    assert not check_graph(pipeline.stages, pipeline.edges, outputs={})
    names = [stage.name for stage in pipeline.stages]
    at = sorted(data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)), key=names.index)
    rows = {name: data.draw(st.lists(st.integers(0, 8), max_size=6)) for name in at}
    ways = [reference(pipeline, set(at), name, rows[name]) for name in at]
    keys = data.draw(st.lists(st.sampled_from(sorted(ways[0])), min_size=1, max_size=3, unique=True))
    # Rows stand in the order of the sources in the definition, and what is given elsewhere counts as one there.
    expect = {key: [{"n": row} for way in ways for row in way[key]] for key in keys}
    test = PipelineTest("a", {name: [{"n": row} for row in some] for name, some in rows.items()}, expect)
    trial = trial_of(pipeline, test)
    assert not check_graph(trial.pipeline.stages, trial.pipeline.edges, outputs={})

    async def work() -> list[Verdict]:
        return await run_tests([(pipeline, test)], installed(), threads=1)

    (verdict,) = trio.run(work)
    assert verdict.passed, verdict
