"""Columns by name, and fields within them by dotted path, in batches whose types grow as they come.

A path goes through objects by name, and through lists without a word: `items.email` is the field `email` of
every object in the list `items`. A column whose whole name is the path comes first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from difflib import get_close_matches

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.naming import SIBLING_SEPARATOR
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.types import is_list

NAMES_SHOWN_MAX = 20  # of columns, in a message

_SIBLING = re.compile(
    rf"(?:{SIBLING_SEPARATOR}(?:boolean|long|double|decimal|timestamp|date|time|struct|list|map|binary|string|json))+"
)

_SIBLING_END = re.compile(_SIBLING.pattern + r"\Z")

Change = Callable[[pa.Array, bool], pa.Array]
"""What becomes of the values at a path. The second argument tells whether they are of whatever type came: in a
sibling column, or in place of an object.
"""


def is_sibling(name: str, column: str) -> bool:
    """Whether `name` is a column beside `column`, for values that do not fit it (`email__double`)."""
    return name.startswith(column) and _SIBLING.fullmatch(name, len(column)) is not None


def column_beside(name: str) -> str | None:
    """The column beside which `name` would be one for values that do not fit; None if it is not called so."""
    mark = _SIBLING_END.search(name)
    return None if mark is None or mark.start() == 0 else name[: mark.start()]


def missing_column(name: str, names: Iterable[str], *, setting: str) -> ConfigError:
    """The error for a column that is not there. setting: the option that names it, such as `mask.columns`."""
    names = list(names)
    close = get_close_matches(name, names, n=1)
    shown = ", ".join(names[:NAMES_SHOWN_MAX]) + (", ..." if len(names) > NAMES_SHOWN_MAX else "")
    remedy = f"did you mean {close[0]!r}?" if close else f"the columns are {shown}"
    if not names:
        remedy = "these rows have no columns at all: their records are empty objects"
    return ConfigError(f"{setting} names a column {name!r} that is not there; {remedy}")


def value_at(data: pa.RecordBatch, path: str) -> pa.Array | None:
    """The values at `path`, null where an object on the way is; None if there is no such field.

    Does not go through lists: there would be no one value per row.
    """
    index = data.schema.get_field_index(path)
    if index >= 0:
        return data.column(index)
    first, *rest = path.split(".")
    index = data.schema.get_field_index(first)
    array = data.column(index) if index >= 0 else None
    for name in rest:
        if array is None or not pt.is_struct(array.type) or array.type.get_field_index(name) < 0:
            return None
        # Flattened, not taken as a field: the fields of a null object must be null, whatever their buffers hold.
        array = array.flatten()[array.type.get_field_index(name)]
    return array


def siblings_at(data: pa.RecordBatch, path: str) -> list[pa.Array]:
    """The columns beside the one at `path`, for values that do not fit it."""
    *parents, name = (path,) if data.schema.get_field_index(path) >= 0 else path.split(".")
    if not parents:
        fields, columns = list(data.schema), data.columns
    else:
        above = value_at(data, ".".join(parents))
        if above is None or not pt.is_struct(above.type):
            return []
        fields, columns = list(above.type), above.flatten()
    return [column for field, column in zip(fields, columns, strict=True) if is_sibling(field.name, name)]


def changed_at(data: pa.RecordBatch, path: str, change: Change) -> pa.RecordBatch | None:
    """`data` with the values at `path`, and those of its siblings, replaced by what `change` makes of them.

    Its values may get another type. Where no object stands on the way, what stands there is changed as a whole,
    like a sibling, unless it has no type yet. None if there is no such field.
    """
    parts = (path,) if data.schema.get_field_index(path) >= 0 else tuple(path.split("."))
    made = _changed(data.schema, data.columns, parts, change)
    if made is None:
        return None
    fields, columns = made
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=data.schema.metadata))


def _changed(
    fields: Iterable[pa.Field], columns: Iterable[pa.Array], parts: tuple[str, ...], change: Change
) -> tuple[list[pa.Field], list[pa.Array]] | None:
    first, rest = parts[0], parts[1:]
    found = False
    new_fields, new_columns = [], []
    for field, column in zip(fields, columns, strict=True):
        made = None
        if field.name == first or is_sibling(field.name, first):
            made = _changed_below(column, rest, change, beside=field.name != first)
        found |= made is not None
        new_columns.append(column if made is None else made)
        new_fields.append(field if made is None else field.with_type(made.type).with_nullable(True))
    return (new_fields, new_columns) if found else None


def _changed_below(array: pa.Array, rest: tuple[str, ...], change: Change, *, beside: bool) -> pa.Array | None:
    """`array` with what lies at `rest` below it changed; None if nothing does. beside: it is a sibling's."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if not rest:
        return change(array, beside)
    kind = array.type
    if pt.is_null(kind):
        return array
    if not is_list(kind) and not pt.is_struct(kind):
        # Where an object should be, in this column or beside it, stands its text, or what came in its place.
        return change(array, True)
    if is_list(kind):
        elements = Elements.of(array)
        values = _changed_below(elements.values, rest, change, beside=beside)
        return None if values is None else elements.rebuilt(values, _list_of(values.type, kind))
    made = _changed(list(kind), array.flatten(), rest, change)
    if made is None:
        return None
    fields, children = made
    return pa.StructArray.from_arrays(children, fields=fields, mask=array.is_null())


def within_lists(change: Change) -> Change:
    """`change`, applied to the elements where the values are lists. A sibling is changed as it is."""

    def made(array: pa.Array, beside: bool) -> pa.Array:
        if beside or not is_list(array.type):
            return change(array, beside)
        elements = Elements.of(array)
        values = made(elements.values, False)
        return elements.rebuilt(values, _list_of(values.type, array.type))

    return made


def _list_of(element: pa.DataType, like: pa.DataType) -> pa.DataType:
    return pa.large_list(element) if pt.is_large_list(like) else pa.list_(element)


def plain_values(array: pa.Array) -> pa.Array:
    """`array` without an encoding that only changes how its values are laid out."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pt.is_run_end_encoded(array.type):
        return pc.run_end_decode(array)
    return array.dictionary_decode() if pt.is_dictionary(array.type) else array
