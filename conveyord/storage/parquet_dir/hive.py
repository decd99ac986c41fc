"""Partitions in Hive's style: `country=DE/at_day=2024-01-01/`, as DuckDB, Spark, Arrow and Polars read them.

Values are computed by the code that partitions Iceberg tables, so the same words mean the same. A column
that is partitioned by as it is stands in the directory's name only, as readers of this style expect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import BatchError, ConfigError
from conveyord.core.units import counted

if TYPE_CHECKING:
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema

NULL = "__HIVE_DEFAULT_PARTITION__"
NAME_BYTES_MAX = 255  # of one name, in every file system of note
# What Hive escapes; all else, other alphabets included, stands as it is, because not every reader knows UTF-8 here.
_TRUNCATED = re.compile(r"\s*truncate\s*\(\s*(?P<size>\d+)\s*,", re.IGNORECASE)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\"#%'*/:=?\\{}\[\]^]")


@dataclass(frozen=True, slots=True)
class _Described:
    """What a partitioner asks of a table."""

    columns: Schema
    partitioning: PartitionSpec

    def schema(self) -> Schema:
        return self.columns

    def spec(self) -> PartitionSpec:
        return self.partitioning


class HivePartitioning:
    """Splits batches of one schema, and names the directory of each part. Blocking, not thread-safe."""

    def __init__(self, schema: pa.Schema, expressions: Sequence[str]) -> None:
        """expressions: as for Iceberg tables, see `lake/partitioning.py`.

        Raises ConfigError that names the expression for what does not work.
        """
        from conveyord.storage.lake.partitioning import Partitioner, partition_spec
        from conveyord.storage.lake.schemas import iceberg_schema

        spec = partition_spec(schema, expressions)
        columns = iceberg_schema(schema)
        self._partitioner = Partitioner(_Described(columns, spec))  # type: ignore[arg-type]
        types = spec.partition_type(columns).fields
        self._fields = [
            (field.name, field.transform, kind.field_type) for field, kind in zip(spec.fields, types, strict=True)
        ]
        self._identity = [str(field.name) for field in spec.fields if str(field.transform) == "identity"]
        for expression, (name, _, _) in zip(expressions, self._fields, strict=True):
            self._check(schema, expression, name)
        self.kept = [name for name in schema.names if name not in self._identity]
        """The columns that stand in the files."""
        if not self.kept:
            raise ConfigError(
                "partition_by: it names every column, so no column would be left for the files; leave one out"
            )

    def _check(self, schema: pa.Schema, expression: str, name: str) -> None:
        if name.startswith(("_", ".")):
            raise ConfigError(
                f"partition_by: {expression!r} makes directories `{name}=...`, and readers pass over names that begin "
                f"with {name[0]!r}; rename the column"
            )
        if name not in self._identity:
            return
        if name not in schema.names:
            raise ConfigError(
                f"partition_by: {expression!r} is a field within a column, which cannot leave the files; make a "
                "column of it, for example with json_flatten"
            )
        kind = schema.field(name).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            raise ConfigError(f"partition_by: {name!r} is binary, which no directory's name can hold; use bucket")

    def split(self, batch: pa.RecordBatch) -> Iterator[tuple[tuple[Any, ...], pa.RecordBatch]]:
        """The values and the rows of each partition, without the columns that only stand in names."""
        for record, part in self._partitioner.split(batch):
            yield tuple(record[position] for position in range(len(self._fields))), part.select(self.kept)

    def path_of(self, values: tuple[Any, ...]) -> str:
        """The directory of a partition, relative, such as `country=DE/at_day=2024-01-01`."""
        return "/".join(
            f"{_escaped(name)}={self._text(transform, kind, value)}"
            for (name, transform, kind), value in zip(self._fields, values, strict=True)
        )

    @staticmethod
    def _text(transform: Any, kind: Any, value: Any) -> str:
        if value is None:
            return NULL
        return _escaped(str(transform.to_human_string(kind, value)))


def _escaped(text: str) -> str:
    return _UNSAFE.sub(lambda found: f"%{ord(found[0]):02X}", text)


def check_values(rows: pa.RecordBatch, expressions: Sequence[str]) -> None:
    """Raises BatchError if `rows` hold a value that no directory can be named after."""
    from conveyord.storage.lake.partitioning import check_times, timed_columns

    check_times(rows, timed_columns(expressions))
    for expression in expressions:
        truncated = _TRUNCATED.match(expression)
        if truncated is not None and expression not in rows.schema.names:
            # A character takes four bytes at most, escaped or not; so does one of base64 that stands for bytes.
            if 4 * int(truncated["size"]) + 3 * len(expression.encode()) > NAME_BYTES_MAX:
                _check_truncated(rows, expression)
            continue
        name = expression
        if name not in rows.schema.names or not pa.types.is_string(rows.schema.field(name).type):
            continue
        column = rows.column(name)
        longest = pc.max(pc.binary_length(column)).as_py() or 0
        if longest >= len(NULL) and pc.any(pc.equal(column, NULL)).as_py():
            raise BatchError(
                f"partition_by: {name!r} has the value {NULL!r}, which says null in the name of a directory; map it"
            )
        if longest <= NAME_BYTES_MAX // 3 - len(name.encode()):  # escaping makes at most three bytes of one
            continue
        for value in pc.unique(column).to_pylist():
            part = f"{_escaped(name)}={_escaped(value or '')}"
            if len(part.encode()) > NAME_BYTES_MAX:
                raise BatchError(
                    f"partition_by: {name!r} has a value of {counted(len(value), 'character')} ({value[:20]!r}...), "
                    f"too long for a directory's name ({NAME_BYTES_MAX} bytes at most); use truncate(n, {name})"
                )


def _check_truncated(rows: pa.RecordBatch, expression: str) -> None:
    """Raises BatchError if the beginning of a value, which a directory is named after, is too long a name still."""
    partitioning = HivePartitioning(rows.schema, [expression])
    for values, part in partitioning.split(rows):
        name = partitioning.path_of(values)
        length = len(name.encode())
        if length > NAME_BYTES_MAX:
            raise BatchError(
                f"partition_by: {expression!r} makes the name {name[:40]!r}... of {counted(length, 'byte')} "
                f"of a value in {counted(part.num_rows, 'row')}, too long for a directory ({NAME_BYTES_MAX} bytes at "
                "most); use a smaller n"
            )
