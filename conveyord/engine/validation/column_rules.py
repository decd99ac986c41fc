"""Rules on the values of a column, computed for whole columns at a time.

A rule is broken by rows, never by a column: types come from the data, so a column of another type than the rule is
for means that its values are at fault. A column of text may hold numbers and times because one value among them was
none when its type was settled, so what reads as one is one.
"""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal, localcontext
from typing import Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from conveyord.engine.casting import INSTANT, MICROS, Casting
from conveyord.engine.column_paths import missing_column, plain_values, siblings_at, value_at
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.schema.types import integer_range, is_bytes, is_list, is_text

DIGITS = 400  # more than a double or a decimal of Arrow's can have
ONE_OF_MAX = 10_000  # values: more belong into a table, and a lookup

TypeName = Literal["string", "long", "double", "boolean", "timestamp", "date", "binary", "struct", "list"]
Bound = StrictInt | StrictFloat | StrictStr
Member = StrictBool | StrictInt | StrictFloat | StrictStr


class ColumnRules(OperatorConfig):
    """What the values of one column must be. A null breaks no rule but `nullable: false`."""

    type: TypeName | None = Field(
        default=None,
        description="`string`, `long`, `double` (any number), `boolean`, `timestamp`, `date`, `binary`, `struct` or "
        "`list`. A number without a fraction is a long, and so is a text that reads as one.",
    )
    nullable: bool = Field(default=True, description="Whether a null is allowed.")
    min: Bound | None = Field(default=None, description="The least number, or, as ISO 8601 text, date or time.")
    max: Bound | None = Field(default=None, description="The greatest one.")
    pattern: str | None = Field(default=None, description="A regular expression (RE2) found somewhere in a text.")
    one_of: list[Member] | None = Field(
        default=None, min_length=1, max_length=ONE_OF_MAX, description="The only values allowed."
    )
    length_min: int | None = Field(default=None, ge=0, description="Characters, bytes or elements, at least.")
    length_max: int | None = Field(default=None, ge=0, description="Characters, bytes or elements, at most.")

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        for name, bound in (("min", self.min), ("max", self.max)):
            if isinstance(bound, str) and _moment(bound) is None:
                raise ValueError(
                    f"{name} must be a number, a date or a time such as 2026-01-31T12:00:00Z; got {bound!r}"
                )
            if isinstance(bound, float) and not math.isfinite(bound):
                raise ValueError(f"{name} must be a finite number")
        problem = None if self.pattern is None else pattern_problem(self.pattern)
        if problem is not None:
            raise ValueError(f"pattern {problem}")
        return self


def pattern_problem(pattern: str) -> str | None:
    """Why `pattern` is no regular expression of RE2, which takes time in proportion to the text, whatever it is."""
    try:
        pc.match_substring_regex(pa.array([""]), pattern)  # of no value it would not be read
    except pa.ArrowInvalid as error:
        return f"{pattern!r} is no regular expression: {str(error).removeprefix('Invalid regular expression: ')}"
    return None


@dataclass(frozen=True, slots=True)
class Breach:
    """The rows (true, no nulls) that break a rule, and what is wrong with each of them."""

    rows: pa.BooleanArray
    message: str


def breaches(data: pa.RecordBatch, columns: Mapping[str, ColumnRules], *, is_missing_allowed: bool) -> list[Breach]:
    """The rules that some row of `data` breaks, by the names of columns.

    Raises ConfigError if a column is missing, unless that is allowed: then it counts as null.
    """
    found = []
    for path, rules in sorted(columns.items()):
        array = value_at(data, path)
        if array is None and not is_missing_allowed:
            raise missing_column(path, data.schema.names, setting="validate.columns")
        array = pa.nulls(data.num_rows) if array is None else plain_values(array)
        found += [breach for breach in _breaches(path, array, rules, siblings_at(data, path)) if breach.rows.true_count]
    return found


