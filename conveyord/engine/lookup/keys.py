"""What a key of a row and one of a reference have in common, and whether they can be compared exactly."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.lookup.integers import Ints
from conveyord.engine.schema.types import bare_type, is_bytes, is_text

UNSIGNED = pa.decimal128(20, 0)  # holds every 64-bit integer, signed or not
DECIMAL_DIGITS_MAX = 38
MISFITS_MAX = 10_000  # texts that are none of the wanted type: each is found by halving, in up to half a millisecond
CAST_ROWS = 10_000  # of text, tried at a time
_LONG_LIMIT = float(2**63)
_FINER = ("s", "ms", "us", "ns")


def common_type(row: pa.DataType, reference: pa.DataType) -> pa.DataType | None:
    """The type under which keys are compared. None if there is none for which that would be exact.

    A number is compared with a number, whatever their widths; all else only with its like.
    """
    row, reference = bare_type(row), bare_type(reference)
    if pt.is_null(row) or pt.is_null(reference):
        row = reference = reference if pt.is_null(row) else row
    if pt.is_null(row):
        return pa.int64()  # nulls only, which match nothing whatever they are compared as
    if pt.is_integer(row) and pt.is_integer(reference):
        return UNSIGNED if pt.is_uint64(row) or pt.is_uint64(reference) else pa.int64()
    if pt.is_floating(row) and pt.is_floating(reference):
        return pa.float64()
    if {pt.is_integer(row), pt.is_integer(reference)} == {True, False}:
        other = reference if pt.is_integer(row) else row
        if pt.is_floating(other):
            return pa.int64()
    if pt.is_decimal(row) or pt.is_decimal(reference):
        return _decimal(row, reference)
    for is_kind, kind in ((is_text, pa.string()), (is_bytes, pa.binary()), (pt.is_boolean, pa.bool_())):
        if is_kind(row) and is_kind(reference):
            return kind
    return _time(row, reference)


def _decimal(row: pa.DataType, reference: pa.DataType) -> pa.DataType | None:
    if not all(pt.is_decimal(kind) or pt.is_integer(kind) for kind in (row, reference)):
        return None
    scale = max(kind.scale if pt.is_decimal(kind) else 0 for kind in (row, reference))
    return pa.decimal128(DECIMAL_DIGITS_MAX, scale) if 0 <= scale <= DECIMAL_DIGITS_MAX else None


def _time(row: pa.DataType, reference: pa.DataType) -> pa.DataType | None:
    if pt.is_date(row) and pt.is_date(reference):
        return pa.date32()
    if pt.is_timestamp(row) and pt.is_timestamp(reference) and (row.tz is None) == (reference.tz is None):
        return pa.timestamp(max(row.unit, reference.unit, key=_FINER.index), row.tz and "UTC")
    if pt.is_time(row) and pt.is_time(reference):
        return pa.time64("ns")
    return None


def comparable(values: pa.Array, kind: pa.DataType) -> pa.Array:
    """`values` of a batch as `kind`, which is the common type. What cannot equal any value of `kind` becomes null.

    Raises pa.ArrowInvalid for a value out of the range of `kind`.
    """
    values = _bare(values)
    if pt.is_floating(values.type) and pt.is_int64(kind):
        whole = pc.and_(pc.equal(values, pc.trunc(values)), pc.less(pc.abs(values), _LONG_LIMIT))
        return pc.if_else(whole, values, None).cast(kind)
    values = values if values.type == kind else values.cast(kind)
    if pt.is_floating(kind):
        # No number equals NaN; and minus zero is zero, though its bits are others.
        return pc.add(pc.if_else(pc.is_nan(values), None, values), 0.0)
    return values


@dataclass(frozen=True, slots=True)
class ReadKeys:
    """Texts as another type, null where they are none of it. misfits: how many were. first: the row of the first."""

    values: pa.Array
    misfits: int
    first: int


def read_keys(texts: pa.StringArray, kind: pa.DataType) -> ReadKeys:
    """What `texts` say of the type `kind`, as Arrow reads it.

    Raises: pa.ArrowInvalid if none says anything, TooManyMisfits if more than MISFITS_MAX do not.
    """
    misfits: list[int] = []
    pieces = [
        _read_piece(texts, first, min(CAST_ROWS, len(texts) - first), kind, misfits)
        for first in range(0, len(texts), CAST_ROWS)
    ]
    if misfits and len(misfits) == len(texts) - texts.null_count:
        texts.slice(misfits[0], 1).cast(kind)  # raises, and says what is wrong with the first
    values = pa.concat_arrays(pieces) if pieces else pa.nulls(0, kind)
    return ReadKeys(comparable(values, kind), len(misfits), misfits[0] if misfits else 0)


def _read_piece(texts: pa.StringArray, first: int, count: int, kind: pa.DataType, misfits: list[int]) -> pa.Array:
    try:
        return texts.slice(first, count).cast(kind)
    except pa.ArrowInvalid as error:
        if count == 1:
            if len(misfits) >= MISFITS_MAX:
                raise TooManyMisfits(str(error)) from error
            misfits.append(first)
            return pa.nulls(1, kind)
    half = count // 2
    parts = ((first, half), (first + half, count - half))
    return pa.concat_arrays([_read_piece(texts, at, size, kind, misfits) for at, size in parts])


class TooManyMisfits(Exception):
    """More than MISFITS_MAX keys are not of the wanted type."""


def _bare(values: pa.Array) -> pa.Array:
    if isinstance(values, pa.ExtensionArray):
        values = values.storage
    kind = bare_type(values.type)
    if kind == values.type:
        return values
    return values.dictionary_decode() if pt.is_dictionary(values.type) else values.cast(kind)


def is_hashed(kind: pa.DataType) -> bool:
    """Whether keys of the common type `kind` are compared as strings of bytes, and not as integers."""
    return bool(pt.is_string(kind) or pt.is_binary(kind) or pt.is_decimal(kind))


def as_bytes(values: pa.Array) -> pa.Array:
    """Keys of a type that `is_hashed`, as an array with offsets and bytes."""
    return values.view(pa.binary(16)).cast(pa.binary()) if pt.is_decimal(values.type) else values


def as_integers(values: pa.Array) -> Ints:
    """Keys of any other type as 64-bit integers: equal for equal keys, anything for nulls."""
    if pt.is_boolean(values.type):
        values = values.cast(pa.int8())
    elif pt.is_date(values.type):
        values = values.view(pa.int32())
    integers = values.view(pa.int64()) if values.type.bit_width == 64 else values.cast(pa.int64())
    _, data = integers.buffers()
    if not len(integers):
        return np.empty(0, np.int64)
    return np.frombuffer(data, np.int64, len(integers), integers.offset * 8)
