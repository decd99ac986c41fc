"""Local Parquet files as partitions: recognised by their footer, read in batches, row by row numbered.

A position counts rows. The mark of a file is its number of rows and a digest of its footer, which holds the
sizes, places and statistics of all columns: a file that was replaced or rewritten shows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.errors import ConfigError, RecordError, Refused, Retryable
from conveyord.core.flow.positions import Position

BATCH_BYTES = 8 * 1024 * 1024  # of decoded columns in one batch, as far as the footer tells
READ_BYTES = 256 * 1024  # read ahead in each column; else a whole column of a row group would be held
SWOLLEN_BYTES = 64 * 1024 * 1024  # of one batch, if each of its texts were as long as the longest in a dictionary
NEAR_ROWS = 1024  # what stands before damage is read in steps of this size, so at most as much falls with it
ENCRYPTED_MAGIC = b"PARE"
ENCRYPTED_SAYING = "Cannot decrypt"  # how Arrow begins to say that a column is encrypted
TOO_DEEP_SAYING = "too deeply nested"  # more than 100 levels
# What Arrow raises for damage: its own errors, OSError without a number, what Python says of names that are not text.
DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError)
_MAGIC_BYTES, _LENGTH_BYTES = 4, 4


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `[first, end)` of one file; no data, and why, if they cannot be read."""

    first: int
    end: int
    data: pa.RecordBatch | None
    damage: RecordError | None = None


def rows_of_mark(mark: str) -> int:
    """How many rows the file has that `mark` was made of; 0 if there is no mark."""
    return int(mark.partition(":")[0] or 0)


