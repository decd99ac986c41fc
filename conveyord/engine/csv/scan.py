"""Where the records of CSV bytes begin and end.

A quote opens a quoted cell only at a cell's start; elsewhere it is text, as in `6" pipe`. So counting
quotes does not find the line ends that matter. The scanner runs over everything ordinary in one
call of a possessive pattern and stops only at cells that need a look: quoted cells that hold a line
end, are followed by more text, or never end. Blocks without a quote are not scanned at all.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NEWLINE = 0x0A


@dataclass(frozen=True, slots=True)
class Quoting:
    """The places in some bytes where quotes matter. All offsets are from their start.

    hidden: half-open ranges of quoted cells that hold line ends, in order. junk: where text follows a
    closing quote. open_at: where a quoted cell begins that never ends, or None.
    """

    hidden: tuple[tuple[int, int], ...] = ()
    junk: tuple[int, ...] = ()
    open_at: int | None = None


class Scanner:
    """Finds records. `delimiter` and `quote` are single bytes; without a quote every line is a record."""

    def __init__(self, *, delimiter: bytes, quote: bytes | None) -> None:
        self._quote = quote
        self._delimiter = re.escape(delimiter)
        d, q = self._delimiter, re.escape(quote or b'"')
        at_start, at_end = rb"(?<![^%b\n])" % d, rb"(?![^%b\r\n])" % d
        one_line = rb"%b%b(?:[^%b\n]++|%b%b)*+%b%b" % (at_start, q, q, q, q, q, at_end)
        stray = rb"(?<=[^%b\n])%b" % (d, q)
        self._ordinary = re.compile(rb"(?:[^%b]++|%b|%b)*+" % (q, one_line, stray))
        self._quoted = re.compile(rb"%b(?:[^%b]++|%b%b)*+%b" % (q, q, q, q, q))
        self._cell = re.compile(rb"%b(?:[^%b]++|%b%b)*+%b|[^%b\n]*+" % (q, q, q, q, q, d))
        self._plain_cell = re.compile(rb"[^%b\n]*+" % d)

    def quoting(self, buffer: bytes) -> Quoting:
        """Look at every quoted cell of `buffer`, which starts at a record."""
        if self._quote is None or self._quote not in buffer:
            return Quoting()
        hidden: list[tuple[int, int]] = []
        junk: list[int] = []
        at = len(BYTE_ORDER_MARK) if buffer.startswith(BYTE_ORDER_MARK) else 0
        if at and buffer.startswith(self._quote, at):  # the pattern looks behind and would see the mark
            at = self._look(buffer, at, hidden, junk)
        while True:
            if at < 0:
                return Quoting(tuple(hidden), tuple(junk), -at - 1)
            found = self._ordinary.match(buffer, at)
            at = found.end() if found else at
            if at == len(buffer):
                return Quoting(tuple(hidden), tuple(junk))
            at = self._look(buffer, at, hidden, junk)

    def _look(self, buffer: bytes, at: int, hidden: list[tuple[int, int]], junk: list[int]) -> int:
        """Pass the quoted cell at `at`; returns where it ends, or `-at - 1` if it does not."""
        cell = self._quoted.match(buffer, at)
        if cell is None:
            return -at - 1
        if buffer.find(b"\n", at, cell.end()) >= 0:
            hidden.append((at, cell.end()))
        if cell.end() < len(buffer) and buffer[cell.end() : cell.end() + 1] not in self._ends:
            junk.append(cell.end())
        return cell.end()

    @property
    def _ends(self) -> tuple[bytes, ...]:
        return (self._delimiter[-1:], b"\r", b"\n")

    def boundary(self, buffer: bytes) -> int:
        """The end of the last whole record in `buffer`, which starts at a record; 0 if there is none."""
        quoting = self.quoting(buffer)
        end = len(buffer) if quoting.open_at is None else quoting.open_at
        for first, last in (*reversed(quoting.hidden), (0, 0)):
            newline = buffer.rfind(b"\n", last, end)
            if newline >= 0:
                return newline + 1
            end = first
        return 0

    def starts(self, block: bytes, quoting: Quoting) -> pa.Int64Array:
        """Where each record starts, blank lines left out."""
        if not block:
            return pa.array([], pa.int64())
        codes = pa.Array.from_buffers(pa.uint8(), len(block), [None, pa.py_buffer(block)])
        ends = pc.indices_nonzero(pc.equal(codes, pa.scalar(_NEWLINE, pa.uint8())))
        inside = list(_newlines(block, quoting))
        if inside:
            ends = ends.filter(pc.invert(pc.is_in(ends, pa.array(inside, pa.uint64()))))
        ends = ends.cast(pa.int64())
        starts = pa.concat_arrays([pa.array([0], pa.int64()), pc.add(ends, 1)])
        starts = starts.filter(pc.less(starts, len(block)))
        if block.startswith((b"\n", b"\r\n")) or b"\n\n" in block or b"\n\r\n" in block:
            blank = [start for start in starts.to_pylist() if block.startswith((b"\n", b"\r\n"), start)]
            starts = starts.filter(pc.invert(pc.is_in(starts, pa.array(blank, pa.int64()))))
        return starts

    def cells(self, record: bytes) -> list[bytes]:
        """The cells of one record without its line end, quotes undone. For headers and bad records.

        Text after a closing quote is kept as part of its cell.
        """
        cells, at = [], 0
        while True:
            quoted = self._quote is not None and record.startswith(self._quote, at)
            match = (self._cell if quoted else self._plain_cell).match(record, at)
            assert match is not None, "the pattern matches nothing at least"
            text, at = match.group(), match.end()
            if quoted and self._quote is not None:
                # An opening quote without its closing one does not match as a quoted cell.
                rest = self._plain_cell.match(record, at)
                if text.startswith(self._quote):
                    text = text[1:-1].replace(self._quote * 2, self._quote)
                if rest is not None and rest.end() > at:
                    text, at = text + rest.group(), rest.end()
            cells.append(text)
            if at >= len(record):
                return cells
            at += 1


def _newlines(block: bytes, quoting: Quoting) -> Iterator[int]:
    """The line ends that stand within quoted cells."""
    ranges = list(quoting.hidden)
    if quoting.open_at is not None:
        ranges.append((quoting.open_at, len(block)))
    for first, end in ranges:
        at = block.find(b"\n", first, end)
        while at >= 0:
            yield at
            at = block.find(b"\n", at + 1, end)
