"""Rolling Parquet files, one at a time for each partition, within bounds of memory and open files.

Our own writer, because the ones at hand size files by their Arrow bytes (so they end up several times too
small), filter a batch once per partition, and use Parquet's defaults, which build a dictionary for
every column and throw most of them away. Where files lie and what becomes of them is the subclass's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conveyord.storage.lake.encodings import choose_encodings

COMBINE_BELOW_ROWS = 4096  # chunks smaller than this cost more in the encoder than one copy does

Key = tuple[Any, ...]
"""The values that the rows of one partition have in common."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingOptions:
    """How files are written."""

    target_file_bytes: int = 128 * 1024 * 1024
    """Bytes on disk at which a new file is begun. Passed by at most one row group."""
    file_rows_max: int | None = None
    """Rows in one file, at most."""
    row_group_bytes: int = 32 * 1024 * 1024
    """Arrow bytes buffered for one partition before they are written: about 256k rows of ten columns."""
    row_group_rows_max: int = 1024 * 1024
    buffer_bytes_max: int = 128 * 1024 * 1024
    """Arrow bytes buffered for all partitions together; above it the largest is written."""
    open_files_max: int = 64
    """Above it the least recently written file is closed. Each holds a write buffer of a megabyte, on object
    stores a part of several, beside its descriptor, of which a process has 1,024 by default."""


@dataclass(slots=True)
class _OpenFile:
    path: str
    stream: Any
    parquet: pq.ParquetWriter


@dataclass(slots=True)
class _Partition:
    """What is buffered for one partition, and its current file if one is open."""

    key: Key
    batches: list[pa.RecordBatch] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0
    file: _OpenFile | None = None
    file_rows: int = 0


