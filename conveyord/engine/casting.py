"""Values brought to a type because somebody asked for it: each fits exactly, or it does not.

Unlike a schema that grows (`engine/schema`), a cast reads numbers and times out of text, takes 1 for true and a
double for the decimal it is printed as. What loses anything needs `truncate`; what may mean several things, such as a
number as a point in time, is refused for the whole column.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.column_paths import plain_values
from conveyord.engine.csv.columns import parse
from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import integer_range, is_bytes, is_text
from conveyord.engine.schema.values import Converted, convert_scalars, misfits
from conveyord.engine.sql import settled_type
from conveyord.engine.time_formats import TimeFormat

MICROS, INSTANT = pa.timestamp("us"), pa.timestamp("us", "UTC")

_NUMBER = r"\A[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?\z"
_SHORT_INTEGER = r"\A-?[0-9]{1,18}\z"  # always in range, and four times faster to read than what else may be one
_EXPONENT = r"[eE]"
_CLOCK = r"\A[0-9]{2}:"
_NUMBERS = frozenset({"integer", "floating", "decimal", "text"})
_TARGETS = {
    "text": _NUMBERS | {"boolean", "date", "time", "timestamp", "binary"},
    "boolean": frozenset({"boolean", "integer", "text"}),
    "integer": _NUMBERS | {"boolean"},
    "floating": _NUMBERS,
    "decimal": _NUMBERS,
    "date": frozenset({"date", "timestamp", "text"}),
    "timestamp": frozenset({"date", "timestamp", "text"}),
    "time": frozenset({"time", "text"}),
    "binary": frozenset({"binary", "text"}),
    "nested": frozenset({"text"}),
}

_WORDS = {
    "boolean": ("boolean",),
    "integer": ("int", "long"),
    "floating": ("float", "double"),
    "decimal": ("decimal",),
    "date": ("date",),
    "time": ("time",),
    "timestamp": ("timestamp", "timestamptz"),
    "text": ("string",),
    "binary": ("binary",),
}
"""What definitions call the types of a family, see `type_words`."""


@dataclass(frozen=True, slots=True)
class Casting:
    """How values are brought to the type `target`, one of `type_words`.

    formats: how text says dates and times, tried in turn; ISO 8601 if there are none. timezone: whose clock
    timestamps without a zone show. truncate: fractions, times of day and digits that do not fit may be cut.
    """

    target: pa.DataType
    formats: tuple[TimeFormat, ...] = ()
    timezone: str | None = None
    truncate: bool = False

    def refusal(self, kind: pa.DataType) -> str | None:
        """What to do instead if no value of type `kind` can be cast; None if values can."""
        source, wanted = _family(kind), _family(self.target)
        if source is None:
            return None
        if wanted not in _TARGETS[source]:
            if source == "integer" and wanted in ("timestamp", "date"):
                return "say what the number counts, in map: to_timestamp_millis(column)"
            families = _TARGETS[source] - {source}
            return (
                f"it can become {', '.join(word for family in _WORDS if family in families for word in _WORDS[family])}"
            )
        times = ("date", "timestamp")
        if source in times and wanted in times and self.timezone is None and _zoned(kind) != _zoned(self.target):
            return "set timezone to that whose clock the timestamps without a zone show"
        return None

    def values(self, array: pa.Array) -> Converted:
        """`array`, of a type that is not refused, as `target`; null where a value does not fit, and which those are."""
        array = plain_values(array)
        array = array.cast(settled_type(array.type))
        kind, target = array.type, self.target
        if pt.is_null(kind):
            return pa.nulls(len(array), target), None
        if is_text(target):
            return _utf8(array) if is_bytes(kind) else (to_text(array), None)
        if is_text(kind):
            made = self._from_text(array)
        elif pt.is_date(kind) or pt.is_timestamp(kind):
            made = self._from_times(array)
        elif pt.is_time(kind) or is_bytes(kind):
            made = array.cast(target) if is_bytes(kind) else convert_scalars(self._in_micros(array), target)[0]
        else:
            made = self._from_number(array)
        return made, misfits(array, made.is_valid())

    def _from_text(self, texts: pa.StringArray) -> pa.Array:
        target = self.target
        if is_bytes(target):
            return texts.cast(target)
        if pt.is_timestamp(target):
            return self._stamped(*self._stamps(texts))
        if pt.is_date(target):
            days = pa.nulls(len(texts), target) if self.formats else parse(texts, target, declared=True).values
            return days if days.null_count == texts.null_count else pc.coalesce(days, self._days(*self._stamps(texts)))
        if pt.is_time(target):
            clock = pc.if_else(pc.match_substring_regex(texts, _CLOCK), texts, pa.scalar(None, pa.string()))
            stamps = pc.binary_join_element_wise("1970-01-01T", clock, "")
            return convert_scalars(stamps, MICROS)[0].cast(target)
        if pt.is_decimal(target):
            return _decimals(texts, target, truncate=self.truncate)
        if pt.is_floating(target):
            return _nearest(parse(texts, pa.float64(), declared=True).values, target)
        if pt.is_integer(target):
            if pc.all(pc.match_substring_regex(texts, _SHORT_INTEGER)).as_py() is not False:
                return convert_scalars(texts.cast(pa.int64()), target)[0]
            whole = _cut_text(texts, 0, truncate=True) if self.truncate else texts
            return convert_scalars(parse(whole, pa.int64(), declared=True).values, target)[0]
        return parse(texts, target, declared=True).values

    def _from_number(self, array: pa.Array) -> pa.Array:
        """Booleans and numbers, as numbers or as booleans."""
        kind, target = array.type, self.target
        if pt.is_boolean(kind):
            return array.cast(target)
        if pt.is_boolean(target):
            either = pc.is_in(array, pa.array([0, 1], kind))
            return _where(array, either).cast(target)
        if pt.is_floating(target):
            return self._to_floating(array)
        if pt.is_floating(kind) and pt.is_decimal(target):
            return _decimals(array.cast(pa.string()), target, truncate=self.truncate)
        array = _cut(array, target, truncate=self.truncate)
        if pt.is_decimal(array.type) and pt.is_integer(target):
            return _integers(array, target)
        return convert_scalars(array, target)[0]

    def _to_floating(self, array: pa.Array) -> pa.Array:
        if pt.is_decimal(array.type):
            near = _nearest(array.cast(pa.string()).cast(pa.float64()), self.target)
            same = pc.equal(_decimals(near.cast(pa.string()), array.type, truncate=False), array)
            return near if self.truncate else _where(near, pc.fill_null(same, False))
        return _nearest(array, self.target) if self.truncate else convert_scalars(array, self.target)[0]

    def _from_times(self, array: pa.Array) -> pa.Array:
        array = self._in_micros(array)
        if pt.is_date(array.type):
            array = array.cast(pa.date32())
            if pt.is_date(self.target):
                return array
        zoned = _zoned(array.type)
        micros = convert_scalars(array, INSTANT if zoned else MICROS)[0]
        nothing = pa.nulls(len(array), MICROS if zoned else INSTANT)
        stamps = (nothing, micros) if zoned else (micros, nothing)
        return self._days(*stamps) if pt.is_date(self.target) else self._stamped(*stamps)

    def _in_micros(self, array: pa.Array) -> pa.Array:
        """`array` without what is finer than microseconds, if that may go."""
        if not self.truncate or pt.is_date(array.type) or array.type.unit != "ns":
            return array
        if pt.is_time(array.type):
            return array.cast(pa.time64("us"), safe=False)
        return pc.floor_temporal(array, unit="microsecond")

    def _stamps(self, texts: pa.StringArray) -> tuple[pa.Array, pa.Array]:
        """What `texts` say without a zone, and as instants: at most one of the two for each."""
        if not self.formats:
            kinds = (INSTANT, MICROS) if _zoned(self.target) else (MICROS, INSTANT)
            likely, other = convert_scalars(texts, kinds[0])[0], pa.nulls(len(texts), kinds[1])
            if likely.null_count > texts.null_count:
                other = convert_scalars(texts, kinds[1])[0]
            return (other, likely) if _zoned(self.target) else (likely, other)
        found = {MICROS: pa.nulls(len(texts), MICROS), INSTANT: pa.nulls(len(texts), INSTANT)}
        for each in self.formats:
            kind = INSTANT if each.zoned else MICROS
            open_ = pc.and_(found[MICROS].is_null(), found[INSTANT].is_null())
            found[kind] = pc.if_else(open_, convert_scalars(each.iso(texts), kind)[0], found[kind])
        return found[MICROS], found[INSTANT]

    def _stamped(self, naive: pa.Array, instants: pa.Array) -> pa.Array:
        """Both as the timestamps that are asked for, as far as the time zone is known."""
        if self.timezone is None:
            return instants if _zoned(self.target) else naive
        if _zoned(self.target):
            return pc.coalesce(instants, _instants(naive, self.timezone))
        return pc.coalesce(naive, _clocks(instants, self.timezone))

    def _days(self, naive: pa.Array, instants: pa.Array) -> pa.Array:
        """The days of both on the clock, where it is midnight or the time of day may go."""
        if self.timezone is not None:
            naive = pc.coalesce(naive, _clocks(instants, self.timezone))
        midnight = pc.floor_temporal(naive, unit="day")
        return (midnight if self.truncate else _where(midnight, pc.equal(midnight, naive))).cast(pa.date32())


def _family(kind: pa.DataType) -> str | None:
    """What a type is, as far as casts are alike; None for the type of nothing but nulls."""
    if pt.is_null(kind):
        return None
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return _family(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return _family(kind.storage_type)
    checks = {
        "text": is_text,
        "boolean": pt.is_boolean,
        "integer": pt.is_integer,
        "floating": pt.is_floating,
        "decimal": pt.is_decimal,
        "date": pt.is_date,
        "timestamp": pt.is_timestamp,
        "time": pt.is_time,
        "binary": is_bytes,
    }
    return next((family for family, check in checks.items() if check(kind)), "nested")


def _zoned(kind: pa.DataType) -> bool:
    return bool(pt.is_timestamp(kind) and kind.tz is not None)


def _where(array: pa.Array, fits: pa.Array) -> pa.Array:
    return pc.if_else(fits, array, pa.scalar(None, array.type))


def _nearest(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Numbers as the nearest of a floating type; null where that would be infinite."""
    near = array.cast(target, safe=False)
    if not pt.is_floating(array.type):
        return near
    return _where(near, pc.or_(pc.is_finite(near), pc.invert(pc.is_finite(array))))


