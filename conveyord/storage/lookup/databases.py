"""References in SQLite databases, read beside whoever writes them."""

from __future__ import annotations

import math
import sqlite3
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa

from conveyord.core.errors import ConfigError, Retryable
from conveyord.storage.lookup.files import file_errors
from conveyord.storage.lookup.reading import Gathering, Loaded, ReferenceReader, Wanted, chosen

BATCH_ROWS = 10_000  # fetched at a time
LOCK_WAIT_SECONDS = 5.0  # a writer holds its lock for milliseconds; a batch of rows waits meanwhile
STEPS_PER_CHECK = 100_000  # of SQLite's machine between two looks whether the run was cancelled: milliseconds
QUERY_SECONDS_MAX = 600.0  # one that never ends would hold its pipeline forever; what fits in memory takes a minute

_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, 33}  # 33: SQLITE_RECURSIVE


class SqliteReader(ReferenceReader):
    """A table of a SQLite database, or the result of a query in it.

    The connection stays open, because `PRAGMA data_version` tells only one connection of the commits of others.
    Values become long, double, text or binary, as all of a column are; booleans and times are what they are stored as.
    """

    def __init__(
        self, path: str, *, table: str | None, query: str | None, query_seconds_max: float = QUERY_SECONDS_MAX
    ) -> None:
        self.name = f"reference {path}" + ("" if table is None else f" (table {table})")
        self._path = Path(path)
        self._query = f"SELECT * FROM {_quoted(table)}" if table is not None else query  # noqa: S608 - quoted
        self._seconds_max = query_seconds_max if table is None else math.inf
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._opened = 0

    def mark(self) -> Hashable:
        """See `ReferenceReader.mark`. A file put in the place of another is opened anew."""
        with self._errors():
            return self._mark()

    def read(self, wanted: Wanted, checkpoint: Callable[[], None]) -> Loaded:
        """See `ReferenceReader.read`. All rows are of one state of the database.

        Raises ConfigError also for a query that takes longer than its limit.
        """
        with self._errors():
            self._mark()  # opens
            assert self._connection is not None
            stopped: list[BaseException] = []
            end = time.monotonic() + self._seconds_max

            def look() -> int:
                try:
                    checkpoint()
                    if time.monotonic() >= end:
                        raise ConfigError(
                            f"{self.name}: the query takes longer than {self._seconds_max:g} s; make it smaller, or "
                            "store its result as a table and name that as reference.table"
                        )
                except BaseException as error:  # noqa: BLE001 - raised below; SQLite would swallow it
                    stopped.append(error)
                return len(stopped)

            self._connection.set_progress_handler(look, STEPS_PER_CHECK)
            self._connection.execute("BEGIN")
            try:
                mark = self._mark()
                return Loaded(mark, self._table(self._connection, wanted, checkpoint))
            except sqlite3.OperationalError:
                if stopped:
                    raise stopped[0] from None
                raise
            finally:
                self._connection.set_progress_handler(None, 0)
                self._connection.rollback()

    def close(self) -> None:
        """See `ReferenceReader.close`."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _mark(self) -> Hashable:
        found = self._path.stat()
        if self._connection is None or self._file != (found.st_dev, found.st_ino):
            self.close()
            self._connection = self._open()
            self._file = (found.st_dev, found.st_ino)
            self._opened += 1
        (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        return self._opened, version

    def _open(self) -> sqlite3.Connection:
        uri = f"file:{quote(str(self._path.absolute()))}?mode=ro"
        connection = sqlite3.connect(
            uri, uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA query_only = 1")
        return connection

    def _table(self, connection: sqlite3.Connection, wanted: Wanted, checkpoint: Callable[[], None]) -> pa.Table:
        assert self._query is not None
        # Nothing but reading: no other file attached, no setting changed, whatever the query says.
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY)
        try:
            with closing(connection.execute(self._query)) as cursor:
                if cursor.description is None:
                    raise ConfigError(f"{self.name}: query must be a SELECT")
                names = [column[0] for column in cursor.description]
                columns = chosen(self, names, wanted)
                places = [names.index(name) for name in columns]
                gathering, chunks = Gathering(self, wanted, checkpoint), []
                while rows := cursor.fetchmany(BATCH_ROWS):
                    values = list(zip(*rows, strict=True))
                    batch = [self._array(values[place], names[place]) for place in places]
                    gathering.add(pa.RecordBatch.from_arrays(batch, names=columns))
                    chunks.append(batch)
        finally:
            connection.set_authorizer(None)
        return pa.table({name: self._column([chunk[i] for chunk in chunks], name) for i, name in enumerate(columns)})

    def _array(self, values: tuple[object, ...], name: str) -> pa.Array:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise self._mixed(name) from error

    def _column(self, chunks: list[pa.Array], name: str) -> pa.Array:
        """One array of what was read in pieces, whose types follow from their own values alone."""
        kinds = {chunk.type for chunk in chunks} - {pa.null()}
        kind = pa.float64() if kinds == {pa.int64(), pa.float64()} else next(iter(kinds), pa.null())
        try:
            return pa.concat_arrays([chunk.cast(kind) for chunk in chunks]) if chunks else pa.nulls(0)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise self._mixed(name) from error

    def _mixed(self, name: str) -> ConfigError:
        return ConfigError(
            f"{self.name}: the values of column {name!r} are of different types; give reference.query a SELECT with "
            f"CAST({_quoted(name)} AS TEXT) or another type"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with file_errors(self.name):
                yield
        except sqlite3.OperationalError as error:
            code = error.sqlite_errorcode & 0xFF
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
                raise Retryable(f"{self.name} cannot be read: {error}") from error
            raise ConfigError(f"{self.name} cannot be read: {error}") from error
        except (sqlite3.DatabaseError, sqlite3.Warning) as error:
            self.close()
            # What the module itself refuses, such as a second statement, carries no code.
            denied = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_AUTH
            reason = "the query does more than read" if denied else str(error)
            raise ConfigError(f"{self.name} cannot be read: {reason}") from error


def _quoted(name: str) -> str:
    """A name as SQL takes it, whatever stands in it."""
    return '"' + name.replace('"', '""') + '"'
