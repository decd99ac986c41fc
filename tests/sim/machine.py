"""The small replicated state that proves the log: registers with sessions and compare-and-set."""

from __future__ import annotations

from typing import Any

import msgpack

from conveyord.core.raft.sessions import SessionExpired, Sessions
from conveyord.core.raft.types import Entry, Kind

SESSIONS_MAX = 6  # so that sessions do expire in a short run
EXPIRED = msgpack.packb("expired")


def register() -> bytes:
    """The command that opens a session."""
    return bytes(msgpack.packb([]))


def command(session: int, number: int, ack_below: int, operation: tuple[Any, ...]) -> bytes:
    """("write", key, value) or ("cas", key, expected, value) in a session."""
    return bytes(msgpack.packb([session, number, ack_below, *operation]))


def filler() -> bytes:
    """A command of no session: it changes nothing."""
    return command(0, 0, 0, ("write", 0, 0))


class Machine:
    """applied: the index of the last entry that is in it. executed: how many commands took effect, part of the state.

    ran: the session and number of the command that the last entry executed, None if it executed none; repeated:
    whether the last entry was a command that came again.
    """

    def __init__(self, dump: bytes | None = None) -> None:
        self.applied = 0
        self.values: dict[int, int] = {}
        self.executed = 0
        self.repeated = False
        self.ran: tuple[int, int] | None = None
        self.sessions = Sessions(sessions_max=SESSIONS_MAX)
        if dump is not None:
            self.applied, self.executed, values, sessions = msgpack.unpackb(dump)
            self.values = dict(map(tuple, values))
            self.sessions.load(sessions)

    def dump(self) -> bytes:
        """Everything, the same bytes for the same state."""
        return bytes(msgpack.packb([self.applied, self.executed, sorted(self.values.items()), self.sessions.dump()]))

    def stored(self) -> bytes:
        """What the state store writes in one transaction."""
        return self.dump()

    def apply(self, entry: Entry) -> bytes:
        """Apply the next entry, and return its reply."""
        assert entry.index == self.applied + 1, (entry.index, self.applied)
        self.applied, self.ran, self.repeated = entry.index, None, False
        if entry.kind is not Kind.COMMAND:
            return b""
        parts = msgpack.unpackb(entry.data)
        if not parts:
            return bytes(msgpack.packb(self.sessions.register(entry.index)))
        session, number, ack_below, *operation = parts
        before = self.executed
        try:
            reply = self.sessions.apply(session, number, ack_below, lambda: self._execute(*operation))
        except SessionExpired:
            return bytes(EXPIRED)
        self.repeated = self.executed == before
        self.ran = None if self.repeated else (session, number)
        return reply

    def _execute(self, kind: str, key: int, *arguments: int) -> bytes:
        self.executed += 1
        if kind == "write":
            self.values[key] = arguments[0]
            return bytes(msgpack.packb(True))
        expected, value = arguments
        if self.values.get(key) != expected:
            return bytes(msgpack.packb(False))
        self.values[key] = value
        return bytes(msgpack.packb(True))
