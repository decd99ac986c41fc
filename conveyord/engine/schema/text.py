"""Values as JSON text: what a string column, or a sibling `__json`, keeps of other types."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.types import is_bytes, is_list, is_text
from conveyord.storage.calendar import (
    CYCLE_DAYS,
    CYCLE_YEARS,
    END_DAY,
    FIRST_DAY,
    moments_of,
    numbers_of,
    outside,
    units_per_day,
)


def to_text(array: pa.Array) -> pa.Array:
    """One string per value, null for null; `array` is not dictionary encoded.

    Numbers and booleans as in JSON (NaN and infinities as JavaScript writes them), timestamps as
    ISO 8601 with as many digits as they need, instants in UTC with a Z, years beyond 0000 to 9999 with
    their sign (`+12345-01-01`, `-0044-03-15`), decimals in full, bytes as base64, structs and lists as
    compact JSON, maps as lists of objects with key and value.
    """
    kind = array.type
    if is_text(kind):
        return array.cast(pa.string())
    if pt.is_null(kind):
        return pa.nulls(len(array), pa.string())
    if pt.is_floating(kind):
        return _floats(array)
    if pt.is_timestamp(kind) or pt.is_time(kind):
        return _times(array)
    if is_bytes(kind):
        return _each(array, lambda value: base64.b64encode(value).decode("ascii"))
    if pt.is_nested(kind):
        return _each(_with_json_leaves(array), _compact)
    if pt.is_date(kind):
        return _moments(array)
    if pt.is_integer(kind) or pt.is_boolean(kind) or pt.is_decimal(kind):
        return array.cast(pa.string())
    if pt.is_duration(kind):
        return array.cast(pa.int64()).cast(pa.string())
    return _each(array, str)


def _each(array: pa.Array, text: Callable[[Any], str]) -> pa.Array:
    values = (None if value is None else text(value) for value in array.to_pylist())
    return pa.array(values, pa.string(), size=len(array))


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _floats(array: pa.Array) -> pa.Array:
    text = array.cast(pa.float64()).cast(pa.string())
    if not pc.any(pc.invert(pc.is_finite(array))).as_py():
        return text
    text = pc.if_else(pc.is_nan(array), "NaN", text)
    return pc.replace_substring(text, "inf", "Infinity")


def _times(array: pa.Array) -> pa.Array:
    if pt.is_timestamp(array.type) and array.type.tz is not None:
        array = array.cast(pa.timestamp(array.type.unit, "UTC"))
    text = array.cast(pa.string()) if pt.is_time(array.type) else _moments(array)
    text = pc.replace_substring(text, " ", "T", max_replacements=1)
    text = pc.replace_substring_regex(text, r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
    return pc.replace_substring_regex(text, r"\.(Z?)$", r"\1")


def _moments(array: pa.Array) -> pa.Array:
    """Dates and timestamps, these in UTC if they have a zone, as Arrow writes them, but years of any length."""
    far = outside(array, first_day=FIRST_DAY, end_day=END_DAY)
    if far is None:
        return array.cast(pa.string())
    # Arrow writes `<value out of range: ...>` for most of these, or fails. The calendar repeats every 400 years.
    kind = array.type
    parts = [divmod(number, CYCLE_DAYS * units_per_day(kind)) for number in numbers_of(array).filter(far).to_pylist()]
    near = moments_of([rest for _, rest in parts], kind).cast(pa.string()).to_pylist()
    texts = [
        f"{int(text[:4]) + CYCLE_YEARS * cycles:+05d}{text[4:]}" for text, (cycles, _) in zip(near, parts, strict=True)
    ]
    plain = pc.if_else(far, pa.scalar(None, kind), array).cast(pa.string())
    return pc.replace_with_mask(plain, far, pa.array(texts, pa.string()))


def _with_json_leaves(array: pa.Array) -> pa.Array:
    """The same nesting with every scalar that JSON lacks replaced by its text."""
    kind = array.type
    if pt.is_dictionary(kind):
        return _with_json_leaves(array.dictionary_decode())
    if isinstance(array, pa.ExtensionArray):
        return _with_json_leaves(array.storage)
    if pt.is_struct(kind):
        if kind.num_fields == 0:
            return array
        children = [_with_json_leaves(child) for child in array.flatten()]
        names = [field.name for field in kind]
        return pa.StructArray.from_arrays(children, names=names, mask=array.is_null())
    if is_list(kind) or pt.is_map(kind):
        elements = Elements.of(array)
        values = _with_json_leaves(elements.values)
        return elements.rebuilt(values, pa.large_list(values.type))
    native = pt.is_integer(kind) or pt.is_floating(kind) or pt.is_boolean(kind) or pt.is_null(kind)
    return array if native or is_text(kind) else to_text(array)
