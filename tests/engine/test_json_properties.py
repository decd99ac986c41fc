"""Laws of the JSON decoder over generated records: bulk equals exact, nothing is lost, schemas grow only."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import example, given, settings
from hypothesis import strategies as st

from conveyord.engine.decoding import BadRecord
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.json.conform import batch_of, conform
from conveyord.engine.json.exact import decode_exact
from conveyord.engine.json.infer import _observe
from conveyord.engine.json.observe import Observed
from conveyord.engine.json.records import NumberText, parse_record, text_of
from conveyord.engine.json.shape import schema_of_shape, shape_of_schema
from conveyord.engine.json.timestamps import parse_column, parse_timestamp

DECODER = JsonLinesDecoder()

timestamps = st.builds(
    "{:04d}-{:02d}-{:02d}{}{:02d}:{:02d}:{:02d}{}{}".format,
    st.sampled_from([1, 999, 1600, 1970, 2024, 9999, 0]),
    st.integers(1, 13),
    st.integers(1, 31),
    st.sampled_from("T T T T t-"),
    st.integers(0, 25),
    st.integers(0, 60),
    st.integers(0, 61),
    st.sampled_from(["", ".1", ".123", ".123456", ".1234567", "."]),
    st.sampled_from(["", "Z", "+00:00", "-23:59", "+02", "+0200", "z", "+24:00", " UTC", "\n"]),
)
odd_text = st.sampled_from(
    [
        "",
        ",",
        "{",
        "}",
        ":0",
        ":null",
        "a,",
        "null",
        "2024-01-01",
        "1",
        "\x00",
        "é😀",
        '"',
        "\\",
        "\n",
        "Inc., x",
        ",,",
        ":01",
    ]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-100, 100),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    odd_text,
    timestamps,
    st.sampled_from(["2024-05-01T10:00:00Z", "2024-05-01T10:00:00.5Z"]),
)
keys = st.sampled_from(["a", "b", "a__string", "a__json", "a__long", "a.b", 'q"k', "é", "\n", "null"])
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
records = st.lists(st.dictionaries(keys, values, max_size=4), max_size=6)

regular_texts = st.one_of(st.text("ab,.:{}[] 01-é\t", max_size=6), odd_text)
regular = st.fixed_dictionaries(
    {
        "n": st.one_of(st.integers(-20, 20), st.integers(-(2**54), 2**54)),
        "x": st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from([0.0, -0.0, 2.0, 0.5])),
        "s": regular_texts,
        "t": st.sampled_from(["2024-05-01T10:00:00Z", "2024-05-01T10:00:00.25Z", "1969-12-31T23:59:59+01:00"]),
        "b": st.booleans(),
        "in": st.fixed_dictionaries({"s": regular_texts, "y": st.integers(0, 9)}),
    }
)
REGULAR_SCHEMA = pa.schema(
    {
        "n": pa.int64(),
        "x": pa.float64(),
        "s": pa.string(),
        "t": pa.timestamp("us", "UTC"),
        "b": pa.bool_(),
        "in": pa.struct({"s": pa.string(), "y": pa.int64()}),
    }
)
damage = st.sampled_from(
    [b",", b'"', b"0", b".", b"-", b"NaN", b"\n", b"\r", b"\x00", b"\\", b"{}", b"[", b"]", b"{", b"}", b" ",
     b"null", b"1e400", b"\xff", b"\\ud800", b"e", b'":', b"9007199254740993", b"}\n{", b"}{", b'"n":1,', b'"z":null,',
     b",,", b"/", b"\t", b"\x01", b"\xc3\xa9", b'"1"', b"1.", b"01", b", ", b"E5", b'"n":null,', b"\xef\xbb\xbf"]
)  # fmt: skip
edits = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 3), damage), max_size=3)


def lines(rows: list[Any], *, spaced: bool = False, ascii_only: bool = False) -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    return "".join(json.dumps(row, ensure_ascii=ascii_only, separators=separators) + "\n" for row in rows).encode()


def exactly(block: bytes, schema: pa.Schema) -> tuple[pa.RecordBatch, tuple[BadRecord, ...]]:
    shape = shape_of_schema(schema)
    piece = decode_exact(block, shape, first=0, end=len(block))
    return batch_of(piece.rows, schema_of_shape(shape, schema)), piece.bad


def inferred_exactly(block: bytes) -> pa.Schema:
    seen = Observed()
    _observe(block, seen, first=0, end=len(block))
    return schema_of_shape(seen.record_shape(), pa.schema([]))


def assert_bulk_is_exact(block: bytes, schema: pa.Schema) -> None:
    got = DECODER.decode(block, schema, None)
    data, bad = exactly(block, schema)
    assert got.schema == data.schema
    assert got.data.schema == data.schema
    assert got.data.to_pylist() == data.to_pylist()
    assert got.data.equals(data)
    assert got.bad == bad
    got.data.validate(full=True)
    assert len(DECODER.starts(block)) == got.data.num_rows + len(bad)


@given(records, records, st.booleans(), st.booleans())
def test_bulk_equals_exact_for_any_records(sample: list[Any], rows: list[Any], spaced: bool, ascii_only: bool) -> None:
    schema = DECODER.infer(lines(sample), None)
    assert schema == inferred_exactly(lines(sample))
    assert_bulk_is_exact(lines(sample, spaced=spaced, ascii_only=ascii_only), schema)
    assert_bulk_is_exact(lines(rows, spaced=spaced, ascii_only=ascii_only), schema)


@settings(max_examples=400)
@given(st.lists(regular, min_size=1, max_size=4), edits, st.booleans())
@example([], [(0, 0, b'{"n":01,"x":1.,"s":"","t":"2024-05-01T10:00:00Z","b":true,"in":{"s":"","y":1}}')], False)
def test_bulk_equals_exact_for_damaged_records(
    rows: list[Any], changes: list[tuple[int, int, bytes]], spaced: bool
) -> None:
    """Nearly regular data: what the fast path may take for regular is where it could go wrong."""
    block = bytearray(lines(rows, spaced=spaced))
    for place, removed, added in changes:
        place %= len(block) + 1
        block[place : place + removed] = added
    assert_bulk_is_exact(bytes(block), REGULAR_SCHEMA)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [] if value is None else [value]


def spellings(value: Any) -> set[Any]:
    """Every form in which the decoder may store a scalar, or an object or array as text."""
    found: set[Any] = {text_of(value)}
    if type(value) is str:
        parsed = parse_timestamp(value)
        found |= {value} | ({("at", parsed[0])} if parsed else set())
    elif isinstance(value, NumberText):
        found |= {float(value)}
    elif isinstance(value, bool):
        found |= {("bool", value)}
    else:
        found |= {value}
    return found


@given(records, records)
def test_every_value_is_found_in_its_row(sample: list[Any], rows: list[Any]) -> None:
    schema = DECODER.infer(lines(sample), None)
    block = lines(rows)
    got = DECODER.decode(block, schema, None)
    assert got.bad == ()
    struct = got.data.to_struct_array()
    for index, line in enumerate(block.splitlines()):
        kept = []
        for column in struct.flatten():
            kept += stored_leaves(column.slice(index, 1))
        texts = [leaf for leaf in kept if isinstance(leaf, str)]
        counts = Counter(kept)
        for leaf in leaves(parse_record(line)):
            whole = next((form for form in spellings(leaf) if counts[form]), None)
            if whole is not None:
                counts[whole] -= 1
            else:
                # Inside an object or array that was stored as JSON text.
                assert any(text_of(leaf) in text for text in texts), (leaf, kept)


def stored_leaves(array: pa.Array) -> list[Any]:
    """All scalars of a one-row array that are not null, timestamps as ("at", micros)."""
    if pa.types.is_struct(array.type):
        live = array.filter(array.is_valid())
        return [leaf for child in live.flatten() for leaf in stored_leaves(child)]
    if pa.types.is_list(array.type):
        return stored_leaves(array.flatten())
    if pa.types.is_timestamp(array.type):
        return [("at", micros) for micros in array.cast(pa.int64()).drop_null().to_pylist()]
    found = array.drop_null().to_pylist() if not pa.types.is_null(array.type) else []
    return [("bool", leaf) if isinstance(leaf, bool) else leaf for leaf in found]


def contains(larger: pa.DataType, smaller: pa.DataType) -> bool:
    if pa.types.is_null(smaller):
        return True
    if pa.types.is_struct(smaller):
        if not pa.types.is_struct(larger):
            return False
        names = [field.name for field in larger][: smaller.num_fields]
        return names == [field.name for field in smaller] and all(
            contains(larger.field(field.name).type, field.type) for field in smaller
        )
    if pa.types.is_list(smaller):
        return pa.types.is_list(larger) and contains(larger.value_type, smaller.value_type)
    return bool(larger == smaller)


def struct_of(schema: pa.Schema) -> pa.StructType:
    return pa.struct(list(schema))


@given(records, records, records)
def test_a_schema_only_grows_and_an_unchanged_decode_is_valid_under_a_larger_one(
    sample: list[Any], one: list[Any], two: list[Any]
) -> None:
    base = DECODER.infer(lines(sample), None)
    larger = DECODER.decode(lines(two), base, None).schema
    assert contains(struct_of(larger), struct_of(base))
    plain = DECODER.decode(lines(one), base, None)
    under_larger = DECODER.decode(lines(one), larger, None)
    assert contains(struct_of(under_larger.schema), struct_of(larger))
    if plain.schema == base and under_larger.schema == larger:
        rows = conform(plain.data.to_struct_array(), struct_of(larger))
        assert rows.equals(under_larger.data.to_struct_array())


@given(records, st.integers(0, 6))
def test_decoding_parts_under_the_grown_schema_equals_decoding_the_whole(rows: list[Any], at: int) -> None:
    whole = DECODER.decode(lines(rows), pa.schema([]), None)
    first = DECODER.decode(lines(rows[:at]), whole.schema, None)
    rest = DECODER.decode(lines(rows[at:]), whole.schema, None)
    again = DECODER.decode(lines(rows), whole.schema, None)
    assert first.schema == rest.schema == again.schema == whole.schema
    assert first.data.to_pylist() + rest.data.to_pylist() == again.data.to_pylist()


@given(st.lists(st.one_of(st.none(), timestamps), max_size=4), st.booleans())
def test_a_column_of_timestamps_is_parsed_as_its_values_are(texts: list[str | None], zoned: bool) -> None:
    arrow_type = pa.timestamp("us", "UTC" if zoned else None)
    single = [None if text is None else parse_timestamp(text) for text in texts]
    column = parse_column(pa.array(texts, pa.string()), arrow_type)
    if all(text is None or (one and one[1] is zoned) for text, one in zip(texts, single, strict=True)):
        assert column is not None
        assert pc.cast(column, pa.int64()).to_pylist() == [one and one[0] for one in single]
    else:
        assert column is None
