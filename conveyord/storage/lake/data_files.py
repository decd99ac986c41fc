"""Rolling Parquet data files of one table, and what a commit needs to know about them.

Our own writer, because pyiceberg's sizes files by their Arrow bytes (so they end up several times too
small), filters a batch once per partition, and uses Parquet's defaults, which build a dictionary for
every column and throw most of them away.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from conveyord.storage.lake.encodings import choose_encodings
from conveyord.storage.lake.partitioning import Partitioner
from conveyord.storage.lake.schemas import PARQUET_FIELD_ID, arrow_schema, file_schema
from conveyord.storage.lake.statistics import FileStatistics

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.typedef import Record

COMBINE_BELOW_ROWS = 4096  # chunks smaller than this cost more in the encoder than one copy does
READ_ROWS = 65_536  # per batch when files are written again
PATH_PART_CHARS_MAX = 120  # file systems end at 255 bytes per name; a partition value may be a whole text


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterOptions:
    """How a table's files are written."""

    target_file_bytes: int = 128 * 1024 * 1024
    """Bytes on disk at which a new file is begun. Passed by at most one row group."""
    row_group_bytes: int = 32 * 1024 * 1024
    """Arrow bytes buffered for one partition before they are written: about 256k rows of ten columns."""
    row_group_rows_max: int = 1024 * 1024
    buffer_bytes_max: int = 128 * 1024 * 1024
    """Arrow bytes buffered for all partitions together; above it the largest is written."""
    open_files_max: int = 64
    """Above it the least recently written file is closed. Each holds a write buffer of a megabyte, on object
    stores a part of several, beside its descriptor, of which a process has 1,024 by default."""
    name_prefix: str = "data"
    """Start of every file name; says who wrote it."""


@dataclass(slots=True)
class _OpenFile:
    path: str
    stream: Any
    parquet: pq.ParquetWriter


@dataclass(slots=True)
class _Partition:
    """What is buffered for one partition, and its current file if one is open."""

    record: Record
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    file: _OpenFile | None = None


class DataFileWriter:
    """Blocking. Writes batches to the table's data files; nothing names them until they are committed.

    Schema, partitioning, location and properties are the table's at the time of construction. One
    thread at a time. After an error in `write` or `finish` the only sensible call is `abort`.
    """

    def __init__(self, table: Table, options: WriterOptions, on_open: Callable[[str], None]) -> None:
        """`on_open` is told the location of every file before it is created."""
        self._table = table
        self._options = options
        self._on_open = on_open
        self._spec = table.spec()
        self._location = table.location_provider()
        self._partitioner = Partitioner(table)
        self._statistics = FileStatistics(table)
        self._file_schema = file_schema(table.schema())
        self._counter = 0
        self._partitions: dict[tuple[Any, ...], _Partition] = {}
        self._started: list[str] = []
        self._finished: list[DataFile] = []
        self._finished_bytes = 0
        self.schema = arrow_schema(table)
        """What `write` takes."""
        self.rows = 0
        """Rows taken since the last `finish` or `abort`."""
        self.buffered_bytes = 0
        """Arrow bytes taken but not yet written."""

    @property
    def bytes_written(self) -> int:
        """Bytes of Parquet written since the last `finish` or `abort`, in closed and in open files."""
        files = (partition.file for partition in self._partitions.values())
        return self._finished_bytes + sum(int(file.stream.tell()) for file in files if file is not None)

    def write(self, batch: pa.RecordBatch) -> None:
        """Take one batch with exactly `schema`. Row groups are written as buffers fill.

        Raises what the table's FileIO raises, as it is.
        """
        assert batch.schema.equals(self.schema), f"batch has {batch.schema}, the table takes {self.schema}"
        for record, part in self._partitioner.split(batch):
            partition = self._partitions.setdefault(_key(record), _Partition(record))
            size = part.nbytes
            partition.batches.append(part)
            partition.rows += part.num_rows
            partition.bytes += size
            self.buffered_bytes += size
            if partition.bytes >= self._options.row_group_bytes or partition.rows >= self._options.row_group_rows_max:
                self._write_row_group(partition)
        self.rows += batch.num_rows
        while self.buffered_bytes > self._options.buffer_bytes_max:
            self._write_row_group(max(self._partitions.values(), key=lambda partition: partition.bytes))

    def finish(self) -> list[DataFile]:
        """Write what is buffered, close all files and hand them over, in the order of their names.

        The writer is ready for the next round. No file is empty; without rows there are none.
        """
        for partition in list(self._partitions.values()):
            if partition.batches:
                self._write_row_group(partition)
            self._close(partition)
        files = sorted(self._finished, key=lambda file: self._started.index(file.file_path))
        self._reset()
        return files

    def abort(self) -> None:
        """Close and delete every file of this round. Files that `finish` handed over are the caller's.

        Raises what the FileIO raises if a file cannot be deleted; `on_open` was told of all of them.
        """
        for partition in self._partitions.values():
            if partition.file is not None:
                _discard(partition.file)
        started = self._started
        self._reset()
        for path in started:
            with suppress(FileNotFoundError):  # it was announced, but could not be created
                self._table.io.delete(path)

    def _reset(self) -> None:
        self._partitions = {}
        self._started = []
        self._finished = []
        self._finished_bytes = 0
        self.rows = 0
        self.buffered_bytes = 0

    def _write_row_group(self, partition: _Partition) -> None:
        batches, rows = partition.batches, partition.rows
        self.buffered_bytes -= partition.bytes
        partition.batches, partition.rows, partition.bytes = [], 0, 0
        rows_table = _as_stored(batches, self._file_schema)
        if partition.file is None:
            partition.file = self._open(partition.record, rows_table)
        # Moved to the end, so that the mapping is ordered by last use.
        self._partitions[_key(partition.record)] = self._partitions.pop(_key(partition.record))
        group_rows = min(rows, self._options.row_group_rows_max)
        partition.file.parquet.write_table(rows_table, row_group_size=group_rows)
        if partition.file.stream.tell() >= self._options.target_file_bytes:
            self._close(partition)

    def _open(self, record: Record, sample: pa.Table) -> _OpenFile:
        open_now = [partition for partition in self._partitions.values() if partition.file is not None]
        if len(open_now) >= self._options.open_files_max:
            self._close(open_now[0])
        self._counter += 1
        name = f"{self._options.name_prefix}-{self._counter:05d}-{uuid4()}.parquet"
        path = self._location.new_data_location("/".join([*self._path_parts(record), name]))
        self._on_open(path)
        self._started.append(path)
        stream = self._table.io.new_output(path).create()
        try:
            parquet = _parquet_writer(stream, self._file_schema, sample)
        except BaseException:
            with suppress(Exception):  # the first bytes could not be written, so neither may the last
                stream.close()
            raise
        return _OpenFile(path, stream, parquet)

    def _path_parts(self, record: Record) -> list[str]:
        """Directories in Hive style, for people; Iceberg reads the values from the manifests."""
        schema = self._table.schema()
        types = self._spec.partition_type(schema).fields
        parts = []
        for position, partition_field in enumerate(self._spec.fields):
            value = partition_field.transform.to_human_string(types[position].field_type, record[position])
            parts.append(f"{_path_safe(partition_field.name)}={_path_safe(value)}")
        return parts

    def _close(self, partition: _Partition) -> None:
        """Close the partition's file, if any, and note it as finished."""
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

        if partition.file is None:
            return
        file = partition.file
        file.parquet.close()
        size = file.stream.tell()
        file.stream.close()
        partition.file = None
        finished = DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=file.path,
            file_format=FileFormat.PARQUET,
            partition=partition.record,
            file_size_in_bytes=size,
            sort_order_id=None,
            equality_ids=None,
            key_metadata=None,
            **self._statistics.of(file.parquet.writer.metadata),
        )
        finished.spec_id = self._spec.spec_id  # `from_args` would ignore it
        self._finished.append(finished)
        self._finished_bytes += size


