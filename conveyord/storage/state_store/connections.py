"""How a state is opened: by one connection that writes and makes the checkpoints, and by any number that read."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from conveyord.storage.state_store.schema import Migration, prepare

LOCK_WAIT_SECONDS = 30  # while it is opened: another connection may be recovering the WAL


def connect_to_write(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    """Open the state in `path`, or make one; its tables are up to date. Raises Refused for one of a newer program."""
    path.parent.mkdir(exist_ok=True)
    # The store lets one thread at a time use it: that which applies, or one that begins a snapshot.
    connection = sqlite3.connect(path, timeout=LOCK_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        # A checkpoint that SQLite makes by itself hides its errors, and after a sync that failed the next one may
        # succeed although pages were lost.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        prepare(connection, path, migrations)
        connection.execute("PRAGMA busy_timeout = 0")  # a checkpoint must not wait for readers
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path, *, immutable: bool = False) -> sqlite3.Connection:
    """A read-only connection. It never makes a checkpoint: two that do can lose one (SQLite before 3.51.3).

    immutable: nobody else has the file, or will have it, and there is no WAL; nothing is made beside it.
    """
    options = "mode=ro&immutable=1" if immutable else "mode=ro"
    return sqlite3.connect(
        f"file:{quote(str(path))}?{options}", uri=True, timeout=LOCK_WAIT_SECONDS, isolation_level=None
    )
