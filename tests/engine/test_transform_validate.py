"""The transform `validate`: exactly the rows that break a rule are found, and none is lost."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.batch_transform import BadRows
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.problems import DefinitionError
from conveyord.engine.registry import installed
from conveyord.operators.transform_validate import ValidateTransform
from tests.engine.graph_rig import World, line, numbered, pipeline, run_now, sink, source, transform
from tests.engine.transform_rig import LAYOUTS, batch, made, rows, texts


def validate(*, listened: bool = False, **options: Any) -> ValidateTransform:
    return made(ValidateTransform, listened=frozenset({"invalid"} if listened else ()), **options)


def errors(data: pa.RecordBatch, **options: Any) -> list[str | None]:
    tagged = validate(on_invalid="tag", **options).apply(data)
    tagged.validate(full=True)
    assert tagged.column("_valid").to_pylist() == [error is None for error in tagged.column("_errors").to_pylist()]
    return tagged.column("_errors").to_pylist()


# ---------------------------------------------------------------------------- rules on columns


@pytest.mark.parametrize(
    ("values", "rules", "message", "bad"),
    [
        (pa.array([1, None]), {"nullable": False}, "c is null", [1]),
        (pa.array([-1, 0, 10, 11, None]), {"min": 0, "max": 10}, r"c is (below min \(0\)|above max \(10\))", [0, 3]),
        (pa.array([0, 1, 2]), {"min": 0.5, "max": 1.5}, "c is (below|above)", [0, 2]),
        (pa.array([2**62, 2**62 + 1]), {"max": 2**62}, "above", [1]),
        (pa.array([1], pa.int8()), {"min": -(10**30), "max": 10**30}, "", []),
        (pa.array([1], pa.int8()), {"min": 10**30}, "below", [0]),
        (pa.array([1], pa.int8()), {"max": -(10**30)}, "above", [0]),
        (pa.array([0.5, math.nan, math.inf, -math.inf]), {"min": 0, "max": 9}, "c is (below|above)", [1, 2, 3]),
        (pa.array([Decimal("1.10"), Decimal("1.11")], pa.decimal128(38, 2)), {"max": 1.105}, "above", [1]),
        (pa.array(["a", None]), {"max": 1}, "c is no number", [0]),
        (pa.array([1]), {"min": "2026-01-01"}, "c is no date or time", [0]),
        (
            pa.array([dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 2, 1)], pa.timestamp("us", "UTC")),
            {"max": "2026-01-02T01:30:00+01:00"},
            "above",
            [1],
        ),
        (pa.array([dt.datetime(2026, 1, 1), None], pa.timestamp("us")), {"min": "2026-01-02"}, "below", [0]),
        (pa.array([dt.date(2026, 1, 1), dt.date(2026, 1, 3)]), {"min": "2026-01-02"}, "below", [0]),
        (pa.array(["ab", "xb", ""]), {"pattern": "^a"}, r"c does not match pattern \(\^a\)", [1, 2]),
        (pa.array([5]), {"pattern": "5"}, "c is no text", [0]),
        (pa.array(["a", "b", "5", "true", None]), {"one_of": ["a", 5, True]}, "c is not in one_of", [1]),
        (pa.array([5, 6]), {"one_of": ["a", 5.0, 10**30]}, "c is not in one_of", [1]),
        (pa.array([5.5, 6]), {"one_of": [5.5, True]}, "c is not in one_of", [1]),
        (pa.array([True, False]), {"one_of": [True, 0]}, "c is not in one_of", [1]),
        (pa.array([Decimal("1.5"), Decimal(2)], pa.decimal128(9, 1)), {"one_of": [1.5, 2.05]}, "one_of", [1]),
        (pa.array([dt.date(2026, 1, 1), dt.date(2026, 1, 3)]), {"one_of": ["2026-01-03"]}, "one_of", [0]),
        (pa.array(["é", "éé", "ééé", None]), {"length_min": 2, "length_max": 2}, "c is (shorter|longer)", [0, 2]),
        (pa.array([b"a", b""]), {"length_min": 1}, r"c is shorter than length_min \(1\)", [1]),
        (pa.array([[1, 2], [], None]), {"length_min": 1}, "shorter", [1]),
        (pa.array([5]), {"length_min": 1}, "c has no length", [0]),
        (pa.array([5, None]), {"type": "string"}, "c is not of type string", [0]),
        (pa.array([5.0, 5.5, math.inf, math.nan, None]), {"type": "long"}, "c is not of type long", [1, 2, 3]),
        (pa.array([Decimal("1.5"), Decimal(2)], pa.decimal128(9, 1)), {"type": "long"}, "type long", [0]),
        (pa.array([5]), {"type": "double"}, "", []),
        (
            pa.array(["x", "3", "-1"]),
            {"type": "double", "min": 0},
            r"^c is (not of type double|below min \(0\))$",
            [0, 2],
        ),
        (pa.array(["x", "3.5", "11", None]), {"min": 0, "max": 10}, r"c is (no number|above)", [0, 2]),
        (pa.array(["7", "7.5", "8"]), {"type": "long", "one_of": [7]}, r"c is not (of type long|in one_of)", [1, 2]),
        (pa.array(["true", "1e3", "no"]), {"type": "boolean"}, "type boolean", [1, 2]),
        (pa.array(["2026-01-31", "2026-02-30"]), {"type": "date"}, "type date", [1]),
        (
            pa.array(["2026-01-01T00:00:00Z", "2026-01-01T23:59:59+23:00", "2027-01-01T00:00:00", "soon"]),
            {"type": "timestamp", "min": "2026-01-01", "max": "2026-12-31"},
            "c is (not of type timestamp|above|no date)",
            [2, 3],
        ),
        (pa.array([{"a": 1}, None]), {"type": "struct", "nullable": False}, "c is null", [1]),
        (pa.nulls(2), {"type": "long", "min": 0, "pattern": "x", "one_of": ["a"], "length_min": 5}, "", []),
        (pa.array([[1], None]), {"one_of": [1]}, "c is not in one_of", [0]),
        (pa.array([{"a": 1}, None]), {"one_of": ["a"]}, "c is not in one_of", [0]),
        (pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())), {"one_of": [1]}, "c is not in one_of", [0]),
        (pa.array([1e308, -math.inf, math.inf, math.nan]), {"max": 10**400}, "c is above", [2, 3]),
        (pa.array([1e308, -math.inf, math.inf, math.nan]), {"min": -(10**400)}, "c is below", [1, 3]),
        (pa.array([1e308, math.inf, None]), {"min": 10**400}, "c is below", [0]),
        (pa.array([2.0**53, 2.0**53 + 2]), {"min": 2**53 + 1}, "c is below", [0]),
        (pa.array([2.0**53, 2.0**53 + 2]), {"max": 2**53 + 1}, "c is above", [1]),
        (pa.array(["1", "1e308"]), {"max": 10**400}, "", []),
        (pa.array([2.0**53, 0.5, math.inf]), {"one_of": [10**400, 2**53 + 1, 0.5]}, "c is not in one_of", [0, 2]),
    ],
)
def test_each_rule_finds_the_rows_that_break_it(
    values: pa.Array, rules: dict[str, Any], message: str, bad: list[int]
) -> None:
    found = errors(batch(c=values), columns={"c": rules})
    assert [row for row, error in enumerate(found) if error is not None] == bad
    for row in bad:
        assert re.search(message, found[row] or "")


VALUES = st.lists(st.one_of(st.none(), st.text("abé", max_size=4)), max_size=8)


@given(VALUES, st.sampled_from(LAYOUTS), st.integers(0, 3), st.integers(0, 3), st.sampled_from(["a", "^b", "é$", "ab"]))
def test_rules_on_texts_agree_with_plain_python(
    values: list[str | None], layout: str, least: int, most: int, pattern: str
) -> None:
    rules = {"nullable": False, "length_min": least, "length_max": most, "pattern": pattern, "one_of": ["a", "ab", "b"]}
    found = errors(batch(s=texts(values, layout)).slice(1), columns={"s": rules})
    for value, error in zip(values[1:], found, strict=True):
        expected = (
            ["s is null"]
            if value is None
            else [
                *([] if re.search(pattern, value) else [f"s does not match pattern ({pattern})"]),
                *([] if value in ("a", "ab", "b") else ["s is not in one_of"]),
                *([] if len(value) >= least else [f"s is shorter than length_min ({least})"]),
                *([] if len(value) <= most else [f"s is longer than length_max ({most})"]),
            ]
        )
        assert error == ("; ".join(expected) or None)


NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.sampled_from([0, 2**53, 2**53 + 1, -(2**53) - 1]))
BOUNDS = st.one_of(NUMBERS, st.floats(allow_nan=False, allow_infinity=False))


@given(st.lists(st.one_of(st.none(), NUMBERS), max_size=8), BOUNDS, BOUNDS)
def test_bounds_are_exact_for_every_long(values: list[int | None], low: float, high: float) -> None:
    found = errors(batch(n=pa.array(values, pa.int64())), columns={"n": {"min": low, "max": high}})
    exact_low, exact_high = Decimal(str(low)), Decimal(str(high))
    assert [error is None for error in found] == [v is None or exact_low <= v <= exact_high for v in values]


def test_several_broken_rules_are_all_named_by_column() -> None:
    data = rows({"a": 5, "b": None, "o": {"x": "y"}}, {"a": 1, "b": 1, "o": None})
    rules = {"o.x": {"one_of": ["z"]}, "b": {"nullable": False}, "a": {"max": 4}}
    assert errors(data, columns=rules) == ["a is above max (4); b is null; o.x is not in one_of", None]


def test_a_value_beside_its_column_is_there_but_breaks_its_rules() -> None:
    data = rows(
        {"m": None, "m__string": "high", "o": {"n": 1, "n__json": None}}, {"m": 5.0, "m__string": None, "o": None}
    )
    assert errors(data, columns={"m": {"nullable": False}}) == [None, None]
    assert errors(data, columns={"m": {"type": "double"}}) == ["m is of another type than its column", None]
    nested = rows({"o": {"n": None, "n__json": "[1]"}})
    assert errors(nested, columns={"o.n": {"min": 0}}) == ["o.n is of another type than its column"]


def test_a_missing_column_stops_the_run_or_is_null() -> None:
    with pytest.raises(ConfigError) as refused:
        validate(columns={"mgg": {"min": 0}}).apply(rows({"mag": 1}))
    assert str(refused.value) == "validate.columns names a column 'mgg' that is not there; did you mean 'mag'?"
    assert errors(rows({"mag": 1}), columns={"x": {"min": 0}}, missing="allow") == [None]
    assert errors(rows({"mag": 1}), columns={"x": {"nullable": False}}, missing="allow") == ["x is null"]


# ---------------------------------------------------------------------------- JSON Schema

SCHEMA = {
    "type": "object",
    "required": ["id", "mag"],
    "properties": {
        "id": {"type": "string", "pattern": "^[a-z]+$"},
        "mag": {"type": "number", "maximum": 10},
        "tags": {"type": "array", "uniqueItems": True, "items": {"$ref": "#/$defs/tag"}},
        "at": {"type": "string"},
    },
    "$defs": {"tag": {"enum": ["a", "b", {"k": 1}]}},
    "additionalProperties": False,
}


def test_a_schema_says_what_is_wrong_without_the_value() -> None:
    data = rows(
        {"id": "abc", "mag": 5, "tags": ["a", "b"], "at": dt.datetime(2026, 1, 1)},
        {"id": "SECRET1", "mag": 50, "tags": ["a", "a", "c"], "at": None},
        {"id": None, "mag": None, "tags": None, "at": None},
    )
    assert errors(data, schema=SCHEMA) == [
        None,
        (
            'id: breaks pattern ("^[a-z]+$"); mag: breaks maximum (10); tags: breaks uniqueItems (true); '
            'tags[2]: breaks enum (["a", "b", {"k": 1}])'
        ),
        "the row: 'id' is a required property; the row: 'mag' is a required property",
    ]
    (unexpected,) = errors(rows({"id": "a", "mag": 1, "x": 1}), schema=SCHEMA)
    assert unexpected == "the row: Additional properties are not allowed ('x' was unexpected)"


def test_a_value_beside_its_column_is_put_back_for_a_schema() -> None:
    data = rows(
        {"mag": None, "mag__string": "high", "mag__json": None, "o": {"n": None, "n__json": '{"k":[1]}'}},
        {"mag": None, "mag__string": None, "mag__json": "[1]", "o": None},
        {"mag": 1.0, "mag__string": None, "mag__json": None, "o": {"n": 5, "n__json": None}},
    )
    schema = {
        "properties": {"mag": {"type": "number"}, "o": {"properties": {"n": {"type": "integer"}}}},
        "additionalProperties": False,
    }
    assert errors(data, schema=schema) == [
        'mag: breaks type ("number"); o.n: breaks type ("integer")',
        'mag: breaks type ("number")',
        None,
    ]


LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text("ab", max_size=3))
DOCUMENTS = st.fixed_dictionaries(
    {"n": st.one_of(st.none(), st.integers(-9, 9)), "s": st.one_of(st.none(), st.text("ab", max_size=3)),
     "l": st.one_of(st.none(), st.lists(st.integers(0, 3), max_size=3)),
     "o": st.one_of(st.none(), st.fixed_dictionaries({"x": st.one_of(st.none(), st.integers(-9, 9))}))}
)  # fmt: skip
KEYWORDS = st.sampled_from(
    [
        {"properties": {"n": {"minimum": 0, "multipleOf": 2}}},
        {"required": ["s", "o"]},
        {"properties": {"s": {"pattern": "a.*b", "minLength": 1}}},
        {"properties": {"l": {"uniqueItems": True, "contains": {"const": 1}}}},
        {"properties": {"o": {"required": ["x"], "properties": {"x": {"exclusiveMaximum": 5}}}}},
        {"anyOf": [{"required": ["n"]}, {"properties": {"s": {"const": "a"}}}]},
        {"not": {"properties": {"l": {"maxItems": 1}}, "required": ["l"]}},
        {"if": {"required": ["n"]}, "then": {"required": ["s"]}, "else": {"maxProperties": 2}},
    ]
)


@given(st.lists(DOCUMENTS, max_size=5), st.lists(KEYWORDS, min_size=1, max_size=3))
def test_a_schema_takes_what_jsonschema_takes_with_nulls_left_out(
    documents: list[dict[str, Any]], parts: list[dict[str, Any]]
) -> None:
    from jsonschema import Draft202012Validator

    def bare(value: Any) -> Any:
        return {k: bare(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value

    kinds = pa.schema(
        [("n", pa.int64()), ("s", pa.string()), ("l", pa.list_(pa.int64())), ("o", pa.struct([("x", pa.int64())]))]
    )
    schema = {"allOf": parts}
    data = pa.RecordBatch.from_pylist(documents, kinds)
    expected = [Draft202012Validator(schema).is_valid(bare(each)) for each in documents]
    assert [error is None for error in errors(data, schema=schema)] == expected


def test_decimals_bytes_times_and_maps_are_the_json_that_a_sink_would_write() -> None:
    data = batch(
        d=pa.array([Decimal("2.0")], pa.decimal128(9, 1)),
        b=pa.array([b"\xff"]),
        t=pa.array([dt.datetime(2026, 1, 1)], pa.timestamp("us", "UTC")),
        m=pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
    )
    schema = {
        "properties": {
            "d": {"type": "integer"},
            "b": {"const": "/w=="},
            "t": {"const": "2026-01-01T00:00:00Z"},
            "m": {"const": [{"key": "k", "value": 1}]},
        }
    }
    assert errors(data, schema=schema) == [None]


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "nothing"}, "the schema is no JSON Schema: $.type: 'nothing' is not valid"),
        ({"$ref": "https://example.com/x.json"}, "the schema refers to 'https://example.com/x.json'; only references"),
        ({"$ref": "file:///etc/passwd"}, "only references within it are followed"),
        ({"properties": {"a": {"$ref": "#/$defs/b"}}}, "the schema refers to '#/$defs/b', which is not in it"),
        ({"properties": {"a": {"pattern": "(?=x)"}}}, "the schema has a pattern that RE2 does not take: '(?=x)'"),
        ({"patternProperties": {"^a": {}}}, "the schema has patternProperties, which are not supported"),
        ({"properties": {"a": {"$id": "x"}}}, "the schema has an $id within it ('x')"),
        ({"$schema": "https://example.com/mine"}, "the schema is of an unknown dialect 'https://example.com/mine'"),
    ],
)
def test_a_schema_that_cannot_be_used_is_found_with_the_definition(schema: dict[str, Any], problem: str) -> None:
    text = f"""apiVersion: conveyor.etl/v1