def rewrite(
    files: Sequence[DataFile], table: Table, options: WriterOptions, on_open: Callable[[str], None]
) -> list[DataFile]:
    """Blocking. Write the rows of `files` again under the current schema and partitioning of `table`.

    For files that were written and not committed before somebody re-partitioned the table: pyiceberg would
    commit them under the new partitioning with the old values, and look-ups would miss their rows.
    The old files stay; deleting them is the caller's. If it fails, no new file is left behind.
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
            rows = batch.to_struct_array().view(stored).cast(wanted).view(plain)
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


def _key(record: Record) -> tuple[Any, ...]:
    return tuple(record[position] for position in range(len(record)))


def _as_stored(batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    """One table under the names that the file has. Copies only if the batches are many and small."""
    table = pa.Table.from_batches(batches)
    if len(batches) > 1 and table.num_rows < COMBINE_BELOW_ROWS * len(batches):
        table = table.combine_chunks()
    if table.schema.equals(schema, check_metadata=False):
        return table
    columns = [
        pa.chunked_array([chunk.view(stored.type) for chunk in column.chunks], stored.type)
        for column, stored in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _path_safe(text: str) -> str:
    # Percent signs are avoided: some readers decode the locations that manifests hold, some do not.
    safe = re.sub("%", "~", quote(text, safe=""))
    return safe if len(safe) <= PATH_PART_CHARS_MAX else f"{safe[:PATH_PART_CHARS_MAX]}~"


def _parquet_writer(stream: Any, schema: pa.Schema, sample: pa.Table) -> pq.ParquetWriter:
    encodings = choose_encodings(sample)
    return pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        compression_level=1,  # with these encodings level 3 costs 16 % more time and makes no smaller file
        use_dictionary=encodings.dictionary,
        column_encoding=encodings.plain,
        store_schema=False,  # the Iceberg schema says what the types are
        store_decimal_as_integer=True,
    )


def _discard(file: _OpenFile) -> None:
    """Close without caring for the contents. The file is about to be deleted, so nothing can be lost."""
    with suppress(Exception):  # writes the footer, which fails again on the disk that was full
        file.parquet.close()
    file.parquet.is_open = False  # or its finalizer would try once more
    with suppress(Exception):
        file.stream.close()
