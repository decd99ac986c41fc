"""How a state is opened: by one connection that writes and makes the checkpoints, and by any number that read."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from conveyord.storage.state_store.schema import Migration, prepare

# For a moment, even one that only reads may keep all others away: it is recovering the WAL, or has found the head of it
# half written and looks again under the lock for writing.
LOCK_WAIT_SECONDS = 30

# As it is. sqlite3 asks otherwise at each that is bound, in vain and for longer than it takes to write it, whether it
# adapts itself to SQLite.
sqlite3.register_adapter(bytes, bytes)


def connect_to_write(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open the state in `path`, or make one; its tables are up to date. Raises Refused for one of a newer program."""
    # The store lets one thread at a time use it: that which applies, or one that begins a snapshot.
    connection = sqlite3.connect(path, timeout=LOCK_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        # A checkpoint that SQLite makes by itself hides its errors, and after a sync that failed the next one may
        # succeed although pages were lost.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        # What a statement of many rows may have to take back goes to a file of its own otherwise, on another disk.
        connection.execute("PRAGMA temp_store = MEMORY")
        prepare(connection, path, migrations)
    except BaseException:
        connection.close()
        raise
    return connection


def checkpoint(connection: sqlite3.Connection) -> tuple[bool, int, int]:
    """Move the WAL into the file and cut it, as far as nobody is in the way: it waits for no reader.

    Returns whether somebody was, how many frames the WAL had, and how many of those are in the file and on disk. Raises
    an error of SQLite.
    """
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        busy, frames, moved = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {LOCK_WAIT_SECONDS * 1_000}")
    return bool(busy), frames, moved


def connect_to_read(path: Path, *, immutable: bool = False) -> sqlite3.Connection:
    """A read-only connection. It never makes a checkpoint: two that do can lose one (SQLite before 3.51.3).

    immutable: nobody else has the file, or will have it, and there is no WAL; nothing is made beside it.
    """
    options = "mode=ro&immutable=1" if immutable else "mode=ro"
    return sqlite3.connect(
        f"file:{quote(str(path))}?{options}", uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None
    )
