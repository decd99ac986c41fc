"""What is said of columns and nested fields, as a tree beside the tree of fields.

A name is a whole column's, or a path: `a.b` is the field `b` of the objects in column `a`, also where `a` is a list
of objects. Fields of maps have no path: their keys are values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Generic, TypeVar

import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.column_paths import is_sibling, missing_column
from conveyord.engine.naming import SIBLING_SEPARATOR
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.types import is_list

T = TypeVar("T")

Path = tuple[str, ...]
Columns = tuple[list[pa.Field], list[pa.Array]]
"""Fields and their arrays, of a batch or of a struct: as many of one as of the other."""
Change = Callable[[list[pa.Field], list[pa.Array]], Columns]


class FieldTree(Generic[T]):
    """What is said of one field, `said`, and of fields within it, `below`. The root stands for all columns."""

    __slots__ = ("below", "said")

    def __init__(self) -> None:
        self.said: T | None = None
        self.below: dict[str, FieldTree[T]] = {}

    def put(self, path: Path, said: T) -> None:
        """Say `said` of the field at `path`."""
        node = self
        for name in path:
            node = node.below.setdefault(name, FieldTree())
        node.said = said

    def at(self, name: str) -> FieldTree[T]:
        """What is said of the field `name` within, an empty tree if nothing is."""
        return self.below.get(name, FieldTree())


def paths_of(schema: pa.Schema, names: Iterable[str], *, setting: str, ignore_missing: bool) -> dict[str, Path]:
    """The path of the field that each of `names` means, missing ones left out or refused.

    A path into a column that has no type yet is taken for one that is there.
    Raises: ConfigError naming the first that is missing, what is like it, and `setting`.
    """
    found: dict[str, Path] = {}
    for name in names:
        path, known = _path(schema, name)
        if path is not None:
            found[name] = path
        elif not ignore_missing:
            raise missing_column(name, known, setting=setting)
    return found


def _path(schema: pa.Schema, name: str) -> tuple[Path | None, list[str]]:
    """The path that `name` means, or None and the names of what stands where it leads off."""
    if schema.get_field_index(name) >= 0:
        return (name,), []
    path = tuple(name.split("."))
    fields, prefix = list(schema), ""
    for part in path:
        found = next((field for field in fields if field.name == part), None)
        if found is None:
            return None, [prefix + field.name for field in fields] or schema.names
        kind = _element_type(found.type)
        if pt.is_null(kind):
            break
        fields, prefix = (list(kind) if pt.is_struct(kind) else []), f"{prefix}{part}."
    return path, []


def refuse_parts(paths: Mapping[str, Path], *, setting: str) -> None:
    """Raise ConfigError if one of `paths`, by the name that `setting` gives, lies within another."""
    names = {path: name for name, path in paths.items()}
    for path, name in names.items():
        whole = next((names[path[:end]] for end in range(1, len(path)) if path[:end] in names), None)
        if whole is not None:
            raise ConfigError(f"{setting} names {whole!r} and {name!r}, which is a part of it; name one of them")


def _element_type(kind: pa.DataType) -> pa.DataType:
    while is_list(kind):
        kind = kind.value_type
    return kind


def with_siblings(
    tree: FieldTree[T], fields: Iterable[pa.Field], *, beside: Callable[[T, str], T], instead: T | None
) -> FieldTree[T]:
    """`tree`, as far as it is there, and what it says of a field said of those beside it, for what does not fit.

    beside: from what is said of a field, what is to be said of one beside it, by what that is called behind the
    field's name. instead: what is said of values that stand where an object should be, if something is said of its
    fields only. What `tree` says of a field beside another itself stays.
    """
    fields = list(fields)
    kinds = {field.name: field.type for field in fields}
    owned: dict[str, list[str]] = {}
    for name in kinds:
        if SIBLING_SEPARATOR in name and name not in tree.below:
            owner = max((each for each in tree.below if is_sibling(name, each)), key=len, default=None)
            if owner is not None:
                owned.setdefault(owner, []).append(name)
    made: FieldTree[T] = FieldTree()
    made.said = tree.said
    for name, node in tree.below.items():
        if name in kinds:
            made.below[name] = with_siblings(node, fields_within(kinds[name]), beside=beside, instead=instead)
        for other in owned.get(name, ()):
            within = fields_within(kinds[other])
            own = with_siblings(node, within, beside=beside, instead=instead)
            own.said = beside(node.said, other.removeprefix(name)) if node.said is not None else None
            if node.below and not within:
                own.said = instead
            if own.said is not None or own.below:
                made.below[other] = own
    return made


def leads_through_lists(schema: pa.Schema, path: Path) -> bool:
    """Whether the values at `path`, which is there, may be several or none for a row."""
    fields = list(schema)
    for part in path[:-1]:
        kind = next(field.type for field in fields if field.name == part)
        if is_list(kind):
            return True
        fields = fields_within(kind)
    return False


def fields_within(kind: pa.DataType) -> list[pa.Field]:
    """The fields of the structs that values of `kind` are or, as lists, consist of; none for other types."""
    kind = _element_type(kind)
    return list(kind) if pt.is_struct(kind) else []


def change_within(array: pa.Array, change: Change) -> pa.Array:
    """`array` with the structs that it consists of made into those that `change` gives, of at least one field.

    Null structs stay null, and lists keep their lengths; a list of a fixed size or of views becomes a plain one.
    """
    kind = array.type
    if pt.is_null(kind):
        return array
    if pt.is_struct(kind):
        # flatten, not field: the fields of a null struct must be null, whatever their buffers hold.
        fields, columns = change(list(kind), array.flatten())
        return pa.StructArray.from_arrays(columns, fields=fields, mask=array.is_null())
    elements = Elements.of(array)
    values = change_within(elements.values, change)
    layout = pa.large_list if pt.is_large_list(kind) else pa.list_
    return elements.rebuilt(values, layout(kind.value_field.with_type(values.type)))


def changed_values(
    tree: FieldTree[T], change: Callable[[T, pa.Array], pa.Array], fields: list[pa.Field], columns: list[pa.Array]
) -> Columns:
    """The same fields, with the values of those of which `tree` says something made into what `change` gives."""
    new_fields, new_columns = [], []
    for field, values in zip(fields, columns, strict=True):
        node = tree.at(field.name)
        if node.said is not None:
            values = change(node.said, values)
            field = field.with_type(values.type).with_nullable(True)
        elif node.below:
            values = change_within(values, partial(changed_values, node, change))
            field = field.with_type(values.type)
        new_fields.append(field)
        new_columns.append(values)
    return new_fields, new_columns


def rebatched(data: pa.RecordBatch, fields: list[pa.Field], columns: list[pa.Array]) -> pa.RecordBatch:
    """A batch of `columns`, with as many rows as `data` even if there are none."""
    if not columns:
        return data.select([])
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=data.schema.metadata))
