"""Client sessions as rows: what an apply changed is written, and all of them are read when a state is opened."""

from __future__ import annotations

import sqlite3
from itertools import chain

from conveyord.core.raft.sessions import Changes, Sessions
from conveyord.storage.many_rows import insert


def store_changes(cursor: sqlite3.Cursor, changes: Changes) -> None:
    """Write what became of the table, in the transaction of the entries that did it."""
    if changes.gone:
        gone = [(session,) for session in changes.gone]
        cursor.executemany("DELETE FROM raft_sessions WHERE session = ?", gone)
        cursor.executemany("DELETE FROM raft_replies WHERE session = ?", gone)
    if changes.freed:
        cursor.executemany("DELETE FROM raft_replies WHERE session = ? AND number < ?", changes.freed)
    used, replies = list(chain.from_iterable(changes.used)), list(chain.from_iterable(changes.replies))
    insert(cursor.execute, "INSERT OR REPLACE INTO raft_sessions VALUES (?, ?, ?)", used)
    insert(cursor.execute, "INSERT INTO raft_replies VALUES (?, ?, ?)", replies)


def load_sessions(connection: sqlite3.Connection, sessions: Sessions) -> None:
    """Make `sessions` what is stored."""
    sessions.restore(
        connection.execute('SELECT session, floor, "use" FROM raft_sessions ORDER BY "use"').fetchall(),
        connection.execute("SELECT session, number, reply FROM raft_replies"),
    )
