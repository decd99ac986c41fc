"""References in CSV and Parquet files. A file is known again by its device, inode, size and time of change."""

from __future__ import annotations

import errno
import os
from abc import abstractmethod
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import ConfigError, Retryable
from conveyord.storage.lookup.reading import Gathering, Loaded, ReferenceReader, Wanted, chosen

BLOCK_BYTES = 4 * 1024 * 1024  # of CSV, read at a time
BATCH_ROWS = 65_536  # of Parquet, read at a time
CAST_ROWS = 10_000  # of text, tried at a time

_NOT_A_NUMBER = r"^[+-]?0[0-9]|^\+|[nN]"
"""What Arrow would read as a number, but is none to go by: 007, +1, nan, inf."""


def file_mark(path: Path, name: str) -> Hashable:
    """What tells this content of a file from another. Raises ConfigError or Retryable if there is no such file."""
    with file_errors(name):
        found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


@contextmanager
def file_errors(name: str) -> Iterator[None]:
    """Say what the operating system means of the file that `name` calls."""
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{name} does not exist; the path is taken from {os.getcwd()}") from None  # noqa: PTH109
    except IsADirectoryError:
        raise ConfigError(f"{name} is a directory; name one file") from None
    except PermissionError as error:
        raise ConfigError(f"{name} cannot be read: {error.strerror}") from error
    except OSError as error:
        if error.errno is None or error.errno == errno.EINVAL:  # Arrow's word on what it read, not the system's
            raise ConfigError(f"{name} cannot be read: {first_line(error)}") from error
        raise Retryable(f"{name} cannot be read: {error.strerror or error}") from error
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} cannot be read: {first_line(error)}") from error


class FileReader(ReferenceReader):
    """A reference in one file, which is read as a whole and must not change meanwhile."""

    def __init__(self, path: str) -> None:
        self.name = f"reference {path}"
        self._path = Path(path)

    def mark(self) -> Hashable:
        """See `ReferenceReader.mark`."""
        return file_mark(self._path, self.name)

    def read(self, wanted: Wanted, checkpoint: Callable[[], None]) -> Loaded:
        """See `ReferenceReader.read`."""
        before = self.mark()
        try:
            with file_errors(self.name):
                table = self._table(wanted, checkpoint)
        except ConfigError as error:
            if self.mark() != before:  # half of a file may look like anything
                raise self._changed() from error
            raise
        if self.mark() != before:
            raise self._changed()
        return Loaded(before, table)

    def _changed(self) -> Retryable:
        return Retryable(
            f"{self.name} changed while it was read; replace it by renaming a finished file, not by writing into it"
        )

    @abstractmethod
    def _table(self, wanted: Wanted, checkpoint: Callable[[], None]) -> pa.Table:
        """What is wanted of the file as it stands."""


class ParquetReader(FileReader):
    """A Parquet file."""

    def _table(self, wanted: Wanted, checkpoint: Callable[[], None]) -> pa.Table:
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(self._path) as file:
            schema = file.schema_arrow
            columns = chosen(self, schema.names, wanted)
            gathering = Gathering(self, wanted, checkpoint)
            for batch in file.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
                gathering.add(batch.select(columns))
            return gathering.table(pa.schema([schema.field(name) for name in columns]))


class CsvReader(FileReader):
    """A CSV file with a header, compressed or not.

    Keys stay text, so that 00501 is a zip code; what the rows have decides what they are. The other columns get
    the first of long, double, boolean, date, timestamp and text that all their values are. An empty cell is null.
    """

    text_keys = True

    def __init__(self, path: str, *, delimiter: str) -> None:
        super().__init__(path)
        self._delimiter = delimiter

    def _table(self, wanted: Wanted, checkpoint: Callable[[], None]) -> pa.Table:
        import pyarrow.csv as csv

        parse = csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True)
        read = csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False)
        with pa.input_stream(str(self._path), compression="detect") as file, csv.open_csv(file, read, parse) as reader:
            columns = chosen(self, reader.schema.names, wanted)
        convert = csv.ConvertOptions(
            include_columns=columns,
            column_types=dict.fromkeys(columns, pa.string()),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
        )
        gathering = Gathering(self, wanted, checkpoint)
        with (
            pa.input_stream(str(self._path), compression="detect") as file,
            csv.open_csv(file, read, parse, convert) as reader,
        ):
            for batch in reader:
                gathering.add(batch)
        table = gathering.table(pa.schema([(name, pa.string()) for name in columns]))
        typed = {
            name: table[name] if name in wanted.keys else _typed(table[name]) for name in columns
        }  # fmt: skip
        return pa.table(typed)


def _typed(texts: pa.ChunkedArray) -> pa.Array:
    """A column of text as what all of it is."""
    if texts.null_count == len(texts):
        return texts.combine_chunks()
    is_number = not pc.any(pc.match_substring_regex(texts, _NOT_A_NUMBER)).as_py()
    numbers = (pa.int64(), pa.float64()) if is_number else ()
    for kind in (*numbers, pa.bool_(), pa.date32(), pa.timestamp("us"), pa.timestamp("us", "UTC")):
        if pa.types.is_boolean(kind) and pc.any(pc.is_in(texts, value_set=pa.array(["0", "1"]))).as_py():
            continue
        try:
            # In pieces, because Arrow goes on to the end of one after the first value that does not fit.
            pieces = [texts.slice(first, CAST_ROWS).cast(kind).chunks for first in range(0, len(texts), CAST_ROWS)]
        except pa.ArrowInvalid:
            continue
        return pa.chunked_array([chunk for piece in pieces for chunk in piece], kind).combine_chunks()
    return texts.combine_chunks()


def first_line(error: Exception) -> str:
    """What a library says, without what it adds on further lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]
