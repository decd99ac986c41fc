"""How much is kept, and what must go: events and the audit are bounded by the settings of the cluster.

What goes depends on the rows alone, so it is the same at every replica, whatever entries were applied together. When a
limit is passed, the oldest go until there is a part of `SLACK` of it free: rows that go in company cost less.
"""

from __future__ import annotations

import sqlite3

from conveyord.core.state.rows import SettingRow
from conveyord.core.state.settings import AUDIT_MAX, EVENT_BYTES_MAX, EVENTS_MAX, SETTINGS

SLACK = 64
ROWS_MAX = 4_096
"""Events or commands that go at once, about: after a limit was lowered by much, the next entries go on with it."""


class Totals:
    """Counts of rows, so that they need not be counted at every entry. They are no part of the state."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        """Count them. cursor: in the transaction that changes them."""
        self.config_entries, self.config_bytes = _one(cursor, "SELECT count(*), coalesce(sum(size), 0) FROM config")
        self.events, self.event_bytes = _one(
            cursor, "SELECT coalesce(sum(changes), 0), coalesce(sum(size), 0) FROM events"
        )
        (self.audit,) = _one(cursor, "SELECT coalesce(sum(commands), 0) FROM audit")
        self._limits = {name: SETTINGS[name].default for name in (EVENTS_MAX, EVENT_BYTES_MAX, AUDIT_MAX)}
        for name, value in cursor.execute("SELECT name, value FROM settings").fetchall():
            self._set(name, value)
        self._note_limits()

    def changed(self, row: SettingRow) -> None:
        """A setting is another."""
        self._set(row.name, row.value)
        self._note_limits()

    def evict(self, cursor: sqlite3.Cursor) -> None:
        """Remove what is too much. To be called after every entry."""
        if self.events > self.events_max or self.event_bytes > self.event_bytes_max:
            self._evict_events(cursor)
        if self.audit > self.audit_max:
            self._evict_audit(cursor)

    def _evict_events(self, cursor: sqlite3.Cursor) -> None:
        """The oldest, entry by entry. Those of the newest stay."""
        kept, kept_bytes = _without_slack(self.events_max), _without_slack(self.event_bytes_max)
        events, size, end, gone = self.events, self.event_bytes, 0, 0
        (newest,) = _one(cursor, 'SELECT max("index") FROM events')
        compacted = dict[str, int]()
        rows = 'SELECT "index", changes, size, topics FROM events ORDER BY "index"'
        for index, changes, bytes_, topics in cursor.execute(rows):
            if index == newest or gone >= ROWS_MAX or (events <= kept and size <= kept_bytes):
                break
            events, size, gone, end = events - changes, size - bytes_, gone + changes, index
            compacted.update(dict.fromkeys(topics.split(","), index))
        self.events, self.event_bytes = events, size
        found = [(index, topic) for topic, index in compacted.items()]
        cursor.executemany("UPDATE topics SET compacted_to = ? WHERE topic = ?", found)
        cursor.execute('DELETE FROM events WHERE "index" <= ?', (end,))

    def _evict_audit(self, cursor: sqlite3.Cursor) -> None:
        """Likewise."""
        kept, end, gone = _without_slack(self.audit_max), 0, 0
        (newest,) = _one(cursor, 'SELECT max("index") FROM audit')
        for index, commands in cursor.execute('SELECT "index", commands FROM audit ORDER BY "index"'):
            if index == newest or gone >= ROWS_MAX or self.audit - gone <= kept:
                break
            gone, end = gone + commands, index
        self.audit -= gone
        cursor.execute('DELETE FROM audit WHERE "index" <= ?', (end,))

    def _set(self, name: str, value: int) -> None:
        if name in self._limits:
            self._limits = {**self._limits, name: value}  # copies of this are of another moment

    def _note_limits(self) -> None:
        self.events_max, self.event_bytes_max = self._limits[EVENTS_MAX], self._limits[EVENT_BYTES_MAX]
        self.audit_max = self._limits[AUDIT_MAX]


def _one(cursor: sqlite3.Cursor, statement: str, *values: int) -> tuple[int, ...]:
    row: tuple[int, ...] = cursor.execute(statement, values).fetchone()
    return row


def _without_slack(limit: int) -> int:
    return limit - limit // SLACK
