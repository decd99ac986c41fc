"""The tables, as migrations of the state store: only ever added at the end, for ever.

Rows of a table have the fields of its class in core/state/rows.py, in that order, and a test holds the two together;
those of `audit` and `events` are what packed.py says.
"""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

from conveyord.core.state.rows import Change
from conveyord.storage.state.packed import AUDIT, EVENTS, Decided, pack_changes, pack_decided

if TYPE_CHECKING:
    from sqlite_utils import Database

_FIRST = """
CREATE TABLE cluster (
    id TEXT NOT NULL,
    history TEXT NOT NULL,
    created_at_ms INTEGER NOT NULL,
    protocol INTEGER NOT NULL,
    formed INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    only INTEGER PRIMARY KEY DEFAULT 1 CHECK (only = 1)
);
CREATE TABLE settings (name TEXT PRIMARY KEY, value INTEGER NOT NULL, changed INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE members (
    node TEXT PRIMARY KEY,
    rpc_address TEXT NOT NULL,
    http_address TEXT NOT NULL,
    roles TEXT NOT NULL,
    version TEXT NOT NULL,
    protocol_min INTEGER NOT NULL,
    protocol_max INTEGER NOT NULL,
    incarnation INTEGER NOT NULL,
    state TEXT NOT NULL,
    joined_at_ms INTEGER NOT NULL,
    changed_at_ms INTEGER NOT NULL,
    changed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE standings (node TEXT PRIMARY KEY, standing TEXT NOT NULL, changed INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE config (
    key TEXT PRIMARY KEY,
    created INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    size INTEGER NOT NULL,
    value BLOB NOT NULL  -- last: what stands before a long value is read without it
) WITHOUT ROWID;
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    salt BLOB NOT NULL,
    hash BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL,
    expires_at_ms INTEGER,
    revoked_at_ms INTEGER,
    changed INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE audit (
    "index" INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    operation TEXT NOT NULL,
    target TEXT NOT NULL,
    code TEXT NOT NULL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,  -- index of the entry * 4096 + number within it: one number is found and appended quickest
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    kind TEXT NOT NULL,
    size INTEGER NOT NULL,  -- what it counts for, see totals.py
    value BLOB
);
CREATE TABLE topics (
    topic TEXT PRIMARY KEY,
    newest INTEGER NOT NULL,  -- index of its last event, be that kept or not
    compacted_to INTEGER NOT NULL  -- index of the last one that is not kept any more, 0 if all are
) WITHOUT ROWID;
"""

_PACKED = """
ALTER TABLE audit RENAME TO former_audit;
ALTER TABLE events RENAME TO former_events;
CREATE TABLE audit (
    "index" INTEGER PRIMARY KEY,
    commands INTEGER NOT NULL,  -- how many
    decided BLOB NOT NULL  -- see packed.py
);
CREATE TABLE events (
    "index" INTEGER PRIMARY KEY,
    changes INTEGER NOT NULL,  -- how many
    size INTEGER NOT NULL,  -- what they count for, see totals.py
    topics TEXT NOT NULL,  -- of them, joined by commas
    changed BLOB NOT NULL
);
"""


def make_state(database: Database) -> None:
    """The tables of protocol 1."""
    for statement in _FIRST.split(";\n")[:-1]:
        database.execute(statement)


def pack_entries(database: Database) -> None:
    """What an entry decided is a row, and so is what it changed: there may be many commands in one."""
    for statement in _PACKED.split(";\n")[:-1]:
        database.execute(statement)
    audit = database.execute('SELECT "index", at_ms, actor, operation, target, code FROM former_audit')
    database.conn.executemany(AUDIT, ((index, 1, pack_decided([Decided(*row)])) for index, *row in audit))
    events = database.execute("SELECT id / 4096, topic, key, kind, value FROM former_events ORDER BY id")
    entries = groupby(events, lambda row: int(row[0]))
    database.conn.executemany(
        EVENTS, ((index, *pack_changes([Change(*row[1:]) for row in rows])) for index, rows in entries)
    )
    database.execute("DROP TABLE former_audit")
    database.execute("DROP TABLE former_events")


MIGRATIONS = (make_state, pack_entries)
