"""Remembers which files of the lake may turn out to be garbage, in `<data-dir>/runs.db`.

A file is entered before it is opened and taken out once a commit that names it has landed. What a
killed run leaves behind is therefore known, and can be deleted without listing a warehouse.

Rows of the ledger are suspicions, never verdicts: maintenance deletes a listed file only after it
has seen that the table does not reference it, and only when no attempt that names it can still land.
Losing this file costs disk space, never rows, which is why `synchronous=NORMAL` is enough: after a
power cut the last entries may be missing, and the files they named merely stay.
"""

from __future__ import annotations

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conveyord.core.errors import Corrupt, StorageFull
from conveyord.storage.lake.outcomes import FULL_MESSAGES

LEDGER_FILE = "runs.db"
LATE_LANDING_SECONDS = 24 * 3600  # no catalog keeps a request for a day
LOCK_WAIT_SECONDS = 30

SCHEMA = """
CREATE TABLE IF NOT EXISTS lake_files (
    path TEXT PRIMARY KEY,
    table_uuid TEXT NOT NULL,
    pipeline TEXT NOT NULL,
    session TEXT NOT NULL,
    abandoned_by INTEGER,  -- the batch that, once landed, makes a late landing of this file impossible
    entered_at REAL NOT NULL
) WITHOUT ROWID
"""


class Ledger:
    """The ledger of one data directory. Thread-safe; one per process, whose data directory is locked.

    Blocking. `clock` gives seconds since the epoch. Raises StorageFull if the disk is full or read-only,
    Corrupt if the file is damaged.
    """

    def __init__(self, data_dir: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.session = uuid.uuid4().hex
        self.clock = clock
        self._path = data_dir / LEDGER_FILE
        self._lock = threading.Lock()
        with self._translating():
            data_dir.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=LOCK_WAIT_SECONDS, check_same_thread=False, isolation_level=None
            )
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._connection.execute(SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def for_table(self, pipeline: str) -> TableLedger:
        """The part of the ledger that belongs to one pipeline's table."""
        return TableLedger(self, pipeline)

    def write(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Run one statement for every row, in one transaction."""
        with self._lock, self._translating():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.executemany(statement, rows)
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")

    def read(self, query: str, parameters: tuple[object, ...]) -> list[tuple[str, ...]]:
        with self._lock, self._translating():
            return self._connection.execute(query, parameters).fetchall()

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            if any(message in str(error) for message in FULL_MESSAGES):
                raise StorageFull(f"{self._path}: {error}; free space or make it writable, then run again") from error
            raise
        except sqlite3.DatabaseError as error:
            raise Corrupt(
                f"{self._path}: {error}; delete that file and run again. It only remembers which files may be "
                "garbage: no row depends on it"
            ) from error


class TableLedger:
    """The suspicions about one table, as seen by one run of one pipeline. Thread-safe.

    Bound to a table's UUID by the committer: what is suspected of one table must not be deleted
    because another one of the same name does not reference it.
    """

    def __init__(self, ledger: Ledger, pipeline: str) -> None:
        self._ledger = ledger
        self._pipeline = pipeline
        self._table: str | None = None

    def bind(self, table_uuid: str) -> None:
        self._table = table_uuid

    def intend(self, path: str) -> None:
        """Enter a file that is about to be opened for the next batches of this run."""
        self.intend_all([path])

    def intend_all(self, paths: Iterable[str]) -> None:
        self._enter(paths, None)

    def abandon(self, paths: Iterable[str], *, batch: int) -> None:
        """Enter files that this run has no more use for. They may be looked at once `batch` has landed."""
        self._enter(paths, batch)

    def settle(self, paths: Iterable[str]) -> None:
        """Take out files that landed, or that are deleted."""
        self._ledger.write("DELETE FROM lake_files WHERE path = ?", ((path,) for path in paths))

    def suspects(self, *, landed: int | None) -> list[str]:
        """Files that no attempt can bring into the table any more. Whether it has them is another question.

        landed: the last batch that this run landed, None if none yet. A landing excludes every request
        of earlier runs, which are pinned to an older head.
        """
        before = self._ledger.clock() - LATE_LANDING_SECONDS
        found = self._ledger.read(
            "SELECT path FROM lake_files WHERE table_uuid = ? AND pipeline = ? AND "
            "((session != ? AND (? OR entered_at < ?)) OR abandoned_by <= ?) ORDER BY path",
            (self._table, self._pipeline, self._ledger.session, landed is not None, before, landed),
        )
        return [path for (path,) in found]

    def _enter(self, paths: Iterable[str], batch: int | None) -> None:
        assert self._table is not None, "the ledger is bound by TableCommitter.open"
        fixed = (self._table, self._pipeline, self._ledger.session, batch, self._ledger.clock())
        self._ledger.write(
            "INSERT OR REPLACE INTO lake_files VALUES (?, ?, ?, ?, ?, ?)", ((path, *fixed) for path in paths)
        )
