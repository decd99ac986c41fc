"""Bringing arrays that were written under an older schema to a grown one."""

from __future__ import annotations

import pyarrow as pa


def conform(array: pa.Array, arrow_type: pa.DataType) -> pa.Array:
    """`array` as `arrow_type`, with nulls in everything that `arrow_type` has more.

    `arrow_type` must be what the array's type has grown into. Values are shared, not copied.
    """
    if array.type == arrow_type:
        return array
    if pa.types.is_null(array.type):
        return pa.nulls(len(array), arrow_type)
    missing = array.is_null() if array.null_count else None
    if pa.types.is_struct(arrow_type):
        children = [_child(array, field) for field in arrow_type]
        return pa.StructArray.from_arrays(children, fields=list(arrow_type), mask=missing)
    assert pa.types.is_list(arrow_type), f"{array.type} cannot grow into {arrow_type}"
    values = conform(array.values, arrow_type.value_type)
    # With a mask Arrow refuses offsets of a slice, so these are made to start at zero.
    offsets = pa.concat_arrays([array.offsets]) if array.offset else array.offsets
    return pa.ListArray.from_arrays(offsets, values, type=arrow_type, mask=missing)


def _child(array: pa.StructArray, field: pa.Field) -> pa.Array:
    index = array.type.get_field_index(field.name)
    if index < 0:
        return pa.nulls(len(array), field.type)
    return conform(array.field(index), field.type)


def batch_of(rows: pa.StructArray, schema: pa.Schema) -> pa.RecordBatch:
    """A struct array without nulls as a record batch with `schema`, which its type has grown into."""
    whole = conform(rows, pa.struct(list(schema)))
    if len(schema) == 0:
        return pa.RecordBatch.from_struct_array(whole)
    columns = [whole.field(index) for index in range(len(schema))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def concat(pieces: list[pa.StructArray]) -> pa.StructArray:
    """One array of all pieces, which have the same type. At least one piece."""
    return pieces[0] if len(pieces) == 1 else pa.concat_arrays(pieces)
