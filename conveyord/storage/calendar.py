"""Dates and timestamps as numbers, and which of them lie in years that not everybody can tell.

Arrow counts in 32 or 64 bits, which reach millions of years; its own text of them does not, nor does Python.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

FIRST_DAY = -719_528  # 0000-01-01, counted from 1970-01-01: from here on four digits tell a year
DAY_OF_YEAR_1 = -719_162  # 0001-01-01: years of Python, and of what partitions Iceberg tables, begin here
END_DAY = 2_932_897  # 10000-01-01
CYCLE_YEARS, CYCLE_DAYS = 400, 146_097  # after which the calendar repeats
YEARS = "the years 0001 to 9999"

_PER_DAY = {"s": 86_400, "ms": 86_400 * 10**3, "us": 86_400 * 10**6, "ns": 86_400 * 10**9}
_INT64_END = 2**63


def is_moment(kind: pa.DataType) -> bool:
    """Whether `kind` is a date or a timestamp."""
    return bool(pt.is_date(kind) or pt.is_timestamp(kind))


def units_per_day(kind: pa.DataType) -> int:
    """What a day counts in `kind`, a date or a timestamp."""
    if pt.is_date32(kind):
        return 1
    return _PER_DAY["ms" if pt.is_date64(kind) else kind.unit]


def numbers_of(array: pa.Array) -> pa.Int64Array:
    """Dates or timestamps as their units since 1970."""
    return array.cast(pa.int32()).cast(pa.int64()) if pt.is_date32(array.type) else array.cast(pa.int64())


def moments_of(numbers: list[int], kind: pa.DataType) -> pa.Array:
    """`numbers`, units since 1970, as the dates or timestamps of type `kind` that they count."""
    return pa.array(numbers, pa.int32() if pt.is_date32(kind) else pa.int64()).cast(kind)


def outside(array: pa.Array, *, first_day: int = DAY_OF_YEAR_1, end_day: int = END_DAY) -> pa.BooleanArray | None:
    """Which dates or timestamps are before `first_day` or not before `end_day`, none of them null.

    None if there are none, as always with nanoseconds, which reach from 1677 to 2262.
    """
    per_day = units_per_day(array.type)
    first, end = first_day * per_day, end_day * per_day
    if first < -_INT64_END or end >= _INT64_END:
        return None
    numbers = numbers_of(array)
    far = pc.fill_null(pc.or_(pc.less(numbers, first), pc.greater_equal(numbers, end)), fill_value=False)
    return far if far.true_count else None


def year_of(number: int, kind: pa.DataType) -> int:
    """The year, of the Gregorian calendar and 0 before 1, of so many units of `kind` since 1970."""
    cycles, rest = divmod(number, CYCLE_DAYS * units_per_day(kind))
    return CYCLE_YEARS * cycles + int(moments_of([rest], kind).cast(pa.string())[0].as_py()[:4])


def in_numbers(kind: pa.DataType) -> pa.DataType:
    """`kind` with a whole number for each date and timestamp in it, to which and from which Arrow casts."""
    if is_moment(kind):
        return pa.int32() if pt.is_date32(kind) else pa.int64()
    if pt.is_struct(kind):
        return pa.struct([field.with_type(in_numbers(field.type)) for field in kind])
    if pt.is_map(kind):
        return pa.map_(in_numbers(kind.key_type), kind.item_field.with_type(in_numbers(kind.item_type)))
    if pt.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(in_numbers(kind.value_type)), kind.list_size)
    if pt.is_list(kind):
        return pa.list_(kind.value_field.with_type(in_numbers(kind.value_type)))
    if pt.is_large_list(kind):
        return pa.large_list(kind.value_field.with_type(in_numbers(kind.value_type)))
    return kind
