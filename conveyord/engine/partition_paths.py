"""Paths such as `country=DE/dt=2026-01-31`, made of the columns of each row."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.column_paths import missing_column, plain_values, value_at
from conveyord.engine.naming import type_word
from conveyord.engine.schema.text import to_text
from conveyord.storage.calendar import is_moment, outside

NULL = "__HIVE_DEFAULT_PARTITION__"
NAME_BYTES_MAX = 255  # of one name, in every file system of note

_UNSAFE = r"[\x00-\x1f\x7f\"#%'*/:=?\\{}\[\]^]"  # what Hive escapes
_UNSAFE_IN_TIME = _UNSAFE.replace("/", "")  # a slash in a time's format is meant
_CALL = re.compile(r"(?P<word>\w+)\((?P<column>[^()]+)\)\Z")
_EXPRESSIONS: Mapping[str, str] = {"year": "%Y", "month": "%Y-%m", "day": "%Y-%m-%d", "hour": "%Y-%m-%d-%H"}
_DIRECTIVE = re.compile(r"%(.?)")
_UNITS = ("year", "month", "day", "hour", "minute", "second")
_UNIT_OF: Mapping[str, str] = {
    **dict.fromkeys("YyC", "year"),
    **dict.fromkeys("mbB", "month"),
    **dict.fromkeys("djaAuwGVUWF", "day"),
    **dict.fromkeys("HIp", "hour"),
    "M": "minute",
    **dict.fromkeys("ST", "second"),
    "%": "year",
}
"""The directives of strftime that may be used, by what they depend on."""


@dataclass(frozen=True, slots=True)
class Part:
    """Text as it is, then a value. time: how a date or time is written, None for any value as its text."""

    literal: str
    column: str | None = None
    time: str | None = None


def parts_of_columns(expressions: Sequence[str]) -> tuple[Part, ...]:
    """`name=value` for each of `column`, `year(c)`, `month(c)`, `day(c)`, `hour(c)`, named as Iceberg names them.

    Raises ConfigError for another expression.
    """
    parts = []
    for number, expression in enumerate(expressions):
        column, word = column_of(expression)
        name = column if word is None else f"{column}_{word}"
        literal = f"{'/' if number else ''}{escaped(name)}="
        parts.append(Part(literal, column, None if word is None else _EXPRESSIONS[word]))
    return tuple(parts)


def column_of(expression: str) -> tuple[str, str | None]:
    """The column of an expression, and the word around it. Raises ConfigError if it is not known."""
    call = _CALL.match(expression)
    if call is None:
        return expression, None
    if call["word"] not in _EXPRESSIONS:
        known = ", ".join(f"{word}(column)" for word in _EXPRESSIONS)
        raise ConfigError(
            f"{expression!r} is not known; write a column, {known}, or use partition_by of the sink for the others"
        )
    return call["column"].strip(), call["word"]


def parts_of_format(text: str) -> tuple[Part, ...]:
    """The parts of a format such as `country={country}/dt={at:%Y-%m-%d}`. Raises ConfigError if it makes no path."""
    parts = []
    try:
        for literal, column, time, conversion in Formatter().parse(text):
            if conversion is not None or column == "":
                raise ConfigError(f"{text!r} holds a {{}} that is not a column's name, or one and a time's format")
            if time:
                _check_time(time)
            parts.append(Part(literal, column, time or None))
    except ValueError as error:
        raise ConfigError(f"{text!r} is no format: {error}; double a brace that is meant as one") from error
    if not any(part.column for part in parts):
        raise ConfigError(f"{text!r} names no column; write such as dt={{at:%Y-%m-%d}}")
    sample = "".join(part.literal + (part.time or "x" if part.column else "") for part in parts)
    if re.search(r"[\x00-\x1f\x7f]", sample) or any(name in ("", ".", "..") for name in sample.split("/")):
        raise ConfigError(f"{text!r} makes no path: no name between slashes may be empty, . or ..")
    return tuple(parts)


def _check_time(time: str) -> None:
    found = _DIRECTIVE.findall(time)
    unknown = [letter for letter in found if letter not in _UNIT_OF]
    if not found or unknown:
        what = f"%{unknown[0]} is not known" if unknown else "it has none"
        raise ConfigError(f"{time!r} is no format of a time: {what}; use %Y, %m, %d, %H, %M, %S, %j, %G or %V")


def paths(data: pa.RecordBatch, parts: Sequence[Part]) -> pa.StringArray:
    """The path of each row. Values that are null or empty are `NULL`, unsafe characters escaped as Hive does.

    Times that `beyond` names stand there as if they were null.
    Raises ConfigError if a column is missing, or of a type that cannot stand in a path.
    """
    texts: list[pa.Array | str] = []
    for part in parts:
        texts.append(part.literal)
        if part.column is not None:
            array = value_at(data, part.column)
            if array is None:
                raise missing_column(part.column, data.schema.names, setting="partition_by")
            texts.append(_texts(part, plain_values(array)))
    if len(texts) == 2:  # the join wants more than one value
        texts.append("")
    return pc.binary_join_element_wise(*texts, "")


def _texts(part: Part, array: pa.Array) -> pa.Array:
    kind = array.type
    if pt.is_null(kind):
        return pa.repeat(pa.scalar(NULL), len(array))
    if part.time is None:
        if pt.is_nested(kind):
            raise ConfigError(f"partition_by: {part.column!r} is of type {type_word(kind)}; name a field in it")
        return _by_value(array, to_text, _UNSAFE)
    if not (pt.is_timestamp(kind) or pt.is_date(kind)):
        raise ConfigError(
            f"partition_by: {part.column!r} is of type {type_word(kind)}, no date or time; "
            "make one of it before, for example with cast"
        )
    time = part.time
    unit = max((_UNIT_OF[letter] for letter in _DIRECTIVE.findall(time)), key=_UNITS.index)
    moments = array.cast(pa.timestamp("s")) if pt.is_date(kind) else array
    far = outside(array)
    if far is not None:
        moments = pc.if_else(far, pa.scalar(None, moments.type), moments)
    if pt.is_timestamp(kind) and kind.tz is not None:
        moments = moments.cast(pa.timestamp(kind.unit, "UTC")).cast(pa.timestamp(kind.unit))
    # Rounded first, so that few different moments are left: writing one takes far longer than rounding it.
    floored = pc.floor_temporal(moments, unit=unit).cast(pa.timestamp("s"))
    return _by_value(floored, lambda values: pc.strftime(values, format=time), _UNSAFE_IN_TIME)


def _by_value(array: pa.Array, text: Callable[[pa.Array], pa.Array], unsafe: str) -> pa.Array:
    """The escaped text of each value, made once for those that are alike."""
    encoded = array.dictionary_encode()
    if len(encoded.dictionary) == 0:
        return pa.repeat(pa.scalar(NULL), len(array))
    texts = text(encoded.dictionary)
    # A name of dots alone would lead out of the directory.
    odd = pc.match_substring_regex(texts, rf"{unsafe}|^\.*$")
    if odd.true_count:
        pairs = zip(texts.to_pylist(), odd.to_pylist(), strict=True)
        texts = pa.array([escaped(value, unsafe) if is_odd else value for value, is_odd in pairs], pa.string())
    return texts.take(encoded.indices).fill_null(NULL)


def escaped(text: str, unsafe: str = _UNSAFE) -> str:
    """`text` as Hive writes it in a path."""
    if not text:
        return NULL
    if not text.strip("."):
        return text.replace(".", "%2E")
    return re.sub(unsafe, lambda found: f"%{ord(found[0]):02X}", text)


def beyond(data: pa.RecordBatch, parts: Sequence[Part]) -> pa.StringArray | None:
    """For each row the column, and its time that no path can tell because of the year, or null; None if all can."""
    found = []
    for column in dict.fromkeys(part.column for part in parts if part.column is not None and part.time is not None):
        held = value_at(data, column)
        if held is None or not is_moment((array := plain_values(held)).type):
            continue  # `paths` refuses it
        if (far := outside(array)) is not None:
            texts = to_text(pc.if_else(far, array, pa.scalar(None, array.type)))
            found.append(pc.binary_join_element_wise(f"{column!r} is", texts, " "))
    return pc.coalesce(*found) if found else None


def too_long(made: pa.StringArray) -> pa.BooleanArray | None:
    """Where a name in a path has more than `NAME_BYTES_MAX` bytes; None if nowhere."""
    if (pc.max(pc.binary_length(made)).as_py() or 0) <= NAME_BYTES_MAX:
        return None
    bad = [any(len(name.encode()) > NAME_BYTES_MAX for name in path.split("/")) for path in made.to_pylist()]
    return pa.array(bad, pa.bool_()) if any(bad) else None
