"""A log of commands, and stores that apply it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from conveyord.core.raft.bundles import pack, unpack
from conveyord.core.raft.membership import Membership, encode
from conveyord.core.raft.types import BEGINNING, Entry, Kind, Mark, make_entry
from conveyord.core.state.codec import Codec, decode_reply
from conveyord.core.state.commands import Command, ConfigDelete, ConfigPut, Envelope, SessionOpen, SettingChange
from conveyord.core.state.machine import MACHINE, Machine
from conveyord.core.state.replies import Ok, Reply
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.reading import StateView
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state.watching import Event, Events
from conveyord.storage.state_store.store import StateStore

SESSIONS_MAX, WINDOW = 3, 2
FEW = 16  # the least that can be set for events and the audit


class Log:
    """Entries, one after the other."""

    def __init__(self, machine: Machine = MACHINE) -> None:
        self.entries = list[Entry]()
        self.codec = Codec(machine.commands)

    @property
    def last(self) -> Mark:
        if not self.entries:
            return BEGINNING
        return Mark(self.entries[-1].index, self.entries[-1].term, self.entries[-1].chain)

    def add(self, kind: Kind, data: bytes) -> Entry:
        entry = make_entry(self.last.chain, self.last.index + 1, 1, kind, data)
        self.entries.append(entry)
        return entry

    def command(self, command: Command, session: int = 0, number: int = 0, ack_below: int = 0, at_ms: int = 0) -> Entry:
        return self.add(Kind.COMMAND, self._data(command, session, number, ack_below, at_ms))

    def bundle(self, *commands: Any) -> Entry:
        """Commands in one entry, each with its session, number, and what else `command` takes."""
        return self.add(Kind.BUNDLE, pack([self._data(*command) for command in commands]))

    def _data(self, command: Command, session: int, number: int, ack_below: int = 0, at_ms: int = 0) -> bytes:
        envelope = Envelope(session, number, ack_below, at_ms or 1_000 + self.last.index, "someone", command)
        return self.codec.encode(envelope)

    def membership(self, membership: Membership) -> Entry:
        return self.add(Kind.MEMBERSHIP, encode(membership))


class Node:
    """A store with what carries entries out."""

    def __init__(self, directory: Path, machine: Machine = MACHINE, **options: Any) -> None:
        self.directory = directory
        self.options = options
        self.machine = machine
        self.open()

    def open(self) -> None:
        self.store = StateStore.open(self.directory, migrations=MIGRATIONS, **self.options)
        self.executor = Executor(self.machine)

    def reopen(self) -> None:
        self.store.close()
        self.open()

    def apply(self, entries: Iterable[Entry]) -> list[bytes]:
        return self.store.apply(list(entries), self.executor.execute)

    def follow(self, log: Log, *, batch: int = 1_000) -> list[Reply | None]:
        """Apply what the log has more."""
        replies = list[Reply | None]()
        while self.store.mark.index < log.last.index:
            at = self.store.mark.index
            entries = log.entries[at : at + batch]
            replies += decoded(entries, self.apply(entries))
        return replies

    def view(self) -> StateView:
        return StateView(self.directory, generation=lambda: self.store.generation)


def decoded(entries: Iterable[Entry], replies: Iterable[bytes]) -> list[Reply | None]:
    """Those of every command; None where there is none."""
    found = list[Reply | None]()
    for entry, reply in zip(entries, replies, strict=True):
        parts = unpack(reply) if entry.kind is Kind.BUNDLE else [reply]
        found += [decode_reply(part) if part else None for part in parts]
    return found


class Client:
    """One session, whose commands are numbered."""

    def __init__(self, log: Log, node: Node) -> None:
        self.log, self.node = log, node
        self.session = log.command(SessionOpen()).index
        self.number = 0

    def add(self, command: Command, *, at_ms: int = 0) -> Entry:
        """The next one, into the log only."""
        self.number += 1
        return self.log.command(command, self.session, self.number, self.number, at_ms)

    def ok(self, command: Command, *, at_ms: int = 0) -> int:
        """The same, applied; it must not be refused."""
        self.add(command, at_ms=at_ms)
        reply = self.node.follow(self.log)[-1]
        assert isinstance(reply, Ok), reply
        return reply.value

    def put(self, key: str, value: bytes = b"value") -> int:
        return self.ok(ConfigPut(key, value))

    def delete(self, key: str) -> int:
        return self.ok(ConfigDelete(key))

    def set(self, name: str, value: int) -> int:
        return self.ok(SettingChange(name, value))


def told(view: StateView, after: int, *arguments: object, **options: object) -> list[Event]:
    """Everything after an index, however many reads that takes. What cannot be told is an error."""
    events, through = list[Event](), after
    while True:
        found = view.events_after(through, *arguments, **options)
        assert isinstance(found, Events), found
        events += found.events
        assert found.through > through or found.through == found.index
        through = found.through
        if through == found.index:
            return events
