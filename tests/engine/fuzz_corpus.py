"""Broken inputs by the thousand: what Hypothesis makes up, and real files with damage.

The references (`json_records`, `csv_records`) are written in plain Python from the documented rules, not from the
decoders, so that both would have to be wrong in the same way.
"""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy

REAL = Path(__file__).resolve().parent.parent / "data" / "real"
DEPTH_MAX = 60  # levels of nesting that are read, see docs/errors.md
BOM = b"\xef\xbb\xbf"

# ---------------------------------------------------------------------------- bytes

Edit = tuple[str, float, float, bytes]
EDITS: SearchStrategy[list[Edit]] = st.lists(
    st.tuples(
        st.sampled_from(["flip", "drop", "repeat", "put", "cut", "move"]),
        st.floats(0, 1),
        st.floats(0, 0.2),
        st.one_of(
            st.binary(min_size=1, max_size=6),
            st.sampled_from(
                [b"\n", b"\r", b"\r\n", b'"', b"\0", b"\xff", b"\xed\xa0\x80", b"\\ud800", b",", b"{", b"}"]
            ),
        ),
    ),
    min_size=1,
    max_size=5,
)


def edited(content: bytes, edits: list[Edit]) -> bytes:
    """`content` with some bytes flipped, dropped, repeated, put in, moved, or its end cut off."""
    for kind, where, share, put in edits:
        at = int(where * len(content))
        end = min(len(content), at + 1 + int(share * len(content)))
        piece = content[at:end]
        match kind:
            case "flip" if piece:
                content = content[:at] + bytes([content[at] ^ put[0] or 1]) + content[at + 1 :]
            case "drop":
                content = content[:at] + content[end:]
            case "repeat":
                content = content[:end] + piece + content[end:]
            case "put":
                content = content[:at] + put + content[at:]
            case "cut":
                content = content[:at]
            case "move":
                rest = content[:at] + content[end:]
                to = int(share * 5 * len(rest))
                content = rest[:to] + piece + rest[to:]
    return content


def real_slices(name: str, *, bytes_max: int = 6_000) -> SearchStrategy[bytes]:
    """A few whole lines of a real file; of a CSV file with its header."""
    lines = (REAL / name).read_bytes().splitlines(keepends=True)
    head = lines[:1] if name.endswith(".csv") else []

    def taken(first: int) -> bytes:
        found, size = list(head), 0
        for line in lines[first + len(head) :]:
            size += len(line)
            if size > bytes_max:
                break
            found.append(line)
        return b"".join(found)

    return st.integers(0, len(lines) - 20).map(taken)


def wrapped(content: SearchStrategy[bytes]) -> SearchStrategy[tuple[str, bytes, bytes | None]]:
    """The end of a file's name, its bytes, and what they inflate to; None if that is not known because of damage."""

    @st.composite
    def made(draw: DrawFn) -> tuple[str, bytes, bytes | None]:
        plain = draw(content)
        form = draw(st.sampled_from(["", "", "", ".gz", ".zst", "members.gz", "frames.zst", "raw.gz", "raw.zst"]))
        cut = draw(st.integers(0, len(plain)))
        match form:
            case ".gz":
                packed = gzip.compress(plain, mtime=0)
            case ".zst":
                packed = zstandard.compress(plain)
            case "members.gz":
                packed = gzip.compress(plain[:cut], mtime=0) + gzip.compress(plain[cut:], mtime=0)
            case "frames.zst":
                packed = zstandard.compress(plain[:cut]) + zstandard.compress(plain[cut:])
            case _:  # plain bytes, under a name that may promise more
                is_packed = plain.startswith((b"\x1f\x8b", b"\x28\xb5\x2f\xfd"))
                return form, plain, None if is_packed or (form and plain) else plain
        if draw(st.booleans()):
            return form, packed, plain
        return form, edited(packed, draw(EDITS)), None

    return made()


# ---------------------------------------------------------------------------- JSON

TEXTS = st.one_of(
    st.text(max_size=8),
    st.sampled_from(
        ["", "a", "b", "a.b", "a__string", "A", "é", "e\u0301", "\0", "\u2028", "1", "2024-01-01", "x" * 300]
    ),
    st.sampled_from(["2024-02-30T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "0001-01-01", "2024-06-30T23:59:60Z"]),
)
KEYS = st.one_of(st.sampled_from(["a", "b", "c", "a", "b", "A", "a__string", "a__long", "a.b", "_source"]), TEXTS)
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(2**70), 2**70),
    st.sampled_from([2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**400]),
    st.floats(allow_nan=False, allow_infinity=False),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=6,
)
OBJECTS = st.dictionaries(KEYS, VALUES, max_size=4)


