"""The transform `map`: every expression sees the row as it came, and nothing but that row."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.expressions import SEVERAL_ROWS
from conveyord.engine.problems import DefinitionError
from conveyord.engine.registry import installed
from conveyord.operators.transform_map import MapTransform
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts

OPTIONAL_INTS = st.one_of(st.none(), st.integers(-9, 9))
OPTIONAL_TEXTS = st.one_of(st.none(), st.text("ab é", max_size=3))


def mapped(**columns: str) -> MapTransform:
    return made(MapTransform, columns=columns)


WORK = mapped(both="s || '-' || t", a="a + b", b="a", c="coalesce(a, 0) > 1")


@given(st.lists(st.tuples(OPTIONAL_INTS, OPTIONAL_INTS, OPTIONAL_TEXTS, OPTIONAL_TEXTS)), st.sampled_from(LAYOUTS))
def test_every_expression_sees_the_row_as_it_came(values: list[tuple], layout: str) -> None:
    a, b, s, t = ([row[place] for row in values] for place in range(4))
    data = batch(a=pa.array(a, pa.int64()), s=texts(s, layout), b=pa.array(b, pa.int64()), t=texts(t, layout))
    done = WORK.apply(data.slice(1))
    done.validate(full=True)
    assert done.schema.names == ["a", "s", "b", "t", "both", "c"]
    assert done.column("s").type == data.column("s").type
    expected = [
        {
            "a": None if row[0] is None or row[1] is None else row[0] + row[1],
            "s": row[2],
            "b": row[0],
            "t": row[3],
            "both": None if row[2] is None or row[3] is None else f"{row[2]}-{row[3]}",
            "c": (row[0] or 0) > 1,
        }
        for row in values[1:]
    ]
    assert done.to_pylist() == expected


def test_two_columns_can_change_places() -> None:
    assert mapped(a="b", b="a").apply(rows({"a": 1, "b": "x"})).to_pylist() == [{"a": "x", "b": 1}]


def test_values_of_any_type_are_computed_and_others_passed_on() -> None:
    at = dt.datetime(2024, 5, 31, 13, 5)
    data = batch(
        money=pa.array([Decimal("1.50")], pa.decimal128(10, 2)),
        at=pa.array([at], pa.timestamp("us")),
        o=pa.array([{"x": [1, None]}]),
        e=texts(["k"], "dictionary"),
        n=pa.nulls(1),
    )
    done = mapped(
        double="money * 2", day="date_trunc('day', at)", x="o.x", e2="upper(e)", s="named_struct('n', n)"
    ).apply(data)
    assert done.select(data.schema.names).equals(data)
    assert done.select(["double", "day", "x", "e2", "s"]).to_pylist() == [
        {"double": Decimal("3.00"), "day": dt.datetime(2024, 5, 31), "x": [1, None], "e2": "K", "s": {"n": None}}
    ]


def test_a_null_object_has_null_fields() -> None:
    hidden = pa.StructArray.from_arrays([pa.array([1, 2])], names=["x"], mask=pa.array([False, True]))
    assert mapped(x="s.x").apply(batch(s=hidden)).column("x").to_pylist() == [1, None]


def test_batches_without_rows_or_without_columns_have_the_same_columns_added() -> None:
    data = rows({"a": 1}, {"a": 2})
    assert mapped(b="a * 2").apply(data.slice(0, 0)).schema == mapped(b="a * 2").apply(data).schema
    assert mapped(b="'x'").apply(data.select([])).to_pylist() == [{"b": "x"}, {"b": "x"}]


def test_names_keep_their_case_and_may_hold_anything() -> None:
    done = mapped(**{"a.b": "Ab", 'say "x"': '"sum(x)"', "c": '"select"'}).apply(
        rows({"Ab": 1, "sum(x)": 2, "select": 3})
    )
    assert done.to_pylist() == [{"Ab": 1, "sum(x)": 2, "select": 3, "a.b": 1, 'say "x"': 2, "c": 3}]


def test_schemas_may_change_between_batches() -> None:
    work = mapped(b="a * 2")
    assert work.apply(rows({"a": 2})).to_pylist() == [{"a": 2, "b": 4}]
    assert work.apply(rows({"a": 0.5, "c": 1})).to_pylist() == [{"a": 0.5, "c": 1, "b": 1.0}]
    with pytest.raises(ConfigError, match=r"map\.columns\.b cannot work on these rows: No field named a"):
        work.apply(rows({"z": 2}))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("sum(a)", "must look at one row only, without aggregates or windows; use sql_transform"),
        ("Count ( * )", "must look at one row only, without aggregates or windows; use sql_transform"),
        ("a + rank() OVER (ORDER BY a)", "must look at one row only, without aggregates or windows; use sql_transform"),
        ("unnest([1, 2])", "must look at one row only, without aggregates or windows; use sql_transform"),
        ("(SELECT 1)", "must be an expression on one row, without subqueries; use sql_transform"),
        ("a >", "is refused: Expected: an expression, found: the end"),
        ("", "is refused: Expected: an expression, found: the end"),
        ("a AS b", "is refused: Expected: ), found: AS (column 3)"),
        ("a, a", "has several expressions, parted by a comma; give each a column of its own"),
        ("f(a, 1) -- b,\n , '(' || b", "has several expressions, parted by a comma; give each a column of its own"),
        ("a; DROP TABLE x", "is refused: Expected: ), found: ; (column 2)"),
    ],
)
def test_what_is_no_expression_on_one_row_is_refused_before_a_run(text: str, why: str) -> None:
    config = MapTransform.Config(columns={"good": "1", "bad": text})
    assert MapTransform.mistakes(config) == {("columns", "bad"): f"columns.bad {why}"}


@pytest.mark.parametrize("text", ["coalesce(a, 1) -- b, c", "a IN (1, 2)", "[a, 1][1]", "concat(a, ',', \"x,y\")"])
def test_commas_within_an_expression_part_nothing(text: str) -> None:
    assert MapTransform.mistakes(MapTransform.Config(columns={"x": text})) == {}


@pytest.mark.parametrize(
    "text", ["a) AS x, (a", 'a) AS "value" FROM input_data ORDER BY (a', "*", "a /* b", "nowhere", "$1"]
)
def test_what_only_the_columns_or_the_plan_show_is_refused_too(text: str) -> None:
    with pytest.raises(ConfigError, match=r"map\.columns\.x|columns\.x"):
        mapped(x=text).apply(rows({"a": 1}, {"a": 2}))


def test_every_function_over_several_rows_is_known() -> None:
    from datafusion import SessionConfig, SessionContext

    context = SessionContext(SessionConfig().with_information_schema(True))
    routines = context.sql("SELECT routine_name, function_type FROM information_schema.routines").to_pylist()
    several = {each["routine_name"] for each in routines if each["function_type"] != "SCALAR"}
    assert several | {"unnest"} == SEVERAL_ROWS


def test_a_wrong_expression_is_shown_with_its_place() -> None:
    text = """apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: quakes}