kind: Pipeline
metadata:
  name: p
spec:
  source: {{type: file_jsonl, path: x}}
  steps:
    - type: validate
      schema: {json.dumps(schema)}
  sink: {{type: stdout_pretty}}
"""
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines({"x.yaml": text.encode()}, registry=installed(), environ={})
    (found,) = refused.value.problems
    assert problem in found.message
    assert found.line == 9
    with pytest.raises(ConfigError, match="validate.schema "):
        validate(schema=schema).apply(rows({"a": 1}))


def test_a_schema_without_an_end_makes_rows_invalid_and_ends() -> None:
    (found,) = errors(rows({"a": 1}), schema={"$defs": {"x": {"$ref": "#/$defs/x"}}, "$ref": "#/$defs/x"})
    assert found == "the row nests too deep for the schema, or the schema refers to itself without end"
    deep: Any = 1
    for _ in range(99):
        deep = {"a": deep}
    tree = {"properties": {"a": {"$ref": "#"}}}
    assert errors(rows(deep), schema=tree) == [None]


def test_multiples_are_counted_exactly_and_what_is_no_finite_number_is_none() -> None:
    def bad(values: pa.Array, unit: Any) -> list[int]:
        found = errors(batch(d=values), schema={"properties": {"d": {"multipleOf": unit}}})
        assert {error for error in found if error} <= {f"d: breaks multipleOf ({json.dumps(unit)})"}
        return [row for row, error in enumerate(found) if error is not None]

    doubles = pa.array([0.3, 19.99, -0.25, math.inf, -math.inf, math.nan, 0.0, 1e308, 5e-324, None])
    assert bad(doubles, 0.01) == [3, 4, 5, 8]
    assert bad(doubles, 1) == [0, 1, 2, 3, 4, 5, 8]
    assert bad(pa.array([Decimal(10**75), Decimal(10**75 + 1)], pa.decimal256(76, 0)), 0.5) == []
    assert bad(pa.array([True, False]), 5) == []
    huge = batch(d=pa.nulls(2, pa.int64()), d__json=pa.array(["1" + "0" * 400, "1" + "0" * 399 + "1"]))
    assert [bool(e) for e in errors(huge, schema={"properties": {"d": {"multipleOf": 2.5}}})] == [False, True]


def test_items_are_told_apart_as_json_schema_does() -> None:
    def repeats(*documents: str) -> list[bool]:
        data = batch(l=pa.nulls(len(documents)), l__json=pa.array(documents))
        return [error is not None for error in errors(data, schema={"properties": {"l": {"uniqueItems": True}}})]

    assert repeats("[1, 1.0]", '[{"a": [2.0]}, {"a": [2]}]', '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]') == [True] * 3
    assert repeats('[1, "1"]', "[1, true]", "[0, false]", "[1, 1.5]", "[[1], 1]", "[null, 0]") == [False] * 6


def test_patterns_and_unique_items_take_time_in_proportion() -> None:
    """Python's `re` needs longer than the sun will last for the first, jsonschema a million steps for the second."""
    data = rows({"s": "a" * 5_000 + "b", "l": [{"n": n} for n in range(20_000)]})
    schema = {"properties": {"s": {"pattern": "^(a+)+$"}, "l": {"uniqueItems": True}}}
    assert errors(data, schema=schema) == ['s: breaks pattern ("^(a+)+$")']


