"""CSV laws: any table that Python's csv module writes comes back, however it is cut, and no text is lost."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from conveyord.engine.csv import CsvDecoder, CsvLayout
from conveyord.engine.csv.columns import parse

CELLS = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8),
    st.text(alphabet='a",\n', max_size=6),
    st.sampled_from(["", "1", "007", "2.5", "1e5", "true", "2024-01-01", "2024-02-30", "9" * 20, "-0", "+1"]),
)
NUMBERLIKE = st.one_of(
    st.integers(-(10**25), 10**25).map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.text("0123456789+-.eE ", min_size=1, max_size=24),
)


def written(rows: list[list[str]], *, quoting: int, line_end: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, quoting=quoting, lineterminator=line_end).writerows(rows)  # type: ignore[arg-type]
    return out.getvalue().encode()


TABLES = st.lists(st.tuples(CELLS, CELLS, CELLS).map(list), min_size=1, max_size=6)
DIALECTS = st.sampled_from([(csv.QUOTE_MINIMAL, "\n"), (csv.QUOTE_MINIMAL, "\r\n"), (csv.QUOTE_ALL, "\n")])


def as_text(value: object) -> object:
    return None if value == "" else value


@given(TABLES, DIALECTS, st.lists(st.integers(1, 30), max_size=8))
def test_blocks_cut_at_any_boundary_give_the_rows_that_were_written(
    rows: list[list[str]], dialect: tuple[int, str], sizes: list[int]
) -> None:
    content = written(rows, quoting=dialect[0], line_end=dialect[1])
    layout = CsvLayout(tuple(f"c{index}" for index in range(len(rows[0]))))
    schema = pa.schema([(name, pa.string()) for name in layout.names])
    decoder = CsvDecoder()
    found: list[dict[str, object]] = []
    starts: list[int] = []
    at = 0
    while at < len(content):
        looked = sizes.pop() if sizes else len(content)
        while not (length := decoder.boundary(content[at : at + looked])) and at + looked < len(content):
            looked += 1  # as the reader does: a record longer than the block makes the block longer
        block = content[at : at + (length or looked)]
        decoded = decoder.decode(block, schema, layout)
        assert not decoded.bad
        found += decoded.data.to_pylist()
        starts += [at + start for start in decoder.starts(block).to_pylist()]
        at += len(block)
    assert found == [dict(zip(layout.names, map(as_text, row), strict=True)) for row in rows]
    assert starts == decoder.starts(content).to_pylist()


@given(st.binary(max_size=60).map(lambda raw: raw.replace(b"\xef\xbb\xbf", b"")))
def test_whatever_the_bytes_every_record_is_a_row_or_named_bad(content: bytes) -> None:
    decoder = CsvDecoder()
    schema = pa.schema([("a", pa.string()), ("b", pa.string())])
    decoded = decoder.decode(content, schema, CsvLayout(("a", "b")))
    starts = decoder.starts(content).to_pylist()
    assert decoded.data.num_rows + len(decoded.bad) == len(starts)
    assert [bad.offset for bad in decoded.bad] == sorted({bad.offset for bad in decoded.bad} & set(starts))


@given(st.text('a,"\n\r', max_size=40), st.integers(0, 40))
def test_boundaries_agree_with_the_scan_from_the_start(text: str, size: int) -> None:
    content = text.encode()
    decoder = CsvDecoder()
    end = decoder.boundary(content[:size])
    assert end == 0 or content[end - 1 : end] == b"\n"
    joined = decoder.starts(content[:end]).to_pylist()
    joined += [end + start for start in decoder.starts(content[end:]).to_pylist()]
    assert joined == decoder.starts(content).to_pylist()


@given(st.lists(NUMBERLIKE, min_size=1, max_size=12))
def test_inferred_numbers_lose_no_text(texts: list[str]) -> None:
    """Each value stands in its column such that its text follows, or in the sibling as it was."""
    for kind in (pa.int64(), pa.float64()):
        parsed = parse(pa.array(texts, pa.string()), kind)
        for text, value in zip(texts, parsed.values.to_pylist(), strict=True):
            if value is None:
                continue
            if kind == pa.int64():
                assert str(value) == text
            else:
                assert text == text.strip()
                assert Decimal(repr(value)) == Decimal(text)


@given(st.lists(CELLS, min_size=1, max_size=10), st.lists(CELLS, min_size=1, max_size=10))
def test_a_later_block_under_inferred_types_loses_no_cell(sample: list[str], later: list[str]) -> None:
    decoder, layout = CsvDecoder(), CsvLayout(("k", "x"))

    def block(cells: list[str]) -> bytes:
        return written([[str(index), cell] for index, cell in enumerate(cells)], quoting=csv.QUOTE_ALL, line_end="\n")

    schema = decoder.infer(block(sample), layout)
    decoded = decoder.decode(block(later), schema, layout)
    assert not decoded.bad
    assert decoded.data.schema.names[:2] == ["k", "x"]
    for cell, row in zip(later, decoded.data.to_pylist(), strict=True):
        present = [value for name, value in row.items() if name.startswith("x") and value is not None]
        assert len(present) == (1 if cell else 0)
        if present and isinstance(present[0], str):
            assert present[0] == cell


@given(st.lists(CELLS, min_size=1, max_size=10))
def test_decoding_under_a_schema_that_grew_meanwhile_gives_the_same_rows(cells: list[str]) -> None:
    decoder, layout = CsvDecoder(), CsvLayout(("k", "x"))
    content = written([["1", cell] for cell in cells], quoting=csv.QUOTE_ALL, line_end="\n")
    first = decoder.decode(content, pa.schema([("k", pa.int64()), ("x", pa.int64())]), layout)
    again = decoder.decode(content, first.schema, layout)
    assert again.schema == first.schema
    assert again.data.equals(first.data)
