"""Columns as a definition declares them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from conveyord.core.units import Seconds
from conveyord.engine.generating.columns import (
    LETTER_BITS,
    WORD_LETTERS,
    Booleans,
    Choices,
    Column,
    Days,
    Doubles,
    Instants,
    Longs,
    Nullable,
    RowNumber,
    Ticks,
    Words,
)

Scalar: TypeAlias = int | float | str
N = TypeVar("N", int, float)

LETTERS_MAX = 256  # of a generated word: 65,536 rows of such a column are 16 MiB
LONG_MIN, LONG_MAX = -(2**63), 2**63 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FIRST_TIME, LAST_TIME = "2026-01-01T00:00:00Z", "2026-12-31T23:59:59Z"

# Which options a type takes, beside `null_share`.
_TAKES = {
    "row_number": {"min"},
    "long": {"min", "max", "distinct", "values"},
    "double": {"min", "max", "distinct", "values", "digits"},
    "string": {"distinct", "values", "length", "prefix"},
    "boolean": {"true_share"},
    "timestamp": {"min", "max", "distinct", "every"},
    "date": {"min", "max", "distinct"},
}


class DeclaredColumn(BaseModel):
    """One column of source `generate`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["row_number", "long", "double", "string", "boolean", "timestamp", "date"]
    min: Scalar | None = None
    max: Scalar | None = None
    distinct: int | None = Field(default=None, ge=1, le=2**32)
    values: tuple[Scalar, ...] = ()
    null_share: float = Field(default=0.0, ge=0.0, le=1.0)
    true_share: float = Field(default=0.5, ge=0.0, le=1.0)
    digits: int | None = Field(default=None, ge=0, le=15)
    length: int = Field(default=WORD_LETTERS, ge=1, le=LETTERS_MAX)
    prefix: str = Field(default="", pattern="^[ -~]*$", max_length=LETTERS_MAX)
    every: Seconds | None = Field(default=None, gt=0.0)

    @model_validator(mode="after")
    def _makes_sense(self) -> DeclaredColumn:
        takes = _TAKES[self.type] | {"type", "null_share"}
        strange = sorted(self.model_fields_set - takes)
        if strange:
            raise ValueError(f"a {self.type} takes no {strange[0]!r}; it takes {', '.join(sorted(takes - {'type'}))}")
        if self.values and self.model_fields_set - {"type", "values", "null_share"}:
            raise ValueError("values stands for itself; leave out the options beside it")
        if self.every is not None and self.model_fields_set & {"max", "distinct"}:
            raise ValueError("every makes a time that only advances, from min on; leave out max and distinct")
        self.column()
        return self

    def column(self) -> Column:
        """What makes this column. Raises ValueError, with a sentence, for options that do not go together."""
        column = _MAKERS[self.type](self)
        return Nullable(column, self.null_share) if self.null_share else column


def _row_number(options: DeclaredColumn) -> Column:
    return RowNumber(_long(options, "min", options.min, 0))


def _longs(options: DeclaredColumn) -> Column:
    if options.values:
        return Choices(_values(options, int))
    low = _long(options, "min", options.min, 0)
    high = _long(options, "max", options.max, 1_000_000 if low < 1_000_000 else LONG_MAX)
    return Longs(*_in_order(options, low, high), _fitting(options, high - low + 1))


def _doubles(options: DeclaredColumn) -> Column:
    if options.values:
        return Choices(tuple(float(value) for value in _values(options, int, float)))
    low, high = _double(options, "min", options.min, 0.0), _double(options, "max", options.max, 1.0)
    return Doubles(*_in_order(options, low, high), options.digits, options.distinct)


def _words(options: DeclaredColumn) -> Column:
    if options.values:
        return Choices(_values(options, str))
    possible = 1 << (LETTER_BITS * min(options.length, WORD_LETTERS))
    return Words(options.length, options.prefix, _fitting(options, possible))


def _booleans(options: DeclaredColumn) -> Column:
    return Booleans(options.true_share)


def _instants(options: DeclaredColumn) -> Column:
    low = _micros(options, "min", options.min, FIRST_TIME)
    if options.every is not None:
        return Ticks(low, max(1, round(options.every * 1_000_000)))
    high = _micros(options, "max", options.max, LAST_TIME)
    return Instants(*_in_order(options, low, high), _fitting(options, high - low + 1))


def _days(options: DeclaredColumn) -> Column:
    low = _day(options, "min", options.min, FIRST_TIME[:10])
    high = _day(options, "max", options.max, LAST_TIME[:10])
    return Days(*_in_order(options, low, high), _fitting(options, high - low + 1))


_MAKERS: dict[str, Callable[[DeclaredColumn], Column]] = {
    "row_number": _row_number,
    "long": _longs,
    "double": _doubles,
    "string": _words,
    "boolean": _booleans,
    "timestamp": _instants,
    "date": _days,
}


def _values(options: DeclaredColumn, *kinds: type) -> tuple[Scalar, ...]:
    for value in options.values:
        if type(value) not in kinds:
            raise ValueError(f"values has {value!r}, which is not a {options.type}")
    return options.values


def _long(options: DeclaredColumn, key: str, value: Scalar | None, default: int) -> int:
    if value is None:
        return default
    if type(value) is not int or not LONG_MIN <= value <= LONG_MAX:
        raise ValueError(f"{key} of a {options.type} is a whole number of at most 64 bits, got {value!r}")
    return value


def _double(options: DeclaredColumn, key: str, value: Scalar | None, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, str) or not abs(value) <= 1e300:  # so that max - min is finite; false for NaN too
        raise ValueError(f"{key} of a {options.type} is a number between -1e300 and 1e300, got {value!r}")
    return float(value)


def _micros(options: DeclaredColumn, key: str, value: Scalar | None, default: str) -> int:
    text = default if value is None else value
    try:
        at = datetime.fromisoformat(str(text))
    except ValueError:
        raise ValueError(f"{key} of a {options.type} is a time such as {default}, got {value!r}") from None
    gone = (at if at.tzinfo else at.replace(tzinfo=UTC)) - EPOCH
    return (gone.days * 86_400 + gone.seconds) * 1_000_000 + gone.microseconds


def _day(options: DeclaredColumn, key: str, value: Scalar | None, default: str) -> int:
    text = default if value is None else value
    try:
        return date.fromisoformat(str(text)).toordinal() - EPOCH.toordinal()
    except ValueError:
        raise ValueError(f"{key} of a {options.type} is a day such as {default}, got {value!r}") from None


def _in_order(options: DeclaredColumn, low: N, high: N) -> tuple[N, N]:
    if low > high:
        raise ValueError(f"min of a {options.type} lies above its max; swap them")
    return low, high


def _fitting(options: DeclaredColumn, possible: int) -> int | None:
    if options.distinct is not None and options.distinct > possible:
        raise ValueError(f"distinct is {options.distinct}, but only {possible} different values are possible")
    return options.distinct