async def test_a_schema_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    with pytest.raises(ConfigError, match="schema.json cannot be read: No such file"):
        await validate(schema_file=str(file)).check()
    for content, why in (("{", "is not JSON"), ("[]", "holds no object"), ('{"type": 5}', "is no JSON Schema")):
        file.write_text(content)
        with pytest.raises(ConfigError, match=why):
            await validate(schema_file=str(file)).check()
    file.write_text("{}" + " " * 1024 * 1024)
    with pytest.raises(ConfigError, match="has more than 1048576 bytes"):
        await validate(schema_file=str(file)).check()
    file.write_text(json.dumps(SCHEMA))
    transform = validate(schema_file=str(file), on_invalid="drop")
    await transform.check()
    assert transform.apply(rows({"id": "a", "mag": 1}, {"id": "A", "mag": 1})).to_pylist() == [{"id": "a", "mag": 1}]


# ---------------------------------------------------------------------------- what becomes of them

RULES = {"a": {"max": 4}}
DATA = rows({"a": 1}, {"a": 9}, {"a": 2}, {"a": 8})


def test_invalid_rows_are_dropped_routed_or_named() -> None:
    assert validate(columns=RULES, on_invalid="drop").apply(DATA).to_pylist() == [{"a": 1}, {"a": 2}]
    good, others = validate(columns=RULES, on_invalid="route", listened=True).apply_all(DATA)
    assert good.to_pylist() == [{"a": 1}, {"a": 2}]
    assert others["invalid"].to_pylist() == [{"a": n, "_errors": "a is above max (4)"} for n in (9, 8)]
    assert validate(columns=RULES, on_invalid="route").apply_all(DATA)[1] == {}
    with pytest.raises(BadRows) as failed:
        validate(columns=RULES).apply(DATA)
    assert str(failed.value) == "2 of 4 rows are bad; the first is row 1 of the batch: a is above max (4)"
    assert [poison.row for poison in failed.value.poison] == [1, 3]
    assert failed.value.good[0].to_pylist() == [{"a": 1}, {"a": 2}]


