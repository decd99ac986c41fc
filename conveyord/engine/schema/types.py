"""What a column type can hold of another type, decided from the types alone."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

DECIMAL_DIGITS_MAX = 38  # Iceberg's limit, and that of decimal128
LONG_DIGITS = 19
UNSIGNED_LONG_DIGITS = 20


def is_text(kind: pa.DataType) -> bool:
    """Any of Arrow's string layouts."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Any of Arrow's binary layouts, fixed length included."""
    return bool(
        pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind)
    )


def is_list(kind: pa.DataType) -> bool:
    """Any of Arrow's list layouts; maps are not lists here."""
    return bool(
        pt.is_list(kind)
        or pt.is_large_list(kind)
        or pt.is_fixed_size_list(kind)
        or pt.is_list_view(kind)
        or pt.is_large_list_view(kind)
    )


def same_zone(one: pa.DataType, other: pa.DataType) -> bool:
    """Both timestamps are instants, or both are wall clock times."""
    return (one.tz is None) == (other.tz is None)


def bare_type(kind: pa.DataType) -> pa.DataType:
    """`kind` without the encodings that only change how values are laid out."""
    while True:
        if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
            kind = kind.value_type
        elif isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        else:
            return kind


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type under which a table keeps values of `kind`: one that Iceberg has.

    The type null means that `kind` cannot hold any scalar value yet. Types that Iceberg cannot
    express at all (durations, unions) become string.
    """
    kind = bare_type(kind)
    if pt.is_struct(kind):
        fields = [pa.field(field.name, plain_type(field.type)) for field in kind]
        fields = [field for field in fields if not pt.is_null(field.type)]
        return pa.struct(fields) if fields else pa.null()
    if is_list(kind):
        element = plain_type(kind.value_type)
        return pa.null() if pt.is_null(element) else pa.list_(element)
    if pt.is_map(kind):
        key, item = plain_type(kind.key_type), plain_type(kind.item_type)
        # Keys are information even while all items are null; text takes whatever items will come.
        return pa.null() if pt.is_null(key) else pa.map_(key, pa.string() if pt.is_null(item) else item)
    if pt.is_decimal(kind):
        return _plain_decimal(kind)
    if pt.is_timestamp(kind):
        return pa.timestamp("us", None if kind.tz is None else "UTC")
    if pt.is_fixed_size_binary(kind):
        return pa.binary()
    return next((plain for check, plain in _PLAIN_SCALARS if check(kind)), pa.string())


_PLAIN_SCALARS = (
    (pt.is_null, pa.null()),
    (pt.is_boolean, pa.bool_()),
    # Beyond 63 bits a value becomes text in a sibling: rare, where a decimal column would be for ever.
    (lambda kind: pt.is_int64(kind) or pt.is_uint64(kind) or pt.is_uint32(kind), pa.int64()),
    (pt.is_integer, pa.int32()),
    (pt.is_float64, pa.float64()),
    (pt.is_floating, pa.float32()),
    (pt.is_date, pa.date32()),
    (pt.is_time, pa.time64("us")),
    (is_bytes, pa.binary()),
)


def _plain_decimal(kind: pa.DataType) -> pa.DataType:
    scale = max(kind.scale, 0)
    precision = kind.precision + scale - kind.scale
    return pa.decimal128(precision, scale) if precision <= DECIMAL_DIGITS_MAX else pa.string()


def join_scalar(target: pa.DataType, incoming: pa.DataType) -> tuple[pa.DataType, bool]:
    """`target`, widened if Iceberg can, and whether every value of `incoming` then fits it.

    Both are bare scalar types, or of different nesting, in which case nothing but text fits.
    """
    if is_text(target):
        return target, not is_bytes(incoming)
    if pt.is_integer(target) and pt.is_integer(incoming):
        return _join_integers(target, incoming)
    if pt.is_floating(target):
        return _join_floating(target, incoming)
    if pt.is_decimal(target):
        return _join_decimal(target, incoming)
    if pt.is_timestamp(target) and pt.is_timestamp(incoming):
        return target, same_zone(target, incoming) and target.unit == incoming.unit
    if pt.is_date(target):
        return target, pt.is_date(incoming)
    if pt.is_time(target) and pt.is_time(incoming):
        return target, target.unit == "ns" or (target.unit == "us" and incoming.unit != "ns")
    if is_bytes(target) and not pt.is_fixed_size_binary(target):
        return target, is_bytes(incoming)
    return target, False


def _join_integers(target: pa.DataType, incoming: pa.DataType) -> tuple[pa.DataType, bool]:
    (low, high), (incoming_low, incoming_high) = integer_range(target), integer_range(incoming)
    if low <= incoming_low and incoming_high <= high:
        return target, True
    if target.bit_width < 64:
        return pa.int64(), not pt.is_uint64(incoming)
    return target, False


def integer_range(kind: pa.DataType) -> tuple[int, int]:
    """The lowest and highest value of an integer type."""
    if pt.is_signed_integer(kind):
        return -(1 << (kind.bit_width - 1)), (1 << (kind.bit_width - 1)) - 1
    return 0, (1 << kind.bit_width) - 1


def _join_floating(target: pa.DataType, incoming: pa.DataType) -> tuple[pa.DataType, bool]:
    if pt.is_floating(incoming):
        return (target if incoming.bit_width <= target.bit_width else incoming), True
    mantissa_bits = {16: 11, 32: 24, 64: 53}[target.bit_width]
    return target, pt.is_integer(incoming) and incoming.bit_width <= mantissa_bits


def _join_decimal(target: pa.DataType, incoming: pa.DataType) -> tuple[pa.DataType, bool]:
    whole = target.precision - target.scale
    if pt.is_integer(incoming):
        return target, whole >= (UNSIGNED_LONG_DIGITS if pt.is_uint64(incoming) else LONG_DIGITS)
    if not pt.is_decimal(incoming):
        return target, False
    needed = max(whole, incoming.precision - incoming.scale)
    if needed + target.scale <= DECIMAL_DIGITS_MAX and pt.is_decimal128(target):
        target = pa.decimal128(needed + target.scale, target.scale)
    return target, incoming.scale <= target.scale and needed <= target.precision - target.scale
