"""CSV blocks: what becomes of good rows, what is said of bad ones, and that no text is lost."""

from __future__ import annotations

import datetime as dt
from pathlib import Path

import pyarrow as pa
import pytest

from conveyord.core.errors import ConfigError, RecordError
from conveyord.engine.csv import CsvDecoder, CsvLayout
from conveyord.engine.decoding import Decoded

UTC = dt.UTC
REAL_FILES = Path(__file__).resolve().parents[1] / "data" / "real"
AB = CsvLayout(("a", "b"))
TEXTS = pa.schema([("a", pa.string()), ("b", pa.string())])


def read(text: str | bytes, **options: object) -> Decoded:
    """A whole small file: header, inference, one block."""
    data = text.encode() if isinstance(text, str) else text
    decoder = CsvDecoder(**options)  # type: ignore[arg-type]
    skip, layout = decoder.begin(data)
    return decoder.decode(data[skip:], decoder.infer(data[skip:], layout), layout)


def column(text: str, **options: object) -> pa.Array:
    return read("x\n" + text, **options).data.column("x")


# ------------------------------------------------------------------------------ types


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        ("1\n-2\n0", pa.int64(), [1, -2, 0]),
        ("9223372036854775807", pa.int64(), [2**63 - 1]),
        ("1.50\n2\n-0.25", pa.float64(), [1.5, 2.0, -0.25]),
        ("0.30000000000000004", pa.float64(), [0.1 + 0.2]),
        ("1.5e-05\n1e+22", pa.float64(), [1.5e-05, 1e22]),
        ("true\nfalse", pa.bool_(), [True, False]),
        ("2024-02-29", pa.date32(), [dt.date(2024, 2, 29)]),
        ("2024-01-01T10:00:00", pa.timestamp("us"), [dt.datetime(2024, 1, 1, 10)]),
        ("2024-01-01 10:00:00+02:00", pa.timestamp("us", "UTC"), [dt.datetime(2024, 1, 1, 8, tzinfo=UTC)]),
    ],
)
def test_a_column_has_the_type_that_all_its_cells_have(cells: str, kind: pa.DataType, values: list[object]) -> None:
    found = column(cells)
    assert found.type == kind
    assert found.to_pylist() == values


@pytest.mark.parametrize(
    "cells",
    [
        "007", "+5", " 5 ", "1e5", "12E4", "1,5", "0x1F", "--0", "1_000", ".5", "5.", "00.5",  # not as a number prints
        "9223372036854775808", "-9223372036854775809", "12345678901234567890123",  # beyond 64 bits
        "0.1234567890123456789", "1e+999", "1e-999", "9007199254740993.0",  # a double would change it
        "NaN", "inf", "True", "TRUE", "yes", "null", "NA",
        "2024-02-30", "2024-1-1", "01/02/2024", "2024-01-01T25:00:00", "2024-01-01T10:00:00.1234567",
        "2024-01-01T10:00:00\n2024-01-01T10:00:00Z", "1\ntrue", "2024-01-01\n2024-01-01T10:00:00",
        "1\n12345678901234567890123",
    ],
)  # fmt: skip
def test_text_that_a_type_would_change_stays_text(cells: str) -> None:
    quoted = "\n".join(f'"{cell}"' for cell in cells.split("\n"))
    found = column(quoted)
    assert found.type == pa.string()
    assert found.to_pylist() == cells.split("\n")


def test_empty_cells_are_null_and_decide_no_type() -> None:
    data = read('a,b,c\n1,,\n,"",\n3,x,\n').data
    assert data.schema.types == [pa.int64(), pa.string(), pa.null()]
    assert data.to_pylist() == [
        {"a": 1, "b": None, "c": None},
        {"a": None, "b": None, "c": None},
        {"a": 3, "b": "x", "c": None},
    ]


@pytest.mark.parametrize("stray", ["2.5", "x", "99999999999999999999", " 7", "007", "1e3", "true"])
def test_a_late_value_that_does_not_fit_keeps_its_text_in_a_sibling(stray: str) -> None:
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    decoded = CsvDecoder().decode(f"1,p\n{stray},q\n,r\n".encode(), schema, AB)
    assert decoded.schema.names == ["a", "b", "a__string"]
    assert decoded.data.to_pylist() == [
        {"a": 1, "b": "p", "a__string": None},
        {"a": None, "b": "q", "a__string": stray},
        {"a": None, "b": "r", "a__string": None},
    ]
    assert not decoded.bad


@pytest.mark.parametrize("kind", [pa.float64(), pa.bool_(), pa.date32(), pa.timestamp("us"), pa.int32()])
def test_every_type_has_a_sibling_for_what_it_cannot_take(kind: pa.DataType) -> None:
    decoded = CsvDecoder().decode(b"2024-02-30\n\n", pa.schema([("a", kind)]), CsvLayout(("a",)))
    assert decoded.data.to_pylist() == [{"a": None, "a__string": "2024-02-30"}]


