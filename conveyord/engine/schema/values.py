"""Scalar values of one type brought to another, each on its own: it fits exactly or it does not."""

from __future__ import annotations

from decimal import Context, Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import DECIMAL_DIGITS_MAX, integer_range, is_bytes, is_text, join_scalar, same_zone

Converted = tuple[pa.Array, pa.Array | None]
"""Values under the new type, and which non-null ones did not fit (None: all did). Those are null."""

MICROS_PER_DAY = 86_400_000_000
TICKS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
LONG_MAX = (1 << 63) - 1
_ROOMY = Context(prec=300)  # more digits than any two of Arrow's decimals together
FIRST_MICROS = -62_135_510_400_000_000  # a day into year 1, as engine/json/timestamps.py has it

_DATE = r"\A[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])"
_CLOCK = r"[T ]([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?"
_OFFSET = r"(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])"


def convert_scalars(array: pa.Array, target: pa.DataType) -> Converted:
    """Bring `array`, of another type than `target`, to `target`. Nothing is rounded or cut."""
    kind = array.type
    if is_text(target):
        return nothing_fits(array, target) if is_bytes(kind) else (to_text(array).cast(target), None)
    joined, total = join_scalar(target, kind)
    if total and joined.equals(target) and not pt.is_decimal(target):
        return array.cast(target), None
    if pt.is_integer(target):
        return _to_integer(array, target)
    if pt.is_floating(target):
        return _to_floating(array, target)
    if pt.is_decimal(target):
        return _to_decimal(array, target)
    if pt.is_timestamp(target):
        return _to_timestamp(array, target)
    if pt.is_date(target) and is_text(kind):
        return _dates_from_text(array, target)
    if pt.is_time(target) and pt.is_time(kind):
        return _ticks_to_unit(array.cast(pa.time64("ns")), "ns", target)
    return nothing_fits(array, target)


def nothing_fits(array: pa.Array, target: pa.DataType) -> Converted:
    """The answer when no value of `array` can stand under `target`."""
    return pa.nulls(len(array), target), misfits(array, pa.scalar(False))


def misfits(array: pa.Array, fits: pa.Array) -> pa.Array | None:
    """Which non-null values do not fit, or None if all do. A null in `fits` counts as false."""
    misfit = pc.and_(array.is_valid(), pc.invert(pc.fill_null(fits, False)))
    return misfit if pc.any(misfit).as_py() else None


def _where(array: pa.Array, fits: pa.Array) -> pa.Array:
    return pc.if_else(fits, array, pa.scalar(None, array.type))


def _to_integer(array: pa.Array, target: pa.DataType) -> Converted:
    kind = array.type
    low, high = integer_range(target)
    if pt.is_integer(kind):
        kind_low, kind_high = integer_range(kind)
        fits = pc.and_(
            pc.greater_equal(array, pa.scalar(max(low, kind_low), kind)),
            pc.less_equal(array, pa.scalar(min(high, kind_high), kind)),
        )
    elif pt.is_floating(kind):
        array = array.cast(pa.float64())
        # float(high) rounds up to a power of two for 64 bits; for fewer, an integer below
        # high + 1 is at most high. So `<` against high + 1, which is exact, is right for both.
        in_range = pc.and_(pc.greater_equal(array, float(low)), pc.less(array, float(high + 1)))
        fits = pc.and_(in_range, pc.equal(pc.floor(array), array))
    else:
        return nothing_fits(array, target)
    return _where(array, fits).cast(target), misfits(array, fits)


def _to_floating(array: pa.Array, target: pa.DataType) -> Converted:
    kind = array.type
    if pt.is_floating(kind):
        narrow = array.cast(target, safe=False)
        same = pc.equal(narrow.cast(kind), array)
        fits = pc.or_(same, pc.is_nan(array))
    elif pt.is_integer(kind):
        narrow = array.cast(target, safe=False)
        back = _to_integer(narrow, kind)[0]
        fits = pc.equal(back, array)
    else:
        return nothing_fits(array, target)
    return _where(narrow, fits), misfits(array, fits)


