"""Whether a value that a test expects is the one that came, by the type of the column.

What came is compared as JSON, in the form of `conveyord.engine.schema.text`. An expected text is brought
to that form first if the column is a timestamp, a date, a time or a decimal.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import bare_type, is_list, is_text

DOUBLE_TOLERANCE = 1e-14  # a few roundings, such as 0.1 + 0.2; milliseconds since 1970 still differ by one
SINGLE_TOLERANCE = 1e-6
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

Types = Mapping[str, pa.DataType]


def json_rows(data: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch as JSON objects."""
    if not data.num_columns:
        return [{} for _ in range(data.num_rows)]
    rows = pa.StructArray.from_arrays(data.columns, names=data.schema.names)
    return [json.loads(text) for text in to_text(rows).to_pylist()]


def types_of(schema: pa.Schema) -> dict[str, pa.DataType]:
    """The type of every column."""
    return dict(zip(schema.names, schema.types, strict=True))


def changed_columns(expected: Mapping[str, Any], got: Mapping[str, Any], types: Types) -> tuple[str, ...]:
    """The columns in which two rows differ. A column that is absent is null."""
    names = dict.fromkeys([*got, *expected])
    return tuple(name for name in names if not same(expected.get(name), got.get(name), types.get(name, pa.null())))


def same(expected: Any, got: Any, kind: pa.DataType) -> bool:
    """Whether a JSON value that is expected in a column of `kind` is the JSON value that came."""
    if expected is None or got is None:
        return expected is got
    kind = bare_type(kind)
    if pt.is_struct(kind):
        return isinstance(expected, dict) and not changed_columns(expected, got, {f.name: f.type for f in kind})
    if is_list(kind):
        return _same_lists(expected, got, kind.value_type)
    if pt.is_map(kind):
        return _same_lists(expected, got, pa.struct([("key", kind.key_type), ("value", kind.item_type)]))
    if is_text(kind) or pt.is_boolean(kind):
        return type(expected) is type(got) and bool(expected == got)
    if pt.is_integer(kind):
        return _is_number(expected) and bool(expected == got)
    if pt.is_floating(kind):
        return _same_floats(expected, got, DOUBLE_TOLERANCE if pt.is_float64(kind) else SINGLE_TOLERANCE)
    if pt.is_decimal(kind):
        return _same_decimals(expected, got)
    return bool(_written_as(expected, kind) == got)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same_lists(expected: Any, got: list[Any], kind: pa.DataType) -> bool:
    if not isinstance(expected, list) or len(expected) != len(got):
        return False
    return all(same(one, other, kind) for one, other in zip(expected, got, strict=True))


def _same_floats(expected: Any, got: float, tolerance: float) -> bool:
    if isinstance(expected, str):
        expected = _NOT_FINITE.get(expected)
    if not _is_number(expected):
        return False
    return math.isclose(expected, got, rel_tol=tolerance) or (math.isnan(expected) and math.isnan(got))


def _same_decimals(expected: Any, got: str) -> bool:
    if isinstance(expected, bool):
        return False
    try:
        return Decimal(str(expected)) == Decimal(got)
    except InvalidOperation:
        return False


def _written_as(expected: Any, kind: pa.DataType) -> Any:
    """An expected text in the form in which values of `kind` are compared; as it is if it is none of them."""
    if pt.is_duration(kind):
        return str(expected)
    if not isinstance(expected, str) or not (pt.is_timestamp(kind) or pt.is_date(kind) or pt.is_time(kind)):
        return expected
    spellings = [expected]
    if pt.is_timestamp(kind) and kind.tz is not None:
        # An instant without a zone is taken as UTC, since that is how instants are shown.
        kind = pa.timestamp(kind.unit, "UTC")
        spellings += [f"{expected}Z", f"{expected} 00:00:00Z"]
    for text in spellings:
        try:
            return to_text(pa.array([text]).cast(kind))[0].as_py()
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            continue
    return expected
