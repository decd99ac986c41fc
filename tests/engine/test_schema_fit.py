"""Where single values land, by example; and what fitting costs nothing."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.schema import fit, grow, merge, plain_type
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.text import to_text


def landed(target: pa.DataType, values: pa.Array) -> dict[str, list[Any]]:
    """Columns that hold anything after `values` met a column `x` of type `target`, by name."""
    _, fitted = grow(pa.schema([("x", target)]), pa.RecordBatch.from_arrays([values], names=["x"]))
    fitted.validate(full=True)
    return {name: values for name, values in fitted.to_pydict().items() if any(v is not None for v in values)}


NAN = float("nan")


def moment(*parts: int) -> datetime:
    """What a clock on a wall showed: no time zone."""
    return datetime(*parts)


@pytest.mark.parametrize(
    ("target", "values", "expected"),
    [
        (pa.int64(), pa.array([1.0, 2.5, -(2.0**63), 2.0**63]),
         {"x": [1, None, -(2**63), None], "x__double": [None, 2.5, None, 2.0**63]}),
        (pa.float64(), pa.array([1, 2**53 + 1, 2**60]),
         {"x": [1.0, None, 2.0**60], "x__long": [None, 2**53 + 1, None]}),
        (pa.int64(), pa.array(["1", None]), {"x__string": ["1", None]}),
        (pa.int64(), pa.array([2**63, 7], pa.uint64()), {"x": [None, 7], "x__json": ["9223372036854775808", None]}),
        (pa.int32(), pa.array([2**40, 7]), {"x": [2**40, 7]}),
        (pa.float32(), pa.array([0.1]), {"x": [0.1]}),
        (pa.bool_(), pa.array([1]), {"x__long": [1]}),
        (pa.string(), pa.array([1, 2]), {"x": ["1", "2"]}),
        (pa.string(), pa.array([True]), {"x": ["true"]}),
        (pa.string(), pa.array([{"a": [1.5, None]}]), {"x": ['{"a":[1.5,null]}']}),
        (pa.string(), pa.array([b"\xff"]), {"x__binary": [b"\xff"]}),
        (pa.string(), pa.array([datetime(2024, 1, 2, 3, 4, 5, 60000, UTC)]), {"x": ["2024-01-02T03:04:05.06Z"]}),
        (pa.decimal128(4, 2), pa.array([Decimal("123456.70")]), {"x": [Decimal("123456.70")]}),
        (pa.decimal128(4, 2), pa.array([Decimal("1.500"), Decimal("1.501")]),
         {"x": [Decimal("1.50"), None], "x__decimal": [None, Decimal("1.501")]}),
        (pa.decimal128(4, 2), pa.array([99, 100]), {"x": [Decimal("99.00"), None], "x__long": [None, 100]}),
        (pa.timestamp("us", "UTC"), pa.array(["2024-01-01T00:00:00Z", "2024-01-01T00:00:00", "2024-02-30T00:00:00Z"]),
         {"x": [datetime(2024, 1, 1, tzinfo=UTC), None, None],
          "x__string": [None, "2024-01-01T00:00:00", "2024-02-30T00:00:00Z"]}),
        (pa.timestamp("us"), pa.array(["0000-01-01T00:00:00"]), {"x__string": ["0000-01-01T00:00:00"]}),
        (pa.timestamp("us"), pa.array(["2024-02-29 01:02:03.5", "2024-02-29T01:02:03.1234567", "24:00"]),
         {"x": [moment(2024, 2, 29, 1, 2, 3, 500000), None, None],
          "x__string": [None, "2024-02-29T01:02:03.1234567", "24:00"]}),
        (pa.timestamp("us"), pa.array([date(2024, 2, 29)]), {"x": [moment(2024, 2, 29)]}),
        (pa.timestamp("us", "UTC"), pa.array([date(2024, 2, 29)]), {"x__date": [date(2024, 2, 29)]}),
        (pa.timestamp("us", "UTC"), pa.array([moment(2024, 2, 29)]), {"x__timestamp": [moment(2024, 2, 29)]}),
        (pa.timestamp("us"), pa.array([1001, 1000], pa.timestamp("ns")),
         {"x": [None, moment(1970, 1, 1, 0, 0, 0, 1)], "x__json": ["1970-01-01T00:00:00.000001001", None]}),
        (pa.date32(), pa.array(["2024-02-29", "2023-02-29"]),
         {"x": [date(2024, 2, 29), None], "x__string": [None, "2023-02-29"]}),
        (pa.int64(), pa.array([[1]]), {"x__list": [[1]]}),
        (pa.int64(), pa.array([[]], pa.list_(pa.null())), {"x__json": ["[]"]}),
        (pa.list_(pa.int64()), pa.array([[1.0], [1.0, 2.5]]), {"x": [[1], None], "x__list": [None, [1.0, 2.5]]}),
        (pa.list_(pa.int64()), pa.array([["a"], [], None]), {"x": [None, [], None], "x__list": [["a"], None, None]}),
        (pa.struct([("a", pa.int64())]), pa.array([{"a": "t", "b": 1}, None]),
         {"x": [{"a": None, "b": 1, "a__string": "t"}, None]}),
        (pa.list_(pa.struct([("a", pa.int64())])), pa.array([[{"a": 1.5}, {"a": 2.0}]]),
         {"x": [[{"a": None, "a__double": 1.5}, {"a": 2, "a__double": None}]]}),
    ],
)  # fmt: skip
def test_each_value_goes_where_it_can_be_had_back(
    target: pa.DataType, values: pa.Array, expected: dict[str, Any]
) -> None:
    assert landed(target, values) == expected


def test_a_sibling_of_another_type_sends_values_on_to_text() -> None:
    target = pa.schema([("x", pa.int64()), ("x__double", pa.bool_())])
    schema, fitted = grow(target, pa.RecordBatch.from_pydict({"x": [1.5]}))
    assert schema.names == ["x", "x__double", "x__json"]
    assert fitted.to_pylist() == [{"x": None, "x__double": None, "x__json": "1.5"}]


def test_a_value_never_overwrites_the_batchs_own_sibling() -> None:
    batch = pa.RecordBatch.from_pydict({"x": [1.5, 2.5], "x__double": [9.5, None], "x__json": ["own", None]})
    _, fitted = grow(pa.schema([("x", pa.int64())]), batch)
    assert fitted.to_pylist() == [
        {"x": None, "x__double": 9.5, "x__json": "own", "x__json__json": "1.5"},
        {"x": None, "x__double": 2.5, "x__json": None, "x__json__json": None},
    ]


def test_columns_of_equal_type_share_their_buffers_and_missing_ones_are_null() -> None:
    batch = pa.RecordBatch.from_pydict({"n": pa.nulls(3), "b": ["x", "y", None], "a": [1, 2, 3]})
    target = pa.schema([("a", pa.int64()), ("b", pa.string()), ("c", pa.struct([("d", pa.int64())]))])
    fitted = fit(batch, target)
    assert fitted.to_pydict() == {"a": [1, 2, 3], "b": ["x", "y", None], "c": [None] * 3}
    for name in ("a", "b"):
        assert [b and b.address for b in fitted[name].buffers()] == [b and b.address for b in batch[name].buffers()]
    assert merge(target, batch.schema) is not None
    assert grow(target, batch)[0] is target


def test_metadata_such_as_field_ids_stays_with_the_target() -> None:
    field = pa.field("a", pa.int64(), metadata={b"PARQUET:field_id": b"7"})
    target = pa.schema([field], metadata={b"k": b"v"})
    batch = pa.RecordBatch.from_pydict({"a": [1], "b": ["x"]})
    merged = merge(target, batch.schema)
    assert merged.metadata == target.metadata
    assert merged.field("a").metadata == field.metadata
    assert fit(batch, merged).schema.equals(merged, check_metadata=True)
    assert fit(batch.select(["a"]), target).schema.equals(target, check_metadata=True)


def test_a_target_without_room_is_refused_with_the_missing_columns_name() -> None:
    target = pa.schema([("x", pa.int64())])
    with pytest.raises(BatchError, match="x__string"):
        fit(pa.RecordBatch.from_pydict({"x": ["a"]}), target)
    with pytest.raises(BatchError, match="'y'"):
        fit(pa.RecordBatch.from_pydict({"y": [1]}), target)


def test_a_null_in_a_required_column_is_refused() -> None:
    target = pa.schema([pa.field("x", pa.int64(), nullable=False), ("y", pa.int64())])
    for batch in ({"x": [None, 1], "y": [1, 2]}, {"y": [1, 2]}, {"x": [1.5, 1], "y": [1, 2]}):
        with pytest.raises(BatchError, match="'x' is required"):
            grow(target, pa.RecordBatch.from_pydict(batch))


def test_two_columns_of_one_name_are_refused() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["x", "x"])
    with pytest.raises(ConfigError, match="'x'"):
        grow(pa.schema([]), batch)


def test_a_batch_without_rows_or_columns_fits() -> None:
    target = pa.schema([("x", pa.int64())])
    assert fit(pa.RecordBatch.from_arrays([], schema=pa.schema([])), target).num_rows == 0
    assert fit(pa.RecordBatch.from_pydict({"x": pa.array([], pa.string())}), target).schema == target


def test_plain_types_are_those_a_table_has() -> None:
    kinds = {
        pa.int8(): pa.int32(),
        pa.uint32(): pa.int64(),
        pa.timestamp("ns", "Asia/Tokyo"): pa.timestamp("us", "UTC"),
        pa.dictionary(pa.int8(), pa.large_string()): pa.string(),
        pa.list_(pa.null()): pa.null(),
        pa.struct([("a", pa.null()), ("b", pa.float16())]): pa.struct([("b", pa.float32())]),
        pa.duration("s"): pa.string(),
        pa.date64(): pa.date32(),
    }
    assert {kind: plain_type(kind) for kind in kinds} == kinds


@pytest.mark.parametrize(
    ("array", "text"),
    [
        (pa.array([1.0, 0.1, 1e20, NAN, float("-inf")]), ["1", "0.1", "1e+20", "NaN", "-Infinity"]),
        (pa.array([0, 10**9], pa.timestamp("s")), ["1970-01-01T00:00:00", "2001-09-09T01:46:40"]),
        (pa.array([1], pa.timestamp("ns", "Europe/Berlin")), ["1970-01-01T00:00:00.000000001Z"]),
        (pa.array([3_600_000_000], pa.time64("us")), ["01:00:00"]),
        (pa.array([b"\x00\xff"]), ["AP8="]),
        (pa.array([{"t": moment(2024, 1, 1), "d": Decimal("1.10"), "ü": None}]),
         ['{"t":"2024-01-01T00:00:00","d":"1.10","ü":null}']),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), ['[{"key":"k","value":1}]']),
    ],
)  # fmt: skip
def test_text_of_values(array: pa.Array, text: list[str]) -> None:
    assert to_text(array).to_pylist() == text
    assert to_text(pa.concat_arrays([array.slice(0, 0), pa.nulls(1, array.type)])).to_pylist() == [None]


FAR_DAYS = [-(2**31), -719_529, -719_528, 2_932_896, 2_932_897, 20_000_000, 2**31 - 1, None]
FAR_DATES = ["-5877641-06-23", "-0001-12-31", "0000-01-01", "9999-12-31", "+10000-01-01", "+56728-02-22",
             "+5881580-07-11", None]  # fmt: skip


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("s", "UTC"), pa.timestamp("ms", "Europe/Berlin")])
def test_times_in_years_that_arrow_cannot_write_have_their_years_in_full(kind: pa.DataType) -> None:
    scale, zone = (1_000 if kind.unit == "ms" else 1), ("" if kind.tz is None else "Z")
    seconds = [None if day is None else (day * 86_400 + 3_661) * scale for day in FAR_DAYS]
    texts = [None if date is None else f"{date}T01:01:01{zone}" for date in FAR_DATES]
    times = pa.array(seconds, pa.int64()).cast(kind)
    assert to_text(times).to_pylist() == texts
    assert to_text(times.slice(4)).to_pylist() == texts[4:]
    nested = pa.StructArray.from_arrays([times.slice(5, 1)], names=["t"])
    assert to_text(nested).to_pylist() == [f'{{"t":"{texts[5]}"}}']


def test_dates_in_years_that_arrow_cannot_write_have_their_years_in_full() -> None:
    days = pa.array(FAR_DAYS, pa.int32()).cast(pa.date32())
    assert to_text(days).to_pylist() == FAR_DATES
    assert to_text(days.cast(pa.date64())).to_pylist() == FAR_DATES
    assert to_text(pa.array([2**63 - 1], pa.int64()).cast(pa.timestamp("us"))).to_pylist() == [
        "+294247-01-10T04:00:54.775807"
    ]


def test_a_slice_of_maps_with_nulls_inside_is_taken_apart_whole() -> None:
    """Arrow's cast of such a slice returns arrays that crash the process when they are read."""
    kind = pa.map_(pa.string(), pa.struct([("a", pa.bool_()), ("n", pa.null())]))
    maps = pa.array([None, [("k", None)], [("k", {"a": True, "n": None}), ("l", None)]], kind)
    for first in range(3):
        elements = Elements.of(maps.slice(first))
        elements.values.validate(full=True)
        assert elements.rebuilt(elements.values, kind).to_pylist() == maps.to_pylist()[first:]


def test_list_views_are_taken_apart_whole() -> None:
    """Arrow's cast of a list view to a list loses the elements after a null."""
    lists = pa.array([[1, 2], None, [3, 4]], pa.list_view(pa.int64()))
    elements = Elements.of(lists)
    assert elements.rebuilt(elements.values, pa.list_(pa.int64())).to_pylist() == [[1, 2], None, [3, 4]]
