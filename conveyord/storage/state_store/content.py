"""What a state says, as a hash: by it replicas are compared."""

from __future__ import annotations

import sqlite3
from hashlib import blake2b

import msgpack

DIGEST_BYTES = 16
_NOT_CONTENT = ("raft_migrations", "raft_applied")  # when a program was renewed, and who was known as a member
ROWS_AT_ONCE = 1_000


def state_digest(connection: sqlite3.Connection) -> bytes:
    """The hash of all rows of all tables, and of the mark. It says nothing of how they lie in the file.

    Equal at two nodes with the same mark, the same tables and the same program; what differs says nothing of where.
    """
    found = blake2b(digest_size=DIGEST_BYTES)
    found.update(msgpack.packb(connection.execute('SELECT "index", term, chain FROM raft_applied').fetchone()))
    tables = connection.execute(
        "SELECT name, wr FROM pragma_table_list WHERE schema = 'main' AND type = 'table' AND name NOT LIKE 'sqlite_%' "
        "ORDER BY name"
    ).fetchall()
    for name, is_without_rowid in tables:
        if name in _NOT_CONTENT:
            continue
        # SQLite may read a table in the order of any index that has all columns, unless it is told otherwise.
        keys = connection.execute("SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", [name])
        order = ", ".join(_quoted(key) for (key,) in keys) if is_without_rowid else "rowid"
        found.update(msgpack.packb(name))
        rows = connection.execute(f"SELECT * FROM {_quoted(name)} ORDER BY {order}")  # noqa: S608 - a table's own names
        while some := rows.fetchmany(ROWS_AT_ONCE):
            found.update(msgpack.packb(some))
    return found.digest()


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