def nested(levels: int, *, of_lists: bool) -> bytes:
    """An object whose only column nests so many levels in all."""
    if of_lists:
        return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"
    return b'{"a":' * levels + b"1" + b"}" * levels


ODD_LINES = st.one_of(
    st.sampled_from(
        [
            b"",
            b" ",
            b"\t\r",
            b"\r",
            b"{}",
            b"[]",
            b"null",
            b"1",
            b'"a"',
            b"{",
            b"}",
            b'{"a":1',
            b'{"a":1}}',
            b"{}{}",
            b'{"a":1} {"a":2}',
            b'{"a":1,"a":2}',
            b'{"a":{"b":1,"b":2}}',
            b'{"a":1,"\\u0061":2}',
            b'{"":1}',
            b'{"\\u0000":1}',
            b'{"a":NaN}',
            b'{"a":Infinity}',
            b'{"a":-Infinity}',
            b'{"a":"\\ud800"}',
            b'{"a":"\\ud83d\\ude00"}',
            b'{"\\udc00":1}',
            b'{"a":"\xff"}',
            b'{"a":"\xc3"}',
            b'{"a":"\xed\xa0\x80"}',
            b'{"a":"\0"}',
            b'{"a":\0 1}',
            b"\0",
            b'{"a":01}',
            b'{"a":+1}',
            b'{"a":1.}',
            b'{"a":.5}',
            b'{"a":1e999}',
            b'{"a":-0}',
            b'{"a":-0.0}',
            b'{"a":1E+2}',
            b'{"a":"\t"}',
            b'{"a":"\x7f"}',
            b'{"a":"\\x"}',
            b"{'a':1}",
            b'{"a":1,}',
            b'{"a" 1}',
            b"{a:1}",
            b'{"a":tru}',
            b'{"a":1}//',
            b'\xef\xbb\xbf{"a":1}',
            b'{"a":\xc2\xa01}',
            b'{"a":1}\r',
            b'{"a":1}\r\r',
            b'{"a":\r1}',
            b'{"a":"x\ry"}',
            b'\x0b{"a":1}',
            b'{"a":1}\x0c',
            b'{"a":[1,"x",null,{}]}',
            b'{"a":{}}',
            b'{"a":[]}',
            b'{"a":[[],[[]]]}',
            b'{"a":{"a":{"a":{}}}}',
        ]
    ),
    st.builds(nested, st.integers(DEPTH_MAX - 2, DEPTH_MAX + 3), of_lists=st.booleans()),
    st.sampled_from([nested(5_000, of_lists=True), nested(5_000, of_lists=False), b"[" * 5_000]),
    st.integers(1, 5_000).map(lambda digits: b'{"a":' + b"9" * digits + b"}"),
    st.binary(max_size=12).map(lambda raw: raw.replace(b"\n", b"")),
    st.integers(1, 3_000).map(lambda size: b'{"b":"' + b"x" * size + b'"}'),
)


def dumped(value: Any, *, spaced: bool, as_ascii: bool) -> bytes:
    separators = (", ", ": ") if spaced else (",", ":")
    return json.dumps(value, separators=separators, ensure_ascii=as_ascii).encode("utf-8", "surrogatepass")


WHOLE_LINES = st.builds(dumped, OBJECTS, spaced=st.booleans(), as_ascii=st.booleans())
SAME_LINES = st.builds(
    lambda n, text, more: dumped({"a": n, "b": text, "c": {"d": more}}, spaced=False, as_ascii=False),
    st.integers(-9, 99), st.text(max_size=5), st.one_of(st.none(), st.floats(0, 1)),
)  # fmt: skip
JSON_LINES = st.one_of(SAME_LINES, SAME_LINES, WHOLE_LINES, ODD_LINES)


@st.composite
def json_files(draw: DrawFn) -> bytes:
    """JSON lines, whole and odd; sometimes with a mark before them, in UTF-16, or edited all over."""
    content = _joined(draw, draw(st.lists(JSON_LINES, max_size=14)))
    form = draw(st.sampled_from(["as is", "as is", "as is", "edited", "real", "bom", "utf-16", "noise"]))
    match form:
        case "edited":
            return edited(content, draw(EDITS))
        case "real":
            name = draw(st.sampled_from(["movies.jsonl", "flights.jsonl", "earthquakes.jsonl"]))
            return edited(draw(real_slices(name)), draw(EDITS))
        case "bom":
            return BOM + content
        case "utf-16":
            return content.decode("utf-8", "replace").encode("utf-16")
        case "noise":
            return draw(st.binary(max_size=80))
    return content


