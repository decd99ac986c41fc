"""The replicated state of `lin-kv`: keys and values of any JSON, with sessions."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

import msgpack
from sqlite_utils import Database

from conveyord.core.raft.bundles import pack, unpack
from conveyord.core.raft.sessions import SessionExpired, Sessions
from conveyord.core.raft.types import Entry, Kind
from conveyord.storage.state_store.store import StateStore

NO_KEY, MISMATCH = 20, 22
EXPIRED = bytes(msgpack.packb("expired"))


def make_values(database: Database) -> None:
    database["kv"].create({"key": str, "value": str}, pk="key")  # type: ignore[union-attr]


MIGRATIONS = (make_values,)


def execute(cursor: sqlite3.Cursor, sessions: Sessions, entries: Sequence[Entry]) -> list[bytes]:
    """What the state store calls."""
    return [_execute(cursor, sessions, entry) for entry in entries]


def _execute(cursor: sqlite3.Cursor, sessions: Sessions, entry: Entry) -> bytes:
    if entry.kind is Kind.BUNDLE:
        return pack([_command(cursor, sessions, entry.index, data) for data in unpack(entry.data)])
    return _command(cursor, sessions, entry.index, entry.data) if entry.kind is Kind.COMMAND else b""


def _command(cursor: sqlite3.Cursor, sessions: Sessions, index: int, data: bytes) -> bytes:
    parts = msgpack.unpackb(data)
    if not parts:
        return bytes(msgpack.packb(sessions.register(index)))
    session, number, ack_below, operation = parts
    try:
        return sessions.apply(session, number, ack_below, lambda: bytes(msgpack.packb(_run(cursor, *operation))))
    except SessionExpired:
        return EXPIRED


def _run(cursor: sqlite3.Cursor, kind: str, key: Any, *arguments: Any) -> tuple[int, str]:
    """The code of an error, 0 if there is none, and a sentence."""
    name = json.dumps(key)
    if kind == "cas":
        found = cursor.execute("SELECT value FROM kv WHERE key = ?", [name]).fetchone()
        if found is None:
            return NO_KEY, f"there is no key {name}"
        if json.loads(found[0]) != arguments[0]:
            return MISMATCH, f"key {name} has {found[0]}, not {arguments[0]!r}"
    cursor.execute("INSERT OR REPLACE INTO kv VALUES (?, ?)", (name, json.dumps(arguments[-1])))
    return 0, ""


def value_of(store: StateStore, key: Any) -> str | None:
    """The JSON of a value; None if there is none. Blocking."""
    with store.reader() as reader:
        found = reader.connection.execute("SELECT value FROM kv WHERE key = ?", [json.dumps(key)]).fetchone()
    return None if found is None else found[0]


class KvSession:
    """See `runtime/raft/proposer.py: Session`."""

    def register(self) -> bytes:
        return bytes(msgpack.packb([]))

    def command(self, session: int, number: int, ack_below: int, command: list[Any]) -> bytes:
        return bytes(msgpack.packb([session, number, ack_below, command]))

    def about(self, command: list[Any]) -> str:
        return json.dumps(command[1])

    def is_expired(self, reply: bytes) -> bool:
        return reply == EXPIRED

    @staticmethod
    def reply(data: bytes) -> tuple[int, str]:
        """What `_run` returned."""
        code, text = msgpack.unpackb(data)
        return code, text