def test_a_batch_in_which_all_is_well_stays_as_it_is() -> None:
    data = rows({"a": 1})
    for on_invalid in ("dead_letter", "drop", "route"):
        assert validate(columns=RULES, on_invalid=on_invalid).apply(data) is data


@pytest.mark.parametrize("on_invalid", ["dead_letter", "drop", "tag", "route"])
def test_a_batch_without_rows_or_columns_is_no_matter(on_invalid: str) -> None:
    transform = validate(columns=RULES, schema={}, on_invalid=on_invalid, listened=True)
    empty, full = transform.apply_all(DATA.slice(0, 0)), transform.apply_all(rows({"a": 1}))
    assert empty[0].schema == full[0].schema
    assert {name: data.schema for name, data in empty[1].items()} == {name: d.schema for name, d in full[1].items()}
    bare = pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))
    assert errors(bare, schema={"required": ["a"]}) == ["the row: 'a' is a required property"] * 2


def test_columns_that_it_adds_may_not_be_there() -> None:
    with pytest.raises(
        ConfigError, match="validate adds a column '_valid', but there is one already; rename that first"
    ):
        validate(columns=RULES, on_invalid="tag").apply(rows({"a": 1, "_valid": True}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Field required"),
        ({"columns": {}}, "validate has no rules; give it columns, schema or schema_file"),
        ({"schema": {}, "schema_file": "x"}, "schema and schema_file exclude each other; leave one out"),
        ({"columns": {"a": {"pattern": "(?=a)"}}}, "pattern '(?=a)' is no regular expression"),
        ({"columns": {"a": {"min": "soon"}}}, "min must be a number, a date or a time such as"),
        ({"columns": {"a": {"one_of": []}}}, "at least 1 item"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(**options)
    assert message in str(refused.value)


def test_in_a_run_invalid_rows_become_letters_with_their_rule_and_record(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    check = transform("check", "validate", columns={"v": {"max": 6}, "k": {"one_of": ["a", "b"]}})
    outcome = run_now(world, line(source(batch_rows=7), check, sink()), tmp_path)
    assert outcome.failed() == []
    good = [row for row in numbered(20) if row["v"] <= 6 and row["k"] in "ab"]
    assert world.kept("default/p", "out").rows == good
    letters = {stored.letter.key.offset: stored.letter for stored in outcome.letters_of()}
    assert sorted(letters) == [row["n"] * 10 for row in numbered(20) if row not in good]
    assert {letter.code for letter in letters.values()} == {"VALIDATION_FAILED"}
    assert letters[80].message == "k is not in one_of; v is above max (6)"
    assert letters[80].raw is not None


def test_more_rows_may_be_invalid_than_a_search_would_find(tmp_path: Path) -> None:
    world = World({"t": numbered(2_500)})
    stages = (source(batch_rows=2_500), transform("check", "validate", columns={"v": {"max": -1}}), sink())
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    assert world.kept("default/p", "out").rows == []
    assert len(outcome.letters_of()) == 2_500


def test_without_dead_letters_the_run_stops_and_says_which_rule(tmp_path: Path) -> None:
    world = World({"t": numbered(6)})
    check = transform("check", "validate", columns={"v": {"max": 4}})
    outcome = run_now(world, line(source(batch_rows=3), check, sink(), dlq=None), tmp_path)
    assert outcome.failed() == [
        ("check", "p0 bytes 30 to 60: 1 of 3 rows are bad; the first is row 2 of the batch: v is above max (4)")
    ]
    assert world.kept("default/p", "out").rows == numbered(3)


def test_a_record_of_a_row_behind_invalid_ones_is_still_found(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    stages = (
        source(batch_rows=20),
        transform("check", "validate", columns={"n": {"max": 15}}),
        transform("repeat", "repeat"),
        transform("brittle", "brittle", column="n", poison=[14]),
        sink(),
    )
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    later = [stored.letter.key for stored in outcome.letters_of() if stored.letter.key.stage == "brittle"]
    assert [(key.offset, key.part) for key in later] == [(140, 0), (140, 1)]


def test_routed_rows_go_their_own_way_and_all_are_accounted_for(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    stages = (
        source(),
        transform("check", "validate", columns={"v": {"max": 6}}, on_invalid="route"),
        sink("good"),
        sink("bad"),
    )
    edges = [Edge("in", "check"), Edge("check", "good"), Edge("check", "bad", output="invalid")]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert outcome.failed() == []
    assert world.kept("default/p", "good").rows == [row for row in numbered(20) if row["v"] <= 6]
    wrong = [{**row, "_errors": "v is above max (6)"} for row in numbered(20) if row["v"] > 6]
    assert world.kept("default/p", "bad").rows == wrong
    assert outcome.letters_of() == []
