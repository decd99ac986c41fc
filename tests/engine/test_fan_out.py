"""Branches: every sink gets every batch, rows by condition, and none is ahead of what it may see."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from conveyord.core.flow.positions import Partition
from conveyord.core.pipeline.graph import Edge
from tests.engine.graph_rig import World, line, numbered, pipeline, run_now, sink, source, transform

P0 = Partition("in", "p0")


def arrived(world: World, name: str = "out", pipe: str = "default/p") -> list[int]:
    return [row["n"] for row in world.kept(pipe, name).rows]


@pytest.mark.parametrize("seed", range(4))
def test_a_row_goes_every_way_that_takes_it_and_positions_move_on_all(tmp_path: Path, seed: int) -> None:
    world = World({"t": numbered(40)}, delays=Random(seed))
    sinks = [sink(name, commit_batches=1 + number) for number, name in enumerate(("low", "even", "rest", "none"))]
    edges = [
        Edge("in", "low", when="v < 3"),
        Edge("in", "even", when="n % 2 = 0"),
        Edge("in", "rest", otherwise=True),
        Edge("in", "none", when="v > 100"),
    ]
    outcome = run_now(world, pipeline([source(batch_rows=3), *sinks], edges), tmp_path)
    assert outcome.failed() == []
    low, even = {n for n in range(40) if n % 10 < 3}, set(range(0, 40, 2))
    assert arrived(world, "low") == sorted(low)
    assert arrived(world, "even") == sorted(even)
    assert arrived(world, "rest") == sorted(set(range(40)) - low - even)
    assert arrived(world, "none") == []
    for each in sinks:
        assert world.kept("default/p", each.name).positions[P0].offset == 400


def test_null_conditions_take_no_row_but_otherwise_does(tmp_path: Path) -> None:
    world = World({"t": [{**row, "v": None} for row in numbered(5)]})
    edges = [Edge("in", "out", when="v > 3"), Edge("in", "rest", otherwise=True)]
    run_now(world, pipeline([source(), sink(), sink("rest")], edges), tmp_path)
    assert (arrived(world), arrived(world, "rest")) == ([], list(range(5)))


def test_rows_that_no_edge_takes_count_as_filtered_and_only_those(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    stages = [source(), transform("a", "filter", when="v < 8"), sink(), sink("low"), sink("dropped")]
    edges = [
        ("in", "a"),
        Edge("a", "out", when="v > 5"),
        Edge("a", "low", when="v < 2"),
        Edge("a", "dropped", "dropped"),
    ]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert [len(arrived(world, name)) for name in ("out", "low", "dropped")] == [4, 4, 4]
    assert outcome.progress["default/p"].filtered == 8


def test_figures_of_a_pipeline_do_not_depend_on_who_shares_its_stages(tmp_path: Path) -> None:
    """What one pipeline alone listened to was taken off the other's filtered rows too."""
    shared = [source(), transform("a", "filter", when="v < 8")]
    one = pipeline(
        [*shared, sink(), sink("rest")], [("in", "a"), ("a", "out"), Edge("a", "rest", "dropped")], name="one"
    )
    two = pipeline([*shared, sink()], [("in", "a"), Edge("a", "out", when="v > 5")], name="two")
    world = World({"t": numbered(20)})
    outcome = run_now(world, [one, two], tmp_path)
    assert world.reads == {"in": 1}
    assert outcome.progress["default/one"].filtered == 0
    assert outcome.progress["default/two"].filtered == 16
    assert len(arrived(world, pipe="default/two")) == 4


def test_poison_in_a_condition_is_a_dead_letter_of_its_own_pipeline_only(tmp_path: Path) -> None:
    """It was taken from every pipeline that reads the same source."""
    picky = pipeline(
        [source(), sink(), sink("all")], [Edge("in", "out", when="10 / v > 2"), Edge("in", "all")], name="picky"
    )
    plain = pipeline([source(), sink()], [("in", "out")], name="plain")
    world = World({"t": numbered(30)})
    outcome = run_now(world, [picky, plain], tmp_path)
    assert outcome.failed("default/picky") == outcome.failed("default/plain") == []
    assert arrived(world, pipe="default/plain") == list(range(30))
    assert arrived(world, "all", "default/picky") == [n for n in range(30) if n % 10]
    assert [(each.letter.key.stage, each.letter.key.offset) for each in outcome.letters_of("default/picky")] == [
        ("in/edges", 0),
        ("in/edges", 100),
        ("in/edges", 200),
    ]
    assert outcome.letters_of("default/plain") == []


def test_a_shared_stage_runs_once_and_an_impure_one_for_each(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    stages = [source(), transform("a", "brittle"), transform("b", "slow"), sink()]
    outcome = run_now(world, [line(*stages, name="one"), line(*stages, name="two")], tmp_path)
    assert world.reads == {"in": 1}
    assert world.calls == {"a": 5}
    assert sum(node.operator.context.stage == "b" for node in outcome.prepared.graph.nodes) == 2
    assert arrived(world, pipe="default/one") == arrived(world, pipe="default/two") == list(range(20))


def test_two_sources_of_one_name_and_different_options_keep_apart(tmp_path: Path) -> None:
    world = World({"t": numbered(20), "u": numbered(7)})
    for _ in range(2):
        outcome = run_now(
            world, [line(source(), sink(), name="one"), line(source(table="u"), sink(), name="two")], tmp_path
        )
        assert outcome.failures.all == []
    assert arrived(world, pipe="default/one") == list(range(20))
    assert arrived(world, pipe="default/two") == list(range(7))
    assert world.kept("default/two", "out").positions == {P0: world.kept("default/two", "out").positions[P0]}