def _decimals(texts: pa.StringArray, target: pa.DataType, *, truncate: bool) -> pa.Array:
    """The numbers that `texts` write; null for what is none, is too large, or would change.

    Digits are cut from the text, and counted there: Arrow 26 divides some decimals of more than 38 digits wrongly,
    and reads 0 out of some text that is too long.
    """
    before, behind = target.precision - target.scale, target.scale
    if before and behind:
        plain = rf"\A-?[0-9]{{1,{before}}}(?:\.[0-9]{{1,{behind}}})?\z"
        if pc.all(pc.match_substring_regex(texts, plain)).as_py() is not False:
            return texts.cast(target)  # nothing to cut or to count, which takes thrice as long
    texts = _cut_text(texts, behind, truncate=truncate)
    room = rf"\A[+-]?0*[0-9]{{0,{before}}}(?:\.|\z)"
    return _where(texts, pc.match_substring_regex(texts, room)).cast(target)


def _cut_text(texts: pa.StringArray, digits: int, *, truncate: bool) -> pa.StringArray:
    """Numbers in text with at most so many digits behind the point; null for what is none, or would change.

    Numbers with an exponent are written out one by one.
    """
    texts = _where(texts, pc.match_substring_regex(texts, _NUMBER))
    if pc.any(pc.match_substring_regex(texts, _EXPONENT)).as_py():
        plain = (
            format(Decimal(text), "f") if text is not None and "e" in text.lower() else text
            for text in texts.to_pylist()
        )
        texts = pa.array(plain, pa.string(), size=len(texts))
    texts = pc.replace_substring_regex(texts, r"\A\+?(-?)\.", r"\10.")
    if not truncate:
        texts = _where(texts, pc.invert(pc.match_substring_regex(texts, rf"\.[0-9]{{{digits}}}[0-9]*[1-9]")))
    if digits == 0:
        return pc.replace_substring_regex(texts, r"\.[0-9]*\z", "")
    return pc.replace_substring_regex(texts, rf"(\.[0-9]{{{digits}}})[0-9]+\z", r"\1")


