"""The transform `schema_evolution`: one schema that grows, or rows that fail."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.batch_transform import BadRows
from conveyord.operators.transform_schema_evolution import SchemaEvolutionConfig, SchemaEvolutionTransform
from tests.engine.graph_rig import World, line, run, sink, source, transform
from tests.engine.test_schema_properties import atoms_by_row, batches
from tests.engine.transform_rig import batch, made


def rows(*found: dict[str, Any]) -> pa.RecordBatch:
    """With every field that any of them has."""
    return pa.RecordBatch.from_struct_array(pa.array(found))


def evolving(**options: Any) -> SchemaEvolutionTransform:
    stage: SchemaEvolutionTransform = made(SchemaEvolutionTransform, **options)
    return stage


def test_columns_that_come_and_go_make_one_schema_that_grows() -> None:
    stage = evolving()
    first = stage.apply(rows({"a": 1, "o": {"x": 1}}))
    second = stage.apply(rows({"b": "t", "o": {"y": True}}))
    third = stage.apply(rows({"a": 2.5}))
    fourth = stage.apply(rows({"a": 3}))
    assert first.schema.names == ["a", "o"]
    assert second.schema.names == ["a", "o", "b"]
    assert second.to_pylist() == [{"a": None, "o": {"x": None, "y": True}, "b": "t"}]
    assert third.to_pylist() == [{"a": None, "o": None, "b": None, "a__double": 2.5}]
    assert fourth.schema == third.schema
    assert fourth.to_pylist() == [{"a": 3, "o": None, "b": None, "a__double": None}]


def test_declared_columns_are_there_from_the_beginning_in_their_order() -> None:
    stage = evolving(columns={"z": "timestamptz", "a": "double"})
    assert stage.apply(rows({"n": None, "a": 1})).to_pylist() == [{"z": None, "a": 1.0}]
    assert stage.apply(batch().slice(0, 0)).schema.names == ["z", "a"]


def test_numbers_widen() -> None:
    stage = evolving()
    assert stage.apply(batch(n=pa.array([1], pa.int32()))).schema.field("n").type == pa.int32()
    assert stage.apply(batch(n=pa.array([2**40], pa.int64()))).schema.field("n").type == pa.int64()
    assert stage.apply(batch(n=pa.array([1], pa.int32()))).schema.field("n").type == pa.int64()


@given(st.lists(batches(), min_size=1, max_size=4))
def test_no_value_is_lost_and_no_column_is_ever_taken_away(data: list[pa.RecordBatch]) -> None:
    stage, before = evolving(), pa.schema([])
    for one in data:
        out = stage.apply(one)
        assert atoms_by_row(out) == atoms_by_row(one)
        assert out.schema.names[: len(before)] == before.names
        before = out.schema


def test_too_many_columns_fail_and_are_not_remembered() -> None:
    stage = evolving(columns_max=2)
    stage.apply(rows({"a": 1, "b": 1}))
    with pytest.raises(BatchError, match=r"the rows have 3 columns \('c' is the newest\), columns_max is 2"):
        stage.apply(rows({"c": 1}))
    assert stage.apply(rows({"a": 1})).schema.names == ["a", "b"]


# ------------------------------------------------------------------------------ strict


def refused(stage: SchemaEvolutionTransform, data: pa.RecordBatch) -> tuple[dict[int, str], list[dict[str, Any]]]:
    with pytest.raises(BadRows) as caught:
        stage.apply(data)
    return {one.row: str(one.error) for one in caught.value.poison}, caught.value.good[0].to_pylist()


def test_the_first_batch_with_rows_is_the_law_of_a_strict_stage() -> None:
    stage = evolving(strict_mode=True)
    stage.apply(rows({"x": 1}).slice(0, 0))
    assert stage.apply(rows({"a": 1, "s": "t"})).schema.names == ["a", "s"]
    bad, good = refused(stage, rows({"a": 2.0, "new": None}, {"a": 2.5, "new": None}, {"a": 3.0, "new": 1}, {"s": 5.0}))
    assert good == [{"a": 2, "s": None}, {"a": None, "s": "5"}]
    assert bad == {
        1: "schema_evolution: a double value does not fit column 'a', which is int64, and strict_mode is on; declare "
        "it otherwise in columns, or cast it before this stage",
        2: "schema_evolution: 'new' is none of the columns of this run's first batch, and strict_mode is on; add it to "
        "columns, or leave it out before this stage",
    }


def test_declared_columns_are_the_law_from_the_first_row_on() -> None:
    stage = evolving(strict_mode=True, auto_infer=False, columns={"a": "long", "at": "timestamptz"})
    bad, good = refused(stage, rows({"a": 1, "at": "2024-05-01T00:00:00Z"}, {"a": 2, "at": "yesterday"}))
    assert list(bad) == [1]
    assert [str(row["at"]) for row in good] == ["2024-05-01 00:00:00+00:00"]


@given(batches(), batches())
def test_what_passes_a_strict_stage_lost_nothing_and_all_else_is_named(
    one: pa.RecordBatch, two: pa.RecordBatch
) -> None:
    stage = evolving(strict_mode=True)
    try:
        law = stage.apply(one).schema
    except BadRows as error:  # such as an unsigned number beyond 63 bits, in the first batch itself
        law = error.good[0].schema
    try:
        passed, bad = stage.apply(two), set()
    except BadRows as error:
        passed, bad = error.good[0], {one.row for one in error.poison}
    if one.num_rows:
        assert passed.schema == law
    wanted = [atoms for row, atoms in enumerate(atoms_by_row(two)) if row not in bad]
    assert atoms_by_row(passed) == wanted


# ------------------------------------------------------------------------------ in the engine


async def test_rows_that_are_not_as_declared_become_dead_letters(tmp_path: Any, hasty_clock: Any) -> None:
    world = World(tables={"t": [{"n": n, "v": n, "k": "x" if n % 5 else None, "o": None} for n in range(40)]})
    strict = transform("strict", "schema_evolution", strict_mode=True, columns={"n": "long", "v": "long"})
    await run(world, line(source(), strict, sink()), tmp_path)
    assert [row["n"] for row in world.kept("default/p", "out").rows] == [n for n in range(40) if n % 5 == 0]


# ------------------------------------------------------------------------------ definitions


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"auto_infer": False}, "auto_infer", "both off the stage does nothing; leave it out"),
        (
            {"auto_infer": False, "strict_mode": True},
            "auto_infer",
            "no columns to be strict about; give them in columns",
        ),
        (
            {"columns": {"a": "number"}},
            ("columns", "a"),
            "column 'a': 'number' is no type; types are boolean, int, long",
        ),
    ],
)
def test_options_that_make_no_sense_are_named(options: dict[str, Any], key: Any, message: str) -> None:
    found = SchemaEvolutionTransform.mistakes(SchemaEvolutionConfig(**options))
    assert list(found) == [key]
    assert message in found[key]


def test_a_batch_that_names_a_column_twice_is_an_error_of_the_definition() -> None:
    data = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(ConfigError, match="two columns are named 'a'"):
        evolving().apply(data)
