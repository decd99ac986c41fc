"""The formats that need no schema from elsewhere: JSON, raw bytes, Arrow IPC."""

from __future__ import annotations

import io
import json
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.engine.payloads.arrow_ipc import ArrowIpcPayloads
from conveyord.engine.payloads.contract import PayloadDecoder
from conveyord.engine.payloads.json import JsonPayloads
from conveyord.engine.payloads.raw import RawPayloads
from tests.engine.payload_laws import check_damage, check_laws, check_shape, damaged, rows_of

JSON, ARROW = JsonPayloads(), ArrowIpcPayloads()


def bad_of(decoder: PayloadDecoder, *values: bytes) -> list[tuple[int, str]]:
    found = decoder.decode(values, None)
    check_shape(found, values)
    return [(one.number, one.code) for one in found.bad]


# ------------------------------------------------------------------------------ JSON

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.text(max_size=5)
)
objects = st.dictionaries(
    st.sampled_from("abc"),
    st.one_of(scalars, st.lists(st.integers(0, 9), max_size=3), st.dictionaries(st.sampled_from("xy"), scalars)),
    max_size=3,
)


@st.composite
def json_values(draw: st.DrawFn) -> bytes:
    text = json.dumps(draw(objects), indent=draw(st.sampled_from([None, None, 0, 1])), ensure_ascii=draw(st.booleans()))
    around = draw(st.sampled_from(["", "", "", "\n", " ", "\r\n"]))
    made = (around + text + around).encode("utf-8", "surrogatepass")
    return draw(
        st.sampled_from([made] * 8 + [b"", b" \n\t", made + made, b"[" + made + b"]", made[:-1], made + b"\n" + made])
    )


@given(st.lists(json_values(), max_size=8), st.lists(json_values(), max_size=3))
def test_json_keeps_the_laws(values: list[bytes], others: list[bytes]) -> None:
    check_laws(JSON, values, others)


@given(st.lists(json_values(), min_size=1, max_size=5), st.data())
def test_damaged_json_harms_nothing_else(values: list[bytes], data: st.DataObject) -> None:
    check_damage(JSON, values, *data.draw(damaged(values)))


def test_each_json_object_is_a_row() -> None:
    found = JSON.decode([b'{"a": 1}', b'{"a": 2, "b": "x"}'], None)
    assert found.data.to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    assert found.numbers is None and not found.bad


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", "MALFORMED_RECORD"),
        (b" \r\n ", "MALFORMED_RECORD"),
        (b"{", "MALFORMED_RECORD"),
        (b"[1]", "NOT_AN_OBJECT"),
        (b'[{"a": 1}]', "NOT_AN_OBJECT"),
        (b"null", "NOT_AN_OBJECT"),
        (b'{"a": 1}{"a": 2}', "MULTIPLE_VALUES"),
        (b'{"a": 1}\n{"a": 2}', "MULTIPLE_VALUES"),
        (b'{"a": "\xff"}', "INVALID_UTF8"),
        (b'{"a": "x\ny"}', "MALFORMED_RECORD"),
        (b'{"a": 1, "a": 2}', "DUPLICATE_KEY"),
        (b"\x00\x00\x00\x00\x01\x02", "MALFORMED_RECORD"),
    ],
)
def test_what_is_not_one_json_object_is_bad_by_number(value: bytes, code: str) -> None:
    assert bad_of(JSON, b'{"a": 1}', value, b'{"a": 3}') == [(1, code)]
    assert bad_of(JSON, value) == [(0, code)]


def test_objects_that_two_values_make_together_are_not_taken_for_one() -> None:
    assert bad_of(JSON, b'{"a":', b"1}", b'{"a": {}', b'{"b": 1}') == [
        (0, "MALFORMED_RECORD"),
        (1, "MALFORMED_RECORD"),
        (2, "MALFORMED_RECORD"),
    ]


def test_line_ends_between_tokens_are_whitespace() -> None:
    values = [b'{"a": 1}\n', b'\n{\n  "a": [1,\n 2]\n}', b'{"a":\r\n"x\\ny"}']
    found = JSON.decode(values, JSON.decode([b'{"a": "text"}'], None).schema)
    assert found.data.to_pylist() == [{"a": "1"}, {"a": "[1,2]"}, {"a": "x\ny"}]


