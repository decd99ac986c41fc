"""The history of a table's schema, told by its metadata alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table
from pyiceberg.types import LongType, StringType

from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.schema_history import SchemaChange, history
from conveyord.storage.lake.schemas import create_table, evolve
from tests.storage.test_table_writer import NAME, SCHEMA, commit, new_writer, write


def told(table: Table) -> list[tuple[object, ...]]:
    return [(one.schema_id, one.change, one.column, one.type, one.former) for one in history(table)]


def changed(table: Table, change: Callable[[Table], None]) -> list[tuple[object, ...]]:
    """What `change` adds to the history."""
    before = len(history(table))
    change(table)
    return told(table.refresh())[before:]


def test_what_we_add_is_told_with_its_time_and_pipeline(tmp_path: Path) -> None:
    started = time.time_ns() // 1000
    writer = new_writer(tmp_path, partition_by=())
    writer.open()
    writer.shape(SCHEMA)
    write(writer, range(3))
    commit(writer, range(3))
    assert writer.schema is not None
    wider = writer.schema.set(1, pa.field("small", pa.int64())).append(pa.field("m", pa.map_(pa.string(), pa.int64())))
    writer.shape(wider)
    writer.close()
    table = open_embedded(tmp_path).load_table(NAME)
    found = history(table)
    assert {one.pipeline for one in found} == {"ns/p"}
    assert all(one.at_micros is not None and one.at_micros >= started for one in found)
    assert [one.column for one in found if one.schema_id == 0] == [
        "id", "small", "at", "o", "o.x", "o.y", "items", "items.element", "items.element.n"
    ]  # fmt: skip
    assert {one.used_micros is None for one in found if one.schema_id == 0} == {False}
    assert [(one.is_current, one.used_micros) for one in found if one.schema_id == 1] == [(True, None)] * 4
    assert told(table)[9:] == [
        (1, "type", "small", "long", "int"),
        (1, "added", "m", "map", None),
        (1, "added", "m.key", "string", None),
        (1, "added", "m.value", "long", None),
    ]


def test_what_others_do_is_told_without_time_and_pipeline(tmp_path: Path) -> None:
    catalog = open_embedded(tmp_path)
    assert isinstance(catalog, SqlCatalog)
    table = create_table(catalog, NAME, pa.schema([("a", pa.int32()), ("o", pa.struct([("x", pa.string())]))]), [], {})

    def rename(table: Table) -> None:
        with table.update_schema() as update:
            update.rename_column("o", "p")

    def drop(table: Table) -> None:
        with table.update_schema() as update:
            update.delete_column("p")

    def require(table: Table) -> None:
        with table.update_schema(allow_incompatible_changes=True) as update:
            update.update_column("a", LongType(), required=True)

    def move(table: Table) -> None:
        with table.update_schema() as update:
            update.add_column("z", StringType())
        with table.update_schema() as update:
            update.move_first("z")

    assert changed(table, rename) == [(1, "renamed", "p", "struct", "o")]
    assert changed(table, drop) == [(2, "dropped", "p", None, "struct"), (2, "dropped", "p.x", None, "string")]
    assert changed(table, require) == [(3, "type", "a", "long", "int"), (3, "required", "a", "long", None)]
    assert changed(table, move) == [(4, "added", "z", "string", None), (5, "order", None, None, None)]
    assert {(one.at_micros, one.pipeline) for one in history(table)} == {(None, None)}


def test_a_mark_that_is_none_is_passed_over(tmp_path: Path) -> None:
    catalog = open_embedded(tmp_path)
    table = create_table(catalog, NAME, pa.schema([("a", pa.int32())]), [], {"conveyord.schema.0": "[]"})
    evolve(table, pa.schema([("b", pa.int32())]), pipeline="ns/q")
    first, second = history(table)
    assert first == SchemaChange(0, False, None, None, None, "added", "a", "int", None)
    assert (second.pipeline, second.column) == ("ns/q", "b")
