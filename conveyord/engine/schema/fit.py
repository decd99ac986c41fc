"""Bringing a batch to a schema that has room for it, value by value."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.errors import BatchError
from conveyord.engine.naming import type_word
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.merge import fields_by_name, text_sibling_names, typed_sibling_name
from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import is_list, is_text, plain_type
from conveyord.engine.schema.values import Converted, convert_scalars, misfits, nothing_fits


def fit(batch: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
    """The rows of `batch` under exactly `target`; columns that need no change share its buffers.

    Columns that `batch` lacks are null. The package's docstring says where each value lands. Never
    fails, and loses no value, if `target` is `merge(t, batch.schema)` or `grow(t, batch)`.

    Raises: BatchError if a value has no column to go to, or a required column would be null.
        ConfigError if a schema names a field twice.
    """
    if batch.schema.equals(target, check_metadata=True):
        return batch
    columns = fit_columns(list(batch.schema), batch.columns, list(target), batch.num_rows)
    if not columns:
        return batch.select([])
    return pa.RecordBatch.from_arrays(columns, schema=target)


def fit_columns(
    fields: list[pa.Field],
    arrays: list[pa.Array],
    target: list[pa.Field],
    length: int,
    *,
    within_nulls: bool = False,
) -> list[pa.Array]:
    """`fit` for the columns of a batch or of a struct: `arrays` under `fields`, to those of `target`.

    within_nulls: the columns stand in a struct that is null in places, where required ones are null too.
    """
    wanted = fields_by_name(target)
    fields_by_name(fields)
    columns: dict[str, pa.Array] = {}
    overflow: list[tuple[str, pa.Array]] = []
    for field, array in zip(fields, arrays, strict=True):
        held = wanted.get(field.name)
        if held is None:
            if not pt.is_null(plain_type(field.type)):
                raise BatchError(
                    f"the target has no column {field.name!r} for the {type_word(field.type)} values "
                    "of this batch; add it, or let the schema evolve"
                )
        elif array.type.equals(held.type):
            columns[field.name] = array
        else:
            array = decoded(array)
            columns[field.name], misfit = convert(array, held.type)
            if misfit is not None:
                overflow.append((field.name, pc.if_else(misfit, array, pa.scalar(None, array.type))))
    for name, array in overflow:
        _place(columns, wanted, name, array)
    for name, held in wanted.items():
        if name not in columns:
            columns[name] = pa.nulls(length, held.type)
        if not held.nullable and not within_nulls and columns[name].null_count:
            raise BatchError(
                f"column {name!r} is required, and a row of this batch has no {type_word(held.type)} value for it; "
                "fill it in a transform, or make the table's column optional"
            )
    return [columns[name] for name in wanted]


def _place(columns: dict[str, pa.Array], wanted: dict[str, pa.Field], name: str, array: pa.Array) -> None:
    """Put values that did not fit column `name` into its siblings, never over a value already there."""
    typed = typed_sibling_name(name, array.type)
    rest = array
    plain = plain_type(array.type)
    if typed in wanted:
        rest = fill(columns, typed, rest, convert(rest, wanted[typed].type))
    elif not pt.is_null(plain):
        misfit = convert(rest, plain)[1]
        if misfit is None or pc.any(pc.and_not(rest.is_valid(), misfit)).as_py():
            raise _no_room(name, typed, array.type)
    for sibling in text_sibling_names(name):
        if rest.null_count == len(rest):
            return
        if sibling not in wanted:
            raise _no_room(name, sibling, array.type)
        kind = wanted[sibling].type
        if is_text(kind):
            rest = fill(columns, sibling, rest, (to_text(rest).cast(kind), None))


def fill(columns: dict[str, pa.Array], name: str, array: pa.Array, converted: Converted) -> pa.Array:
    """Move what fits and finds its cell empty into column `name`; returns what is left over."""
    values, misfit = converted
    there = columns.get(name)
    placed = array.is_valid() if misfit is None else pc.and_not(array.is_valid(), misfit)
    if there is None:
        columns[name] = values
    else:
        placed = pc.and_(placed, there.is_null())
        columns[name] = pc.if_else(placed, values, there)
    return pc.if_else(placed, pa.scalar(None, array.type), array)


def _no_room(name: str, sibling: str, kind: pa.DataType) -> BatchError:
    return BatchError(
        f"a {type_word(kind)} value does not fit column {name!r}, and the target has no column "
        f"{sibling!r} for it; add that column, or let the schema evolve"
    )


def decoded(array: pa.Array) -> pa.Array:
    """`array` without the encodings that only change how its values are laid out."""
    while True:
        if pt.is_dictionary(array.type):
            array = array.dictionary_decode()
        elif pt.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        elif isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        elif pt.is_string_view(array.type) or pt.is_binary_view(array.type):
            array = array.cast(plain_type(array.type))  # Arrow 26 has no if_else for views
        else:
            return array


def convert(array: pa.Array, target: pa.DataType) -> Converted:
    """Bring values to `target`: what fits, and a mask of the non-null values that do not.

    Raises BatchError, as `fit` does, if a value within a struct has no field to go to.
    """
    array = decoded(array)
    kind = array.type
    if kind.equals(target):
        return array, None
    if pt.is_null(kind):
        return pa.nulls(len(array), target), None
    if pt.is_null(target):
        return nothing_fits(array, target)
    if pt.is_struct(kind) and pt.is_struct(target):
        return _convert_structs(array, target), None
    if is_list(kind) and (pt.is_list(target) or pt.is_large_list(target)):
        return _convert_lists(array, target)
    if pt.is_map(kind) and pt.is_map(target):
        return _convert_lists(array, target)
    if pt.is_nested(kind) and not is_text(target) or pt.is_nested(target):
        return nothing_fits(array, target)
    return convert_scalars(array, target)


def _convert_structs(array: pa.Array, target: pa.DataType) -> pa.Array:
    fields = list(array.type)
    children = array.flatten() if fields else []
    within_nulls = array.null_count > 0
    columns = fit_columns(fields, children, list(target), len(array), within_nulls=within_nulls)
    if not columns:
        return pa.array([None if null else {} for null in array.is_null().to_pylist()], target)
    return pa.StructArray.from_arrays(columns, fields=list(target), mask=array.is_null())


def _convert_lists(array: pa.Array, target: pa.DataType) -> Converted:
    elements = Elements.of(array)
    if pt.is_map(target):
        keys, key_misfit = convert(elements.values.field("key"), target.key_type)
        items, item_misfit = convert(elements.values.field("value"), target.item_type)
        values = pa.StructArray.from_arrays([keys, items], names=["key", "value"])
        masks = [mask for mask in (key_misfit, item_misfit) if mask is not None]
        misfit = None if not masks else masks[0] if len(masks) == 1 else pc.or_(*masks)
    else:
        values, misfit = convert(elements.values, target.value_type)
    return rebuilt_lists(array, elements, values, misfit, target)


def rebuilt_lists(
    array: pa.Array, elements: Elements, values: pa.Array, misfit: pa.Array | None, target: pa.DataType
) -> Converted:
    """The lists of `array` over new `values`, as the list or map type `target`.

    elements: `array` taken apart. misfit: which values did not fit; their lists are null, and do not fit as a whole.
    """
    if misfit is None:
        return elements.rebuilt(values, target), None
    moved = elements.with_any(misfit)
    # A key that did not fit is null, which a map refuses: such lists are rebuilt as null, not masked after.
    kept = values.filter(pc.invert(_spread(moved, elements)))
    lengths = pc.if_else(moved, pa.scalar(None, pa.int64()), elements.lengths)
    return Elements(kept, lengths).rebuilt(kept, target), misfits(array, pc.invert(moved))


def _spread(marked: pa.Array, elements: Elements) -> pa.Array:
    """A mark of each list repeated for each of its elements."""
    lists = pa.LargeListArray.from_arrays(elements.offsets(), elements.values)
    return marked.take(pc.list_parent_indices(lists))
