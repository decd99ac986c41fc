"""The strict bulk path: `pyarrow.json` on many lines at once, with proof that nothing was lost.

pyarrow refuses unknown fields (told so), duplicate keys, values of another kind and malformed JSON. The
guards below refuse what it lets pass: records that do not stand on one line each, NUL bytes (where it
stops reading), invalid UTF-8, NaN and Infinity, and doubles so large that an integer may have been
rounded. Timestamps are read as strings and parsed by our own grammar.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as arrow_json

from conveyord.engine.json.lines import lines_are_objects
from conveyord.engine.json.shape import Kind, Shape, type_of_shape
from conveyord.engine.json.timestamps import parse_column

DOUBLE_EXACT = float(2**53)  # below it every integer is a double
_CHUNK_BYTES_MAX = 2**31 - 2  # pyarrow's block size is 32 bits


def decode_strict(lines: bytes, shape: Shape) -> pa.StructArray | None:
    """One struct per line of `lines`, typed as `shape`; None if the exact path must decide.

    lines: whole lines, the last with or without its line end. A result equals what the exact path
    gives for the same lines, which then all are good records and do not make `shape` grow.
    """
    # Without columns Arrow's tables forget how many rows they have.
    if not shape.fields or len(lines) > _CHUNK_BYTES_MAX:
        return None
    count = lines_are_objects(lines)
    if count is None:
        return None
    read_options = arrow_json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    # "error" and not "infer": pyarrow's inference overflows the C stack on deeply nested values.
    parse_options = arrow_json.ParseOptions(
        explicit_schema=pa.schema(list(reading_type(shape))), unexpected_field_behavior="error"
    )
    try:
        table = arrow_json.read_json(pa.BufferReader(lines), read_options, parse_options)
    except (pa.ArrowInvalid, UnicodeDecodeError):  # the latter when a message holds such bytes
        return None
    if table.num_rows != count:
        return None
    # Lines that were read as one block make one chunk; combining it would copy it.
    rows = table.to_struct_array().chunk(0)
    if not lines.isascii() and not _is_valid_text(rows):
        return None
    return finish(rows, shape)


def reading_type(shape: Shape) -> pa.DataType:
    """The type to read `shape` as: what fits nowhere as null, timestamps as their text."""
    match shape.kind:
        case Kind.STRUCT:
            return pa.struct([pa.field(name, reading_type(child)) for name, child in shape.fields.items()])
        case Kind.LIST:
            return pa.list_(reading_type(shape.items))
        case Kind.TIMESTAMP | Kind.TIMESTAMP_UTC:
            return pa.string()
        case Kind.OTHER:
            return pa.null()
        case _:
            return type_of_shape(shape)


def finish(array: pa.Array, shape: Shape) -> pa.Array | None:
    """`array`, read as `reading_type(shape)`, as the shape's own type; None if a value does not fit it."""
    match shape.kind:
        case Kind.STRUCT:
            children = [finish(array.field(name), child) for name, child in shape.fields.items()]
            if any(child is None for child in children):
                return None
            fields = list(type_of_shape(shape))
            missing = array.is_null() if array.null_count else None
            return pa.StructArray.from_arrays(children, fields=fields, mask=missing)
        case Kind.LIST:
            if array.type.value_type == pa.null():  # pyarrow's reader makes the values of a list of nulls too few
                values = pa.nulls(array.offsets[-1].as_py(), type_of_shape(shape.items))
            else:
                values = finish(array.values, shape.items)
            if values is None:
                return None
            missing = array.is_null() if array.null_count else None
            return pa.ListArray.from_arrays(array.offsets, values, type=type_of_shape(shape), mask=missing)
        case Kind.TIMESTAMP | Kind.TIMESTAMP_UTC:
            return parse_column(array, type_of_shape(shape))
        case Kind.DOUBLE:
            return array if _doubles_are_exact(array) else None
        case Kind.OTHER:
            return pa.nulls(len(array), type_of_shape(shape))
        case _:
            return array


def _doubles_are_exact(array: pa.DoubleArray) -> bool:
    # Also false for Infinity and for NaN.
    inside = pc.less(pc.abs(array), DOUBLE_EXACT)
    return pc.all(inside).as_py() is not False


def _is_valid_text(array: pa.Array) -> bool:
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