def _breaches(path: str, array: pa.Array, rules: ColumnRules, siblings: Sequence[pa.Array]) -> Iterator[Breach]:
    elsewhere = pa.repeat(pa.scalar(False), len(array))
    for sibling in siblings:
        elsewhere = pc.or_(elsewhere, sibling.is_valid())
    if not rules.nullable:
        yield Breach(pc.and_not(array.is_null(), elsewhere), f"{path} is null")
    if rules.model_fields_set <= {"nullable"}:
        return
    yield Breach(elsewhere, f"{path} is of another type than its column")
    values = array
    if rules.type is not None:
        values, misfit = _typed(array, rules.type)
        yield Breach(misfit, f"{path} is not of type {rules.type}")
        array = pc.if_else(misfit, pa.scalar(None, array.type), array)
    if pt.is_null(array.type) or array.null_count == len(array):
        return
    if rules.min is not None or rules.max is not None:
        yield from _bounded(path, values, rules.min, rules.max)
    if rules.pattern is not None:
        yield from _patterned(path, array, rules.pattern)
    if rules.one_of is not None:
        yield from _listed(path, values, rules.one_of)
    if rules.length_min is not None or rules.length_max is not None:
        yield from _measured(path, array, rules.length_min, rules.length_max)


def _all(array: pa.Array) -> pa.BooleanArray:
    """Every value that there is."""
    return array.is_valid()


def _not(holds: pa.BooleanArray) -> pa.BooleanArray:
    """Where a comparison is false; a null is neither true nor false."""
    return pc.invert(holds).fill_null(False)


def _typed(array: pa.Array, name: TypeName) -> tuple[pa.Array, pa.BooleanArray]:
    """The values that are of the type `name`, null where they are not, and where that is so."""
    kind = array.type
    if pt.is_null(kind) or _TYPES[name](kind):
        return array, pa.repeat(pa.scalar(False), len(array))
    if is_text(kind) and name in _READABLE:
        values = _read(array, name)
    elif name == "long" and _is_number(kind):
        whole = pc.equal(pc.trunc(array), array)
        whole = pc.and_(whole, pc.is_finite(array)) if pt.is_floating(kind) else whole
        values = pc.if_else(whole, array, pa.scalar(None, kind))
    else:
        values = pa.nulls(len(array), kind)
    return values, pc.and_(array.is_valid(), values.is_null())


def _read(texts: pa.Array, name: TypeName) -> pa.Array:
    """What `texts` say, null where they say nothing of the type `name`. Times without a zone are in UTC."""
    if name == "timestamp":
        instants, _ = Casting(INSTANT).values(texts)
        return pc.coalesce(instants.cast(MICROS), Casting(MICROS).values(texts)[0])
    return Casting(_READABLE[name]).values(texts)[0]


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind))


_TYPES: Mapping[TypeName, Callable[[pa.DataType], bool]] = {
    "string": is_text,
    "long": pt.is_integer,
    "double": _is_number,
    "boolean": pt.is_boolean,
    "timestamp": pt.is_timestamp,
    "date": pt.is_date,
    "binary": is_bytes,
    "struct": pt.is_struct,
    "list": is_list,
}

_READABLE: Mapping[TypeName, pa.DataType] = {
    "long": pa.int64(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
    "timestamp": MICROS,
    "date": pa.date32(),
}
"""What text may say."""


# ---------------------------------------------------------------------------- bounds


def _bounded(path: str, array: pa.Array, low: Bound | None, high: Bound | None) -> Iterator[Breach]:
    for bound, name, word in ((low, "min", "below"), (high, "max", "above")):
        if bound is None:
            continue
        is_moment = isinstance(bound, str)
        values = array
        if is_text(array.type):
            values = _read(array, "timestamp" if is_moment else "double")
        elif not (pt.is_temporal(array.type) if is_moment else _is_number(array.type)):
            values = pa.nulls(len(array))
        unread = pc.and_(array.is_valid(), values.is_null())
        yield Breach(unread, f"{path} is no {'date or time' if is_moment else 'number'}")
        if pt.is_null(values.type):
            return
        outside = _beyond(values, bound, is_low=name == "min")
        yield Breach(outside, f"{path} is {word} {name} ({bound})")


def _beyond(array: pa.Array, bound: Bound, *, is_low: bool) -> pa.BooleanArray:
    """The values below (`is_low`) or above `bound`. Exact: numbers are not brought to a double first."""
    kind = array.type
    holds = pc.greater_equal if is_low else pc.less_equal
    if isinstance(bound, str):
        return _not(holds(array, _moment_scalar(bound, kind)))
    if pt.is_floating(kind):
        return _not(holds(array.cast(pa.float64()), pa.scalar(_nearest_double(bound, is_low=is_low))))
    scale = kind.scale if pt.is_decimal(kind) else 0
    with localcontext(Context(prec=DIGITS)):
        nearest = Decimal(str(bound)).scaleb(scale).to_integral_value(ROUND_CEILING if is_low else ROUND_FLOOR)
        lowest, highest = _units_range(kind)
        if not lowest <= nearest <= highest:  # then all values of this type are on one side
            return _all(array) if (nearest > highest) == is_low else pa.repeat(pa.scalar(False), len(array))
        value = nearest.scaleb(-scale)
    return _not(holds(array, pa.scalar(value if pt.is_decimal(kind) else int(value), kind)))


def _nearest_double(bound: float, *, is_low: bool) -> float:
    """The least double that is not below `bound` (`is_low`), or the greatest not above: the same doubles meet it."""
    try:
        near = float(bound)
    except OverflowError:  # an integer beyond every double
        near = math.inf if bound > 0 else -math.inf
    if is_low:
        return near if near >= bound else math.nextafter(near, math.inf)
    return near if near <= bound else math.nextafter(near, -math.inf)


def _units_range(kind: pa.DataType) -> tuple[int, int]:
    if pt.is_decimal(kind):
        return -(10**kind.precision) + 1, 10**kind.precision - 1
    return integer_range(kind)


def _moment(text: str) -> dt.datetime | None:
    """An ISO 8601 date or time; None if it is none."""
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        return None


def _moment_scalar(text: str, kind: pa.DataType) -> pa.Scalar:
    """`text` as a value of a type of dates or times. Where one side has no time zone it is in UTC."""
    moment = _moment(text)
    assert moment is not None  # checked with the configuration
    moment = moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)
    if pt.is_timestamp(kind) and kind.tz is not None:
        return pa.scalar(moment, pa.timestamp("us", "UTC"))
    if pt.is_time(kind):
        return pa.scalar(moment.time(), pa.time64("us"))
    return pa.scalar(moment.replace(tzinfo=None), pa.timestamp("us"))


