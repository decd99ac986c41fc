"""What the readers of all Avro types have in common, and those of primitive types."""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import pyarrow as pa

from conveyord.engine.payloads.assembling import Numbers
from conveyord.engine.payloads.avro.cursor import Cursor, Damaged, Single

INT_MIN, INT_MAX = -(1 << 31), (1 << 31) - 1


class Node(ABC):
    """One type of a schema. Reads values of it, of many records at once or of a single one.

    type: the Arrow type that values become. bytes_min: what a value takes at least.
    """

    type: pa.DataType
    bytes_min: int = 1

    @abstractmethod
    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        """One value for each of `rows`, as `type`; anything for rows that are, or turn out to be, damaged."""

    @abstractmethod
    def read_one(self, single: Single) -> Any:
        """One value as Python has it and Arrow takes it for `type`. Raises Damaged."""


class NullNode(Node):
    """No bytes at all."""

    type = pa.null()
    bytes_min = 0

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:  # noqa: ARG002 - the contract's
        return pa.nulls(len(rows))

    def read_one(self, single: Single) -> Any:  # noqa: ARG002 - likewise
        return None


class BooleanNode(Node):
    """One byte, 0 or 1."""

    type = pa.bool_()
    _WRONG = "a boolean is neither 0 nor 1"

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        found = cursor.words(rows, 1) & np.uint64(0xFF)
        if (found > 1).any():
            cursor.fail(rows[found > 1], "MALFORMED_RECORD", self._WRONG)
        return pa.array(found == 1)

    def read_one(self, single: Single) -> Any:
        found = single.take(1)[0]
        if found > 1:
            raise Damaged("MALFORMED_RECORD", self._WRONG)
        return found == 1


class IntegerNode(Node):
    """A varint that means a number between two limits, in the unit of an Arrow type.

    factor: of Avro's unit in that of `kind`, such as 1000 for milliseconds that become microseconds.
    """

    def __init__(self, kind: pa.DataType, *, first: int, last: int, factor: int = 1, what: str) -> None:
        self.type = kind
        self._first, self._last = first, last
        self._factor = factor
        self._wrong = f"{what} lies beyond its range"

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        found = cursor.longs(rows)
        wrong = (found < self._first) | (found > self._last)
        if wrong.any():
            cursor.fail(rows[wrong], "TYPE_MISMATCH", self._wrong)
            found = np.where(wrong, 0, found)
        if self._factor != 1:
            found = found * self._factor
        if self.type.bit_width == 32:
            found = found.astype(np.int32)
        return pa.array(found).view(self.type)

    def read_one(self, single: Single) -> Any:
        found = single.long()
        if not self._first <= found <= self._last:
            raise Damaged("TYPE_MISMATCH", self._wrong)
        return found * self._factor


class FloatingNode(Node):
    """Four or eight bytes."""

    def __init__(self, kind: pa.DataType) -> None:
        self.type = kind
        self.bytes_min = self._size = kind.bit_width // 8
        self._struct = struct.Struct("<f" if self._size == 4 else "<d")

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        found = cursor.words(rows, self._size)
        return pa.array(found.astype(np.uint32).view(np.float32) if self._size == 4 else found.view(np.float64))

    def read_one(self, single: Single) -> Any:
        return self._struct.unpack(single.take(self._size))[0]


class BytesNode(Node):
    """A length and so many bytes; `size`: always so many, without a length."""

    type = pa.binary()

    def __init__(self, size: int | None = None) -> None:
        self.size = size
        self.bytes_min = 1 if size is None else size

    def sizes(self, cursor: Cursor, rows: Numbers) -> Numbers:
        """How many bytes each value has."""
        return cursor.longs(rows) if self.size is None else np.full(len(rows), self.size, np.int64)

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        return cursor.binaries(rows, self.sizes(cursor, rows))

    def read_one(self, single: Single) -> Any:
        return single.take(single.long() if self.size is None else self.size)


class StringNode(Node):
    """A length and so many bytes of UTF-8."""

    type = pa.string()
    _bytes = BytesNode()
    _WRONG = "a string is not UTF-8"

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        found = self._bytes.read(cursor, rows)
        try:
            return found.cast(pa.string())
        except pa.ArrowInvalid:
            wrong = np.array([not _is_text(value) for value in found.to_pylist()], np.bool_)
        cursor.fail(rows[wrong], "INVALID_UTF8", self._WRONG)
        return pa.array(
            [b"" if bad else value for bad, value in zip(wrong, found.to_pylist(), strict=True)], pa.string()
        )

    def read_one(self, single: Single) -> Any:
        try:
            return self._bytes.read_one(single).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Damaged("INVALID_UTF8", self._WRONG) from error


class EnumNode(Node):
    """The number of a symbol; the symbol, as text."""

    type = pa.string()

    def __init__(self, symbols: list[str]) -> None:
        self._symbols = symbols
        self._words = pa.array(symbols, pa.string())
        self._wrong = f"an enum has a number beyond its {len(symbols)} symbols"

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        found = cursor.longs(rows)
        wrong = (found < 0) | (found >= len(self._symbols))
        if wrong.any():
            cursor.fail(rows[wrong], "MALFORMED_RECORD", self._wrong)
            found = np.where(wrong, 0, found)
        return self._words.take(pa.array(found))

    def read_one(self, single: Single) -> Any:
        found = single.long()
        if not 0 <= found < len(self._symbols):
            raise Damaged("MALFORMED_RECORD", self._wrong)
        return self._symbols[found]


def _is_text(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def int_node() -> Node:
    """Avro's int."""
    return IntegerNode(pa.int32(), first=INT_MIN, last=INT_MAX, what="an int")


def long_node() -> Node:
    """Avro's long, which has no range to lie beyond."""
    return IntegerNode(pa.int64(), first=-(1 << 63), last=(1 << 63) - 1, what="a long")