def test_a_schema_only_grows_and_null_fields_get_their_type() -> None:
    schema = pa.schema([("b", pa.null()), ("gone", pa.int64()), ("a", pa.null())])
    decoded = CsvDecoder().decode(b",7\n", schema, AB)
    assert decoded.schema == pa.schema([("b", pa.int64()), ("gone", pa.int64()), ("a", pa.null())])
    assert decoded.data.to_pylist() == [{"b": 7, "gone": None, "a": None}]
    assert decoded.data.schema == decoded.schema


def test_an_existing_sibling_is_used_again() -> None:
    schema = pa.schema([("a", pa.int64()), ("a__string", pa.string()), ("b", pa.string())])
    decoded = CsvDecoder().decode(b"x,y\n", schema, AB)
    assert decoded.schema is schema
    assert decoded.data.to_pylist() == [{"a": None, "a__string": "x", "b": "y"}]


def test_a_sibling_never_overwrites_a_column_of_the_file() -> None:
    layout = CsvLayout(("a", "a__string"))
    schema = pa.schema([("a", pa.int64()), ("a__string", pa.string())])
    decoded = CsvDecoder().decode(b"1,keep\nx,other\n", schema, layout)
    assert decoded.data.to_pylist() == [{"a": 1, "a__string": "keep"}]
    assert "'a__string' that would take it is a column of the file" in decoded.bad[0].reason


def test_files_with_other_column_orders_match_by_name() -> None:
    decoder = CsvDecoder()
    schema = pa.schema([("a", pa.int64()), ("b", pa.string())])
    _, turned = decoder.begin(b"c,b,a\n")
    decoded = decoder.decode(b"9,x,1\n", schema, turned)
    assert decoded.data.to_pylist() == [{"a": 1, "b": "x", "c": 9}]


# ------------------------------------------------------------------------------ declared types


def test_a_declared_type_reads_every_number() -> None:
    text = "n,d,f,s\n007,1e5,TRUE,5\n+5,.5,false,007\n"
    data = read(text, types={"n": "long", "d": "double", "f": "boolean", "s": "string"}).data
    assert data.to_pylist() == [
        {"n": 7, "d": 1e5, "f": True, "s": "5"},
        {"n": 5, "d": 0.5, "f": False, "s": "007"},
    ]


@pytest.mark.parametrize(
    ("word", "value"),
    [("long", "2.5"), ("long", "9223372036854775808"), ("long", " 5"), ("double", "NaN"), ("double", "1e999"),
     ("boolean", "1"), ("date", "2024-02-30"), ("timestamp", "yesterday")],
)  # fmt: skip
def test_a_value_that_is_not_of_its_declared_type_is_a_bad_record(word: str, value: str) -> None:
    decoded = read(f"x,k\n,1\n{value},2\n,3\n", types={"x": word})
    assert decoded.data.column("k").to_pylist() == [1, 3]
    assert decoded.schema.names == ["x", "k"]
    (bad,) = decoded.bad
    assert (bad.code, bad.row, bad.offset) == ("TYPE_MISMATCH", 1, 3)
    assert "'x'" in bad.reason
    assert repr(value) in bad.reason


def test_declared_timestamps_are_instants_if_all_have_a_zone() -> None:
    types = {"x": "timestamp"}
    assert column("2024-01-01T00:00:00Z\n", types=types).type == pa.timestamp("us", "UTC")
    assert column("2024-01-01T00:00:00\n", types=types).type == pa.timestamp("us")


@pytest.mark.parametrize(
    "options",
    [{"delimiter": ""}, {"delimiter": ",,"}, {"delimiter": "\n"}, {"delimiter": "é"}, {"quote": ","},
     {"types": {"a": "int"}}],
)  # fmt: skip
def test_an_impossible_dialect_is_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        CsvDecoder(**options)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------ bad records


@pytest.mark.parametrize(
    ("record", "code", "reason"),
    [
        (b"x", "RAGGED_ROW", "has 1 cell, the file has 2 columns"),
        (b"x,y,z", "RAGGED_ROW", "has 3 cells, the file has 2 columns"),
        (b"x,\xff", "INVALID_UTF8", "byte 0xff at offset 2"),
        (b"x,\0", "NUL_BYTE", "offset 2"),
        (b'"x"y,z', "MALFORMED_RECORD", "text follows the closing quote of cell 1"),
        (b"x,y\rz,w", "MALFORMED_RECORD", "a carriage return stands alone in cell 2"),
    ],
)
def test_a_bad_record_is_named_and_its_neighbours_live(record: bytes, code: str, reason: str) -> None:
    block = b"1,2\r\n\n" + record + b'\n3,"4\n5"\n' + record + b"\n6,7\n"
    decoded = CsvDecoder().decode(block, TEXTS, AB)
    assert decoded.data.to_pylist() == [{"a": "1", "b": "2"}, {"a": "3", "b": "4\n5"}, {"a": "6", "b": "7"}]
    assert [(bad.code, bad.row, bad.length) for bad in decoded.bad] == [(code, 1, len(record)), (code, 2, len(record))]
    assert all(block[bad.offset :].startswith(record) for bad in decoded.bad)
    assert reason in decoded.bad[0].reason