spec:
  source: {type: file_jsonl, path: x}
  steps:
    - {type: map, columns: {mag2: "max(mag)"}}
  sink: {type: stdout_pretty}
"""
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines({"a.yaml": text.encode()}, registry=installed(), environ={})
    assert str(refused.value).splitlines()[0] == (
        "a.yaml:7:35: columns.mag2 must look at one row only, without aggregates or windows; use sql_transform"
    )


def test_a_value_at_fault_is_told_with_its_column() -> None:
    with pytest.raises(BatchError, match=r"map\.columns\.bad failed on a value: .*'x'"):
        mapped(good="a", bad="cast(s AS int)").apply(rows({"a": 1, "s": "x"}))


@pytest.mark.parametrize(("text", "pure"), [("a + 1", True), ("now()", False), ("random() + a", False)])
def test_it_is_pure_if_its_expressions_are(text: str, pure: bool) -> None:
    assert MapTransform.is_pure(MapTransform.Config(columns={"a": "1", "x": text})) is pure


def test_rows_at_fault_become_dead_letters_and_all_others_arrive(tmp_path: Path) -> None:
    world = World({"t": numbered(40)})
    step = transform("m", "map", columns={"share": "10 / v", "v": "v + 1"})
    outcome = run_now(world, line(source(), step, sink()), tmp_path)
    assert outcome.failed() == []
    assert sorted(stored.letter.key.offset for stored in outcome.letters_of()) == [0, 100, 200, 300]
    kept = world.kept("default/p", "out").rows
    assert [(row["n"], row["v"], row["share"]) for row in kept] == [
        (n, n % 10 + 1, 10 // (n % 10)) for n in range(40) if n % 10
    ]