def test_no_values_are_no_rows() -> None:
    for decoder in (JSON, ARROW, RawPayloads(), RawPayloads(is_text=True)):
        found = decoder.decode([], None)
        assert found.data.num_rows == 0 and not found.bad
        known = pa.schema([("value", pa.int64())])
        assert decoder.decode([], known).data.num_rows == 0


# ------------------------------------------------------------------------------ raw


@given(st.lists(st.binary(max_size=9), max_size=6), st.booleans())
def test_raw_keeps_the_laws(values: list[bytes], is_text: bool) -> None:
    found = check_laws(RawPayloads(is_text=is_text), values, [b"x"])
    if not is_text:
        assert found.data.to_pydict()["value"] == values and not found.bad


def test_raw_text_must_be_utf8() -> None:
    decoder = RawPayloads(is_text=True)
    assert bad_of(decoder, "é".encode(), b"ok\xff", b"") == [(1, "INVALID_UTF8")]
    assert decoder.decode(["é".encode(), b"\xff", b""], None).data.to_pydict() == {"value": ["é", ""]}


# ------------------------------------------------------------------------------ Arrow IPC


def stream(*batches: pa.RecordBatch, schema: pa.Schema | None = None, compression: str | None = None) -> bytes:
    made = io.BytesIO()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    with pa.ipc.new_stream(made, schema or batches[0].schema, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return made.getvalue()


def batch(**columns: Any) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


texts = st.lists(st.one_of(st.none(), st.text("abé", max_size=4)), min_size=2, max_size=2)
small = st.lists(st.one_of(st.none(), st.integers(-100, 100)), min_size=2, max_size=2)
numbers = st.sampled_from([pa.int32(), pa.int64(), pa.float32(), pa.float64()])
columns = st.one_of(
    small.map(lambda values: pa.array(values, pa.int64())),
    small.map(lambda values: pa.array(values, pa.int8())),
    small.map(lambda values: pa.array(values, pa.float64())),
    small.map(lambda values: pa.array(values, pa.timestamp("ns"))),
    texts.map(lambda values: pa.array(values, pa.string())),
    texts.map(lambda values: pa.array(values, pa.large_string())),
    texts.map(lambda values: pa.array(values, pa.string_view())),
    texts.map(lambda values: pa.array(values, pa.string()).dictionary_encode()),
    small.map(lambda values: pa.array([values, None], pa.list_(pa.int16()))),
    small.map(lambda values: pa.array([{"x": values[0]}, {"x": values[1], "y": "z"}])),
    st.just(pa.nulls(2)),
    numbers.map(lambda kind: pa.array([1, 3_000_000_000], kind) if kind.bit_width == 64 else pa.array([1, 2], kind)),
    st.sampled_from([100_001, 2**53 + 1, 2**24 + 1]).map(lambda value: pa.array([value, None], pa.int64())),
    st.sampled_from(["1.50", "12345.67"]).map(lambda text: pa.array([Decimal(text), None])),
    numbers.map(lambda kind: pa.array([{"x": 1}, {"x": 2}], pa.struct([("x", kind)]))),
    numbers.map(lambda kind: pa.array([[1], [2]], pa.list_(kind))),
)


@st.composite
def ipc_values(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.sampled_from("ab"), unique=True, min_size=1))
    made = pa.RecordBatch.from_arrays([draw(columns) for _ in names], names=names)
    return stream(
        *[made] * draw(st.integers(0, 2)), schema=made.schema, compression=draw(st.sampled_from([None, "zstd"]))
    )


@given(st.lists(ipc_values(), max_size=4), st.lists(ipc_values(), max_size=2))
def test_arrow_keeps_the_laws(values: list[bytes], others: list[bytes]) -> None:
    check_laws(ARROW, values, others)


@given(st.lists(ipc_values(), min_size=1, max_size=3), st.data())
def test_damaged_arrow_harms_nothing_else(values: list[bytes], data: st.DataObject) -> None:
    number, value = data.draw(damaged(values))
    check_damage(ARROW, values, number, value)


def test_a_number_stands_where_it_stood_when_its_column_was_narrower() -> None:
    ints = pa.RecordBatch.from_arrays([pa.array([1], pa.int32())], names=["x"])
    values = [stream(ints), stream(batch(x=[3e9]))]
    found = check_laws(ARROW, values, [stream(batch(x=[2**40]))])
    assert found.data.to_pylist() == [{"x": 1}, {"x": 3_000_000_000}]


