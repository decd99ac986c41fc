"""Rolling Parquet data files of one table, and what a commit needs to know about them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from conveyord.core.errors import Refused
from conveyord.storage.lake.partitioning import Partitioner
from conveyord.storage.lake.schemas import PARQUET_FIELD_ID, arrow_schema, file_schema
from conveyord.storage.lake.statistics import FileStatistics
from conveyord.storage.rolling import Key, RollingOptions, RollingWriter

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

READ_ROWS = 65_536  # per batch when files are written again
PATH_PART_CHARS_MAX = 120  # file systems end at 255 bytes per name; a partition value may be a whole text


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions(RollingOptions):
    """How a table's files are written."""

    name_prefix: str = "data"
    """Start of every file name; says who wrote it."""


class DataFileWriter(RollingWriter):
    """Blocking. Writes batches to the table's data files; nothing names them until they are committed.

    Schema, partitioning, location and properties are the table's at the time of construction. One
    thread at a time. After an error in `write` or `finish` the only sensible call is `abort`.
    """

    def __init__(self, table: Table, options: WriterOptions, on_open: Callable[[str], None]) -> None:
        """`on_open` is told the location of every file before it is created."""
        super().__init__(file_schema(table.schema()), options)
        self._table = table
        self._name_prefix = options.name_prefix
        self._on_open = on_open
        self._spec = table.spec()
        self._location = table.location_provider()
        self._partitioner = Partitioner(table)
        self._statistics = FileStatistics(table)
        self._counter = 0
        self._data_files: dict[str, DataFile] = {}
        self.schema = arrow_schema(table)
        """What `write` takes."""
        self.schema_id = table.schema().schema_id
        """The schema's number in the table."""

    def finish(self) -> list[DataFile]:
        """Write what is buffered, close all files and hand them over, in the order of their names.

        The writer is ready for the next round. No file is empty; without rows there are none.
        """
        return [self._data_files.pop(path) for path in self._close_all()]

    def abort(self) -> None:
        """Close and delete every file of this round. Files that `finish` handed over are the caller's.

        Raises what the FileIO raises if a file cannot be deleted; `on_open` was told of all of them.
        """
        self._data_files = {}
        super().abort()

    def _split(self, batch: pa.RecordBatch) -> Iterator[tuple[Key, pa.RecordBatch]]:
        assert batch.schema.equals(self.schema), f"batch has {batch.schema}, the table takes {self.schema}"
        for record, part in self._partitioner.split(batch):
            yield tuple(record[position] for position in range(len(record))), part

    def _create(self, key: Key) -> tuple[str, Any]:
        self._counter += 1
        name = f"{self._name_prefix}-{self._counter:05d}-{uuid4()}.parquet"
        path = self._location.new_data_location("/".join([*self._path_parts(key), name]))
        self._on_open(path)
        self._note(path)
        return path, self._table.io.new_output(path).create()

    def _delete(self, path: str) -> None:
        self._table.io.delete(path)

    def _path_parts(self, key: Key) -> list[str]:
        """Directories in Hive style, for people; Iceberg reads the values from the manifests."""
        schema = self._table.schema()
        types = self._spec.partition_type(schema).fields
        parts = []
        for position, partition_field in enumerate(self._spec.fields):
            value = partition_field.transform.to_human_string(types[position].field_type, key[position])
            parts.append(f"{_path_safe(partition_field.name)}={_path_safe(value)}")
        return parts

    def _finished(self, key: Key, path: str, *, size_bytes: int, metadata: pq.FileMetaData) -> None:
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
        from pyiceberg.typedef import Record

        finished = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=Record(*key),
            file_size_in_bytes=size_bytes,
            sort_order_id=None,
            equality_ids=None,
            key_metadata=None,
            **self._statistics.of(metadata),
        )
        finished.spec_id = self._spec.spec_id  # `from_args` would ignore it
        self._data_files[path] = finished


def rewrite(
    files: Sequence[DataFile], table: Table, options: WriterOptions, on_open: Callable[[str], None]
) -> list[DataFile]:
    """Blocking. Write the rows of `files` again under the current schema and partitioning of `table`.

    For files that were written and not committed before somebody re-partitioned the table: pyiceberg would
    commit them under the new partitioning with the old values, and look-ups would miss their rows.
    What the rows held in columns that the table has no more goes with those, as if they had been committed before.
    The old files stay; deleting them is the caller's. If it fails, no new file is left behind.
    Raises Refused if the table now requires a column that a row lacks, BatchError if a value has no partition now.
    """
    writer = DataFileWriter(table, options, on_open)
    try:
        for file in files:
            for batch in _read(table, file):
                writer.write(batch)
        return writer.finish()
    except BaseException:
        writer.abort()  # also when the thread is interrupted: nobody knows these files
        raise


def _read(table: Table, file: DataFile) -> Iterator[pa.RecordBatch]:
    """The rows of one file as `arrow_schema(table)`, in order, columns matched by Iceberg id.

    Not through a pyiceberg scan: that reads a null list of structs as an empty one, and here the
    difference would be written back.
    """
    wanted = _by_id(pa.struct(list(file_schema(table.schema()))))
    plain = pa.struct(list(arrow_schema(table)))
    with table.io.new_input(file.file_path).open() as stream, pq.ParquetFile(stream) as parquet:
        stored = _by_id(pa.struct(list(parquet.schema_arrow)))
        for batch in parquet.iter_batches(batch_size=READ_ROWS):
            # A view renames without copying; the cast adds, drops, reorders and widens by name.
            rows = batch.to_struct_array().view(stored).cast(wanted)
            try:
                rows = rows.view(plain)
            except pa.ArrowInvalid as error:
                raise Refused(
                    f"table {'.'.join(table.name())}: somebody made a column of it required while rows without a value "
                    f"for that waited to be committed ({error}); make it optional, or run again: rows that the table "
                    "cannot take are then dead letters"
                ) from error
            yield pa.RecordBatch.from_struct_array(rows)


def _by_id(arrow_type: pa.DataType) -> pa.DataType:
    """`arrow_type` with every struct field named by its Iceberg id."""
    if pa.types.is_struct(arrow_type):
        ids = [field.metadata[PARQUET_FIELD_ID].decode() for field in arrow_type]
        return pa.struct([(name, _by_id(field.type)) for name, field in zip(ids, arrow_type, strict=True)])
    if pa.types.is_list(arrow_type):
        return pa.list_(_by_id(arrow_type.value_type))
    if pa.types.is_map(arrow_type):
        return pa.map_(_by_id(arrow_type.key_type), _by_id(arrow_type.item_type))
    return arrow_type


def _path_safe(text: str) -> str:
    # Percent signs are avoided: some readers decode the locations that manifests hold, some do not.
    safe = re.sub("%", "~", quote(text, safe=""))
    return safe if len(safe) <= PATH_PART_CHARS_MAX else f"{safe[:PATH_PART_CHARS_MAX]}~"
