"""Room for numbers, made before one that may or may not fit a column decides by the column's width.

Whether a number fits a column of another type is decided from its value and the column's type: the double 3e9 fits a
long, and does not fit an int. A column of ints that later becomes one of longs would take the same value in another
place than it did before. So where such values meet a narrow column, it becomes as wide as it can ever be, at once.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

from conveyord.engine.schema.types import DECIMAL_DIGITS_MAX, LONG_DIGITS, bare_type, is_list


def with_room(schema: pa.Schema, incoming: pa.Schema) -> pa.Schema:
    """`schema`, its columns widened where `incoming` has numbers of another kind for them. Types of others stay."""
    kinds = {field.name: field.type for field in incoming}
    fields = [_widened(field, kinds.get(field.name)) for field in schema]
    return schema if fields == list(schema) else pa.schema(fields, metadata=schema.metadata)


def _widened(field: pa.Field, incoming: pa.DataType | None) -> pa.Field:
    kind = field.type if incoming is None else _wide(field.type, bare_type(incoming))
    return field if kind is field.type else field.with_type(kind)


def _wide(kind: pa.DataType, incoming: pa.DataType) -> pa.DataType:
    if pt.is_struct(kind) and pt.is_struct(incoming):
        kinds = {field.name: field.type for field in incoming}
        fields = [_widened(field, kinds.get(field.name)) for field in kind]
        return kind if fields == list(kind) else pa.struct(fields)
    if is_list(kind) and is_list(incoming):
        field = _widened(kind.value_field, incoming.value_type)
        return kind if field is kind.value_field or not pt.is_list(kind) else pa.list_(field)
    if pt.is_map(kind) and pt.is_map(incoming):
        field = _widened(kind.item_field, incoming.item_type)
        return kind if field.type.equals(kind.item_type) else pa.map_(kind.key_field, field)
    if pt.is_integer(kind) and kind.bit_width < 64 and pt.is_floating(incoming):
        return pa.int64()
    if pt.is_floating(kind) and kind.bit_width < 64 and pt.is_integer(incoming):
        return pa.float64()
    if pt.is_decimal(kind) and pt.is_integer(incoming):
        return pa.decimal128(max(kind.precision, min(DECIMAL_DIGITS_MAX, kind.scale + LONG_DIGITS)), kind.scale)
    return kind
