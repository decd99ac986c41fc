"""The tables as core/state sees them, through a cursor; and the statements that change them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable

from conveyord.core.state.rows import (
    CONFIG,
    MEMBERS,
    STANDINGS,
    TOKENS,
    ClusterRow,
    ConfigHead,
    ConfigRow,
    MemberRow,
    SettingRow,
    StandingRow,
    TokenRow,
)

PUT = {
    ClusterRow: "INSERT OR REPLACE INTO cluster VALUES (?, ?, ?, ?, ?, ?, 1)",
    SettingRow: "INSERT OR REPLACE INTO settings VALUES (?, ?, ?)",
    MemberRow: "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    StandingRow: "INSERT OR REPLACE INTO standings VALUES (?, ?, ?)",
    ConfigRow: "INSERT OR REPLACE INTO config VALUES (?, ?, ?, ?, ?)",
    TokenRow: "INSERT OR REPLACE INTO tokens VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
}
DELETE = {
    MEMBERS: "DELETE FROM members WHERE node = ?",
    STANDINGS: "DELETE FROM standings WHERE node = ?",
    CONFIG: "DELETE FROM config WHERE key = ?",
    TOKENS: "DELETE FROM tokens WHERE id = ?",
}
TOPIC = "INSERT INTO topics VALUES (?, ?, 0) ON CONFLICT (topic) DO UPDATE SET newest = excluded.newest"


class Tables:
    """A `View` of core/state: what the cursor's connection sees at the moment. The cursor is used by nobody else."""

    def __init__(self, cursor: sqlite3.Cursor) -> None:
        self._cursor = cursor

    def cluster(self) -> ClusterRow:
        """The cluster, blank before it is formed."""
        self._cursor.execute("SELECT id, history, created_at_ms, protocol, formed, changed FROM cluster")
        row = self._cursor.fetchone()
        return ClusterRow(*row) if row else ClusterRow()

    def setting(self, name: str) -> SettingRow | None:
        """A setting that was changed."""
        row = self._cursor.execute("SELECT * FROM settings WHERE name = ?", (name,)).fetchone()
        return SettingRow(*row) if row else None

    def member(self, node: str) -> MemberRow | None:
        """One member."""
        row = self._cursor.execute("SELECT * FROM members WHERE node = ?", (node,)).fetchone()
        return MemberRow(*row) if row else None

    def members(self) -> Iterable[MemberRow]:
        """All of them."""
        return map(MemberRow._make, self._cursor.execute("SELECT * FROM members ORDER BY node").fetchall())

    def standings(self) -> Iterable[StandingRow]:
        """What each node was made by the last change."""
        return map(StandingRow._make, self._cursor.execute("SELECT * FROM standings ORDER BY node").fetchall())

    def config(self, key: str) -> ConfigHead | None:
        """A configuration entry without its value."""
        self._cursor.execute("SELECT created, changed, size FROM config WHERE key = ?", (key,))
        row = self._cursor.fetchone()
        return ConfigHead(*row) if row else None

    def config_size(self) -> tuple[int, int]:
        """Entries and bytes. It looks at all of them."""
        entries, size = self._cursor.execute("SELECT count(*), coalesce(sum(size), 0) FROM config").fetchone()
        return entries, size

    def token(self, token: str) -> TokenRow | None:
        """One token."""
        row = self._cursor.execute("SELECT * FROM tokens WHERE id = ?", (token,)).fetchone()
        return TokenRow(*row) if row else None

    def tokens(self) -> Iterable[TokenRow]:
        """All of them."""
        return map(TokenRow._make, self._cursor.execute("SELECT * FROM tokens ORDER BY id").fetchall())
