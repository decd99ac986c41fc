"""The index of the dead letters: one SQLite file, its schema, and how it is opened.

One read-write connection exists at a time (the owner of the data directory has it); readers open the file
read-only, so that no second connection ever checkpoints: SQLite before 3.51.3 can lose a checkpoint when two
do. WAL lets readers go beside the writer, and `synchronous = FULL` syncs it at every commit; NORMAL would lose
acknowledged letters with the power.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from urllib.parse import quote

from conveyord.core.errors import Refused
from conveyord.storage.dead_letters.faults import damaged_index, translated
from conveyord.storage.dead_letters.segments import segments_on_disk
from conveyord.storage.disk import sync_directory

DIRECTORY = "dead-letters"
INDEX_FILE = "index.db"
LOCK_WAIT_SECONDS = 30  # nobody but a checkpoint or a copying backup holds the file, and both are short
WAL_BYTES_KEPT = 4 * 1024 * 1024  # what a checkpoint leaves of the WAL; as much as gathers between two
SCHEMA_VERSION = 5
READABLE_VERSION = 4  # lacks a column that only its writer asks for, and adds

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
    variant INTEGER NOT NULL,
    came_from INTEGER NOT NULL,  -- the letter that failed here when it was replayed, 0 if it was a record
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_micros INTEGER NOT NULL,
    last_micros INTEGER NOT NULL,
    edited INTEGER NOT NULL DEFAULT 0,
    segment INTEGER,  -- NULL once replayed: the payload is gone
    position INTEGER,
    length INTEGER,
    crc INTEGER,
    UNIQUE (pipeline, source, "partition", "offset", stage, part, variant)
);
CREATE INDEX letters_by_time ON letters (last_micros);
CREATE INDEX letters_by_origin ON letters (came_from) WHERE came_from > 0;
CREATE INDEX letters_by_segment ON letters (segment) WHERE segment IS NOT NULL;
CREATE TABLE claims (  -- which sinks lack what a letter stands for; a letter without any was replayed
    letter INTEGER NOT NULL,
    sink TEXT NOT NULL,
    sequence INTEGER,  -- of its pipeline, while it is queued for replay
    again INTEGER,  -- 0 as long as a run has yet to read the record again for the sink, 1 from when it is on its way
    PRIMARY KEY (letter, sink)
) WITHOUT ROWID;
CREATE INDEX claims_by_sequence ON claims (sequence) WHERE sequence IS NOT NULL;
CREATE TABLE copied (  -- letters that were dropped although their copies were made: they get their ids back
    id INTEGER PRIMARY KEY,
    pipeline TEXT NOT NULL,
    source TEXT NOT NULL,
    "partition" TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    stage TEXT NOT NULL,
    part INTEGER NOT NULL,
    variant INTEGER NOT NULL,
    length INTEGER,  -- with crc: by what another row of that key is known from it
    crc INTEGER
);
CREATE INDEX copied_by_key ON copied (pipeline, source, "partition", "offset", stage, part);
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
    DELETE FROM claims WHERE letter = OLD.id;
END;
"""

UPGRADE = "ALTER TABLE claims ADD COLUMN again INTEGER;"
"""From `READABLE_VERSION`."""


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
            version = _version(connection)
            if version == 0:
                connection.executescript(f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
                for made in (directory, directory.parent, directory.parent.parent):
                    sync_directory(made)
            elif version == READABLE_VERSION:
                connection.executescript(f"BEGIN IMMEDIATE; {UPGRADE} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT")
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


def _connect_read_only(index: Path, parameters: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(index.absolute()))}?{parameters}"
    return sqlite3.connect(uri, uri=True, timeout=LOCK_WAIT_SECONDS, check_same_thread=False, isolation_level=None)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _check_version(connection: sqlite3.Connection, index: Path) -> None:
    if not READABLE_VERSION <= (version := _version(connection)) <= SCHEMA_VERSION:
        connection.close()
        if 0 < version < SCHEMA_VERSION:
            raise Refused(
                f"{index}: an older conveyord wrote it (version {version}, this one knows {SCHEMA_VERSION}); replay, "
                "export or purge the letters with that one, then move the directory away"
            )
        raise damaged_index(index, f"its version is {version}, this conveyord knows {SCHEMA_VERSION}")
