"""The transform `flat_map`: a row for each element, nothing lost, and every row's record still known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.batch_transform import BadRows
from conveyord.operators.transform_flat_map import FlatMapTransform
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import batch, made, rows


def flat(data: pa.RecordBatch, **options: Any) -> list[dict[str, Any]]:
    result = made(FlatMapTransform, **options).apply(data)
    result.validate(full=True)
    return result.to_pylist()


ORDERS = rows(
    {"id": 1, "items": [{"sku": "a", "n": 1}, None, {"sku": "b", "n": 2}], "s": "x,y"},
    {"id": 2, "items": [], "s": None},
    {"id": 3, "items": None, "s": None},
    {"id": 4, "items": [{"sku": "c", "n": 3}], "s": "z"},
)


def test_each_element_becomes_a_row_in_the_place_of_its_list() -> None:
    got = made(FlatMapTransform, each="items", ordinal="k", **{"as": "item"}).apply(ORDERS)
    assert got.schema.names == ["id", "item", "k", "s"]
    assert [tuple(row.values()) for row in got.to_pylist()] == [
        (1, {"sku": "a", "n": 1}, 0, "x,y"),
        (1, None, 1, "x,y"),
        (1, {"sku": "b", "n": 2}, 2, "x,y"),
        (4, {"sku": "c", "n": 3}, 0, "z"),
    ]


def test_elements_that_are_objects_may_be_opened_and_empty_lists_kept() -> None:
    got = made(FlatMapTransform, column="items", open=True, keep_empty=True, ordinal="k").apply(ORDERS)
    assert got.schema.names == ["id", "items_sku", "items_n", "k", "s"]
    assert [tuple(row.values()) for row in got.to_pylist()] == [
        (1, "a", 1, 0, "x,y"),
        (1, None, None, 1, "x,y"),
        (1, "b", 2, 2, "x,y"),
        (2, None, None, None, None),
        (3, None, None, None, None),
        (4, "c", 3, 0, "z"),
    ]


def test_an_expression_may_give_the_list() -> None:
    got = flat(ORDERS.select(["id", "s"]), each="string_to_array(s, ',')", ordinal="k")
    assert got == [
        {"id": 1, "s": "x,y", "item": "x", "k": 0},
        {"id": 1, "s": "x,y", "item": "y", "k": 1},
        {"id": 4, "s": "z", "item": "z", "k": 0},
    ]
    assert [row["n"] for row in flat(ORDERS.select(["id"]), each="make_array(id, id * 10)", **{"as": "n"})][:2] == [
        1,
        10,
    ]


def test_maps_become_objects_of_key_and_value_and_a_quoted_name_is_a_column() -> None:
    data = batch(**{"a b": pa.array([[("k", 1), ("l", 2)], None], pa.map_(pa.string(), pa.int64()))})
    assert flat(data, each='"a b"', open=True, **{"as": "e"}) == [
        {"e_key": "k", "e_value": 1},
        {"e_key": "l", "e_value": 2},
    ]
    assert flat(data.slice(1), each='"a b"', keep_empty=True) == [{"a b": None}]


KINDS = [
    pa.list_(pa.int64()),
    pa.large_list(pa.int64()),
    pa.list_view(pa.int64()),
    pa.list_(pa.string_view()),
    pa.list_(pa.struct([("x", pa.int64())])),
]


@given(
    st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=4)), max_size=8),
    st.sampled_from(KINDS),
    st.booleans(),
    st.data(),
)
def test_rows_are_those_of_plain_python(
    lists: list[list[int | None] | None], kind: pa.DataType, keep_empty: bool, data: st.DataObject
) -> None:
    def element(value: int | None) -> Any:
        if value is None or pa.types.is_integer(kind.value_type):
            return value
        return {"x": value} if pa.types.is_struct(kind.value_type) else str(value)

    lists_of = [None if each is None else [element(value) for value in each] for each in lists]
    count = len(lists)
    full = batch(
        n=pa.array(range(count), pa.int64()),
        l=pa.array(lists_of, kind),
        t=pa.array([str(n % 3) for n in range(count)]).dictionary_encode(),
    )
    cut = data.draw(st.integers(0, count))
    got = flat(full.slice(cut), each="l", keep_empty=keep_empty, ordinal="k")
    expected = []
    for n, each in enumerate(lists_of[cut:], cut):
        for k, value in enumerate(each or []):
            expected.append({"n": n, "l": value, "k": k, "t": str(n % 3)})
        if keep_empty and not each:
            expected.append({"n": n, "l": None, "k": None, "t": str(n % 3)})
    assert got == expected


def test_a_batch_without_rows_has_the_columns_of_one_with_rows() -> None:
    for options in ({"each": "items", "open": True, "ordinal": "k"}, {"each": "string_to_array(s, ',')"}):
        transform = made(FlatMapTransform, **options)
        assert transform.apply(ORDERS.slice(0, 0)).schema == transform.apply(ORDERS).schema


def test_a_column_without_a_type_yet_has_no_elements() -> None:
    data = batch(l=pa.nulls(2), n=pa.array([1, 2]))
    assert flat(data, each="l", open=True) == []
    assert flat(data, each="l", keep_empty=True) == [{"l": None, "n": 1}, {"l": None, "n": 2}]
    assert flat(batch(l=pa.array([[1, 2]])), each="l") == [{"l": 1}, {"l": 2}]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"each": "itmes"}, "flat_map.each names a column 'itmes' that is not there; did you mean 'items'?"),
        ({"each": "s"}, "flat_map.each: 's' is of type string, not a list"),
        ({"each": "upper(s)"}, "flat_map.each: 'upper(s)' is of type string, not a list"),
        ({"each": "items", "as": "id"}, "flat_map makes a column 'id', but there is one already; choose another name"),
        ({"each": "items", "ordinal": "items"}, "flat_map makes a column 'items', but there is one already"),
        (
            {"each": "string_to_array(s, ',')", "open": True},
            "flat_map.open: the elements are of type string, not objects",
        ),
        ({"each": "string_to_array(nix, ',')"}, "flat_map.each cannot work on these rows"),
    ],
)
def test_what_does_not_fit_the_rows_stops_the_run(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        made(FlatMapTransform, **options).apply(ORDERS)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "each", ["unnest(items)", "array_agg(s)", "(SELECT items FROM input_data)", "string_to_array(s"]
)
def test_what_is_no_expression_on_one_row_is_found_with_the_definition(each: str) -> None:
    assert "each" in FlatMapTransform.mistakes(FlatMapTransform.Config(each=each))
    with pytest.raises(ConfigError, match=r"flat_map\.each"):
        made(FlatMapTransform, each=each)


def test_an_expression_that_fails_on_a_value_is_the_rows_fault() -> None:
    with pytest.raises(BatchError, match=r"flat_map\.each failed on a value"):
        flat(ORDERS, each="make_array(cast(s AS int))")


def test_a_row_that_would_fill_the_memory_is_bad_and_the_others_go_on() -> None:
    long = "x" * 100_000
    data = batch(
        n=pa.array([1, 2, 3]),
        o=pa.array([{"t": ["x"]}, {"t": [long]}, {"t": [long]}]),
        l=pa.array([[1] * 1_000, [1] * 1_000, [1, 2]]),
    )
    with pytest.raises(
        BadRows, match="1 of 3 rows are bad; the first is row 1 of the batch: flat_map: the row would"
    ) as bad:
        flat(data, each="l")
    assert [poison.row for poison in bad.value.poison] == [1]
    assert bad.value.good[0].column("n").to_pylist() == [1] * 1_000 + [3, 3]


def test_in_a_run_all_is_counted_and_a_later_failure_names_the_record(tmp_path: Path) -> None:
    table = numbered(12)
    for row in table:
        row["k"] = ",".join(str(i) for i in range(row["n"] % 4)) or None
    world = World({"t": table})
    stages = (
        source(batch_rows=5),
        transform("each", "flat_map", each="string_to_array(k, ',')", ordinal="i"),
        transform("brittle", "brittle", column="n", poison=[7]),
        sink(),
    )
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    kept = [(row["n"], row["item"], row["i"]) for row in world.kept("default/p", "out").rows]
    assert kept == [(n, str(i), i) for n in range(12) for i in range(n % 4) if n != 7]
    assert [(s.letter.key.offset, s.letter.key.part) for s in outcome.letters_of()] == [(70, 0), (70, 1), (70, 2)]


def test_in_a_run_values_at_fault_become_letters(tmp_path: Path) -> None:
    table = numbered(9)
    table[5]["k"] = "no number"
    for row in table:
        row["k"] = row["k"] if row["n"] == 5 else str(row["n"])
    world = World({"t": table})
    each = transform("each", "flat_map", each="make_array(cast(k AS int), 0)")
    outcome = run_now(world, line(source(), each, sink()), tmp_path)
    assert outcome.failed() == []
    assert [row["n"] for row in world.kept("default/p", "out").rows] == [
        n for n in range(9) if n != 5 for _ in range(2)
    ]
    assert [stored.letter.key.offset for stored in outcome.letters_of()] == [50]
