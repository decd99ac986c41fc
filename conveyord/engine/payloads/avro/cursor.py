"""Where in their bytes the reading of many Avro values stands, and the primitive reads, for all of them at once.

Avro has no index: where a field begins is known once the one before it is read. But many values of one schema can be
read side by side, field by field, by operations on whole arrays of places. A value that turns out to be damaged is
noted and from then on read from zeros behind the last value, where every read gives nothing and ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conveyord.engine.payloads.assembling import Numbers
from conveyord.engine.payloads.framing import PAD_BYTES, Stretch

Words = npt.NDArray[np.uint64]
Marks = npt.NDArray[np.bool_]

EMPTY_ITEMS_MAX = 1_000_000
"""Elements of lists in one value that take no bytes, such as nulls: their number alone would fill the memory."""
CUT = "the value ends early"
_LONG_BYTES_MAX = 10  # of a varint of 64 bits
_STOP = np.uint64(0x8080808080808080)
_PAIRS, _PAIRS_HIGH = np.uint64(0x007F007F007F007F), np.uint64(0x7F007F007F007F00)
_FOURS, _FOURS_HIGH = np.uint64(0x00003FFF00003FFF), np.uint64(0x3FFF00003FFF0000)
_EIGHT, _EIGHT_HIGH = np.uint64(0x000000000FFFFFFF), np.uint64(0x0FFFFFFF00000000)
_ONE, _TWO, _FOUR = np.uint64(1), np.uint64(2), np.uint64(4)


class Damaged(Exception):
    """A value that is not of its schema. Caught in this package."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Cursor:
    """Reads many values side by side. `rows`: which of them, ascending, by their index in the stretch.

    bad: by row, what is wrong with it.
    """

    def __init__(self, stretch: Stretch) -> None:
        self.data = stretch.data
        self.raw = memoryview(stretch.data.data)  # for reading values one by one
        self.starts = stretch.starts
        self.at = stretch.starts.copy()
        self.ends = stretch.ends.copy()
        self.bad: dict[int, Damaged] = {}
        self.empty_items = np.zeros(len(self.at), np.int64)
        self._is_bad = np.zeros(len(self.at), np.bool_)
        self._zeros_at = len(self.data) - PAD_BYTES
        # Eight bytes from any place on, overlapping: unaligned reads, which fancy indexing can do.
        self._words = np.ndarray((len(self.data) - 7,), "<u8", buffer=self.data, strides=(1,))

    def fail(self, rows: Numbers, code: str, reason: str) -> None:
        """Note that `rows` are damaged, unless something else was wrong with them before."""
        for row in rows[~self._is_bad[rows]].tolist():
            self.bad[row] = Damaged(code, reason)
        self._is_bad[rows] = True
        self.at[rows] = self.ends[rows] = self._zeros_at

    def are_good(self, rows: Numbers) -> Marks:
        """Which of `rows` are not damaged as far as is known."""
        return ~self._is_bad[rows]

    def longs(self, rows: Numbers) -> Numbers:
        """The next varint of each row."""
        at = self.at[rows]
        first = self.data[at]
        if not (first & 0x80).any():
            raw, sizes = first.astype(np.uint64), np.ones(len(at), np.int64)
        else:
            raw, sizes = self._varints(rows, at)
        self._move(rows, at + sizes)
        return (raw >> _ONE).view(np.int64) ^ -(raw & _ONE).view(np.int64)

    def words(self, rows: Numbers, size: int) -> Words:
        """The next `size` bytes of each row, at most 8, as the low ones of a little-endian word with others above."""
        at = self.at[rows]
        found = self._words[at]
        self._move(rows, at + size)
        return found

    def stretches(self, rows: Numbers, sizes: Numbers) -> tuple[Numbers, Numbers]:
        """Where the next `sizes` bytes of each row begin and end: in order, and empty for damaged rows."""
        at = self.at[rows]
        wrong = (sizes < 0) | (sizes > self.ends[rows] - at)
        if wrong.any():
            self.fail(rows[wrong], "MALFORMED_RECORD", CUT)
        ends = at + sizes
        if self.bad:
            damaged = self._is_bad[rows]
            at = np.where(damaged, self.starts[rows], at)
            ends = np.where(damaged, at, ends)
            self.at[rows] = np.where(damaged, self._zeros_at, ends)
        else:
            self.at[rows] = ends
        return at, ends

    def binaries(self, rows: Numbers, sizes: Numbers) -> pa.BinaryArray:
        """The next `sizes` bytes of each row."""
        first, end = self.stretches(rows, sizes)
        count = len(rows)
        # One array over the bytes as they lie: each value, then the gap to the next. Taking every other copies once.
        offsets = np.empty(2 * count + 1, np.int32)
        offsets[0:-1:2], offsets[1::2] = first, end
        offsets[-1] = offsets[-2] if count else 0
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(self.data)]
        return pa.BinaryArray.from_buffers(pa.binary(), 2 * count, buffers).take(pa.array(np.arange(0, 2 * count, 2)))

    def _varints(self, rows: Numbers, at: Numbers) -> tuple[Words, Numbers]:
        words = self._words[at]
        stop = ~words & _STOP
        lowest = stop & (~stop + _ONE)
        kept = lowest | (lowest - _ONE)  # up to the first byte that has no successor; all of them if each has one
        sizes = (np.bitwise_count(kept) >> 3).astype(np.int64)
        found = words & kept & ~_STOP
        found = (found & _PAIRS) | ((found & _PAIRS_HIGH) >> _ONE)
        found = (found & _FOURS) | ((found & _FOURS_HIGH) >> _TWO)
        found = (found & _EIGHT) | ((found & _EIGHT_HIGH) >> _FOUR)
        longer = np.flatnonzero(stop == 0)
        if len(longer):
            ninth, tenth = self.data[at[longer] + 8], self.data[at[longer] + 9]
            goes_on = ninth >= 0x80
            found[longer] |= (ninth & 0x7F).astype(np.uint64) << np.uint64(56)
            found[longer] |= np.where(goes_on, tenth & 1, 0).astype(np.uint64) << np.uint64(63)
            sizes[longer] = 9 + goes_on
            wrong = goes_on & (tenth > 1)
            if wrong.any():
                self.fail(rows[longer[wrong]], "MALFORMED_RECORD", "a number has more than 64 bits")
        return found, sizes

    def _move(self, rows: Numbers, to: Numbers) -> None:
        if self.bad:
            to = np.where(self._is_bad[rows], self._zeros_at, to)
        over = to > self.ends[rows]
        self.at[rows] = to
        if over.any():
            self.fail(rows[over], "MALFORMED_RECORD", CUT)


@dataclass(slots=True)
class Single:
    """Reads one value, or part of it: what `Cursor` does for many, for the few that would not be worth it.

    Raises Damaged. empty_items: see `EMPTY_ITEMS_MAX`.
    """

    raw: memoryview
    at: int
    end: int
    empty_items: int

    def long(self) -> int:
        """The next varint."""
        found = shift = 0
        for _ in range(_LONG_BYTES_MAX):
            if self.at >= self.end:
                raise Damaged("MALFORMED_RECORD", CUT)
            byte = self.raw[self.at]
            self.at += 1
            found |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if found >= 1 << 64:
                    break
                return (found >> 1) ^ -(found & 1)
        raise Damaged("MALFORMED_RECORD", "a number has more than 64 bits")

    def take(self, size: int) -> bytes:
        """The next `size` bytes."""
        if not 0 <= size <= self.end - self.at:
            raise Damaged("MALFORMED_RECORD", CUT)
        self.at += size
        return bytes(self.raw[self.at - size : self.at])
