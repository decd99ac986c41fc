"""The scanner against a machine that reads byte by byte, and numbers told from bytes against those told one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conveyord.engine.csv.columns import parse
from conveyord.engine.csv.scan import Quoting, Scanner

TEXTS = st.text('a,"\n\r', max_size=40)
QUOTED = st.lists(
    st.sampled_from(['"', '"a"', '""', '"a""b"', '"a\nb"', '"\n""\n"', ",", "\n", "\r\n", "a"]), max_size=16
).map("".join)
NUMBERS = st.one_of(
    st.integers(-(10**25), 10**25).map(str),
    st.floats().map(repr),
    st.decimals(allow_nan=False, allow_infinity=False).map(str),
    st.text("0123456789+-.eExX/ ", min_size=1, max_size=24),
    st.sampled_from(["0", "-0", "-0.0", "00", "-01", "0.5", "-.5", "5.", ".", "-", "1/2", "0x10", "nan", "1" * 18]),
    st.none(),
)


def reference(content: bytes) -> tuple[set[int], list[int], int | None]:
    """The hidden line ends, the junk and where an open cell begins, by the grammar of the scanner's docstring."""
    hidden: set[int] = set()
    junk: list[int] = []
    at = 0
    is_cell_start = True
    while at < len(content):
        if not (is_cell_start and content[at : at + 1] == b'"'):
            is_cell_start = content[at : at + 1] in (b",", b"\n")
            at += 1
            continue
        first, at = at, at + 1
        while at < len(content) and (content[at : at + 1] != b'"' or content[at + 1 : at + 2] == b'"'):
            at += 1 + (content[at : at + 1] == b'"')
        if at >= len(content):
            return hidden, junk, first
        at += 1
        hidden |= {place for place in range(first, at) if content[place : place + 1] == b"\n"}
        if at < len(content) and content[at : at + 1] not in (b",", b"\r", b"\n"):
            junk.append(at)
        is_cell_start = False
    return hidden, junk, None


@given(st.one_of(TEXTS, QUOTED))
@example('"a\n""b","c')
@example('"a""')
@example('x\n"a",6" pipe\n')
def test_quoting_is_what_a_reader_of_single_bytes_finds(text: str) -> None:
    content = text.encode()
    found = Scanner(delimiter=b",", quote=b'"').quoting(content)
    hidden, junk, open_at = reference(content)
    places = {place for first, end in found.hidden for place in range(first, end)}
    assert {place for place in places if content[place : place + 1] == b"\n"} == hidden
    assert list(found.junk) == junk
    assert found.open_at == open_at


@given(st.text('a,"\n\r', max_size=40), st.integers(0, 12))
def test_a_block_holds_as_many_records_as_it_has_starts(text: str, rows: int) -> None:
    scanner, content = Scanner(delimiter=b",", quote=b'"'), text.encode()
    quoting = scanner.quoting(content)
    records = len(scanner.starts(content, quoting))
    assert scanner.holds(content, quoting, rows=records)
    assert rows >= records or not scanner.holds(content, quoting, rows=rows)


def test_bytes_without_quotes_hide_nothing() -> None:
    assert Scanner(delimiter=b",", quote=b'"').quoting(b"a,b\n") == Quoting()


@pytest.mark.parametrize("declared", [False, True])
@pytest.mark.parametrize("kind", [pa.int64(), pa.float64()])
@given(texts=st.lists(NUMBERS, min_size=1, max_size=8), skipped=st.integers(0, 2))
def test_what_a_number_is_does_not_depend_on_its_neighbours(
    kind: pa.DataType, declared: bool, texts: list[str | None], skipped: int
) -> None:
    whole = pa.array(texts, pa.string())[skipped:]
    alone = [parse(pa.array([text], pa.string()), kind, declared=declared).values for text in texts[skipped:]]
    together = parse(whole, kind, declared=declared).values
    expected = pa.concat_arrays([*alone, pa.array([], kind)])
    assert together.is_valid().equals(expected.is_valid())
    # Bits and not values: -0.0 equals 0.0.
    assert np.array_equal(together.drop_null().view(pa.int64()), expected.drop_null().view(pa.int64()))
