"""Any pipeline that validates runs, accounts for every record, and delivers what it must, alone or beside others."""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conveyord.core.pipeline.graph import Pipeline
from tests.engine.graph_reference import Expected, alike, delivered, expected, pipelines, tables
from tests.engine.graph_rig import Outcome, Row, World, numbered, pipeline, run_now, sink, source, transform

# A graph takes a tenth of a second, several that share stages half of one.
MANY = settings(max_examples=settings().max_examples // 4)
FEW = settings(max_examples=settings().max_examples // 8)


def in_a_directory(world: World, pipes: list[Pipeline], **how: int) -> Outcome:
    with tempfile.TemporaryDirectory() as directory:
        return run_now(world, pipes, Path(directory), **how)


def check(world: World, pipe: Pipeline, outcome: Outcome, reference: Expected) -> None:
    """Every row is where it must be: at its sinks, or among the dead letters."""
    assert outcome.failed(pipe.identity) == []
    assert delivered(world, pipe) == reference.rows
    for one in outcome.prepared.sinks_of(pipe.identity):
        tally, name = one.taken, one.context.stage
        assert tally.read == reference.read[name]
        assert tally.rows == reference.rows[name].total()
    letters = {}
    for stored in outcome.letters_of(pipe.identity):
        key = stored.letter.key
        letters[(key.stage, *key.partition, key.offset)] = stored.letter.raw
    told = {key: raw for key, raw in reference.letters.items() if _is_told(pipe, key[0], reference)}
    assert {key: raw for key, raw in letters.items() if key in told} == told
    assert {key[0] for key in letters} == {key[0] for key in reference.letters}
    if len(told) == len(reference.letters):
        assert letters == told


def twice(type_name: str, **options: Any) -> Pipeline:
    """What a stage made of rows meets the same rows as they were, and both go through the like of it."""
    stages = [
        source("s0", table="table0", partitions=1),
        transform("t0", type_name, **options),
        transform("t1", type_name, **options),
        sink("k0"),
    ]
    return pipeline(stages, [("s0", "t0"), ("s0", "t1"), ("t0", "t1"), ("t1", "k0")])


def _is_told(pipe: Pipeline, key: str, reference: Expected) -> bool:
    """Whether at the stage of a letter it is known which record a row came from."""
    name = key.removesuffix("/edges")
    stage, _, _ = name.partition(".")
    is_behind = name != key
    return stage in reference.origins and not (is_behind and pipe.stage(stage).type == "reverse")


@MANY
@given(
    tables(),
    pipelines(),
    st.integers(1, 4),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 999)),
)
@example({"table0": numbered(1)}, twice("json_flatten"), 1, 1, None)  # its second column gets a number
def test_whatever_validates_runs_and_delivers_what_the_reference_does(
    data: dict[str, list[Row]], pipe: Pipeline, capacity: int, threads: int, seed: int | None
) -> None:
    world = World(data, delays=None if seed is None else Random(seed))
    outcome = in_a_directory(world, [pipe], capacity=capacity, threads=threads)
    check(world, pipe, outcome, expected(pipe, data))


def test_a_field_that_meets_itself_renamed_is_refused_its_name() -> None:
    """Why `pipelines` renames once at most: which columns a batch has, a reference by rows does not know."""
    world = World({"table0": numbered(1)})
    outcome = in_a_directory(world, [twice("rename", columns={"o.x": "y"}, on_missing="ignore")])
    [(stage, error)] = outcome.failed()
    assert (stage, error.split(";")[0]) == ("t1", "rename: 'o.x' and 'o.y' would both be called 'y'")
    assert world.kept("default/p", "k0").rows == []


@FEW
@given(tables(), st.integers(2, 3).flatmap(lambda count: alike(count=count)), st.integers(1, 4), st.integers(0, 999))
def test_pipelines_that_share_prefixes_deliver_what_each_does_alone(
    data: dict[str, list[Row]], pipes: list[Pipeline], capacity: int, seed: int
) -> None:
    world = World(data, delays=Random(seed))
    outcome = in_a_directory(world, pipes, capacity=capacity)
    for pipe in pipes:
        check(world, pipe, outcome, expected(pipe, data))


@FEW
@given(tables(), pipelines(spills=True), st.integers(1, 2), st.integers(0, 999), st.sampled_from([6_000, 10**9]))
def test_edges_that_spill_deliver_what_others_do(
    data: dict[str, list[Row]], pipe: Pipeline, capacity: int, seed: int, spill_bytes: int
) -> None:
    world = World(data, delays=Random(seed))
    outcome = in_a_directory(world, [pipe], capacity=capacity, spill_bytes=spill_bytes)
    check(world, pipe, outcome, expected(pipe, data))


@FEW
@given(tables(), st.integers(1, 2).flatmap(lambda count: alike(count=count)), st.integers(0, 999), st.data())
def test_a_run_that_fails_is_gone_on_with_and_no_row_is_lost_or_doubled(
    data: dict[str, list[Row]], pipes: list[Pipeline], seed: int, drawn: st.DataObject
) -> None:
    world = World(data, delays=Random(seed))
    broken = drawn.draw(st.sampled_from([(pipe, one.name) for pipe in pipes for one in pipe.of_kind("sink")]))
    world.sink_faults[broken[0].identity, broken[1]] = drawn.draw(st.integers(0, 10))
    with tempfile.TemporaryDirectory() as directory:
        first = run_now(world, pipes, Path(directory))
        for pipe in pipes:
            if pipe is broken[0]:
                assert first.failed(pipe.identity) in ([], [(broken[1], "disk full")])
            else:
                check(world, pipe, first, expected(pipe, data))
        world.sink_faults.clear()
        second = run_now(world, pipes, Path(directory))
    for pipe in pipes:
        assert second.failed(pipe.identity) == []
        assert delivered(world, pipe) == expected(pipe, data).rows


@FEW
@given(
    tables(),
    st.integers(1, 3).flatmap(lambda count: alike(count=count, dlq=None)),
    st.integers(0, 999),
)
def test_without_dead_letters_bad_rows_stop_their_pipeline_and_no_other(
    data: dict[str, list[Row]], pipes: list[Pipeline], seed: int
) -> None:
    world = World(data, delays=Random(seed))
    outcome = in_a_directory(world, pipes)
    for pipe in pipes:
        reference = expected(pipe, data)
        if reference.letters:
            assert outcome.failed(pipe.identity)
            for name, rows in delivered(world, pipe).items():
                assert rows <= reference.rows[name]
        else:
            check(world, pipe, outcome, reference)


@pytest.mark.check
@settings(max_examples=400)
@given(tables(), st.integers(1, 4).flatmap(lambda count: alike(count=count)), st.integers(1, 4), st.integers(0, 9999))
def test_many_more_graphs(data: dict[str, list[Row]], pipes: list[Pipeline], capacity: int, seed: int) -> None:
    world = World(data, delays=Random(seed))
    outcome = in_a_directory(world, pipes, capacity=capacity)
    for pipe in pipes:
        check(world, pipe, outcome, expected(pipe, data))
