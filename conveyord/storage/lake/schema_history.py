"""How a table's schema came to be what it is: told by its metadata alone.

Iceberg keeps every schema, but neither when it came nor who brought it. So whatever conveyord adds is marked with
a property, in the same commit; of what others did, only the snapshots that are still kept say since when at least.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table
    from pyiceberg.types import IcebergType

Change = Literal["added", "dropped", "renamed", "type", "required", "optional", "order"]

_PREFIX = "conveyord.schema."


@dataclass(frozen=True, slots=True)
class SchemaChange:
    """One thing that one schema has otherwise than the one before it.

    at_micros, pipeline: when and for which pipeline conveyord made it, None if somebody else did. used_micros: when
    the oldest snapshot that is kept of this schema was committed. column: its dotted name, None where the order alone
    changed. former: the name or type that it had. Times are microseconds since the epoch.
    """

    schema_id: int
    is_current: bool
    at_micros: int | None
    pipeline: str | None
    used_micros: int | None
    change: Change
    column: str | None
    type: str | None
    former: str | None


def mark(schema_id: int, pipeline: str) -> dict[str, str]:
    """The property that says when a schema came, which is now, and for whom."""
    return {f"{_PREFIX}{schema_id}": json.dumps({"at": time.time_ns() // 1000, "by": pipeline})}


def history(table: Table) -> list[SchemaChange]:
    """Every change of the schema of `table`, oldest first; those of one schema in the order of its columns."""
    metadata = table.metadata
    used: dict[int | None, int] = {}
    for snapshot in metadata.snapshots:
        micros = snapshot.timestamp_ms * 1000
        used[snapshot.schema_id] = min(micros, used.get(snapshot.schema_id, micros))
    found: list[SchemaChange] = []
    before: Schema | None = None
    for schema in sorted(metadata.schemas, key=lambda one: one.schema_id):
        at, pipeline = _mark_of(metadata.properties, schema.schema_id)
        for change, column, kind, former in _changes(before, schema):
            is_current = schema.schema_id == metadata.current_schema_id
            since = used.get(schema.schema_id)
            found.append(SchemaChange(schema.schema_id, is_current, at, pipeline, since, change, column, kind, former))
        before = schema
    return found


def _mark_of(properties: Mapping[str, str], schema_id: int) -> tuple[int | None, str | None]:
    try:
        seen = json.loads(properties[f"{_PREFIX}{schema_id}"])
        return int(seen["at"]), str(seen["by"])
    except (KeyError, TypeError, ValueError):  # there is none, or somebody else writes such a property
        return None, None


def _changes(before: Schema | None, after: Schema) -> Iterator[tuple[Change, str | None, str | None, str | None]]:
    """What changed from one schema to the next: how, which column, its type now, and what it was."""
    former, present = ({} if before is None else _columns(before)), _columns(after)
    quiet = True
    for field_id, (name, kind, required) in present.items():
        if field_id not in former:
            quiet = False
            yield "added", name, kind, None
            continue
        old_name, old_kind, was_required = former[field_id]
        if name.rpartition(".")[2] != old_name.rpartition(".")[2]:
            quiet = False
            yield "renamed", name, kind, old_name
        if kind != old_kind:
            quiet = False
            yield "type", name, kind, old_kind
        if required != was_required:
            quiet = False
            yield ("required" if required else "optional"), name, kind, None
    for field_id, (name, kind, _) in former.items():
        if field_id not in present:
            quiet = False
            yield "dropped", name, None, kind
    if quiet:
        yield "order", None, None, None


def _columns(schema: Schema) -> dict[int, tuple[str, str, bool]]:
    """By id, in the order of the table: dotted name, type, and whether it is required."""
    found = {}
    for field_id in _in_order(schema):
        field = schema.find_field(field_id)
        found[field_id] = (schema.find_column_name(field_id) or field.name, _word(field.field_type), field.required)
    return found


def _in_order(schema: Schema) -> Iterator[int]:
    from pyiceberg.types import ListType, MapType, StructType

    def below(kind: IcebergType) -> Iterator[int]:
        match kind:
            case StructType():
                for field in kind.fields:
                    yield field.field_id
                    yield from below(field.field_type)
            case ListType():
                yield kind.element_id
                yield from below(kind.element_type)
            case MapType():
                yield kind.key_id
                yield from below(kind.key_type)
                yield kind.value_id
                yield from below(kind.value_type)

    yield from below(schema.as_struct())


def _word(kind: IcebergType) -> str:
    """A type by one word; what a struct, list or map holds are columns of their own here."""
    from pyiceberg.types import ListType, MapType, StructType

    return {StructType: "struct", ListType: "list", MapType: "map"}.get(type(kind), str(kind))
