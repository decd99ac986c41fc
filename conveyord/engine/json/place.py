"""Putting parsed values into the columns of a shape, so that none is lost and none is changed.

A value that fits its column is converted. One that does not goes to a sibling column in the same
struct, appended at its end: `x__<word>` for the value's own type, or, where that column is taken or
has another type, `x__json` with the value's JSON text (then `x__json_2`, and so on). An array whose
elements do not all fit goes to a sibling as a whole, because elements have no siblings of their own;
objects always fit a struct, since every field inside them finds a place.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

from conveyord.engine.json.observe import kind_of, shape_of_value
from conveyord.engine.json.records import NumberText, text_of
from conveyord.engine.json.shape import Kind, Shape, type_of_shape
from conveyord.engine.json.timestamps import parse_timestamp
from conveyord.engine.naming import SIBLING_SEPARATOR, sibling_name

_LONG_MIN, _LONG_MAX = -(2**63), 2**63 - 1
_MISFIT = object()  # what `_convert` gives for a value that its column cannot hold


def place_record(record: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The row for `record`: column name to a value that Arrow takes as it is. Grows `shape`.

    shape: a STRUCT. Absent columns are left out of the row, which Arrow reads as null.
    """
    row: dict[str, Any] = {}
    misfits: list[tuple[str, Any]] = []
    fields = shape.fields
    for key, value in record.items():
        column = fields.get(key)
        if column is None:
            column = fields[key] = shape_of_value(value)
        elif column.kind is Kind.NULL and value is not None:
            column.become(shape_of_value(value))
        placed = _convert(value, column)
        if placed is _MISFIT:
            misfits.append((key, value))
        else:
            row[key] = placed
    for key, value in misfits:
        _place_beside(key, value, row=row, record=record, fields=fields)
    return row


def _place_beside(
    key: str, value: Any, *, row: dict[str, Any], record: dict[str, Any], fields: dict[str, Shape]
) -> None:
    """Put a value that does not fit column `key` into the first sibling that can take it."""
    for name, shape, stored in _candidates(key, value):
        # A column that this record fills by a field of its own is taken, even by a null.
        if name in record or name in row:
            continue
        column = fields.get(name, shape)
        placed = _convert(stored, shape if column.kind is Kind.NULL else column)
        if placed is _MISFIT:
            continue
        if column.kind is Kind.NULL:
            column.become(shape)
        row[name] = placed
        fields.setdefault(name, column)
        return


def _candidates(key: str, value: Any) -> Iterator[tuple[str, Shape, Any]]:
    """Sibling names to try in turn, each with the type it would be made with and what to store."""
    own = shape_of_value(value)
    yield sibling_name(key, type_of_shape(own)), own, value
    text = text_of(value)
    base = f"{key}{SIBLING_SEPARATOR}json"
    yield base, Shape(Kind.STRING), text
    # Ends, because a record has a finite number of keys and a schema of columns.
    for number in count(2):
        yield f"{base}_{number}", Shape(Kind.STRING), text


def _convert(value: Any, shape: Shape) -> Any:
    """`value` as a column of `shape` stores it, or `_MISFIT`. Grows `shape` only if the value fits."""
    if value is None:
        return None
    match shape.kind:
        case Kind.STRING:
            return value if type(value) is str else str(text_of(value))
        case Kind.LONG:
            return _as_long(value)
        case Kind.DOUBLE:
            return _as_double(value)
        case Kind.BOOLEAN:
            return value if isinstance(value, bool) else _MISFIT
        case Kind.TIMESTAMP | Kind.TIMESTAMP_UTC:
            parsed = parse_timestamp(value) if type(value) is str else None
            return parsed[0] if parsed and parsed[1] is (shape.kind is Kind.TIMESTAMP_UTC) else _MISFIT
        case Kind.STRUCT:
            return place_record(value, shape) if isinstance(value, dict) else _MISFIT
        case Kind.LIST:
            return _as_list(value, shape) if isinstance(value, list) else _MISFIT
        case _:
            return _MISFIT


def _as_long(value: Any) -> Any:
    if type(value) is int:
        return value
    if type(value) is not NumberText:
        return _MISFIT
    if value == "-0":
        return 0
    # Beyond 2**53 a float's text may stand for another integer than its double does.
    number = float(value) if kind_of(value) is Kind.DOUBLE else 0.5
    return int(number) if number.is_integer() and abs(number) < 2**53 else _MISFIT


def _as_double(value: Any) -> Any:
    if type(value) is int:
        return float(value) if abs(value) < 2**53 or _is_exact(value) else _MISFIT
    if type(value) is NumberText and kind_of(value) is not Kind.STRING:
        return float(value)
    return _MISFIT


def _is_exact(value: int) -> bool:
    return int(float(value)) == value


def _as_list(value: list[Any], shape: Shape) -> Any:
    filled = _filled(shape, value)
    if not _fits(value, filled):
        return _MISFIT
    shape.element = filled.element
    return [_convert(item, shape.items) for item in value]


def _filled(shape: Shape, value: list[Any]) -> Shape:
    """`shape` with elements that were only null so far typed by `value`; `shape` itself if none were."""
    inner = shape
    while inner.kind is Kind.LIST:
        inner = inner.items
    if inner.kind is not Kind.NULL:
        return shape

    def fill(known: Shape, own: Shape) -> Shape:
        if known.kind is Kind.NULL:
            return own
        if own.kind is not Kind.LIST:
            return known
        return Shape(Kind.LIST, element=fill(known.items, own.items))

    return fill(shape, shape_of_value(value))


def _fits(value: Any, shape: Shape) -> bool:
    """Whether `_convert` would take `value`; an object always fits a struct. Changes nothing."""
    if value is None:
        return True
    if shape.kind is Kind.STRUCT:
        return isinstance(value, dict)
    if shape.kind is Kind.LIST:
        return isinstance(value, list) and all(_fits(item, shape.items) for item in value)
    return _convert(value, shape) is not _MISFIT
