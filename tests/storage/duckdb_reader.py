"""A table as DuckDB sees it, without its Iceberg extension, which cannot be had offline.

The manifests name the files, and DuckDB's own reading of a file's schema says where a field id stands in it. So
columns are matched as the Iceberg specification says, by a reader that shares nothing with pyiceberg's or ours.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from itertools import count
from typing import Any

import duckdb
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.types import IcebergType, ListType, MapType, NestedField, StructType

from conveyord.storage.lake.fileio import local_path

Row = dict[str, Any]
SQL_TYPES = {
    "boolean": "BOOLEAN",
    "int": "INTEGER",
    "long": "BIGINT",
    "float": "FLOAT",
    "double": "DOUBLE",
    "string": "VARCHAR",
    "binary": "BLOB",
    "date": "DATE",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
}


def duckdb_rows(table: Table) -> list[Row]:
    """Every row of the current snapshot under the current schema, in no order. Maps are lists of k and v."""
    return [row for part in duckdb_tables(table) for row in part.to_pylist()]


def duckdb_tables(table: Table) -> list[pa.Table]:
    """The same, a table for each data file."""
    found = []
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for path in data_files(table):
            stored = _Stored(connection, path)
            columns = ", ".join(f"{stored.column(field)} AS {_quoted(field.name)}" for field in table.schema().fields)
            query = f"SELECT {columns} FROM read_parquet('{path}', hive_partitioning=false)"
            found.append(connection.sql(query).to_arrow_table())
    return found


def data_files(table: Table) -> list[str]:
    """The paths of the files of the current snapshot."""
    return [str(local_path(task.file.file_path)) for task in table.scan().plan_files()]


def partitions_are_right(table: Table) -> None:
    """Assert that every file lies in the partition of its own spec that each of its rows belongs to.

    Days and identities are worked out here; the others by the specification's transform on single values.
    """
    specs, schema = table.specs(), table.schema()
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for task in table.scan().plan_files():
            path = str(local_path(task.file.file_path))
            stored = _Stored(connection, path)
            for position, field in enumerate(specs[task.file.spec_id].fields):
                source = schema.find_field(field.source_id)
                query = (
                    f"SELECT DISTINCT {stored.column(source)} AS v FROM read_parquet('{path}', hive_partitioning=false)"
                )
                values = connection.sql(query).to_arrow_table()["v"].to_pylist()
                wanted = {_partition_value(field.transform, source.field_type, value) for value in values}
                assert wanted == {task.file.partition[position]}, (path, field.name)


def _partition_value(transform: Any, kind: IcebergType, value: Any) -> Any:
    if value is None or str(transform) == "identity":
        return value
    if str(transform) == "day":
        return (value - datetime(1970, 1, 1, tzinfo=UTC)).days if isinstance(value, datetime) else _days(value)
    return transform.transform(kind)(value)


def _days(value: date) -> int:
    return (value - date(1970, 1, 1)).days


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _type(kind: IcebergType) -> str:
    match kind:
        case StructType():
            return f"STRUCT({', '.join(f'{_quoted(field.name)} {_type(field.field_type)}' for field in kind.fields)})"
        case ListType():
            return f"{_type(kind.element_type)}[]"
        case MapType():
            return f"STRUCT(k {_type(kind.key_type)}, v {_type(kind.value_type)})[]"
        case _:
            return SQL_TYPES.get(str(kind), str(kind))


class _Stored:
    """Where field ids stand in one Parquet file: for each the names that lead to it from what holds it."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: str) -> None:
        query = f"SELECT name, field_id, num_children FROM parquet_schema('{path}')"
        nodes = iter(connection.execute(query).fetchall())
        self._names: dict[int, str] = {}
        self._variables = count()

        def walk(children: int) -> None:
            for _ in range(children):
                name, field_id, below = next(nodes)
                if field_id is not None:
                    self._names[field_id] = name
                walk(below or 0)

        walk(next(nodes)[2])

    def column(self, field: NestedField) -> str:
        """SQL for the values of a top-level field, or of one within structs that has a name of its own."""
        name = self._names.get(field.field_id)
        return self._value(field, None if name is None else _quoted(name))

    def _value(self, field: NestedField, held: str | None) -> str:
        """SQL for `field`, whose values `held` gives as the file has them; None if it has not."""
        kind = field.field_type
        if held is None:
            return f"CAST(NULL AS {_type(kind)})"
        match kind:
            case StructType():
                parts = (f"{_quoted(child.name)} := {self._child(child, held)}" for child in kind.fields)
                return f"CASE WHEN {held} IS NULL THEN NULL ELSE struct_pack({', '.join(parts)}) END"
            case ListType():
                variable = f"v{next(self._variables)}"
                return f"list_transform({held}, lambda {variable}: {self._value(kind.element_field, variable)})"
            case MapType():
                entry = f"v{next(self._variables)}"
                pair = (
                    f"struct_pack(k := {self._value(kind.key_field, f'{entry}.key')}, "
                    f"v := {self._value(kind.value_field, f'{entry}.value')})"
                )
                return f"list_transform(map_entries({held}), lambda {entry}: {pair})"
            case _:
                return f"CAST({held} AS {_type(kind)})"

    def _child(self, child: NestedField, struct: str) -> str:
        name = self._names.get(child.field_id)
        return self._value(child, None if name is None else f"struct_extract({struct}, '{name}')")
