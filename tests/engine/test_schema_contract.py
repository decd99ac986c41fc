"""A contract refuses rows, and leaves values out, exactly where a table has no place for them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.pipeline.graph import SchemaContract
from conveyord.engine.schema import Breach, fit, grow, held_to, merge
from conveyord.engine.schema.contract import Verdict
from conveyord.engine.sql import without_views
from tests.engine.test_schema_properties import atoms_by_row, batches

FREEZE = SchemaContract("evolve", "freeze", "freeze")
DISCARD_ROW = SchemaContract("evolve", "discard_row", "discard_row")
DISCARD = SchemaContract("evolve", "discard_value", "discard_value")
COLUMNS = SchemaContract("evolve", "freeze", "evolve")
TYPES = SchemaContract("evolve", "evolve", "freeze")

NESTED = pa.schema(
    [
        ("id", pa.int64()),
        ("small", pa.int32()),
        ("name", pa.string()),
        ("o", pa.struct([("x", pa.int64()), ("in", pa.struct([("y", pa.string())]))])),
        ("items", pa.list_(pa.struct([("n", pa.int64())]))),
        ("numbers", pa.list_(pa.int64())),
        ("m", pa.map_(pa.string(), pa.struct([("n", pa.int64())]))),
    ]
)


def rows(*found: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.array(found))


def judged(contract: SchemaContract, *found: dict[str, Any], target: pa.Schema = NESTED) -> Verdict:
    return held_to(contract, rows(*found), target)


MAPS = pa.map_(pa.string(), pa.struct([("n", pa.int64()), ("more", pa.string())]))


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"new": 1}, "new"),
        ({"o": {"z": 1}}, "o.z"),
        ({"o": {"in": {"q": "t"}}}, "o.in.q"),
        ({"items": [{"n": 1}, {"n": 2, "z": True}]}, "items.element.z"),
        ({"new": {"deep": [None, {"a": 0}]}}, "new"),
    ],
)
def test_a_field_that_the_table_lacks_is_found_at_any_depth(row: dict[str, Any], field: str) -> None:
    found = judged(FREEZE, {"id": 1}, {"id": 2, **row}, {"id": 3})
    assert list(found.refused) == [1]
    assert (found.refused[1].path, found.refused[1].held) == (field, None)
    assert fit(found.data, NESTED)["id"].to_pylist() == [1, 3]
    assert [found.row(0), found.row(1)] == [0, 2]
    left = judged(DISCARD, {"id": 1}, {"id": 2, **row}, {"id": 3})
    assert (left.refused, left.discarded) == ({}, {field: 1})
    assert fit(left.data, NESTED)["id"].to_pylist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("row", "field", "word"),
    [
        ({"id__string": "bad"}, "id", "string"),
        ({"id__json": "[1]"}, "id", "json"),
        ({"id__json_2": "[1]"}, "id", "json_2"),
        ({"o__long": 5}, "o", "long"),
        ({"numbers__list": ["x"]}, "numbers", "list"),
        ({"o": {"x__string": "str"}}, "o.x", "string"),
        ({"items": [{"n": 1}, {"n__double": 2.5}]}, "items.element.n", "double"),
    ],
)
def test_a_value_that_a_decoder_put_beside_its_column_is_held_to_the_types(
    row: dict[str, Any], field: str, word: str
) -> None:
    found = judged(TYPES, {"id": 1}, {"id": None, **row}, {"id": 3, "new": 1})
    assert list(found.refused) == [1]
    assert (found.refused[1].path, found.refused[1].word) == (field, word)
    assert found.refused[1].held is not None
    assert "new" in found.data.schema.names
    assert not any("__" in str(kind) for kind in found.data.schema)
    mixed = SchemaContract("evolve", "freeze", "discard_value")
    left = judged(mixed, {"id": 1}, {"id": None, **row})
    assert (left.refused, left.discarded) == ({}, {field: 1})
    assert fit(left.data, NESTED)["id"].to_pylist() == [1, None]
    grown = judged(COLUMNS, {"id": 1}, {"id": None, **row})
    assert (grown.refused, grown.discarded) == ({}, {})
    assert grown.data.num_rows == 2
    assert any("__" in str(kind) for kind in grow(NESTED, grown.data)[0])


def test_a_value_beside_a_column_that_comes_with_the_same_batch_is_a_misfit_of_that() -> None:
    assert list(judged(TYPES, {"q": 1}, {"q": None, "q__string": "x"}).refused) == [1]
    assert judged(TYPES, {"q__string": "x"}).refused == {}  # no such column: a field of the record
    both = judged(FREEZE, {"id": 1}, {"q": None, "q__string": "x"})
    assert (both.refused[1].path, both.refused[1].held) == ("q__string", None)
    assert judged(TYPES, {"id": 1, "id__string": None, "id__long": None}).data.schema.names == ["id"]


SIBLINGS = pa.schema(
    [
        ("id", pa.int64()),
        ("id__double", pa.float64()),
        ("o", pa.struct([("x", pa.int64()), ("x__string", pa.string()), ("x__json", pa.string())])),
        ("price", pa.float64()),
    ]
)


@pytest.mark.parametrize("contract", [FREEZE, DISCARD_ROW, DISCARD, TYPES])
@pytest.mark.parametrize(
    ("row", "taken"),
    [
        ({"id": 1.5}, {"id__double": 1.5}),
        ({"id__double": 1.5}, {"id__double": 1.5}),
        ({"id": 2.0}, {"id": 2}),
        ({"o": {"x": "t"}}, {"o": {"x": None, "x__string": "t", "x__json": None}}),
        ({"o": {"x__string": "t"}}, {"o": {"x": None, "x__string": "t", "x__json": None}}),
        ({"price": 1}, {"price": 1.0}),
        ({"price__long": 1}, {"price": 1.0}),
    ],
    ids=str,
)
def test_a_misfit_goes_to_a_sibling_that_is_there_however_it_came(
    contract: SchemaContract, row: dict[str, Any], taken: dict[str, Any]
) -> None:
    verdict = judged(contract, {"id": 7}, row, target=SIBLINGS)
    assert (verdict.refused, verdict.discarded) == ({}, {})
    grown, fitted = grow(SIBLINGS, verdict.data)
    assert grown.equals(SIBLINGS)
    assert fitted.to_pylist()[1] == {**dict.fromkeys(SIBLINGS.names), **taken}


@pytest.mark.parametrize(
    ("row", "field", "word"),
    [
        ({"id": "x"}, "id", "string"),
        ({"id__string": "x"}, "id", "string"),
        ({"id__json": "[1]"}, "id", "json"),
        ({"id": 1.5, "id__double": 2.5}, "id", "double"),
        ({"o": {"x": 1.5}}, "o.x", "double"),
        ({"o": {"x__double": 1.5}}, "o.x", "double"),
        ({"price": "much"}, "price", "string"),
        ({"price": 1.0, "price__long": 2}, "price", "long"),
    ],
    ids=str,
)
def test_a_misfit_without_a_place_is_refused_however_it_came(row: dict[str, Any], field: str, word: str) -> None:
    verdict = judged(FREEZE, row, target=SIBLINGS)
    assert list(verdict.refused) == [0]
    assert (verdict.refused[0].path, verdict.refused[0].word) == (field, word)


def test_a_field_within_the_values_of_a_map_is_found() -> None:
    data = pa.record_batch({"m": pa.array([[("a", {"n": 1})], [("a", {"n": 1}), ("b", {"n": 2, "more": "x"})]], MAPS)})
    assert list(held_to(FREEZE, data, NESTED).refused) == [1]
    left = held_to(DISCARD, data, NESTED)
    assert left.discarded == {"m.value.more": 1}
    assert left.data.to_pylist()[1] == {"m": [("a", {"n": 1}), ("b", {"n": 2})]}


@pytest.mark.parametrize(
    ("row", "field", "word", "kind"),
    [
        ({"id": 2.5}, "id", "double", "int64"),
        ({"id": "x"}, "id", "string", "int64"),
        ({"small": 2**31}, "small", "long", "int32"),
        ({"o": "flat"}, "o", "string", "struct<"),
        ({"o": {"x": "t"}}, "o.x", "string", "int64"),
        ({"items": [{"n": 1}, {"n": 1.5}]}, "items.element.n", "double", "int64"),
        ({"numbers": [1.0, 1.5]}, "numbers", "list", "list<"),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_found_at_any_depth(
    row: dict[str, Any], field: str, word: str, kind: str
) -> None:
    found = judged(FREEZE, row)
    assert (found.refused[0].path, found.refused[0].word) == (field, word)
    assert str(found.refused[0].held).startswith(kind)
    assert found.data.num_rows == 0
    left = judged(DISCARD, row)
    assert (left.refused, left.discarded) == ({}, {field: 1})
    assert grow(NESTED, left.data)[0] == NESTED


@pytest.mark.parametrize(
    "row",
    [
        {"id": 2.0, "small": 5, "name": 12, "numbers": [1.0]},
        {"name": {"any": ["thing"]}},
        {"new": None, "o": {"z": None}, "items": [{"z": []}, None], "m": None},
        {"new": {}, "items": []},
        {"o": None},
    ],
)
@pytest.mark.parametrize("contract", [FREEZE, DISCARD])
def test_what_the_table_can_give_back_or_says_nothing_is_no_breach(
    contract: SchemaContract, row: dict[str, Any]
) -> None:
    found = judged(contract, {"id": 1, **row})
    assert (found.refused, found.discarded) == ({}, {})
    assert grow(NESTED, found.data)[0] == NESTED


def test_columns_and_types_are_ruled_apart() -> None:
    wide = {"id": 1, "small": 2**31, "new": 1}
    assert judged(COLUMNS, wide).refused == {0: Breach("new", "long")}
    assert judged(TYPES, wide).refused == {0: Breach("small", "long", pa.int32())}
    only_types = judged(COLUMNS, {"small": 2**31, "id": "x"})
    grown, _ = grow(NESTED, only_types.data)
    assert (grown.field("small").type, grown.field("id__string").type) == (pa.int64(), pa.string())
    only_columns = judged(TYPES, {"small": 1, "new": 1, "o": {"z": 1}})
    grown, fitted = grow(NESTED, only_columns.data)
    assert grown.field("small").type == pa.int32()
    assert (fitted["new"][0].as_py(), fitted["o"][0].as_py()["z"]) == (1, 1)


def test_only_what_is_left_out_of_rows_that_go_on_is_counted() -> None:
    mixed = SchemaContract("evolve", "discard_value", "discard_row")
    found = judged(mixed, {"id": 1.0, "new": 1}, {"id": 1.5, "new": 2}, {"id": 3.0})
    assert (list(found.refused), found.discarded) == ([1], {"new": 1})


def test_all_lists_with_an_element_that_does_not_fit_are_one_value_each() -> None:
    left = judged(DISCARD, {"numbers": [1.5, 2.5]}, {"numbers": [3.0]}, {"numbers": [0.1]})
    assert left.discarded == {"numbers": 2}
    assert left.data["numbers"].to_pylist() == [None, [3], None]


# ------------------------------------------------------------------------------ laws

CONTRACTS = st.builds(
    SchemaContract,
    st.just("evolve"),
    *[st.sampled_from(["evolve", "freeze", "discard_row", "discard_value"])] * 2,
)


def target_of(batch: pa.RecordBatch) -> pa.Schema:
    return merge(pa.schema([]), batch.schema)


@given(batches(), batches(), CONTRACTS)
def test_every_row_is_judged_by_itself(one: pa.RecordBatch, two: pa.RecordBatch, contract: SchemaContract) -> None:
    target, two = target_of(one), without_views(two)
    whole = held_to(contract, two, target)
    alone = [held_to(contract, two.slice(row, 1), target) for row in range(two.num_rows)]
    assert list(whole.refused) == [row for row, verdict in enumerate(alone) if verdict.refused]
    assert whole.discarded == sum((verdict.discarded for verdict in alone), Counter())
    if whole.data.num_columns:
        assert atoms_by_row(whole.data) == [atoms for verdict in alone for atoms in atoms_by_row(verdict.data)]


@given(batches(), batches(), st.sampled_from([FREEZE, DISCARD_ROW, DISCARD]))
def test_what_is_left_needs_no_growth_and_lost_nothing_uncounted(
    one: pa.RecordBatch, two: pa.RecordBatch, contract: SchemaContract
) -> None:
    target, two = target_of(one), without_views(two)
    verdict = held_to(contract, two, target)
    grown, fitted = grow(target, verdict.data)
    assert grown.equals(target)
    kept = [row for row in range(two.num_rows) if row not in verdict.refused]
    before, after = atoms_by_row(two.take(pa.array(kept, pa.int64()))), atoms_by_row(fitted)
    if contract is DISCARD:
        lost = sum(len(row) for row in before) - sum(len(row) for row in after)
        assert (lost == 0) or verdict.discarded
    else:
        assert before == after


@given(batches(), batches())
def test_a_row_is_refused_exactly_where_a_value_would_be_left_out_or_the_table_would_have_grown(
    one: pa.RecordBatch, two: pa.RecordBatch
) -> None:
    target, two = target_of(one), without_views(two)
    frozen, lax = held_to(FREEZE, two, target), held_to(DISCARD, two, target)
    assert bool(frozen.refused) == bool(lax.discarded)
    for row, breach in frozen.refused.items():
        if breach.held is not None and has_fields(type_at(two.schema, breach.path)):
            continue  # objects and maps that do not fit are refused even where a column takes them as text
        data = two.slice(row, 1)
        assert not grow(target, data)[0].equals(target)


def type_at(schema: pa.Schema, path: str) -> pa.DataType | None:
    """The type of what came under a dotted name; None if that came beside its column alone."""
    kind: pa.DataType = pa.struct(list(schema))
    for part in path.split("."):
        if pa.types.is_map(kind):
            kind = kind.key_type if part == "key" else kind.item_type
        elif pa.types.is_struct(kind):
            if kind.get_field_index(part) < 0:
                return None
            kind = kind.field(part).type
        else:
            kind = kind.value_type
    return kind


def has_fields(kind: pa.DataType | None) -> bool:
    if kind is None:
        return False
    is_one = pa.types.is_struct(kind) or pa.types.is_map(kind)
    return is_one or (hasattr(kind, "value_type") and has_fields(kind.value_type))


OBJECTS = [
    pa.array([{}], pa.struct([])),
    pa.array([{"x": 1}], pa.struct([("x", pa.int64())])),
    pa.array([[{}]], pa.list_(pa.struct([]))),
    pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
]


@pytest.mark.parametrize("value", OBJECTS, ids=["empty", "struct", "list", "map"])
def test_an_object_that_does_not_fit_is_set_aside_even_where_a_column_takes_its_text(value: pa.Array) -> None:
    """So the verdict on `{}` is the same beside an object with fields, which gives the whole column those."""
    target = pa.schema([("b", pa.timestamp("us")), ("b__json", pa.string())])
    batch = pa.record_batch({"b": value})
    assert list(held_to(FREEZE, batch, target).refused) == [0]
    assert held_to(DISCARD, batch, target).discarded == {"b": 1}
