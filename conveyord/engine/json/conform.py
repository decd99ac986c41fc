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
        return pa.StructArray.from_arrays(_children(array, arrow_type), fields=list(arrow_type), mask=missing)
    assert pa.types.is_list(arrow_type), f"{array.type} cannot grow into {arrow_type}"
    values = conform(array.values, arrow_type.value_type)
    # With a mask Arrow refuses offsets of a slice, so these are made to start at zero.
    offsets = pa.concat_arrays([array.offsets]) if array.offset else array.offsets
    return pa.ListArray.from_arrays(offsets, values, type=arrow_type, mask=missing)


def _children(array: pa.StructArray, arrow_type: pa.StructType) -> list[pa.Array]:
    """The fields of `array` as those of `arrow_type`, which has all of them; its own nulls are left to the caller."""
    own = array.type
    # What is null throughout shares one buffer this way, however many fields there are.
    whole = array if own.num_fields == arrow_type.num_fields else pa.nulls(len(array), arrow_type)
    children = [whole.field(index) for index in range(arrow_type.num_fields)]
    for number, field in enumerate(own):
        index = arrow_type.get_field_index(field.name)
        children[index] = conform(array.field(number), arrow_type.field(index).type)
    return children


def batch_of(rows: pa.StructArray, schema: pa.Schema) -> pa.RecordBatch:
    """A struct array without nulls as a record batch with `schema`, which its type has grown into."""
    if len(schema) == 0:
        return pa.RecordBatch.from_struct_array(rows)
    return pa.RecordBatch.from_arrays(_children(rows, pa.struct(list(schema))), schema=schema)


def concat(pieces: list[pa.StructArray], schema: pa.Schema) -> pa.StructArray:
    """One array of all pieces, with the fields of `schema` that some piece has. At least one piece."""
    if len(pieces) == 1:
        return pieces[0]
    names = dict.fromkeys(field.name for piece in pieces for field in piece.type)
    kind = pa.struct([schema.field(name) for name in names])
    return pa.concat_arrays([conform(piece, kind) for piece in pieces])
