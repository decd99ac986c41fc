"""The small replicated state that proves the log, as SQL tables: tests/sim/machine.py with the same replies.

Also what tests of the state store share: entries that follow from a number alone, and what they lead to.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import msgpack
from sqlite_utils import Database

from conveyord.core.raft.bundles import pack, unpack
from conveyord.core.raft.membership import Membership, encode
from conveyord.core.raft.sessions import SessionExpired, Sessions
from conveyord.core.raft.types import BEGINNING, Entry, Kind, Mark, make_entry
from conveyord.storage.state_store.store import StateStore
from tests.sim.machine import EXPIRED, SESSIONS_MAX, Machine, command, register


def make_registers(database: Database) -> None:
    database["registers"].create({"key": int, "value": int}, pk="key")  # type: ignore[union-attr]
    database["executed"].insert({"id": 1, "commands": 0}, pk="id")  # type: ignore[union-attr]


MIGRATIONS = (make_registers,)
MEMBERS = Membership(frozenset({"a", "b", "c"}))


class KvState:
    """ran, repeated: of the last entry, as `Machine` has them; they are no part of the state."""

    def __init__(self) -> None:
        self.ran: tuple[int, int] | None = None
        self.repeated = False

    def execute(self, cursor: sqlite3.Cursor, sessions: Sessions, entries: Sequence[Entry]) -> list[bytes]:
        """What the state store calls."""
        return [self._execute(cursor, sessions, entry) for entry in entries]

    def _execute(self, cursor: sqlite3.Cursor, sessions: Sessions, entry: Entry) -> bytes:
        self.ran, self.repeated = None, False
        if entry.kind is Kind.BUNDLE:
            return pack([self._command(cursor, sessions, entry.index, data) for data in unpack(entry.data)])
        return self._command(cursor, sessions, entry.index, entry.data) if entry.kind is Kind.COMMAND else b""

    def _command(self, cursor: sqlite3.Cursor, sessions: Sessions, index: int, data: bytes) -> bytes:
        parts = msgpack.unpackb(data)
        if not parts:
            return bytes(msgpack.packb(sessions.register(index)))
        session, number, ack_below, *operation = parts

        def run() -> bytes:
            self.ran = session, number
            return self._run(cursor, *operation)

        try:
            reply = sessions.apply(session, number, ack_below, run)
        except SessionExpired:
            return bytes(EXPIRED)
        self.repeated = self.ran is None
        return reply

    def _run(self, cursor: sqlite3.Cursor, kind: str, key: int, *arguments: int) -> bytes:
        cursor.execute("UPDATE executed SET commands = commands + 1")
        if kind == "cas":
            expected, value = arguments
            found = cursor.execute("SELECT value FROM registers WHERE key = ?", [key]).fetchone()
            if (found and found[0]) != expected:
                return bytes(msgpack.packb(False))
        else:
            (value,) = arguments
        cursor.execute("INSERT OR REPLACE INTO registers VALUES (?, ?)", (key, value))
        return bytes(msgpack.packb(True))


def open_store(directory: Path, *, base: Mark = BEGINNING) -> StateStore:
    """A store of this state."""
    return StateStore.open(directory, base=base, membership=MEMBERS, migrations=MIGRATIONS, sessions_max=SESSIONS_MAX)


def crash_image(directory: Path, target: Path) -> Path:
    """What is left of a store, which need not be closed, when its process is killed now. Returns `target`."""
    shutil.copytree(directory, target, ignore=shutil.ignore_patterns("*.db-shm"))
    return target


def registers(connection: sqlite3.Connection) -> dict[int, int]:
    """What a connection to the state sees."""
    return dict(connection.execute("SELECT key, value FROM registers"))


def executed(connection: sqlite3.Connection) -> int:
    """How many commands took effect."""
    count: int = connection.execute("SELECT commands FROM executed").fetchone()[0]
    return count


# ------------------------------------------------------------------------------ a log that follows from nothing


def _entry(previous: Mark, random: Random, opened: list[int]) -> Entry:
    index, term = previous.index + 1, previous.term or 1
    kind, data = Kind.COMMAND, b""
    draw = random.random()
    if draw < 0.05:
        kind, term = Kind.NOOP, term + 1
    elif draw < 0.1:
        kind, data = Kind.MEMBERSHIP, encode(Membership(frozenset({"a", "b", f"node-{index}"})))
    elif draw < 0.2 or not opened:
        data = register()
        opened.append(index)
    else:
        number = random.randint(1, 1 + index // 4)
        write: tuple[Any, ...] = ("write", random.randint(0, 20), index)
        operation = write if random.random() < 0.5 else ("cas", random.randint(0, 20), random.choice([None, 1]), index)
        data = command(random.choice(opened[-SESSIONS_MAX - 2 :]), number, random.randint(0, number), operation)
    return make_entry(previous.chain, index, term, kind, data)


@cache
def log(count: int) -> tuple[Entry, ...]:
    """The first entries of the one log that all tests use: commands of many sessions, repeated ones among them."""
    random, opened, entries, mark = Random(7), list[int](), list[Entry](), BEGINNING
    for _ in range(count):
        entry = _entry(mark, random, opened)
        entries.append(entry)
        mark = Mark(entry.index, entry.term, entry.chain)
    return tuple(entries)


LOG_ENTRIES = 4_000


def entries(first: int, end: int) -> Sequence[Entry]:
    """Entries `[first, end)` of that log."""
    assert 0 < first <= end <= LOG_ENTRIES + 1
    return log(LOG_ENTRIES)[first - 1 : end - 1]


def mark_of(index: int) -> Mark:
    """The place of one of its entries."""
    if index == 0:
        return BEGINNING
    entry = entries(index, index + 1)[0]
    return Mark(entry.index, entry.term, entry.chain)


def advance(store: StateStore, end: int, *, batch: int = 50) -> list[bytes]:
    """Apply the log up to and with `end`, which may be past already."""
    replies = list[bytes]()
    state = KvState()
    while store.mark.index < end:
        first = store.mark.index + 1
        replies += store.apply(entries(first, min(first + batch, end + 1)), state.execute)
    return replies


@cache
def machine_at(index: int) -> Machine:
    """What the state must be after the entry `index`. Not to be changed."""
    machine = Machine()
    for entry in entries(1, index + 1):
        machine.apply(entry)
    return machine


def check_state(store: StateStore) -> int:
    """The state is what the log says for the mark that it has, rows and sessions. Returns the index."""
    index = store.mark.index
    assert store.mark == mark_of(index)
    expected = machine_at(index)
    with store.reader() as reader:
        assert reader.mark() == store.mark
        assert registers(reader.connection) == expected.values
        assert executed(reader.connection) == expected.executed
    assert store._sessions.dump() == expected.sessions.dump()
    kinds = [entry.data for entry in entries(1, index + 1) if entry.kind is Kind.MEMBERSHIP]
    assert encode(store.membership) == (kinds[-1] if kinds else encode(MEMBERS))
    return index
