"""What a key of a row and one of a reference have in common, and whether they can be compared exactly."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.lookup.integers import Ints
from conveyord.engine.schema.types import bare_type, is_bytes, is_text

UNSIGNED = pa.decimal128(20, 0)  # holds every 64-bit integer, signed or not
DECIMAL_DIGITS_MAX = 38
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
