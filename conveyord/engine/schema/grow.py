"""The growth that one batch really needs, which is less than its schema would allow."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.types as pt

from conveyord.engine.schema.fit import fit
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.merge import merge, typed_sibling_name
from conveyord.engine.schema.types import bare_type, is_list


def grow(target: pa.Schema, batch: pa.RecordBatch) -> tuple[pa.Schema, pa.RecordBatch]:
    """`target` with as little growth as lets `batch` fit, and the batch fitted to it.

    Like `merge`, but a sibling column is added only if a value of this batch goes there. So the
    columns of a table depend on the values that it met, not on how they were batched.

    Raises: ConfigError, BatchError as `merge` and `fit` do.
    """
    if batch.schema.equals(target):
        return target, fit(batch, target)
    full = merge(target, batch.schema)
    if full.equals(target):
        return target, fit(batch, target)
    fitted = fit(batch, full)
    fields = _needed_fields(full, fitted.columns, target, batch.schema)
    needed = pa.schema(fields, metadata=target.metadata)
    return needed, fit(batch, needed)


def _needed_fields(
    full: Iterable[pa.Field],
    columns: list[pa.Array],
    target: Iterable[pa.Field],
    incoming: Iterable[pa.Field],
) -> list[pa.Field]:
    held = {field.name: field.type for field in target}
    own: dict[str, list[pa.DataType]] = {}
    siblings: dict[str, list[pa.DataType]] = {}
    for field in incoming:
        kind = bare_type(field.type)
        own.setdefault(field.name, []).append(kind)
        siblings.setdefault(typed_sibling_name(field.name, kind), []).append(kind)
    needed = []
    for field, column in zip(full, columns, strict=True):
        if field.name in held or field.name in own or column.null_count < len(column):
            writers = own.get(field.name, []) + siblings.get(field.name, [])
            kind = _needed_type(field.type, column, held.get(field.name, pa.null()), writers)
            needed.append(field.with_type(kind))
    return needed


def _needed_type(full: pa.DataType, column: pa.Array, target: pa.DataType, incoming: list[pa.DataType]) -> pa.DataType:
    """`full` without the nested siblings that neither side has and no value needs.

    incoming: the types of all fields whose values may stand in this column.
    """
    if full.equals(target):
        return full
    if pt.is_struct(full):
        held = list(target) if pt.is_struct(target) else []
        own = [field for kind in incoming if pt.is_struct(kind) for field in kind]
        return pa.struct(_needed_fields(full, column.flatten(), held, own))
    if pt.is_list(full) or pt.is_large_list(full):
        held_element = target.value_type if is_list(target) else pa.null()
        own_elements = [bare_type(kind.value_type) for kind in incoming if is_list(kind)]
        element = _needed_type(full.value_type, Elements.of(column).values, held_element, own_elements)
        field = full.value_field.with_type(element)
        return pa.list_(field) if pt.is_list(full) else pa.large_list(field)
    if pt.is_map(full):
        held_item = target.item_type if pt.is_map(target) else pa.null()
        own_items = [bare_type(kind.item_type) for kind in incoming if pt.is_map(kind)]
        item = _needed_type(full.item_type, Elements.of(column).values.field("value"), held_item, own_items)
        return pa.map_(full.key_field, full.item_field.with_type(item))
    return full