class RollingWriter(ABC):
    """Blocking. One thread at a time. After an error the only sensible call is `abort`."""

    def __init__(self, stored: pa.Schema, options: RollingOptions) -> None:
        """stored: the schema of the files. What `_split` yields has the same columns, perhaps by other names."""
        self._stored = stored
        self._options = options
        self._partitions: dict[Key, _Partition] = {}
        self._started: list[str] = []
        self._closed_bytes = 0
        self.rows = 0
        """Rows taken since the last `_close_all` or `abort`."""
        self.buffered_bytes = 0
        """Arrow bytes taken but not yet written."""

    @abstractmethod
    def _split(self, batch: pa.RecordBatch) -> Iterable[tuple[Key, pa.RecordBatch]]:
        """The rows of a batch by partition, each once, in order."""

    @abstractmethod
    def _create(self, key: Key) -> tuple[str, Any]:
        """Begin a file of a partition: its path, and where its bytes go, open for writing.

        What is written there must be durable once it is closed. `_note` the path before it is created.
        """

    @abstractmethod
    def _finished(self, key: Key, path: str, *, size_bytes: int, metadata: pq.FileMetaData) -> None:
        """A file was closed."""

    @abstractmethod
    def _delete(self, path: str) -> None:
        """Delete a file. Raises FileNotFoundError if it is not there."""

    def _footer(self, key: Key, path: str, stream: Any) -> Mapping[str, str]:  # noqa: ARG002 - for overriding
        """What the file at `path` is to say of itself in its footer, which is about to be written to `stream`."""
        return {}

    @property
    def bytes_written(self) -> int:
        """Bytes of Parquet written since the last `_close_all` or `abort`, in closed and in open files."""
        files = (partition.file for partition in self._partitions.values())
        return self._closed_bytes + sum(int(file.stream.tell()) for file in files if file is not None)

    def write(self, batch: pa.RecordBatch) -> None:
        """Take one batch. Row groups are written as buffers fill. Raises what the streams raise, as it is."""
        for key, part in self._split(batch):
            partition = self._partitions.setdefault(key, _Partition(key))
            for piece in self._pieces(partition, part):
                self._buffer(partition, piece)
        self.rows += batch.num_rows
        while self.buffered_bytes > self._options.buffer_bytes_max:
            self._write_row_group(max(self._partitions.values(), key=lambda partition: partition.bytes))

    def abort(self) -> None:
        """Close and delete every file of this round. Files of earlier rounds are the caller's.

        Raises what deleting raises.
        """
        for partition in self._partitions.values():
            if partition.file is not None:
                _discard(partition.file)
        started = self._started
        self._reset()
        for path in started:
            with suppress(FileNotFoundError):  # it was announced, but could not be created
                self._delete(path)

    def _note(self, path: str) -> None:
        """Remember a file that is about to be created, for `abort`."""
        self._started.append(path)

    def _close_all(self) -> list[str]:
        """Write what is buffered and close all files. Returns the files of this round in the order of creation."""
        for partition in list(self._partitions.values()):
            if partition.batches:
                self._write_row_group(partition)
            self._close(partition)
        started = self._started
        self._reset()
        return started

    def _reset(self) -> None:
        self._partitions = {}
        self._started = []
        self._closed_bytes = 0
        self.rows = 0
        self.buffered_bytes = 0

    def _pieces(self, partition: _Partition, part: pa.RecordBatch) -> Iterable[pa.RecordBatch]:
        """`part`, cut where a file has its rows; those files are closed on the way."""
        limit = self._options.file_rows_max
        while limit is not None and (room := limit - partition.file_rows - partition.rows) <= part.num_rows:
            yield part.slice(0, room)
            part = part.slice(room)
            if partition.batches:
                self._write_row_group(partition)
            self._close(partition)
        if part.num_rows:
            yield part

    def _buffer(self, partition: _Partition, part: pa.RecordBatch) -> None:
        size = part.nbytes
        partition.batches.append(part)
        partition.rows += part.num_rows
        partition.bytes += size
        self.buffered_bytes += size
        if partition.bytes >= self._options.row_group_bytes or partition.rows >= self._options.row_group_rows_max:
            self._write_row_group(partition)

    def _write_row_group(self, partition: _Partition) -> None:
        batches, rows = partition.batches, partition.rows
        self.buffered_bytes -= partition.bytes
        partition.batches, partition.rows, partition.bytes = [], 0, 0
        rows_table = _as_stored(batches, self._stored)
        if partition.file is None:
            partition.file = self._open(partition.key, rows_table)
        partition.file_rows += rows
        # Moved to the end, so that the mapping is ordered by last use.
        self._partitions[partition.key] = self._partitions.pop(partition.key)
        group_rows = min(rows, self._options.row_group_rows_max)
        partition.file.parquet.write_table(rows_table, row_group_size=group_rows)
        if partition.file.stream.tell() >= self._options.target_file_bytes:
            self._close(partition)

    def _open(self, key: Key, sample: pa.Table) -> _OpenFile:
        open_now = [partition for partition in self._partitions.values() if partition.file is not None]
        if len(open_now) >= self._options.open_files_max:
            self._close(open_now[0])
        path, stream = self._create(key)
        try:
            parquet = _parquet_writer(stream, self._stored, sample)
        except BaseException:
            with suppress(Exception):  # the first bytes could not be written, so neither may the last
                stream.close()
            raise
        return _OpenFile(path, stream, parquet)

    def _close(self, partition: _Partition) -> None:
        """Close the partition's file, if any, and hand it over as finished."""
        if partition.file is None:
            return
        file = partition.file
        if footer := self._footer(partition.key, file.path, file.stream):
            file.parquet.add_key_value_metadata(dict(footer))
        file.parquet.close()
        size = int(file.stream.tell())
        file.stream.close()
        partition.file, partition.file_rows = None, 0
        self._finished(partition.key, file.path, size_bytes=size, metadata=file.parquet.writer.metadata)
        self._closed_bytes += size


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


def _parquet_writer(stream: Any, schema: pa.Schema, sample: pa.Table) -> pq.ParquetWriter:
    encodings = choose_encodings(sample)
    return pq.ParquetWriter(
        stream,
        schema,
        compression="zstd",
        compression_level=1,  # with these encodings level 3 costs 16 % more time and makes no smaller file
        use_dictionary=encodings.dictionary,
        column_encoding=encodings.plain,
        store_schema=False,  # what Parquet's own types do not say, the table or the manifest does
        store_decimal_as_integer=True,
        write_page_checksum=True,  # 4 % of what writing costs, and any reader can notice a damaged page
    )


def _discard(file: _OpenFile) -> None:
    """Close without caring for the contents. The file is about to be deleted, so nothing can be lost."""
    with suppress(Exception):  # writes the footer, which fails again on the disk that was full
        file.parquet.close()
    file.parquet.is_open = False  # or its finalizer would try once more
    with suppress(Exception):
        file.stream.close()