# ---------------------------------------------------------------------------- others


def _patterned(path: str, array: pa.Array, pattern: str) -> Iterator[Breach]:
    if not is_text(array.type):
        yield Breach(_all(array), f"{path} is no text")
        return
    yield Breach(_not(pc.match_substring_regex(array, pattern)), f"{path} does not match pattern ({pattern})")


def _listed(path: str, array: pa.Array, members: Sequence[Member]) -> Iterator[Breach]:
    values = [value for member in members if (value := _as_type(member, array.type)) is not None]
    outside = _all(array)
    if values:  # else Arrow would have to compare lists, structs or maps, which it cannot
        inside = pc.is_in(array, value_set=pa.array(values, array.type), skip_nulls=True)
        # A null is broken by nothing, and is in no set.
        outside = pc.and_(outside, pc.invert(inside))
    yield Breach(outside, f"{path} is not in one_of")


def _as_type(member: Member, kind: pa.DataType) -> Any:
    """`member` as a value of `kind`; None if no value of `kind` equals it."""
    if is_text(kind):
        return member if isinstance(member, str) else json.dumps(member)
    if isinstance(member, bool):
        return member if pt.is_boolean(kind) else None
    if isinstance(member, str):
        moment = _moment(member) if pt.is_temporal(kind) else None
        return None if moment is None else _moment_scalar(member, kind).cast(kind).as_py()
    if pt.is_floating(kind):
        near = _nearest_double(member, is_low=True)
        return None if isinstance(member, int) and near != member else near
    exact = Decimal(str(member))
    if pt.is_decimal(kind):
        with localcontext(Context(prec=DIGITS)):
            units = exact.scaleb(kind.scale)
            return exact if units == units.to_integral_value() and abs(units) < 10**kind.precision else None
    if pt.is_integer(kind) and exact == exact.to_integral_value():
        low, high = integer_range(kind)
        return int(exact) if low <= exact <= high else None
    return None


def _measured(path: str, array: pa.Array, least: int | None, most: int | None) -> Iterator[Breach]:
    if is_text(array.type):
        lengths = pc.utf8_length(array)
    elif is_bytes(array.type):
        lengths = pc.binary_length(array)
    elif is_list(array.type):
        lengths = pc.if_else(array.is_valid(), pc.list_value_length(array), None)
    else:
        yield Breach(_all(array), f"{path} has no length")
        return
    if least is not None:
        yield Breach(_not(pc.greater_equal(lengths, least)), f"{path} is shorter than length_min ({least})")
    if most is not None:
        yield Breach(_not(pc.less_equal(lengths, most)), f"{path} is longer than length_max ({most})")