def test_a_stream_has_any_number_of_rows() -> None:
    one = batch(a=[1, 2])
    values = [stream(one, one), stream(schema=one.schema), stream(one.slice(0, 1))]
    found = ARROW.decode(values, None)
    assert found.numbers is not None and found.numbers.tolist() == [0, 0, 0, 0, 2]
    assert found.data.to_pydict() == {"a": [1, 2, 1, 2, 1]} and not found.bad


@pytest.mark.parametrize(
    "kind",
    [
        pa.dictionary(pa.int32(), pa.timestamp("us")),
        pa.dictionary(pa.int32(), pa.decimal128(10, 2)),
        pa.list_(pa.dictionary(pa.int32(), pa.null())),
        pa.run_end_encoded(pa.int32(), pa.string()),
    ],
    ids=str,
)
def test_a_stream_without_batches_has_no_rows_whatever_its_columns_are(kind: pa.DataType) -> None:
    decoded = ARROW.decode([stream(schema=pa.schema([("c", kind)]))], None)
    assert decoded.data.num_rows == 0
    assert not decoded.bad


def test_rows_without_columns_are_counted() -> None:
    empty = pa.RecordBatch.from_struct_array(pa.array([{}] * 3, pa.struct([])))
    found = ARROW.decode([stream(empty), stream(empty)], None)
    assert found.data.num_rows == 6 and found.numbers is not None and found.numbers.tolist() == [0, 0, 0, 1, 1, 1]
    mixed = ARROW.decode([stream(empty), stream(batch(a=[1])), stream(empty)], None)
    assert mixed.data.to_pydict() == {"a": [None, None, None, 1, None, None, None]}


def test_schemas_that_differ_become_one_that_has_room_for_all() -> None:
    values = [stream(batch(a=[1])), stream(batch(a=["x"], b=[True])), stream(batch(a=[2]))]
    found = ARROW.decode(values, None)
    assert found.data.to_pylist() == [
        {"a": 1, "b": None, "a__string": None},
        {"a": None, "b": True, "a__string": "x"},
        {"a": 2, "b": None, "a__string": None},
    ]


def test_what_is_not_one_arrow_stream_is_bad_by_number() -> None:
    good = stream(batch(a=[1, 2]))
    file = io.BytesIO()
    with pa.ipc.new_file(file, batch(a=[1]).schema) as writer:
        writer.write_batch(batch(a=[1]))
    values = [good, good[:-9], b"", b"junk", good + good, file.getvalue(), good + b"\x00", good]
    assert bad_of(ARROW, *values) == [
        (1, "MALFORMED_RECORD"),
        (2, "MALFORMED_RECORD"),
        (3, "MALFORMED_RECORD"),
        (4, "MULTIPLE_VALUES"),
        (5, "MALFORMED_RECORD"),
        (6, "MULTIPLE_VALUES"),
    ]


@pytest.mark.parametrize("names", [["a", "a"], ["", "b"], ["a\0", "b"]])
def test_columns_that_cannot_be_named_are_bad(names: list[str]) -> None:
    made = pa.RecordBatch.from_arrays([pa.array([1])] * 2, names=names)
    (code,) = [code for _, code in bad_of(ARROW, stream(made))]
    assert code == ("DUPLICATE_KEY" if names[0] == "a" else "BAD_KEY")
    inner = pa.RecordBatch.from_arrays([pa.StructArray.from_arrays(made.columns, names=names)], names=["s"])
    assert bad_of(ARROW, stream(inner)) == [(0, code)]


def test_offsets_that_point_elsewhere_are_bad() -> None:
    value = stream(pa.RecordBatch.from_arrays([pa.array(["abc", "de"])], names=["s"]))
    offsets = struct.pack("<iii", 0, 3, 5)
    assert value.count(offsets) == 1
    for wrong in [(0, 3, 2**31 - 1), (0, -5, 5), (5, 3, 0), (-(2**31), 0, 5)]:
        assert bad_of(ARROW, value.replace(offsets, struct.pack("<iii", *wrong))) == [(0, "MALFORMED_RECORD")]


