"""What entries of one transaction have decided, until it is written: many rows by one statement."""

from __future__ import annotations

import sqlite3
from itertools import chain
from typing import Any

from conveyord.core.state.rows import CONFIG, ConfigHead, ConfigRow
from conveyord.storage.many_rows import insert
from conveyord.storage.state.packed import AUDIT, EVENTS
from conveyord.storage.state.tables import DELETE, PUT, TOPIC, Tables

HEADS_MAX = 10_000  # that are remembered from one transaction to the next; some two megabytes


class Pending:
    """For one connection, which nobody else changes; made anew when what it was told of is taken back."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self.events: list[Any] = []
        """The values of their rows, one after the other; so are those of `audit`."""
        self.audit: list[Any] = []
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
            rows = list[Any]()
            gone = list[tuple[str]]()
            for key, row in self._config.items():
                if row is None:
                    gone.append((key,))
                else:
                    rows += (key, row.created, row.changed, row.size, row.value)
            insert(cursor.execute, PUT[ConfigRow], rows)
            cursor.executemany(DELETE[CONFIG], gone)
            self._config.clear()
        insert(cursor.execute, EVENTS, self.events)
        insert(cursor.execute, AUDIT, self.audit)
        insert(cursor.execute, TOPIC, list(chain.from_iterable(self.topics.items())))
        self.events, self.audit = [], []
        self.topics.clear()
        # Only here: what is pending must be remembered, as the tables do not know of it, and is larger than its heads.
        if len(self._heads) > HEADS_MAX:
            self._heads.clear()
