"""How a schema grows: what it must become so that batches of another schema fit without loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.naming import SIBLING_SEPARATOR, sibling_name
from conveyord.engine.schema.types import bare_type, is_list, is_text, join_scalar, plain_type


def merge(target: pa.Schema, incoming: pa.Schema) -> pa.Schema:
    """`target` plus room for every value that a batch of schema `incoming` could hold.

    Adds fields (in structs and lists of structs too), gives types to fields that were null, widens
    numbers as Iceberg allows, and adds every sibling column that could be needed: more than a given
    batch needs, which is what `grow` is for. Never drops, reorders or otherwise changes a field;
    new fields come last, nullable and without metadata. `merge(t, t) == t`, and merging twice is
    merging once.

    Raises: ConfigError if a schema names a field twice.
    """
    if target.equals(incoming):
        return target
    return pa.schema(merge_fields(target, incoming), metadata=target.metadata)


def merge_fields(target: Iterable[pa.Field], incoming: Iterable[pa.Field]) -> list[pa.Field]:
    """`merge` for the fields of a schema or of a struct."""
    incoming = list(incoming)
    fields = fields_by_name(target)
    own = fields_by_name(incoming)
    misfits = []
    for field in incoming:
        if not _join_into(fields, field.name, field.type):
            misfits.append(field)
    claimed = set(own)
    for field in misfits:
        _reserve_siblings(fields, claimed, field)
    return list(fields.values())


def fields_by_name(fields: Iterable[pa.Field]) -> dict[str, pa.Field]:
    """Fields in order under their names. Raises ConfigError if two share one."""
    named: dict[str, pa.Field] = {}
    for field in fields:
        if field.name in named:
            raise ConfigError(f"two columns are named {field.name!r}; rename one of them")
        named[field.name] = field
    return named


def text_sibling_names(column: str) -> Iterator[str]:
    """The columns that take, in turn, what neither `column` nor its typed sibling can."""
    while True:
        column = f"{column}{SIBLING_SEPARATOR}json"
        yield column


def typed_sibling_name(column: str, kind: pa.DataType) -> str:
    """The sibling of `column` for values of `kind`, named after the type that a table gives them."""
    return sibling_name(column, plain_type(kind))


def merge_type(target: pa.DataType, incoming: pa.DataType) -> tuple[pa.DataType, bool]:
    """`target` grown towards `incoming`, and whether every value of `incoming` then fits it."""
    incoming = bare_type(incoming)
    if pt.is_null(incoming) or target.equals(incoming):
        return target, True
    if pt.is_null(target):
        plain = plain_type(incoming)
        return (plain, True) if pt.is_null(plain) else merge_type(plain, incoming)
    if pt.is_struct(target) and pt.is_struct(incoming):
        return pa.struct(merge_fields(target, incoming)), True
    if (pt.is_list(target) or pt.is_large_list(target)) and is_list(incoming):
        element, total = merge_type(target.value_type, incoming.value_type)
        field = target.value_field.with_type(element)
        return (pa.list_(field) if pt.is_list(target) else pa.large_list(field)), total
    if pt.is_map(target) and pt.is_map(incoming):
        # Iceberg widens no keys of a map: what those of the table cannot hold is a value of another type.
        key, key_total = merge_type(target.key_type, incoming.key_type)
        item, item_total = merge_type(target.item_type, incoming.item_type)
        grown = pa.map_(target.key_field, target.item_field.with_type(item))
        return grown, key_total and item_total and key.equals(target.key_type)
    return join_scalar(target, incoming)


def _join_into(fields: dict[str, pa.Field], name: str, kind: pa.DataType) -> bool:
    """Grow or add the field `name`. Returns whether every value of `kind` fits it."""
    held = fields.get(name)
    joined, total = merge_type(pa.null() if held is None else held.type, kind)
    if held is not None:
        fields[name] = held if joined.equals(held.type) else held.with_type(joined)
    elif not pt.is_null(joined):
        fields[name] = pa.field(name, joined)
    return total


def _reserve_siblings(fields: dict[str, pa.Field], claimed: set[str], misfit: pa.Field) -> None:
    """Add the siblings that values of `misfit` may need, up to one that nothing else writes to.

    claimed: columns that the same batch may write to. A cell of those may be taken, so the chain
    goes on after them.
    """
    typed = typed_sibling_name(misfit.name, misfit.type)
    plain = plain_type(misfit.type)
    # What does not fit a column does not fit a sibling of the same type either.
    useful = not pt.is_null(plain) and not plain.equals(fields[misfit.name].type)
    if typed in fields or useful:
        total = _join_into(fields, typed, misfit.type)
        if total and typed not in claimed:
            claimed.add(typed)
            return
        claimed.add(typed)
    for name in text_sibling_names(misfit.name):
        held = fields.get(name)
        if held is None:
            fields[name] = pa.field(name, pa.string())
        elif pt.is_null(held.type):
            fields[name] = held.with_type(pa.string())
        elif not is_text(held.type):
            continue
        if name not in claimed:
            claimed.add(name)
            return
