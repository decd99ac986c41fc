"""What entries of one transaction have decided, until it is written: many rows by one statement.

Every statement costs a microsecond of its own, and lets the thread that runs the event loop take over; written one by
one, the rows of an entry wait for that thread longer than for SQLite (docs/benchmarks.md, "Raft").
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import chain
from typing import Any

from conveyord.core.state.rows import CONFIG, ConfigHead, ConfigRow
from conveyord.storage.state.tables import AUDIT, DELETE, EVENT, PUT, TOPIC, Tables

TOGETHER = 64  # rows of one statement; more gain nothing
HEADS_MAX = 10_000  # that are remembered from one transaction to the next; some two megabytes


def _together(statement: str) -> str:
    """The same for `TOGETHER` rows. Its first parentheses with question marks are those of a row."""
    begin = statement.index("(?")
    end = statement.index(")", begin) + 1
    return statement[:begin] + ", ".join([statement[begin:end]] * TOGETHER) + statement[end:]


_TOGETHER = {statement: _together(statement) for statement in (PUT[ConfigRow], EVENT, AUDIT)}


class Pending:
    """For one connection, which nobody else changes; made anew when what it was told of is taken back."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.audit: list[tuple[Any, ...]] = []
        self.topics: dict[str, int] = {}
        """The index of the last event of each."""
        self._tables = Tables(cursor)
        self._heads: dict[str, ConfigHead | None] = {}
        self._config: dict[str, ConfigRow | None] = {}

    def use(self, cursor: sqlite3.Cursor) -> None:
        """Read by another cursor of the same connection from now on."""
        self._tables = Tables(cursor)

    def config(self, key: str) -> ConfigHead | None:
        """A configuration entry as it is after all that is pending."""
        if key in self._heads:
            return self._heads[key]
        head = self._heads[key] = self._tables.config(key)
        return head

    def put_config(self, row: ConfigRow) -> None:
        """Write an entry."""
        self._config[row.key] = row
        self._heads[row.key] = ConfigHead(row.created, row.changed, row.size)

    def delete_config(self, key: str) -> None:
        """Remove an entry."""
        self._config[key] = None
        self._heads[key] = None

    def write(self, cursor: sqlite3.Cursor) -> None:
        """Write everything."""
        if self._config:
            gone = [(key,) for key, row in self._config.items() if row is None]
            _write(cursor, PUT[ConfigRow], [row for row in self._config.values() if row is not None])
            cursor.executemany(DELETE[CONFIG], gone)
            self._config.clear()
        _write(cursor, EVENT, self.events)
        _write(cursor, AUDIT, self.audit)
        cursor.executemany(TOPIC, self.topics.items())
        self.events, self.audit = [], []
        self.topics.clear()
        # Only here: what is pending must be remembered, as the tables do not know of it, and is larger than its heads.
        if len(self._heads) > HEADS_MAX:
            self._heads.clear()


def _write(cursor: sqlite3.Cursor, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    whole = len(rows) - len(rows) % TOGETHER
    for at in range(0, whole, TOGETHER):
        cursor.execute(_TOGETHER[statement], tuple(chain.from_iterable(rows[at : at + TOGETHER])))
    if whole < len(rows):
        cursor.executemany(statement, rows[whole:])
