"""Each rule and each bad input of the JSON decoder by example, and the real files."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from conveyord.core.errors import RecordError
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.json.pieces import LEAF_BYTES

DECODER = JsonLinesDecoder()
REAL_FILES = Path(__file__).resolve().parents[1] / "data" / "real"
UTC = pa.timestamp("us", "UTC")


def inferred(*lines: str) -> dict[str, pa.DataType]:
    schema = DECODER.infer("\n".join(lines).encode(), None)
    return {field.name: field.type for field in schema}


def decoded(schema: dict[str, pa.DataType], *lines: str) -> list[dict[str, Any]]:
    """Rows without their nulls, of lines that are all good."""
    got = DECODER.decode("\n".join(lines).encode(), pa.schema(schema), None)
    assert got.bad == ()
    assert got.data.schema == got.schema
    return [{name: value for name, value in row.items() if value is not None} for row in got.data.to_pylist()]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["1", "2"], pa.int64()),
        (["1", "2.5"], pa.float64()),
        (["2.0"], pa.float64()),
        (["null", "true"], pa.bool_()),
        (["null"], pa.null()),
        (["9223372036854775807"], pa.int64()),
        (["9223372036854775808"], pa.string()),
        (["1", "99999999999999999999999"], pa.string()),
        (['"a"', "1"], pa.string()),
        (["1", "true", "2.5"], pa.float64()),
        (["true", "1"], pa.bool_()),
        (["{}", "{}"], pa.string()),
        (["{}", '{"k":1}'], pa.struct({"k": pa.int64()})),
        (['{"k":null}', '{"j":[]}'], pa.struct({"k": pa.null(), "j": pa.list_(pa.null())})),
        (["[]", "[1,null]", "[2.5]"], pa.list_(pa.float64())),
        (['[1,"a"]'], pa.list_(pa.string())),
        (['[{"a":1},{"b":"x"}]'], pa.list_(pa.struct({"a": pa.int64(), "b": pa.string()}))),
        (['"2024-05-01T10:00:00Z"', '"2024-05-01 10:00:00.123456+02:00"'], UTC),
        (['"2024-05-01T10:00:00"', "null"], pa.timestamp("us")),
        (['"2024-05-01T10:00:00Z"', '"2024-05-01T10:00:00"'], pa.string()),
        (['"2024-05-01T10:00:00Z"', '"later"'], pa.string()),
        (['"2024-05-01T10:00:00Z"', "5"], pa.string()),
        (['"2024-05-01"'], pa.string()),
        (['"2024-05-01T10:00Z"'], pa.string()),
        (['"2024-05-01T10:00:00.1234567Z"'], pa.string()),
        (['"2024-02-30T10:00:00Z"'], pa.string()),
    ],
)
def test_a_column_gets_its_type_from_all_values_of_the_sample(values: list[str], wanted: pa.DataType) -> None:
    assert inferred(*(f'{{"x":{value}}}' for value in values)) == {"x": wanted}


@pytest.mark.parametrize("late", ['"text"', "2.5", "99999999999999999999", '{"k":1}', "1e3"])
def test_a_kind_that_first_appears_at_the_end_of_a_long_sample_is_seen(late: str) -> None:
    ordinary = ['{"x":1}'] * (3 * LEAF_BYTES // 8)
    assert inferred(*ordinary, f'{{"x":{late}}}') == inferred('{"x":1}', f'{{"x":{late}}}')


@pytest.mark.parametrize(
    ("column", "value", "row"),
    [
        (pa.int64(), "2.0", {"x": 2}),
        (pa.int64(), "2e1", {"x": 20}),
        (pa.int64(), "2.5", {"x__double": 2.5}),
        (pa.int64(), '"a"', {"x__string": "a"}),
        (pa.int64(), "true", {"x__boolean": True}),
        (pa.int64(), "9223372036854775808", {"x__string": "9223372036854775808"}),
        (pa.int64(), '{"k":1}', {"x__struct": {"k": 1}}),
        (pa.int64(), "[1]", {"x__list": [1]}),
        (pa.int64(), "{}", {"x__string": "{}"}),
        (pa.float64(), "3", {"x": 3.0}),
        (pa.float64(), "9007199254740993", {"x__long": 9007199254740993}),
        (pa.float64(), "1e400", {"x__string": "1e400"}),
        (pa.string(), "1.50", {"x": "1.50"}),
        (pa.string(), "true", {"x": "true"}),
        (pa.string(), '{"k": [1, 2.0]}', {"x": '{"k":[1,2.0]}'}),
        (pa.bool_(), "1", {"x__long": 1}),
        (UTC, '"soon"', {"x__string": "soon"}),
        (UTC, '"2024-05-01T10:00:00"', {"x__timestamp": datetime(2024, 5, 1, 10)}),
        (UTC, "1714557600", {"x__long": 1714557600}),
        (pa.list_(pa.int64()), '["a"]', {"x__list": ["a"]}),
        (pa.list_(pa.int64()), '[1,{"k":2}]', {"x__json": '[1,{"k":2}]'}),
        (pa.struct({"k": pa.int64()}), '{"k":"a","j":1}', {"x": {"k": None, "k__string": "a", "j": 1}}),
        (pa.struct({"k": pa.int64()}), "5", {"x__long": 5}),
        (pa.list_(pa.struct({"k": pa.int64()})), '[{"j":1}]', {"x": [{"k": None, "j": 1}]}),
        (pa.null(), "5", {"x": 5}),
        (pa.list_(pa.null()), "[5]", {"x": [5]}),
        (pa.date32(), '"2024-05-01"', {"x__string": "2024-05-01"}),
    ],
)
def test_a_value_is_stored_where_it_fits(column: pa.DataType, value: str, row: dict[str, Any]) -> None:
    assert decoded({"x": column}, f'{{"x":{value}}}') == [row]


def test_a_sibling_never_takes_the_place_of_a_field_of_its_record() -> None:
    rows = decoded({"x": pa.int64(), "x__string": pa.bool_()}, '{"x":"a"}', '{"x":"b","x__json":"real"}')
    assert rows == [{"x__json": '"a"'}, {"x__json": "real", "x__json_2": '"b"'}]


def test_integers_that_a_double_holds_exactly_stay_in_a_double_column() -> None:
    assert decoded({"x": pa.float64()}, f'{{"x":{2**60}}}') == [{"x": float(2**60)}]


BAD = [
    (b'{"a":1', "MALFORMED_RECORD"),
    (b'{"a":"x', "MALFORMED_RECORD"),
    (b'{"a":01}', "MALFORMED_RECORD"),
    (b'{"a":1,}', "MALFORMED_RECORD"),
    (b'{"a":1 "b":2}', "MALFORMED_RECORD"),
    (b'{"a":"\x01"}', "MALFORMED_RECORD"),
    (b'{"a":1}\x00', "MALFORMED_RECORD"),
    (b'{"a":1}]', "MALFORMED_RECORD"),
    (b'\xef\xbb\xbf{"a":1}', "MALFORMED_RECORD"),
    (b'{"a":1}{"a":2}', "MULTIPLE_VALUES"),
    (b'{"a":1} {"a":2}', "MULTIPLE_VALUES"),
    (b"[1]", "NOT_AN_OBJECT"),
    (b"null", "NOT_AN_OBJECT"),
    (b'{"a":1,"a":1}', "DUPLICATE_KEY"),
    (b'{"a":null,"\\u0061":1}', "DUPLICATE_KEY"),
    (b'{"c":[{"k":1,"k":2}]}', "DUPLICATE_KEY"),
    (b'{"a":NaN}', "NOT_A_NUMBER"),
    (b'{"d":-Infinity}', "NOT_A_NUMBER"),
    (b'{"s":"\xff"}', "INVALID_UTF8"),
    (b'{"s":"\xed\xa0\x80"}', "INVALID_UTF8"),
    (b'{"s":"\\ud800"}', "LONE_SURROGATE"),
    (b'{"\\uDC00":1}', "LONE_SURROGATE"),
    (b'{"c":' + b"[" * 100 + b"]" * 100 + b"}", "TOO_DEEP"),
    (b'{"c":' * 200_000 + b"1" + b"}" * 200_000, "TOO_DEEP"),
]


@pytest.mark.parametrize(("line", "code"), BAD, ids=[f"{code}-{number}" for number, (_, code) in enumerate(BAD)])
@pytest.mark.parametrize("around", [1, 1500])
def test_a_bad_record_is_reported_in_its_place_and_costs_no_other(line: bytes, code: str, around: int) -> None:
    schema = pa.schema({"a": pa.int64(), "d": pa.float64(), "s": pa.string(), "c": pa.list_(pa.int64())})
    good = b'{"a":1,"d":2.5,"s":"x"}\n' * around
    got = DECODER.decode(good + line + b"\n" + good, schema, None)
    assert got.data.num_rows == 2 * around
    assert got.schema == schema
    (bad,) = got.bad
    assert (bad.offset, bad.length, bad.row, bad.code) == (len(good), len(line), around, code)
    assert len(DECODER.starts(good + line + b"\n" + good)) == 2 * around + 1


def test_a_line_end_in_a_value_makes_two_bad_records() -> None:
    got = DECODER.decode(b'{"a":"x\ny"}\n{"a":1,\n"b":2}\n', pa.schema({"a": pa.string()}), None)
    assert [bad.offset for bad in got.bad] == [0, 8, 12, 20]
    assert got.data.num_rows == 0


def test_crlf_and_blank_lines_and_a_missing_last_line_end_are_accepted() -> None:
    block = b'{"a":1}\r\n\r\n  \n{"a":2}\r\n\n{"a":3}'
    got = DECODER.decode(block, pa.schema({"a": pa.int64()}), None)
    assert got.data.to_pylist() == [{"a": 1}, {"a": 2}, {"a": 3}]
    assert DECODER.starts(block).to_pylist() == [0, 14, 24]
    assert got.bad == ()


@pytest.mark.parametrize("block", [b"", b"\n", b" \r\n\n"])
def test_a_block_without_records_gives_an_empty_batch_of_the_schema(block: bytes) -> None:
    schema = pa.schema({"a": pa.int64(), "b": pa.struct({"c": pa.list_(pa.null())})})
    got = DECODER.decode(block, schema, None)
    assert (got.data.num_rows, got.schema, len(DECODER.starts(block))) == (0, schema, 0)
    assert DECODER.infer(block, None) == pa.schema([])


def test_records_without_fields_are_rows() -> None:
    got = DECODER.decode(b"{}\n{}\n", pa.schema([]), None)
    assert got.data.num_rows == 2


def test_a_byte_order_mark_is_passed_over_and_utf_16_is_refused() -> None:
    assert DECODER.begin(b'\xef\xbb\xbf{"a":1}') == (3, None)
    assert DECODER.begin(b"") == (0, None)
    with pytest.raises(RecordError, match="UTF-16"):
        DECODER.begin('{"a":1}'.encode("utf-16"))


def test_the_boundary_is_behind_the_last_line_end() -> None:
    assert DECODER.boundary(b'{"a":1}\n{"a"') == 8
    assert DECODER.boundary(b'{"a"') == 0


def test_metadata_and_nullability_of_the_given_schema_survive_growth() -> None:
    field = pa.field("a", pa.int64(), nullable=False, metadata={"id": "7"})
    given = pa.schema([field], metadata={"owner": "x"})
    got = DECODER.decode(b'{"a":1,"b":2}\n', given, None)
    assert got.schema.field("a").equals(field, check_metadata=True)
    assert got.schema.metadata == given.metadata
    assert got.data.to_pylist() == [{"a": 1, "b": 2}]


def test_a_field_that_first_appears_late_in_a_block_is_added_and_earlier_rows_are_null() -> None:
    ordinary = b'{"a":1}\n' * 20_000
    got = DECODER.decode(ordinary + b'{"a":2,"b":{"c":[]}}\n' + ordinary, pa.schema({"a": pa.int64()}), None)
    assert got.schema.names == ["a", "b"]
    assert got.data.num_rows == 40_001
    assert got.data.column("b").null_count == 40_000
    assert got.data.slice(20_000, 1).to_pylist() == [{"a": 2, "b": {"c": []}}]


@pytest.mark.parametrize("name", ["earthquakes", "movies", "flights"])
def test_nothing_of_a_real_file_is_lost(name: str) -> None:
    block = (REAL_FILES / f"{name}.jsonl").read_bytes()
    got = DECODER.decode(block, DECODER.infer(block, None), None)
    assert got.bad == ()
    source = [json.loads(line) for line in block.splitlines()]
    assert got.data.num_rows == len(source)
    strings = {field.name for field in got.schema if field.type == pa.string()}
    for wanted, row in zip(source, got.data.to_pylist(), strict=True):
        for key, value in wanted.items():
            text = key in strings and value is not None and not isinstance(value, str)
            assert row[key] == (json.dumps(value) if text else value), key


@pytest.mark.parametrize("key", ["", "b\\u0000c"])
def test_a_key_that_cannot_name_a_column_makes_a_bad_record(key: str) -> None:
    block = b'{"a":1}\n' + f'{{"a":2,"in":{{"{key}":3}}}}\n'.encode() + b'{"a":3}\n'
    decoder = JsonLinesDecoder()
    decoded = decoder.decode(block, decoder.infer(block, None), None)
    assert [(bad.code, bad.row) for bad in decoded.bad] == [("BAD_KEY", 1)]
    assert decoded.data.to_pylist() == [{"a": 1}, {"a": 3}]


def test_lists_of_nulls_are_read_though_the_reader_counts_them_wrong() -> None:
    """pyarrow makes fewer values than its offsets span, and the decoder crashed."""
    schema = {"n": pa.int64(), "a": pa.list_(pa.null())}
    rows = [{"n": 1, "a": [None, None, None]}, {"n": 2, "a": [None]}, {"n": 3, "a": []}, {"n": 4}]
    assert decoded(schema, *(json.dumps(row) for row in rows)) == rows