class ParquetReader:
    """Reads one file, from a position on. Blocking, one thread at a time; close it when done.

    columns: the top-level columns to read; None for all. cuts: rows at which a piece must end.
    Raises RecordError (TRUNCATED_FILE) if the footer cannot be read, ConfigError if the file cannot be opened
    or is encrypted, Refused if it is not the file that `position` was taken in.
    """

    def __init__(
        self,
        path: Path,
        *,
        position: Position | None = None,
        columns: Sequence[str] | None = None,
        batch_rows: int,
        cuts: tuple[int, ...] = (),
    ) -> None:
        self._path = path
        self._batch_rows = batch_rows
        self.start = position.offset if position else 0
        self._cuts = tuple(sorted(cut for cut in cuts if cut > self.start))
        self._handle = _opened(path)
        try:
            self._file = self._parse()
            self.mark = f"{self._file.metadata.num_rows}:{self._digest()}"
            """By which the file is recognised."""
            if self.start and position and position.mark != self.mark:
                raise Refused(
                    f"{path}: its footer is not the one that was read before (position {self.start}); the file was "
                    "replaced or edited. Give the new content another name, or restore the file"
                )
            file_schema = self._file.schema_arrow
        except BaseException:
            self.close()
            raise
        self.size_bytes = int(self._handle.size())
        self.rows = int(self._file.metadata.num_rows)
        self.names: list[str] = file_schema.names
        """All top-level columns there are."""
        wanted = [name for name in file_schema.names if columns is None or name in columns]
        self._columns = None if columns is None else wanted

    def close(self) -> None:
        """Let go of the file."""
        self._handle.close()

    def pieces(self) -> Iterator[Piece]:
        """What stands from the start position on, in order, in pieces of at most as many rows as fit a batch.

        A row group that turns out to be damaged ends in a piece without data; the next one is gone on with.
        Raises Retryable if the disk or the mount fails.
        """
        first = 0
        for group in range(self._file.metadata.num_row_groups):
            end = first + int(self._file.metadata.row_group(group).num_rows)
            if end > self.start:
                yield from self._pieces_of(group, first, end)
            first = end

    def _pieces_of(self, group: int, first: int, end: int) -> Iterator[Piece]:
        at = max(first, self.start)
        batch_rows = self._rows_at_a_time(group)
        while at < end:
            try:
                for batch in self._decoded(group, batch_rows, skip=at - first, rows=end - at):
                    yield from self._cut(at, batch)
                    at += batch.num_rows
                if at < end:
                    raise pa.ArrowInvalid(f"it ends {end - at} rows early")
            except DAMAGE as error:
                _raise_if_disk(self._path, error)
                # Columns may be encrypted below a footer that is not. Asking the footer would abort the process.
                if ENCRYPTED_SAYING in str(error):
                    raise _encrypted(self._path) from error
                if batch_rows > NEAR_ROWS:
                    batch_rows = NEAR_ROWS
                    continue
                reason = f"row group {group} cannot be read from row {at} to its end at {end} ({_sentence(error)})"
                yield Piece(at, end, None, _damaged(self._path, reason))
                at = end

    def _decoded(self, group: int, batch_rows: int, *, skip: int, rows: int) -> Iterator[pa.RecordBatch]:
        """Rows `[skip, skip + rows)` of a row group, which has to be decoded from its start."""
        options = {"columns": self._columns, "use_threads": False}
        for batch in self._file.iter_batches(batch_rows, row_groups=[group], **options):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            batch = batch.slice(skip, rows)
            skip = 0
            rows -= batch.num_rows
            if self._columns is not None:  # a column `a` was asked for; one that is called `a.b` came with it
                batch = batch.select(self._columns)
            yield batch
            if rows <= 0:
                return

    def _cut(self, at: int, batch: pa.RecordBatch) -> Iterator[Piece]:
        """`batch`, whose first row is row `at`, in pieces that end where they must."""
        end = at + batch.num_rows
        first = at
        for cut in (*(cut for cut in self._cuts if at < cut < end), end):
            yield Piece(first, cut, batch.slice(first - at, cut - first))
            first = cut

    def _rows_at_a_time(self, group: int) -> int:
        found = self._file.metadata.row_group(group)
        row_bytes = max(1, found.total_byte_size // max(1, found.num_rows))
        rows = int(max(1, min(self._batch_rows, BATCH_BYTES // row_bytes)))
        return max(1, min(rows, int(SWOLLEN_BYTES // self._text_bytes_max(group, rows))))

    def _text_bytes_max(self, group: int, rows: int) -> float:
        """About what the texts of one row take at most, if its lists are of average length; at least 1.

        A footer tells the size of what is encoded: a text that a dictionary holds once may stand in every row, and a
        file of some hundred bytes become gigabytes. rows: how many would be read at a time; if they cannot become too
        large, nothing is looked at.
        """
        found = self._file.metadata.row_group(group)
        if rows * found.total_byte_size <= SWOLLEN_BYTES:
            return 1.0
        size_bytes = 1.0
        for index, column in enumerate(self._file.schema):
            is_read = self._columns is None or column.path.split(".")[0] in self._columns
            if is_read and column.physical_type == "BYTE_ARRAY":
                longest = self._longest_in_dictionary(group, column.path)
                if longest:  # only now: asking the metadata of an encrypted column would abort the process
                    size_bytes += longest * found.column(index).num_values / max(1, found.num_rows)
        return size_bytes

    def _longest_in_dictionary(self, group: int, path: str) -> int:
        """Bytes of the longest text in the dictionary of a column; 0 if there is none, or it cannot be read."""
        import pyarrow.parquet as pq

        options = {"metadata": self._file.metadata, "read_dictionary": [path], "buffer_size": READ_BYTES}
        try:
            file = pq.ParquetFile(self._handle, pre_buffer=False, **options)
            first = next(file.iter_batches(1, row_groups=[group], columns=[path], use_threads=False), None)
            lengths = [] if first is None else [_longest(words) for words in _dictionaries(first.columns)]
        except DAMAGE as error:
            _raise_if_disk(self._path, error)
            return 0  # whatever it is, it is met again at its place
        return max(lengths, default=0)

    def _parse(self) -> Any:
        import pyarrow.parquet as pq

        try:
            file = pq.ParquetFile(
                self._handle,
                pre_buffer=False,
                buffer_size=READ_BYTES,
                page_checksum_verification=True,
                coerce_int96_timestamp_unit="us",  # nanoseconds would wrap around for years such as 9999
            )
            _check_words(file.schema_arrow)
        except DAMAGE as error:
            _raise_if_disk(self._path, error)
            if self._tail(_MAGIC_BYTES) == ENCRYPTED_MAGIC:
                raise _encrypted(self._path) from error
            if TOO_DEEP_SAYING in str(error):
                reason = "its columns nest deeper than 100 levels, which is not read; flatten them"
                raise RecordError(str(self._path), reason, code="TOO_DEEP") from error
            raise _damaged(self._path, f"its footer cannot be read ({_sentence(error)})") from error
        groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
        if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
            raise _damaged(self._path, "its footer contradicts itself about the number of rows")
        return file

    def _digest(self) -> str:
        length = int.from_bytes(self._tail(_MAGIC_BYTES + _LENGTH_BYTES)[:_LENGTH_BYTES], "little")
        footer = self._tail(length + _MAGIC_BYTES + _LENGTH_BYTES)
        return hashlib.sha256(footer).hexdigest()[:32]

    def _tail(self, size_bytes: int) -> bytes:
        size = self._handle.size()
        return bytes(self._handle.read_at(min(size, size_bytes), max(0, size - size_bytes)))


def _dictionaries(arrays: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """The dictionaries in some columns, at any depth."""
    for array in arrays:
        if pt.is_dictionary(array.type):
            yield array.dictionary
        elif pt.is_struct(array.type):
            yield from _dictionaries(array.field(index) for index in range(array.type.num_fields))
        elif pt.is_map(array.type):
            yield from _dictionaries((array.keys, array.items))
        elif pt.is_nested(array.type):
            yield from _dictionaries((array.values,))


def _longest(words: pa.Array) -> int:
    return int(pc.max(pc.binary_length(words)).as_py() or 0)


def _opened(path: Path) -> Any:
    try:
        return pa.OSFile(str(path))
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error


def _raise_if_disk(path: Path, error: Exception) -> None:
    """Raise Retryable if `error` is of the disk rather than of what stands on it."""
    number = getattr(error, "errno", None)
    if number is not None:
        reason = getattr(error, "strerror", None) or str(error)
        raise Retryable(f"{path}: reading it failed ({reason}); check the disk or mount and run again") from error


def _damaged(path: Path, reason: str) -> RecordError:
    return RecordError(str(path), f"{reason}; restore the file and run again", code="TRUNCATED_FILE")


def _encrypted(path: Path) -> ConfigError:
    return ConfigError(f"{path}: is encrypted, which this source does not read; decrypt it into another file first")


def _check_words(schema: pa.Schema) -> None:
    """Raise UnicodeDecodeError if the name of a column or a time zone is not text: Arrow tells when asked."""
    fields = list(schema)
    while fields:
        kinds = [field.type for field in fields if field.name is not None]
        kinds = [kind.value_type if pt.is_dictionary(kind) else kind for kind in kinds]
        for kind in kinds:
            if pt.is_timestamp(kind):
                kind.tz  # noqa: B018 - asking shows it
        fields = [kind.field(index) for kind in kinds if pt.is_nested(kind) for index in range(kind.num_fields)]


def _sentence(error: Exception) -> str:
    """What Arrow says, on one line and without a full stop."""
    return " ".join(str(error).split()).rstrip(".")
