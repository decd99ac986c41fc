"""The tables, as migrations of the state store: only ever added at the end, for ever.

Rows of a table have the fields of its class in core/state/rows.py, in that order; `test_tables` holds the two together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database

ROWS_PER_INDEX = 4_096
"""Events, and rows of the audit, that an entry can have at most. A change of Raft's members has an event for each of
them, at most 2 * 255; a bundle has one of either for each of its commands, at most `BUNDLE_COMMANDS`."""

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

_NUMBERED_AUDIT = """
ALTER TABLE audit RENAME TO former_audit;
CREATE TABLE audit (
    id INTEGER PRIMARY KEY,  -- index of the entry * 4096 + number within it, as events have
    at_ms INTEGER NOT NULL,
    actor TEXT NOT NULL,
    operation TEXT NOT NULL,
    target TEXT NOT NULL,
    code TEXT NOT NULL
);
INSERT INTO audit SELECT "index" * 4096, at_ms, actor, operation, target, code FROM former_audit;
DROP TABLE former_audit;
"""


def make_state(database: Database) -> None:
    """The tables of protocol 1."""
    for statement in _FIRST.split(";\n")[:-1]:
        database.execute(statement)


def number_audit(database: Database) -> None:
    """An entry may be of several commands: a row of the audit has an id as an event has."""
    for statement in _NUMBERED_AUDIT.split(";\n")[:-1]:
        database.execute(statement)


MIGRATIONS = (make_state, number_audit)

EVENT_BYTES = 64
"""What an event counts for beside its key and value."""


def first_id(index: int) -> int:
    """The lowest id that an event or a row of the audit can have that is of the entry `index`."""
    return index * ROWS_PER_INDEX