def test_the_view_of_a_null_that_points_elsewhere_is_bad() -> None:
    """Arrow's own validation passes over it, and a cast to plain text then crashes the process."""
    value = stream(pa.RecordBatch.from_arrays([pa.array(["a" * 20, "bb", None], pa.string_view())], names=["s"]))
    view = struct.pack("<i2s10x", 2, b"bb") + bytes(16)
    assert value.count(view) == 1
    for length in (-301_989_888, 2**31 - 1, 13):
        wrong = view[:16] + struct.pack("<iiii", length, 0, 7, 0)
        assert bad_of(ARROW, value.replace(view, wrong)) == [(0, "MALFORMED_RECORD")]
    assert bad_of(ARROW, value.replace(view, view[:16] + struct.pack("<i4s8x", 1, b"\xff"))) == []


def test_text_that_is_not_utf8_is_bad() -> None:
    value = stream(batch(s=["abc"])).replace(b"abc", b"a\xffc")
    assert bad_of(ARROW, value) == [(0, "INVALID_UTF8")]


def bombs() -> list[bytes]:
    """Some hundred bytes each, and gigabytes as plain columns."""
    zeros = pa.RecordBatch.from_arrays([pa.array(np.zeros(1 << 22, np.int64))], names=["n"])
    words = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int32)), pa.array(["x" * 10_000]))
    one = pa.array(["x" * 10_000]).cast(pa.string_view()).buffers()
    views = pa.Array.from_buffers(
        pa.string_view(), 10_000, [None, pa.py_buffer(one[1].to_pybytes()[:16] * 10_000), one[2]]
    )
    runs = pa.RunEndEncodedArray.from_arrays(pa.array([2**30], pa.int32()), pa.array(["x"]))
    nulls = pa.nulls(2**30)
    nothing = pa.RecordBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), 2**30, [None]))
    lists = pa.ListViewArray.from_arrays(
        pa.array(np.zeros(10_000, np.int32)), pa.array(np.full(10_000, 10_000, np.int32)), pa.array(np.zeros(10_000))
    )
    endless = pa.ListArray.from_arrays(pa.array([0, 2**31 - 1], pa.int32()), pa.nulls(2**31 - 1))
    every = (words, views, runs, nulls, lists, endless)
    made = [pa.RecordBatch.from_arrays([column], names=["n"]) for column in every]
    return [stream(one, compression="zstd") for one in (zeros, nothing, *made)]


def test_a_value_that_would_fill_the_memory_is_bad() -> None:
    values = bombs()
    assert max(map(len, values)) < 200_000
    decoder = ArrowIpcPayloads(decoded_bytes_max=16 * 1024 * 1024)
    assert bad_of(decoder, *values, stream(batch(a=[1]))) == [
        (number, "RECORD_TOO_LARGE") for number in range(len(values))
    ]


def test_a_length_that_a_compressed_buffer_only_claims_is_not_believed() -> None:
    column = pa.array(np.zeros(10_000, np.int64))
    value = stream(pa.RecordBatch.from_arrays([column], names=["n"]), compression="lz4")
    claim = struct.pack("<q", 80_000)
    assert value.count(claim) >= 1
    for size, code in [(2**62, "RECORD_TOO_LARGE"), (-5, "MALFORMED_RECORD"), (79_999, "MALFORMED_RECORD")]:
        assert bad_of(ARROW, value.replace(claim, struct.pack("<q", size))) == [(0, code)]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, pa.list_view])
def test_a_value_just_below_the_limit_is_good(kind: Any) -> None:
    lists = pa.array([[1, 2, 3]] * 1000, kind(pa.int64()))
    decoder = ArrowIpcPayloads(decoded_bytes_max=64 * 1024)
    assert bad_of(decoder, stream(pa.RecordBatch.from_arrays([lists], names=["n"]))) == []
    assert rows_of(decoder.decode([stream(batch(a=["x" * 60_000]))], None)) == {0: [repr({"a": "x" * 60_000})]}


def test_a_value_that_no_column_can_take_is_bad_alone() -> None:
    """A day beyond those of a table is valid Arrow, and a cast to a table's days raises for the whole column."""
    day = 86_400_000
    far = pa.array([2**62 - 2**62 % day], pa.int64()).view(pa.date64())
    values = [stream(pa.RecordBatch.from_arrays([one], names=["a"])) for one in (pa.array([day]).view(far.type), far)]
    values = [*values, stream(batch(b=["x"])), *values, values[0]]
    found = ARROW.decode(values, None)
    check_shape(found, values)
    assert [(one.number, one.code) for one in found.bad] == [(1, "MALFORMED_RECORD"), (4, "MALFORMED_RECORD")]
    assert sorted(rows_of(found)) == [0, 2, 3, 5]
