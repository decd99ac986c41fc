"""Rows as JSON lines: the values that a JSON parser reads back, whatever the layout in memory."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.engine.json_lines import json_lines


def lines(rows: pa.RecordBatch) -> list[str]:
    text = bytes(json_lines(rows).text).decode()
    assert not text or text.endswith("\n")
    return text.split("\n")[:-1]


def test_every_kind_of_value() -> None:
    rows = pa.record_batch(
        {
            "id": pa.array([2**63 - 1, None]),
            "huge": pa.array([2**64 - 1, 0], pa.uint64()),
            "x": pa.array([1.0, 1e300]),
            "small": pa.array([0.5, None], pa.float32()),
            "on": [True, None],
            "text": ['a "b" \\ \n\t\x01', "東"],
            "raw": pa.array([b"\x00\xff", None]),
            "money": pa.array([Decimal("1.50"), None]),
            "at": pa.array([dt.datetime(2024, 1, 2, 3, 4, 5, 600000, tzinfo=dt.UTC), None]),
            "day": pa.array([dt.date(2024, 1, 2), None]),
            "took": pa.array([5, None], pa.duration("ms")),
            "none": pa.nulls(2),
            "o": pa.array([{"a": 1, "b": None}, None]),
            "l": pa.array([[1, None], []]),
            "m": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    full = (
        '{"id":9223372036854775807,"huge":18446744073709551615,"x":1.0,"small":0.5,"on":true,'
        '"text":"a \\"b\\" \\\\ \\n\\t\\u0001","raw":"AP8=","money":"1.50","at":"2024-01-02T03:04:05.6Z",'
        '"day":"2024-01-02","took":5,"none":null,"o":{"a":1,"b":null},"l":[1,null],"m":[{"key":"k","value":1}]}'
    )
    sparse = (
        '{"id":null,"huge":0,"x":1e+300,"small":null,"on":null,"text":"東","raw":null,"money":null,"at":null,'
        '"day":null,"took":null,"none":null,"o":null,"l":[],"m":null}'
    )
    assert lines(rows) == [full, sparse]


def test_nan_and_infinities_become_null_and_are_counted_wherever_they_stand() -> None:
    numbers = [math.nan, math.inf, 1.5, None]
    nested = pa.array([{"l": [number]} for number in numbers])
    coded = pa.array(numbers).dictionary_encode().take(pa.array([0, 0, 2, 3]))
    found = json_lines(pa.RecordBatch.from_arrays([pa.array(numbers), nested, coded], ["x", "n", "d"]))
    assert found.no_numbers == 2 + 2 + 2
    assert [json.loads(line) for line in bytes(found.text).splitlines()] == [
        {"x": None, "n": {"l": [None]}, "d": None},
        {"x": None, "n": {"l": [None]}, "d": None},
        {"x": 1.5, "n": {"l": [1.5]}, "d": 1.5},
        {"x": None, "n": {"l": [None]}, "d": None},
    ]


def test_what_stands_behind_a_null_is_not_counted() -> None:
    hidden = pa.StructArray.from_arrays([pa.array([math.nan, 1.0])], ["x"], mask=pa.array([True, False]))
    found = json_lines(pa.RecordBatch.from_arrays([hidden], ["s"]))
    assert found.no_numbers == 0
    assert bytes(found.text) == b'{"s":null}\n{"s":{"x":1.0}}\n'


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["a", None, "b", "a"]).dictionary_encode(),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2, 0]), pa.array(["a", None, "b"])),
        pa.array(["a", None, "b", "a"], pa.string_view()),
        pa.array(["a", None, "b", "a"], pa.large_string()),
        pa.RunEndEncodedArray.from_arrays([1, 2, 3, 4], pa.array(["a", None, "b", "a"])),
    ],
    ids=lambda column: str(column.type).split("<")[0],
)
def test_layouts_make_no_difference(column: pa.Array) -> None:
    rows = pa.RecordBatch.from_arrays([column], ["c"])
    wanted = ['{"c":"a"}', '{"c":null}', '{"c":"b"}', '{"c":"a"}']
    assert lines(rows) == wanted
    assert lines(rows.slice(1, 2)) == wanted[1:3]


def test_rows_without_columns_are_empty_objects_and_no_rows_are_no_text() -> None:
    rows = pa.record_batch({"x": [1, 2]})
    assert lines(rows.select([])) == ["{}", "{}"]
    assert lines(rows.slice(0, 0)) == []


def test_names_are_escaped() -> None:
    assert lines(pa.RecordBatch.from_arrays([pa.array([1])], ['a"b\n'])) == ['{"a\\"b\\n":1}']


texts = st.text(st.characters(codec="utf-8"), max_size=8)
scalars = st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1))
records = st.fixed_dictionaries(
    {
        "i": scalars,
        "x": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
        "t": st.one_of(st.none(), texts),
        "b": st.one_of(st.none(), st.booleans()),
        "o": st.one_of(st.none(), st.fixed_dictionaries({"t": st.one_of(st.none(), texts), "l": st.lists(scalars)})),
        "l": st.one_of(
            st.none(), st.lists(st.one_of(st.none(), st.fixed_dictionaries({"t": texts, "i": scalars})), max_size=3)
        ),
    }
)
SCHEMA = pa.schema(
    [
        ("i", pa.int64()),
        ("x", pa.float64()),
        ("t", pa.string()),
        ("b", pa.bool_()),
        ("o", pa.struct([("t", pa.string()), ("l", pa.list_(pa.int64()))])),
        ("l", pa.list_(pa.struct([("t", pa.string()), ("i", pa.int64())]))),
    ]
)


@given(st.lists(records, min_size=1, max_size=12), st.data())
def test_what_json_can_say_is_read_back_exactly(rows: list[dict[str, Any]], data: st.DataObject) -> None:
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    first = data.draw(st.integers(0, len(rows)))
    found = [json.loads(line) for line in lines(batch.slice(first))]
    assert found == rows[first:]
    assert [type(row["x"]) for row in found] == [type(row["x"]) for row in rows[first:]]
