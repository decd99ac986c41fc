"""Client sessions as rows: what an apply changed is written, and all of them are read when a state is opened.

A row has all replies of its session: a client has few, and a row for each would cost more to write and to remove again
than they do together.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from pathlib import Path

import msgspec

from conveyord.core.raft.sessions import Changes, Sessions
from conveyord.storage.many_rows import insert
from conveyord.storage.state_store.faults import damaged_state

_ENCODER = msgspec.msgpack.Encoder()
_REPLIES = msgspec.msgpack.Decoder(dict[int, bytes])


def store_changes(cursor: sqlite3.Cursor, changes: Changes) -> None:
    """Write what became of the table, in the transaction of the entries that did it."""
    cursor.executemany("DELETE FROM raft_sessions WHERE session = ?", [(session,) for session in changes.gone])
    values = list[int | bytes]()
    for session, floor, use, replies in changes.used:
        values += (session, floor, use, _packed(replies))
    insert(cursor.execute, "INSERT OR REPLACE INTO raft_sessions VALUES (?, ?, ?, ?)", values)


def _packed(replies: dict[int, bytes]) -> bytes:
    """The same bytes at every replica."""
    return _ENCODER.encode(dict(sorted(replies.items())))


def load_sessions(connection: sqlite3.Connection, path: Path, sessions: Sessions) -> None:
    """Make `sessions` what is stored in `path`. Raises Corrupt."""
    rows = connection.execute('SELECT session, floor, "use", replies FROM raft_sessions ORDER BY "use"').fetchall()
    try:
        used = [(session, floor, use, _REPLIES.decode(replies)) for session, floor, use, replies in rows]
    except (msgspec.MsgspecError, TypeError) as error:
        raise damaged_state(path, f"replies of a client cannot be read: {error}") from error
    sessions.restore(used)


def join_replies(connection: sqlite3.Connection) -> None:
    """Make the rows those of version 2 of the schema, whose tables are there: in version 1 each reply had a row."""
    found = defaultdict[int, dict[int, bytes]](dict)
    for session, number, reply in connection.execute("SELECT session, number, reply FROM raft_replies"):
        found[session][number] = reply
    rows = connection.execute('SELECT session, floor, "use" FROM former_sessions').fetchall()
    all_of_them = [(*row, _packed(found[row[0]])) for row in rows]
    connection.executemany("INSERT INTO raft_sessions VALUES (?, ?, ?, ?)", all_of_them)
