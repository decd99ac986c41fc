"""The readers of Avro's logical types."""

from __future__ import annotations

import decimal
import uuid
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from conveyord.engine.payloads.assembling import Numbers
from conveyord.engine.payloads.avro.cursor import Cursor, Damaged, Single
from conveyord.engine.payloads.avro.nodes import BytesNode, IntegerNode, Node
from conveyord.engine.schema.types import DECIMAL_DIGITS_MAX

DURATION_BYTES, UUID_BYTES, DECIMAL_BYTES = 12, 16, 16
_TEXT_DIGITS_MAX = 1_000  # of a decimal that becomes text; beyond it, bytes stay bytes: digits take quadratic time
_LONG_MAX = (1 << 63) - 1
_DAY_MILLIS = 86_400_000
_TIMES = {
    "timestamp-millis": ("us", "UTC", 1_000),
    "timestamp-micros": ("us", "UTC", 1),
    "timestamp-nanos": ("ns", "UTC", 1),
    "local-timestamp-millis": ("us", None, 1_000),
    "local-timestamp-micros": ("us", None, 1),
    "local-timestamp-nanos": ("ns", None, 1),
}
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode("ascii"), np.uint8).reshape(256, 2)
_UUID_DIGITS = [at for at in range(36) if at not in (8, 13, 18, 23)]


def logical_node(name: str, base: str, definition: dict[str, Any]) -> Node | None:
    """The reader of the logical type `name` on the type `base`; None if Avro has none such, and `base` alone counts."""
    match name, base:
        case "decimal", "bytes" | "fixed":
            return _decimal(definition, definition.get("size") if base == "fixed" else None)
        case "date", "int":
            return IntegerNode(pa.date32(), first=-(1 << 31), last=(1 << 31) - 1, what="a date")
        case "time-millis", "int":
            return IntegerNode(pa.time64("us"), first=0, last=_DAY_MILLIS - 1, factor=1_000, what="a time of day")
        case "time-micros", "long":
            return IntegerNode(pa.time64("us"), first=0, last=_DAY_MILLIS * 1_000 - 1, what="a time of day")
        case str(), "long" if name in _TIMES:
            unit, zone, factor = _TIMES[name]
            last = _LONG_MAX // factor
            return IntegerNode(pa.timestamp(unit, zone), first=-last, last=last, factor=factor, what="a timestamp")
        case "uuid", "fixed" if definition.get("size") == UUID_BYTES:
            return UuidNode()
        case "duration", "fixed" if definition.get("size") == DURATION_BYTES:
            return DurationNode()
        case _:
            return None  # also a uuid that is a string: its text is what it becomes


def _decimal(definition: dict[str, Any], size: int | None) -> Node | None:
    precision, scale = definition.get("precision"), definition.get("scale", 0)
    if type(precision) is not int or type(scale) is not int or precision < 1 or not 0 <= scale <= precision:
        return None  # as the specification has it, such a type is its base alone
    if precision > _TEXT_DIGITS_MAX:
        return None
    if precision > DECIMAL_DIGITS_MAX:
        return LongDecimalNode(precision, scale, size)
    return DecimalNode(precision, scale, size)


class DecimalNode(Node):
    """A number in two's complement, the highest byte first, counted in the last decimal place."""

    def __init__(self, precision: int, scale: int, size: int | None) -> None:
        self.type = pa.decimal128(precision, scale)
        self._bytes = BytesNode(size)
        self.bytes_min = self._bytes.bytes_min
        self._scale = scale
        self._limit = 10**precision
        self._wrong = f"a decimal has more than {precision} digits"

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        first, end = cursor.stretches(rows, self._bytes.sizes(cursor, rows))
        sizes = end - first
        # The bytes turned round, and what is missing above filled up with the sign.
        signs = np.where((sizes > 0) & (cursor.data[first] >= 0x80), 0xFF, 0).astype(np.uint8)
        words = np.repeat(signs[:, None], DECIMAL_BYTES, axis=1)
        for place in range(min(DECIMAL_BYTES, int(sizes.max(initial=0)))):
            has = sizes > place
            words[has, place] = cursor.data[end[has] - 1 - place]
        for index in np.flatnonzero(sizes > DECIMAL_BYTES).tolist():
            found = int.from_bytes(cursor.raw[first[index] : end[index]], "big", signed=True)
            if abs(found) >= self._limit:
                cursor.fail(rows[index : index + 1], "TYPE_MISMATCH", self._wrong)
                words[index] = 0
        return self._checked(words, cursor, rows)

    def _checked(self, words: np.ndarray[Any, np.dtype[np.uint8]], cursor: Cursor, rows: Numbers) -> pa.Array:
        found = pa.Array.from_buffers(self.type, len(rows), [None, pa.py_buffer(words)])
        try:
            found.validate(full=True)
        except pa.ArrowInvalid:
            numbers = [int.from_bytes(word.tobytes(), "little", signed=True) for word in words]
            wrong = np.array([abs(number) >= self._limit for number in numbers], np.bool_)
            cursor.fail(rows[wrong], "TYPE_MISMATCH", self._wrong)
            words[wrong] = 0
            found = pa.Array.from_buffers(self.type, len(rows), [None, pa.py_buffer(words)])
        return found

    def read_one(self, single: Single) -> Any:
        found = int.from_bytes(self._bytes.read_one(single), "big", signed=True)
        if abs(found) >= self._limit:
            raise Damaged("TYPE_MISMATCH", self._wrong)
        return _scaled(found, self._scale)