def _to_decimal(array: pa.Array, target: pa.DataType) -> Converted:
    kind = array.type
    whole = target.precision - target.scale
    if pt.is_integer(kind):
        low, high = integer_range(kind)
        limit = 10**whole - 1
        fits = pc.and_(
            pc.greater_equal(array, pa.scalar(max(-limit, low), kind)),
            pc.less_equal(array, pa.scalar(min(limit, high), kind)),
        )
        exact = _where(array, fits).cast(pa.decimal256(40, 0))
        return exact.cast(pa.decimal256(76, target.scale)).cast(target), misfits(array, fits)
    if not pt.is_decimal(kind):
        return nothing_fits(array, target)
    if kind.precision > DECIMAL_DIGITS_MAX or min(kind.scale, target.scale) < 0:
        return _decimals_one_by_one(array, target)
    fits = array.is_valid()
    if kind.scale > target.scale:
        # In a type with room: Arrow raises for a value that would be rounded up to one more digit, such as 9.99.
        roomy = array.cast(pa.decimal256(76, kind.scale))
        fits = pc.and_(fits, pc.equal(pc.round(roomy, ndigits=target.scale), roomy))
    if kind.precision - kind.scale > whole:
        limit = pa.scalar(10**whole, pa.decimal256(76, 0)).cast(pa.decimal256(76, kind.scale))
        fits = pc.and_(fits, pc.less(pc.abs(array).cast(limit.type), limit))
    return _where(array, fits).cast(target), misfits(array, fits)


def _decimals_one_by_one(array: pa.Array, target: pa.DataType) -> Converted:
    """Decimals of more digits than Arrow can compute with, or counted in tens. No table has such, a file may."""
    step = Decimal(1).scaleb(-target.scale)

    def settled(value: Decimal | None) -> Decimal | None:
        if value is None:
            return None
        found = value.quantize(step, context=_ROOMY)
        return found if found == value and len(found.as_tuple().digits) <= target.precision else None

    result = pa.array([settled(value) for value in array.to_pylist()], target)
    return result, misfits(array, result.is_valid())


def _to_timestamp(array: pa.Array, target: pa.DataType) -> Converted:
    kind = array.type
    if pt.is_timestamp(kind) and same_zone(kind, target):
        return _ticks_to_unit(array, kind.unit, target)
    if pt.is_date(kind) and target.tz is None:
        return _ticks_to_unit(array.cast(pa.date32()).cast(pa.timestamp("s")), "s", target)
    if is_text(kind):
        return _times_from_text(array, target)
    return nothing_fits(array, target)


def _ticks_to_unit(array: pa.Array, unit: str, target: pa.DataType) -> Converted:
    """Change the unit of a timestamp or time of day; values that the new unit cannot hold are out."""
    ticks = array.cast(pa.int64())
    had, has = TICKS_PER_SECOND[unit], TICKS_PER_SECOND[target.unit]
    if has >= had:
        factor = has // had
        limit = LONG_MAX // factor
        fits = pc.and_(pc.greater_equal(ticks, -limit), pc.less_equal(ticks, limit))
        moved = pc.multiply(_where(ticks, fits), factor)
    else:
        moved = pc.divide(ticks, had // has)
        fits = pc.equal(pc.multiply(moved, had // has), ticks)
        moved = _where(moved, fits)
    width = pa.int32() if pt.is_time32(target) else pa.int64()
    return moved.cast(width).cast(target), misfits(array, fits)


def _times_from_text(array: pa.Array, target: pa.DataType) -> Converted:
    """ISO 8601 date-times to the microsecond, with an offset exactly if `target` is an instant.

    Only the instant of an offset is kept. Leap seconds, finer fractions and years before 1 stay text.
    """
    shape = _DATE + _CLOCK + ("" if target.tz is None else _OFFSET) + r"\z"
    exact = _parsed(array, shape, pa.timestamp("us", None if target.tz is None else "UTC"))
    exact = _where(exact, pc.greater_equal(exact.cast(pa.int64()), FIRST_MICROS))
    moved = _ticks_to_unit(exact, "us", target)[0]
    return moved, misfits(array, moved.is_valid())


def _dates_from_text(array: pa.Array, target: pa.DataType) -> Converted:
    moved = _parsed(array, _DATE + r"\z", target)
    return moved, misfits(array, moved.is_valid())


def _parsed(array: pa.Array, shape: str, target: pa.DataType) -> pa.Array:
    """The texts of the given shape under `target`, null for those that name no day of the calendar."""
    array = array.cast(pa.string())
    array = _where(array, pc.match_substring_regex(array, shape))
    try:
        return array.cast(target)
    except pa.ArrowInvalid:  # right in shape, but there is a 30th of February
        return _where(array, _day_exists(array)).cast(target)


def _day_exists(array: pa.Array) -> pa.Array:
    """Whether the day counted on from the first of its month is written as it was."""
    day = pc.utf8_slice_codeunits(array, 0, 10)
    first = pc.binary_join_element_wise(pc.utf8_slice_codeunits(day, 0, 8), "01", "").cast(pa.date32())
    ahead = pc.subtract(pc.utf8_slice_codeunits(day, 8, 10).cast(pa.int32()), 1)
    reached = pc.add(first.cast(pa.int32()), ahead.cast(pa.int32())).cast(pa.date32())
    return pc.equal(reached.cast(pa.string()), day)