def _each_cast(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Cast, with null for what Arrow refuses, found by halving."""
    try:
        return array.cast(target)
    except pa.ArrowInvalid:
        if len(array) == 1:
            return pa.nulls(1, target)
        half = len(array) // 2
        return pa.concat_arrays([_each_cast(array.slice(0, half), target), _each_cast(array.slice(half), target)])


def _utf8(array: pa.Array) -> Converted:
    made = _each_cast(array.cast(pa.binary()), pa.string())
    return made, misfits(array, made.is_valid())


def _cut(array: pa.Array, target: pa.DataType, *, truncate: bool) -> pa.Array:
    """Numbers without the digits that `target` has no place for; null instead where that would change one."""
    digits = target.scale if pt.is_decimal(target) else 0
    if pt.is_floating(array.type):
        return pc.trunc(array) if truncate else array
    if not pt.is_decimal(array.type) or array.type.scale <= digits:
        return array
    cut = array.cast(_with_scale(array.type, digits), safe=False)
    return cut if truncate else _where(cut, pc.equal(cut.cast(array.type), array))


def _integers(array: pa.Array, target: pa.DataType) -> pa.Array:
    """Decimals without a fraction as integers; null beyond the range."""
    kind = _with_scale(array.type, 0)
    whole = array.cast(kind)
    low, high = (pa.scalar(limit, kind) for limit in integer_range(target))
    return _where(whole, pc.and_(pc.greater_equal(whole, low), pc.less_equal(whole, high))).cast(target)


def _with_scale(kind: pa.DataType, scale: int) -> pa.DataType:
    return pa.decimal128(38, scale) if kind.precision <= 38 else pa.decimal256(76, scale)


def _instants(naive: pa.Array, timezone: str) -> pa.Array:
    """What a clock in `timezone` showed, as instants; null for hours that it left out, or showed twice."""
    first = pc.assume_timezone(naive, timezone, ambiguous="earliest", nonexistent="earliest")
    last = pc.assume_timezone(naive, timezone, ambiguous="latest", nonexistent="latest")
    return _where(first, pc.equal(first, last)).cast(INSTANT)


def _clocks(instants: pa.Array, timezone: str) -> pa.Array:
    """What a clock in `timezone` shows."""
    return pc.local_timestamp(instants.cast(pa.timestamp("us", timezone)))