def test_a_quote_that_never_closes_is_one_bad_record_at_its_line() -> None:
    decoded = CsvDecoder().decode(b'1,2\n3,"4\n5,6\n', TEXTS, AB)
    assert decoded.data.num_rows == 1
    (bad,) = decoded.bad
    assert (bad.code, bad.offset, bad.row) == ("UNCLOSED_QUOTE", 4, 1)


def test_inference_passes_over_bad_records() -> None:
    schema = CsvDecoder().infer(b"1,2\nx\n3,4\n", AB)
    assert schema == pa.schema([("a", pa.int64()), ("b", pa.int64())])


def test_a_block_of_nothing_but_bad_records_has_no_rows() -> None:
    decoded = CsvDecoder().decode(b"x\ny\n", TEXTS, AB)
    assert (decoded.data.num_rows, len(decoded.bad)) == (0, 2)


def test_a_quote_within_a_cell_is_text() -> None:
    assert read('a,b\n1,6" pipe\n2,7" pipe\n').data.column("b").to_pylist() == ['6" pipe', '7" pipe']


def test_without_a_quote_character_quotes_are_text() -> None:
    assert read('a,b\n"1,2\n', quote=None).data.to_pylist() == [{"a": '"1', "b": 2}]


# ------------------------------------------------------------------------------ headers


@pytest.mark.parametrize(
    ("head", "skip", "names"),
    [
        (b"a,b\n1,2\n", 4, ("a", "b")),
        (b"\xef\xbb\xbfa,b\r\n1,2\r\n", 8, ("a", "b")),
        (b'\xef\xbb\xbf"a\nx",b\n1,2\n', 11, ("a\nx", "b")),
        (b"\n\na\n1\n", 4, ("a",)),
        (b"a,b", 3, ("a", "b")),
        (b"", 0, ()),
        (b"\xef\xbb\xbf", 3, ()),
    ],
)
def test_the_header_names_the_columns(head: bytes, skip: int, names: tuple[str, ...]) -> None:
    assert CsvDecoder().begin(head) == (skip, CsvLayout(names))


@pytest.mark.parametrize(
    ("head", "reason"),
    [
        (b"a,b,a\n", "columns 1 and 3 are both named 'a'"),
        (b"a,,b\n", "column 2 has no name"),
        (b"a,\xff\n", "column 2 is not UTF-8"),
        (b'a,"b\n', "never closed"),
        (b"\xff\xfea\0", "UTF-16"),
        (b"x" * 2**20, "no line ends"),
    ],
)
def test_a_header_that_cannot_be_is_refused(head: bytes, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        CsvDecoder().begin(head)


def test_without_a_header_columns_are_numbered() -> None:
    assert read("1;x\n2;y\n", header=False, delimiter=";").data.to_pylist() == [
        {"f0": 1, "f1": "x"},
        {"f0": 2, "f1": "y"},
    ]


@pytest.mark.parametrize("text", ["", "a,b\n", "a,b", "\n\n"])
def test_a_file_without_records_has_no_rows(text: str) -> None:
    decoded = read(text)
    assert decoded.data.num_rows == 0
    assert not decoded.bad


@pytest.mark.parametrize("delimiter", list(";|^-]%\\.&~\t "))
def test_any_ascii_delimiter_works(delimiter: str) -> None:
    text = f'a{delimiter}b\n1{delimiter}"x{delimiter}\n""y"\n'
    assert read(text, delimiter=delimiter).data.to_pylist() == [{"a": 1, "b": f'x{delimiter}\n"y'}]


# ------------------------------------------------------------------------------ real files


@pytest.mark.parametrize(
    ("name", "rows", "kinds"),
    [
        ("birdstrikes", 10_000, {"Flight Date": pa.date32(), "Cost Total $": pa.int64()}),
        ("seattle-weather", 1_461, {"date": pa.date32(), "temp_max": pa.float64(), "weather": pa.string()}),
        ("airports", 3_376, {"iata": pa.string(), "latitude": pa.float64()}),
    ],
)
def test_real_files_are_read_whole(name: str, rows: int, kinds: dict[str, pa.DataType]) -> None:
    decoded = read((REAL_FILES / f"{name}.csv").read_bytes())
    assert decoded.data.num_rows == rows
    assert not decoded.bad
    assert {column: decoded.schema.field(column).type for column in kinds} == kinds
