"""The index of the dead letters: one SQLite file, its schema, and how it is opened.

One read-write connection exists at a time (the owner of the data directory has it); readers open the file
read-only, so that no second connection ever checkpoints: SQLite before 3.51.3 can lose a checkpoint when two
do. WAL lets readers go beside the writer, and `synchronous = FULL` syncs it at every commit; NORMAL would lose
acknowledged letters with the power.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from conveyord.storage.dead_letters.faults import damaged_index, translated
from conveyord.storage.dead_letters.segments import segments_on_disk
from conveyord.storage.disk import sync_directory

DIRECTORY = "dead-letters"
INDEX_FILE = "index.db"
LOCK_WAIT_SECONDS = 30  # nobody but a checkpoint or a copying backup holds the file, and both are short
WAL_BYTES_KEPT = 4 * 1024 * 1024  # what a checkpoint leaves of the WAL; as much as gathers between two
SCHEMA_VERSION = 2

# The triggers keep `segments` true whatever moves a letter, so that no statement can forget it.
SCHEMA = """
CREATE TABLE segments (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    end_bytes INTEGER NOT NULL,
    live_bytes INTEGER NOT NULL DEFAULT 0,
    letters INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE letters (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    pipeline TEXT NOT NULL,
    source TEXT NOT NULL,
    "partition" TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    stage TEXT NOT NULL,
    part INTEGER NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_micros INTEGER NOT NULL,
    last_micros INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'dead',
    sequence INTEGER,
    edited INTEGER NOT NULL DEFAULT 0,
    sinks TEXT,  -- a JSON array of those that lack it; NULL if none behind the stage keeps positions
    segment INTEGER,  -- NULL once replayed: the payload is gone
    position INTEGER,
    length INTEGER,
    crc INTEGER,
    UNIQUE (pipeline, source, "partition", "offset", stage, part)
);
CREATE INDEX letters_by_time ON letters (last_micros);
CREATE INDEX letters_by_segment ON letters (segment) WHERE segment IS NOT NULL;
CREATE UNIQUE INDEX letters_by_sequence ON letters (pipeline, sequence) WHERE sequence IS NOT NULL;
CREATE TABLE copied (  -- letters that were dropped although their copies were made: they get their ids back
    id INTEGER PRIMARY KEY,
    pipeline TEXT NOT NULL,
    source TEXT NOT NULL,
    "partition" TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    stage TEXT NOT NULL,
    part INTEGER NOT NULL,
    UNIQUE (pipeline, source, "partition", "offset", stage, part)
);
CREATE TABLE sequences (pipeline TEXT PRIMARY KEY, last INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, count INTEGER NOT NULL) WITHOUT ROWID;
CREATE TRIGGER letter_added AFTER INSERT ON letters BEGIN
    UPDATE segments SET live_bytes = live_bytes + NEW.length, letters = letters + 1 WHERE id = NEW.segment;
    DELETE FROM copied WHERE id = NEW.id;
END;
CREATE TRIGGER letter_moved AFTER UPDATE OF segment, length ON letters BEGIN
    UPDATE segments SET live_bytes = live_bytes - OLD.length, letters = letters - 1 WHERE id = OLD.segment;
    UPDATE segments SET live_bytes = live_bytes + NEW.length, letters = letters + 1 WHERE id = NEW.segment;
END;
CREATE TRIGGER letter_gone AFTER DELETE ON letters BEGIN
    UPDATE segments SET live_bytes = live_bytes - OLD.length, letters = letters - 1 WHERE id = OLD.segment;
END;
"""


def exists(directory: Path) -> bool:
    """Whether there are dead letters to open. Blocking. Raises Corrupt if segments stand there without their index."""
    index = directory / INDEX_FILE
    with translated(index):
        empty = not index.is_file() or index.stat().st_size == 0
        if empty and segments_on_disk(directory):
            raise damaged_index(index, "it is missing or empty, and there are segments beside it")
    return not empty


def open_to_write(directory: Path) -> sqlite3.Connection:
    """Blocking. Open the index as its only writer, and create it durably if it is missing."""
    index = directory / INDEX_FILE
    fresh = not exists(directory)
    with translated(index):
        if fresh:
            directory.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(index, timeout=LOCK_WAIT_SECONDS, check_same_thread=False, isolation_level=None)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only takes effect before the first table
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
            if connection.execute("PRAGMA user_version").fetchone()[0] == 0:
                connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
                for made in (directory, directory.parent, directory.parent.parent):
                    sync_directory(made)
            _check_version(connection, index)
        except BaseException:
            connection.close()
            raise
    return connection


def open_to_read(directory: Path) -> sqlite3.Connection | None:
    """Blocking. Open the index beside its writer; None if there is none yet. Creates no index.

    What a killed writer left in the WAL is read too. On a read-only file system SQLite cannot keep the shared
    memory that a WAL needs; there the file is taken as it is, if no WAL stands beside it.
    """
    if not exists(directory):
        return None
    index = directory / INDEX_FILE
    with translated(index):
        connection = _connect_read_only(index, "mode=ro")
        try:
            version = _version(connection)
        except sqlite3.OperationalError as error:
            connection.close()
            wal = index.with_name(f"{INDEX_FILE}-wal")
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_CANTOPEN or (wal.exists() and wal.stat().st_size):
                raise
            connection = _connect_read_only(index, "mode=ro&immutable=1")
            version = _version(connection)
        except BaseException:
            connection.close()
            raise
        if version == 0:  # its writer was killed, or is busy, while it made the tables
            connection.close()
            return None
        _check_version(connection, index)
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One durable transaction: all of it is on disk on return, or nothing of it happened."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself after some errors
            connection.execute("ROLLBACK")
        raise


def _connect_read_only(index: Path, parameters: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(index.absolute()))}?{parameters}"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_SECONDS, check_same_thread=False, isolation_level=None)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(connection: sqlite3.Connection, index: Path) -> None:
    if (version := _version(connection)) != SCHEMA_VERSION:
        connection.close()
        raise damaged_index(index, f"its version is {version}, this conveyord knows {SCHEMA_VERSION}")