class LongDecimalNode(Node):
    """A decimal of more digits than a table's decimals have: its text."""

    type = pa.string()

    def __init__(self, precision: int, scale: int, size: int | None) -> None:
        self._bytes = BytesNode(size)
        self.bytes_min = self._bytes.bytes_min
        self._scale = scale
        self._limit = 10**precision
        self._size_max = max(self._limit.bit_length() // 8 + 1, size or 0)
        self._wrong = f"a decimal has more than {precision} digits"

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        texts: list[str] = []
        for index, value in enumerate(self._bytes.read(cursor, rows).to_pylist()):
            try:
                texts.append(self._text(value))
            except Damaged as error:
                cursor.fail(rows[index : index + 1], error.code, error.reason)
                texts.append("")
        return pa.array(texts, pa.string())

    def read_one(self, single: Single) -> Any:
        return self._text(self._bytes.read_one(single))

    def _text(self, value: bytes) -> str:
        number = int.from_bytes(value, "big", signed=True) if len(value) <= self._size_max else self._limit
        if abs(number) >= self._limit:
            raise Damaged("TYPE_MISMATCH", self._wrong)
        return f"{_scaled(number, self._scale):f}"


class UuidNode(Node):
    """Sixteen bytes, as the text that everybody writes them in."""

    type = pa.string()
    bytes_min = UUID_BYTES
    _bytes = BytesNode(UUID_BYTES)

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        found = self._bytes.read(cursor, rows)
        # Damaged rows have no bytes; theirs are any.
        whole = found.cast(pa.large_binary()).fill_null(b"")
        values = np.zeros((len(rows), UUID_BYTES), np.uint8)
        good = cursor.are_good(rows)
        values[good] = np.frombuffer(b"".join(whole.filter(pa.array(good)).to_pylist()), np.uint8).reshape(
            -1, UUID_BYTES
        )
        text = np.full((len(rows), 36), ord("-"), np.uint8)
        text[:, _UUID_DIGITS] = _HEX[values].reshape(len(rows), 32)
        offsets = np.arange(0, 36 * len(rows) + 1, 36, dtype=np.int32)
        return pa.StringArray.from_buffers(len(rows), pa.py_buffer(offsets), pa.py_buffer(text))

    def read_one(self, single: Single) -> Any:
        return str(uuid.UUID(bytes=single.take(UUID_BYTES)))


class DurationNode(Node):
    """Months, days and milliseconds, which cannot be made into one another."""

    type = pa.struct([("months", pa.int64()), ("days", pa.int64()), ("millis", pa.int64())])
    bytes_min = DURATION_BYTES

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        parts = [cursor.words(rows, 4) & np.uint64(0xFFFFFFFF) for _ in range(3)]
        return pa.StructArray.from_arrays([pa.array(part.view(np.int64)) for part in parts], fields=list(self.type))

    def read_one(self, single: Single) -> Any:
        found = single.take(DURATION_BYTES)
        parts = (int.from_bytes(found[at : at + 4], "little") for at in (0, 4, 8))
        return dict(zip(("months", "days", "millis"), parts, strict=True))


_EXACT = decimal.Context(prec=decimal.MAX_PREC, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


def _scaled(number: int, scale: int) -> Decimal:
    return Decimal(number).scaleb(-scale, _EXACT)
