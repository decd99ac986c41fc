"""The row that a dead letter carries, as JSON and back.

A row is kept as an Arrow IPC stream of one row. JSON shows it as `query` shows results; an edited object is
read by the types of the row it replaces, so that the stage gets what it got before, with other values.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping, Sequence
from datetime import time
from decimal import Decimal
from difflib import get_close_matches
from typing import Any

import pyarrow as pa

from conveyord.cli.tables import rows_of
from conveyord.core.errors import ConfigError
from conveyord.core.units import counted

NAMES_SHOWN_MAX = 10  # of columns that are missing
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as `rows_of` writes them


def row_as_object(row: bytes) -> dict[str, Any]:
    """The one row of an IPC stream as an object of JSON values."""
    table = pa.ipc.open_stream(row).read_all()
    values = next((value for batch in table.to_batches() for value in rows_of(batch)), ())  # it may have no columns
    return dict(zip(table.schema.names, values, strict=True))


def row_from_json(text: str, former: bytes) -> bytes:
    """The IPC stream for an edited row.

    former: the row that was edited; it gives the columns and their types.
    Raises ConfigError if `text` is not a JSON object, or has not just the columns of `former`, each once, or a value
    that does not fit. A column that is to have no value is null there: one that is left out may be forgotten.
    """
    try:
        edited = json.loads(text, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"the edited row is not JSON: {error}") from error
    if not isinstance(edited, dict):
        raise ConfigError(f'the edited row must be a JSON object, such as {{"id": 7}}, got {text.strip()[:40]!r}')
    schema = pa.ipc.open_stream(former).schema
    for name in edited:
        if name not in schema.names:
            close = get_close_matches(name, schema.names, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"its columns are {', '.join(schema.names)}"
            raise ConfigError(f"the edited row has a column {name!r} that the row had not; {hint}")
    columns = {field.name: _column(edited[field.name], field) for field in schema if field.name in edited}
    _check_all_there("the edited row", "column", schema.names, columns)
    columns_in_order = [columns[name] for name in schema.names]
    out = pa.BufferOutputStream()
    with pa.ipc.new_stream(out, schema) as stream:
        stream.write_batch(pa.record_batch(columns_in_order, schema=schema))
    return bytes(out.getvalue())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which every key counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        values = " and ".join(json.dumps(value, ensure_ascii=False)[:40] for key, value in pairs if key == twice)
        raise ConfigError(f"the edited row has the key {twice!r} more than once in one object, with {values}; keep one")
    return found


def _check_all_there(what: str, part: str, names: Sequence[str], given: Mapping[str, Any]) -> None:
    """Raises ConfigError if some of `names`, each a `part` of `what`, are not among those that are given."""
    lacking = [name for name in names if name not in given]
    if lacking:
        shown = ", ".join(map(repr, lacking[:NAMES_SHOWN_MAX])) + (", ..." if len(lacking) > NAMES_SHOWN_MAX else "")
        raise ConfigError(f"{what} lacks {counted(len(lacking), part)} that it had: {shown}; give null for no value")


def _column(value: Any, field: pa.Field) -> pa.Array:
    try:
        return pa.array([_typed(value, field.type, field.name)], type=field.type)
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError, OverflowError) as error:
        shown = json.dumps(value, ensure_ascii=False)
        raise ConfigError(f"column {field.name!r} of the edited row: {shown[:80]} is no {field.type}") from error


def _typed(value: Any, kind: pa.DataType, name: str) -> Any:
    """A JSON value as pyarrow takes it for `kind`: the reverse of `rows_of`. Raises whatever does not fit.

    name: of the column, and of the fields that lead to the value in it.
    """
    if value is None:
        return None
    if pa.types.is_struct(kind):
        named = {field.name: field.type for field in kind}
        if not isinstance(value, dict) or not value.keys() <= named.keys():
            raise TypeError(value)
        _check_all_there(f"column {name!r} of the edited row", "field", list(named), value)
        return {key: _typed(value[key], inner, f"{name}.{key}") for key, inner in named.items()}
    if pa.types.is_map(kind):
        return [(_typed(key, kind.key_type, name), _typed(item, kind.item_type, name)) for key, item in value]
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if not isinstance(value, list):
            raise TypeError(value)
        return [_typed(item, kind.value_type, name) for item in value]
    if not isinstance(value, str):
        # Asked here, because pyarrow takes True for 1, 1.5 for 1, and a number for a time.
        fits = {bool: pa.types.is_boolean, int: _is_number, float: pa.types.is_floating}.get(type(value))
        return value if fits is not None and fits(kind) else _refused(value)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return base64.b64decode(value, validate=True)
    if pa.types.is_floating(kind):
        return NOT_FINITE[value] if value in NOT_FINITE else _refused(value)
    if pa.types.is_decimal(kind):
        return Decimal(value)
    if pa.types.is_time(kind):
        return time.fromisoformat(value)
    if pa.types.is_temporal(kind) and not pa.types.is_duration(kind):
        # As a whole number of units: Python's own types would lose nanoseconds.
        width = pa.int32() if kind.bit_width == 32 else pa.int64()
        return pa.scalar(value).cast(kind).cast(width).as_py()
    return value


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _refused(value: str) -> Any:
    raise TypeError(value)
