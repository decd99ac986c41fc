"""The SQLite file of a Raft log: settings, schema, and what an error of SQLite means.

There is no auto_vacuum: pages of compacted entries are used again, and a file that gave space back would have to ask
for it when the disk is full. `synchronous = EXTRA` would add nothing: in WAL mode it is FULL.
"""

from __future__ import annotations

from pathlib import Path

import apsw

from conveyord.core.errors import ConveyordError, Corrupt, Refused, Retryable, StorageFull
from conveyord.core.raft.types import NodeId
from conveyord.storage.raft_log.head import COLUMNS, Head, head_of, row_of

APPLICATION_ID = int.from_bytes(b"cvrl", "big")
SCHEMA_VERSION = 1
CACHE_KIBIBYTES = 8192
WAL_BYTES_MAX = 64 * 1024 * 1024  # kept on disk for the next transactions; more is given back

SETTINGS = (
    "locking_mode = EXCLUSIVE",  # nobody else reads it: no shared memory is needed
    "synchronous = FULL",  # with every transaction, not with every checkpoint
    "cell_size_check = ON",  # damage is to be found when a page is read, not when it is used
    "temp_store = MEMORY",
    "cache_spill = OFF",  # a transaction has each page once in the write-ahead log: `wal` rests on it
    f"cache_size = -{CACHE_KIBIBYTES}",
    f"journal_size_limit = {WAL_BYTES_MAX}",
)
SCHEMA = (
    """CREATE TABLE entries (
        "index" INTEGER PRIMARY KEY, term INTEGER NOT NULL, kind INTEGER NOT NULL, crc INTEGER NOT NULL,
        chain BLOB NOT NULL, data BLOB NOT NULL) STRICT""",
    """CREATE TABLE head (
        node TEXT NOT NULL, sequence INTEGER NOT NULL, term INTEGER NOT NULL, vote TEXT, commit_hint INTEGER NOT NULL,
        base_index INTEGER NOT NULL, base_term INTEGER NOT NULL, base_chain BLOB NOT NULL, members BLOB NOT NULL,
        last_index INTEGER NOT NULL, last_chain BLOB NOT NULL, crc INTEGER NOT NULL) STRICT""",
)
SET_HEAD = f"UPDATE head SET {', '.join(f'{column} = ?' for column in COLUMNS)}"  # noqa: S608 - names of ours

UNREADABLE_CODES = frozenset(
    {apsw.SQLITE_IOERR_READ, apsw.SQLITE_IOERR_SHORT_READ, apsw.SQLITE_IOERR_CORRUPTFS, apsw.SQLITE_IOERR_DATA}
)


def connect(path: Path, vfs: str | None) -> apsw.Connection:
    """Open the file, or make an empty one. Nothing is written but in transactions of the caller, and checkpoints."""
    connection = apsw.Connection(str(path), vfs=vfs)
    # What is damaged is to stay as it is.
    connection.wal_autocheckpoint(0)
    connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    for setting in SETTINGS:
        connection.execute(f"PRAGMA {setting}")
    return connection


def is_blank(connection: apsw.Connection) -> bool:
    """Whether there is nothing in it: it was made now, or a crash came before its schema."""
    return not connection.pragma("application_id") and not connection.execute("SELECT 1 FROM sqlite_schema").fetchall()


def make(connection: apsw.Connection, path: Path, node: NodeId) -> Head:
    """Make an empty log of `node`, durably but for the name of its file."""
    if connection.pragma("journal_mode", "wal") != "wal":  # SQLite says no more if the disk fails here
        raise Retryable(f"{path}: a log cannot be made; check the disk, then run again")
    head = Head(node)
    with connection:
        for statement in SCHEMA:
            connection.execute(statement)
        connection.execute(f"INSERT INTO head VALUES ({', '.join('?' * len(COLUMNS))})", row_of(head))  # noqa: S608
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    return head


def read_head(connection: apsw.Connection, path: Path, node: NodeId) -> Head:
    """The head of a log that was made before. Raises Refused if it is not for us to use, Corrupt if it is damaged."""
    application_id, version = connection.pragma("application_id"), connection.pragma("user_version")
    if application_id != APPLICATION_ID:
        raise Refused(
            f"{path} is a database of something else (application id {application_id}, a Raft log has "
            f"{APPLICATION_ID}); move it away, or let the data directory be another"
        )
    if version != SCHEMA_VERSION:
        raise Refused(
            f"{path} has schema {version}, this conveyord knows {SCHEMA_VERSION}; run the version that wrote it"
        )
    if connection.pragma("journal_mode") != "wal":
        raise Corrupt("it is not in WAL mode any more")
    head = head_of(connection.execute(f"SELECT {', '.join(COLUMNS)} FROM head").fetchall())  # noqa: S608
    if head.node != node:
        raise Refused(
            f"{path} is the log of node {head.node}, whose votes are in it, and this is node {node}; start it as "
            f"{head.node}, or with an empty data directory"
        )
    return head


def is_damage(error: apsw.Error) -> bool:
    """Whether an error says that the file is not what was written, or that some of it cannot be read."""
    # SQLite reports much of what can be wrong with a schema as an error of the statement; all of them are ours.
    damage = apsw.CorruptError | apsw.NotADBError | apsw.SQLError
    return isinstance(error, damage) or getattr(error, "extendedresult", None) in UNREADABLE_CODES


def explained(error: apsw.Error, path: Path) -> ConveyordError:
    """An error of SQLite that says nothing of what is stored."""
    match error:
        case apsw.BusyError() | apsw.LockedError():
            return Refused(f"{path} is in use by another process; end that, then run again")
        case apsw.FullError():
            return StorageFull(f"{path}: {error}; free space and run again, nothing that was acknowledged is lost")
        case apsw.CantOpenError() | apsw.ReadOnlyError() | apsw.PermissionsError():
            return StorageFull(f"{path}: {error}; make the file and its directory writable, then run again")
        case _:
            return Retryable(f"{path}: {error}; check the disk, then run again")
