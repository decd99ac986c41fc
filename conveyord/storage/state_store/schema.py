"""The tables of a state: those of this package, and those of the caller by migrations.

A migration is a function that is given the database by sqlite-utils; its name is stored when it was run. The caller
hands in all of them in order, for ever, and only ever adds one at the end. They run when a state is opened, at each
node when that has the new program, so they must not change what the tables say, only how.

Names that begin with `raft_` are this package's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.membership import NOBODY, Membership, decode, encode
from conveyord.core.raft.types import BEGINNING, Mark
from conveyord.storage.sqlite_errors import transaction
from conveyord.storage.state_store.faults import damaged_state
from conveyord.storage.state_store.session_rows import join_replies

if TYPE_CHECKING:
    from sqlite_utils import Database

SCHEMA_VERSION = 2
Migration = Callable[["Database"], object]

_SESSIONS = """
CREATE TABLE raft_sessions (
    session INTEGER PRIMARY KEY,
    floor INTEGER NOT NULL,
    "use" INTEGER NOT NULL,
    replies BLOB NOT NULL  -- msgpack: a map by number
)
"""
_SCHEMA = f"""
CREATE TABLE raft_applied (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    "index" INTEGER NOT NULL,
    term INTEGER NOT NULL,
    chain BLOB NOT NULL,
    membership BLOB NOT NULL  -- in force at the index
);
{_SESSIONS};
CREATE TABLE raft_migrations (number INTEGER PRIMARY KEY, name TEXT NOT NULL);
"""


class Place(NamedTuple):
    """Where in the log a state is, and who was a member there."""

    mark: Mark = BEGINNING
    membership: Membership = NOBODY


def prepare(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> None:
    """Bring a new or older state up to date, in one transaction. Raises Refused for one of a newer program."""
    done = check_version(connection, path, migrations)
    version = version_of(connection)
    if done == len(migrations) and version == SCHEMA_VERSION:
        return
    from sqlite_utils import Database  # numpy comes with it, and a state that is up to date needs neither

    with transaction(connection):
        if version == 0:
            for statement in _SCHEMA.split(";")[:-1]:
                connection.execute(statement)
            write_place(connection.cursor(), Place())
        elif version == 1:
            connection.execute("ALTER TABLE raft_sessions RENAME TO former_sessions")
            connection.execute(_SESSIONS)
            join_replies(connection)
            connection.execute("DROP TABLE former_sessions")
            connection.execute("DROP TABLE raft_replies")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        # Neither its plugins nor its setting of a pragma: replicas would differ by what is installed beside them.
        database = Database(connection, recursive_triggers=False, execute_plugins=False)
        for number, migrate in enumerate(migrations[done:], done):
            migrate(database)
            connection.execute("INSERT INTO raft_migrations VALUES (?, ?)", (number, migrate.__name__))


def check_version(connection: sqlite3.Connection, path: Path, migrations: Sequence[Migration]) -> int:
    """How many of `migrations` a state has. Raises Refused if it has others, or is newer otherwise."""
    version = version_of(connection)
    if version > SCHEMA_VERSION:
        raise Refused(
            f"{path}: this state has version {version}, this conveyord knows {SCHEMA_VERSION}; run the version that "
            "wrote it, or a newer one"
        )
    if version == 0:
        return 0
    names = [name for (name,) in connection.execute("SELECT name FROM raft_migrations ORDER BY number")]
    known = [migrate.__name__ for migrate in migrations]
    if names != known[: len(names)]:
        unknown = next(name for at, name in enumerate(names) if known[at : at + 1] != [name])
        raise Refused(
            f"{path}: this state has the migration {unknown!r}, which this conveyord does not know; run the version "
            "that wrote it, or a newer one"
        )
    return len(names)


def read_place(connection: sqlite3.Connection, path: Path) -> Place:
    """Where a state is. Raises Corrupt if it does not say, Refused if it says so as only a newer conveyord does."""
    row = connection.execute('SELECT "index", term, chain, membership FROM raft_applied').fetchone()
    if row is None:
        raise damaged_state(path, "it does not say how much of the log is in it")
    index, term, chain, membership = row
    try:
        return Place(Mark(index, term, chain), decode(membership))
    except Corrupt as error:
        raise damaged_state(path, error) from error


def write_place(cursor: sqlite3.Cursor, place: Place) -> None:
    """Store where a state is, in the transaction that took it there."""
    cursor.execute(
        "INSERT OR REPLACE INTO raft_applied VALUES (1, ?, ?, ?, ?)", (*place.mark, encode(place.membership))
    )


def write_mark(cursor: sqlite3.Cursor, mark: Mark) -> None:
    """The same, where the members are still those."""
    cursor.execute('UPDATE raft_applied SET "index" = ?, term = ?, chain = ?', mark)


def version_of(connection: sqlite3.Connection) -> int:
    """The version of what is in a database; 0 before the transaction that makes a state of it."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version
