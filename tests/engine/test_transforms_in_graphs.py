"""`mask`, `validate`, `partition`, `flat_map` and `split` in graphs that are interrupted: nothing lost or doubled."""

from __future__ import annotations

import hashlib
import tempfile
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.pipeline.graph import Edge, Pipeline
from tests.engine.graph_rig import World, numbered, pipeline, run_now, sink, source, transform

STEPS: dict[str, dict[str, Any]] = {
    "validate": {"columns": {"v": {"max": 7}}},
    "mask": {"columns": {"k": "hash"}, "unkeyed": True},
    "partition": {"partition_by": ["v"]},
    "flat_map": {"each": "CASE WHEN n % 4 = 0 THEN NULL ELSE make_array(n, v) END"},
}


def expected(steps: list[str]) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """The rows of both sinks and the number of dead letters, in plain Python."""
    rows, dead = numbered(40), 0
    for step in steps:
        if step == "validate":
            good = [row for row in rows if row["v"] <= 7]
            rows, dead = good, dead + len(rows) - len(good)
        elif step == "mask":
            rows = [{**row, "k": hashlib.sha256(row["k"].encode()).hexdigest()} for row in rows]
        elif step == "partition":
            rows = [{**row, "_partition_path": f"v={row['v']}"} for row in rows]
        else:
            rows = [{**row, "item": item} for row in rows if row["n"] % 4 for item in (row["n"], row["v"])]
    return {"even": [r for r in rows if r["n"] % 2 == 0], "odd": [r for r in rows if r["n"] % 2]}, dead


def graph(steps: list[str]) -> Pipeline:
    names = ["in", *steps, "split"]
    stages = (
        source(batch_rows=6, partitions=2),
        *(transform(step, step, **STEPS[step]) for step in steps),
        transform("split", "split", outputs={"even": "n % 2 = 0"}),
        sink("even"),
        sink("odd"),
    )
    edges = [Edge(one, other) for one, other in pairwise(names)]
    return pipeline(stages, [*edges, Edge("split", "even", output="even"), Edge("split", "odd")])


@settings(max_examples=6, deadline=None)
@given(st.permutations(list(STEPS)), st.integers(0, 4), st.integers(0, 2**16), st.integers(0, 30))
def test_whatever_the_order_an_interrupted_run_is_finished_by_the_next(
    order: list[str], count: int, seed: int, full: int
) -> None:
    steps = order[:count]
    world = World({"t": numbered(40)}, delays=Random(seed))
    world.sink_faults[("default/p", "odd")] = full
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(3):
            outcome = run_now(world, graph(steps), Path(directory))
        assert outcome.failed() == []
        wanted, dead = expected(steps)
        for name, rows in wanted.items():
            kept = world.kept("default/p", name).rows
            assert sorted(map(str, kept)) == sorted(map(str, rows))
        letters = [stored.letter.key for stored in outcome.letters_of()]
        assert len(letters) == len(set(letters)) == dead