def _joined(draw: DrawFn, lines: list[bytes]) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", None]))
    ends = [end or draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r\n\n"])) for _ in lines]
    content = b"".join(line + each for line, each in zip(lines, ends, strict=True))
    return content if draw(st.booleans()) else content.removesuffix(b"\n")


def json_records(content: bytes) -> list[bytes]:
    """The records of JSON lines: each line that is not blank."""
    lines = content.removeprefix(BOM).split(b"\n")
    return [line.removesuffix(b"\r") for line in lines if line.strip(b" \t\r")]


class _Bad(ValueError):
    pass


def is_good_json(line: bytes) -> bool:
    """Whether a line is a record by docs/errors.md, as Python's own parser sees it."""

    def pairs(found: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in found]
        if len(set(keys)) < len(keys) or any(not key or "\0" in key for key in keys):
            raise _Bad
        return dict(found)

    def constant(_: str) -> Any:
        raise _Bad

    try:
        text = line.decode()
        if text.strip(" \t\r\n") != text.strip(" \t\r\n\ufeff"):
            return False
        found = json.loads(text, object_pairs_hook=pairs, parse_constant=constant, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and all(is_text and depth <= DEPTH_MAX for is_text, depth in _walked(found, 1))


def _walked(value: Any, depth: int) -> Iterator[tuple[bool, int]]:
    stack = [(value, depth)]
    while stack:
        value, depth = stack.pop()
        if isinstance(value, dict):
            yield True, depth
            stack += [(each, depth) for each in value] + [(each, depth + 1) for each in value.values()]
        elif isinstance(value, list):
            yield True, depth
            stack += [(each, depth + 1) for each in value]
        elif isinstance(value, str):
            yield not any("\ud800" <= letter <= "\udfff" for letter in value), 0


# ---------------------------------------------------------------------------- CSV

CELLS = st.one_of(
    st.text('a,"\n\r', max_size=6),
    st.text(max_size=5),
    st.sampled_from(
        ["", "1", "007", "2.5", "1e999", "true", "2024-02-30", "9" * 400, "-0", "\0", "x" * 500, '"', '""']
    ),
)


@st.composite
def csv_files(draw: DrawFn) -> bytes:
    """CSV: rows that fit their header, are too short or too long, quotes across lines or never closed."""
    form = draw(st.sampled_from(["made", "made", "made", "edited", "real", "text", "noise", "header", "bom", "utf-16"]))
    if form == "noise":
        return draw(st.binary(max_size=80))
    if form == "text":
        return draw(st.text('ab1,"\n\r \0', max_size=60)).encode()
    if form == "real":
        name = draw(st.sampled_from(["airports.csv", "birdstrikes.csv", "seattle-weather.csv"]))
        return edited(draw(real_slices(name)), draw(EDITS))
    names = draw(st.lists(st.one_of(KEYS, st.sampled_from(["a", "b", "c", "d"])), min_size=1, max_size=4))
    rows = [names]
    for _ in range(0 if form == "header" else draw(st.integers(0, 10))):
        width = draw(st.sampled_from([len(names)] * 5 + [len(names) + 1, len(names) - 1, 0]))
        rows.append(draw(st.lists(CELLS, min_size=width, max_size=width)))
    lines = [b",".join(_cell(draw, cell) for cell in row) for row in rows]
    content = _joined(draw, lines)
    if form == "utf-16":
        return content.decode("utf-8", "replace").encode("utf-16")
    return edited(content, draw(EDITS)) if form == "edited" else BOM + content if form == "bom" else content


def _cell(draw: DrawFn, text: str) -> bytes:
    raw = text.encode("utf-8", "surrogatepass")
    how = draw(st.sampled_from(["as needed"] * 6 + ["quoted", "bare", "open", "junk"]))
    quoted = b'"' + raw.replace(b'"', b'""') + b'"'
    match how:
        case "bare":
            return raw
        case "open":
            return b'"' + raw
        case "junk":
            return quoted + raw
        case "quoted":
            return quoted
    return quoted if any(mark in text for mark in ',"\r\n') else raw


def csv_records(content: bytes) -> int:
    """How many records CSV has, the header included: one character after the other, by the documented rules.

    A quote opens a cell only where a cell begins; what is opened and never closed reaches to the end of the file.
    """
    text = content.removeprefix(BOM)
    records = 0
    at = 0
    while at < len(text):
        end, is_quoted, is_start = at, False, True
        while end < len(text):
            byte = text[end : end + 1]
            if is_quoted:
                if byte == b'"' and text[end + 1 : end + 2] == b'"':
                    end += 1
                elif byte == b'"':
                    is_quoted = False
            elif byte == b'"' and is_start:
                is_quoted = True
            elif byte == b"\n":
                break
            is_start = not is_quoted and byte == b","
            end += 1
        is_blank = end == at or (text[at:end] == b"\r" and end < len(text))
        records += not is_blank
        at = end + 1
    return records


# ---------------------------------------------------------------------------- Parquet

SCALARS: list[tuple[pa.DataType, SearchStrategy[Any]]] = [
    (pa.null(), st.none()),
    (pa.bool_(), st.booleans()),
    (pa.int8(), st.integers(-128, 127)),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float16(), st.floats(-100, 100).map(lambda x: math.floor(x) / 2)),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.string(), st.text(st.characters(codec="utf-8"), max_size=6)),
    (pa.large_string(), st.text(st.characters(codec="utf-8"), max_size=6)),
    (pa.binary(), st.binary(max_size=6)),
    (pa.binary(4), st.binary(min_size=4, max_size=4)),
    (pa.decimal128(5, 2), st.decimals(-999, 999, places=2)),
    (pa.decimal256(60, 10), st.decimals(-(10**40), 10**40, places=10).filter(Decimal.is_finite)),
    (pa.date32(), st.dates()),
    (pa.time32("ms"), st.times().map(lambda t: t.replace(microsecond=t.microsecond // 1000 * 1000))),
    (pa.time64("ns"), st.times()),
    (pa.timestamp("s"), st.datetimes().map(lambda t: t.replace(microsecond=0))),
    (pa.timestamp("ns", "Europe/Zurich"), st.integers(-(2**62), 2**62)),
    (pa.timestamp("us", "UTC"), st.datetimes()),
    (pa.duration("us"), st.integers(-(2**40), 2**40)),
]


@st.composite
def columns(draw: DrawFn, depth: int = 2) -> tuple[pa.DataType, SearchStrategy[Any]]:
    """A type, and values that it can hold."""
    shape = draw(st.sampled_from(["plain"] * 5 + ["list", "struct", "map", "dictionary"])) if depth else "plain"
    kind, values = draw(st.sampled_from(SCALARS))
    match shape:
        case "dictionary" if pa.types.is_string(kind):
            return pa.dictionary(pa.int32(), kind), values
        case "list":
            kind, values = draw(columns(depth - 1))
            return pa.list_(kind), st.lists(st.none() | values, max_size=3)
        case "struct":
            # PyArrow 26 writes no null of a struct over a dictionary without values where `use_dictionary` is off.
            kind, values = draw(columns(depth - 1).filter(lambda found: not pa.types.is_dictionary(found[0])))
            name = draw(st.sampled_from(["a", "b", "x.y"]))
            return pa.struct([(name, kind)]), values.map(lambda value: {name: value})
        case "map":
            kind, values = draw(columns(depth - 1))
            found = st.lists(st.tuples(st.text("abc", max_size=2), st.none() | values), max_size=3)
            return pa.map_(pa.string(), kind), found
    return kind, values


@st.composite
def parquet_files(draw: DrawFn) -> tuple[bytes, int | None]:
    """A Parquet file, and how many rows it has; None if it was damaged."""
    rows = draw(st.integers(0, 12))
    names = draw(st.lists(st.sampled_from(["a", "b", "c", "A", "a__string", "x.y", "é"]), max_size=4, unique=True))
    arrays = []
    for _ in names:
        kind, values = draw(columns())
        found = draw(st.lists(st.none() | values, min_size=rows, max_size=rows))
        arrays.append(pa.array(found, kind))
    table = pa.table(dict(zip(names, arrays, strict=True)))
    out = io.BytesIO()
    groups = draw(st.integers(1, 6))
    with pq.ParquetWriter(
        out,
        table.schema,
        compression=draw(st.sampled_from(["none", "snappy", "zstd", "gzip", "brotli", "lz4"])),
        write_page_checksum=draw(st.booleans()),
        data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
        use_dictionary=draw(st.booleans()),
        use_deprecated_int96_timestamps=False,
        store_schema=draw(st.booleans()),
    ) as writer:
        if draw(st.integers(0, 9)):  # else a file without any row group
            writer.write_table(table, row_group_size=groups)
        else:
            table = table.slice(0, 0)
    content = out.getvalue()
    if draw(st.booleans()):
        return content, table.num_rows
    return edited(content, draw(EDITS)), None
