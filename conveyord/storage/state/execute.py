"""What every entry does to the tables: what `StateStore.apply` is given."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

from conveyord.core.errors import Refused
from conveyord.core.raft.bundles import pack, unpack
from conveyord.core.raft.membership import decode as decode_membership
from conveyord.core.raft.sessions import SessionExpired, Sessions, WindowExceeded
from conveyord.core.raft.types import Entry, Kind
from conveyord.core.state.codec import Codec, encode_reply
from conveyord.core.state.commands import Envelope, SessionOpen
from conveyord.core.state.machine import MACHINE, Machine
from conveyord.core.state.replies import No, Ok
from conveyord.core.state.rows import CONFIG, Change, ClusterRow, ConfigRow, Decision, Gone, Moment, RareRow, SettingRow
from conveyord.core.state.standings import decide_membership
from conveyord.storage.state.packed import Decided, pack_changes, pack_decided
from conveyord.storage.state.pending import Pending
from conveyord.storage.state.tables import DELETE, PUT, Tables
from conveyord.storage.state.totals import Totals

DONE = "OK"
"""The code that the audit has for what was not refused."""


class _Before(NamedTuple):
    """What was counted before a transaction, and the first entry of it."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants
    connection: sqlite3.Connection
    totals: Totals


class Executor:
    """Carries entries out, for one store and thread: `store.apply(entries, Executor().execute)`.

    What it remembers between transactions only spares counting rows, and is counted anew when entries do not follow
    one another. Where they are those of the last transaction, or others in their place, it is what was counted before.
    """

    _cursor: sqlite3.Cursor
    _connection: sqlite3.Connection
    _tables: _Applying
    _totals: Totals
    _pending: Pending

    def __init__(self, machine: Machine = MACHINE) -> None:
        """machine: what this program knows, the same at every replica of its version."""
        self._machine = machine
        self._codec = Codec(machine.commands)
        self._operations = {command: command.operation() for command in machine.commands}
        self._next = 0  # the entry that follows what was carried out; 0 if what was counted does not hold
        self._before: _Before | None = None
        self._touched = dict[str, int]()
        self._decided = list[Decided]()  # by the present entry
        self._changes = list[Change]()

    def take_touched(self) -> dict[str, int]:
        """The topics that entries have changed since the last call, with the index of the last change.

        To wake who waits for them, each time that `apply` has returned: what was taken back is not among them.
        """
        touched, self._touched = self._touched, {}
        return touched

    def execute(self, cursor: sqlite3.Cursor, sessions: Sessions, entries: Sequence[Entry]) -> list[bytes]:
        """Do what `entries` ask for, and return their replies, those of a bundle packed; b"" where there is no command.

        Rows are written at the end, many by one statement. Raises Refused for a command that this program does not
        know: nothing of the batch is applied, and the node has to stop, as it would differ from the others if it went
        on.
        """
        first = entries[0].index
        if first != self._next or cursor is not self._cursor:
            self._begin(cursor, first)
        self._next = 0
        decode, run, replies = self._codec.decode, self._command, list[bytes]()
        for index, entry in enumerate(entries, first):
            kind, reply = entry.kind, b""
            if kind is Kind.COMMAND:
                reply = run(sessions, index, decode(entry.data))
            elif kind is Kind.BUNDLE:
                reply = pack([run(sessions, index, decode(command)) for command in unpack(entry.data)])
            elif kind is Kind.MEMBERSHIP:
                self._carry_out(decide_membership(self._tables, index, decode_membership(entry.data)), index)
            replies.append(reply)
            self._end_entry(index)
        self._write()
        self._next = first + len(entries)
        return replies

    def _begin(self, cursor: sqlite3.Cursor, index: int) -> None:
        """Be ready for the entries of a new transaction, from `index` on."""
        connection, before = cursor.connection, self._before
        is_new = index != self._next or connection is not self._connection
        if not is_new:
            self._pending.use(cursor)
        else:
            if before is not None and before.index == index and before.connection is connection:
                self._totals = copy(before.totals)
            else:
                self._totals = Totals(cursor)
            self._pending = Pending(cursor)
            self._touched.clear()  # what is in it was taken back
        self._decided, self._changes = [], []
        self._before = _Before(index, connection, copy(self._totals))
        self._tables = _Applying(cursor, self._totals, self._pending)
        self._cursor, self._connection = cursor, connection
        if is_new:
            self._check_protocol(self._tables.cluster().protocol, index)

    def _command(self, sessions: Sessions, index: int, envelope: Envelope[Any]) -> bytes:
        session = envelope.session
        try:
            if session:
                return sessions.apply(session, envelope.number, envelope.ack_below, self._run, index, envelope)
            if type(envelope.command) is SessionOpen:
                return encode_reply(Ok(sessions.register(index)))
            return self._run(index, envelope)
        except (SessionExpired, WindowExceeded) as error:
            return encode_reply(No(error.code, str(error)))

    def _run(self, index: int, envelope: Envelope[Any]) -> bytes:
        command, at_ms = envelope.command, envelope.at_ms
        decision = self._machine.decide(self._tables, Moment(index, at_ms), envelope.session, command)
        reply = decision.reply
        code = reply.code if type(reply) is No else DONE
        self._decided.append(Decided(at_ms, envelope.actor, self._operations[type(command)], command.target, code))
        self._carry_out(decision, index)
        return encode_reply(reply)

    def _carry_out(self, decision: Decision, index: int) -> None:
        totals, pending = self._totals, self._pending
        for row in decision.rows:
            if isinstance(row, ConfigRow):
                pending.put_config(row)
            else:
                self._change(row, index)
        self._changes += decision.events
        entries, size = decision.grown
        totals.config_entries += entries
        totals.config_bytes += size

    def _end_entry(self, index: int) -> None:
        """Have written what its commands did, and remove what is too much now."""
        totals, pending = self._totals, self._pending
        if self._changes:
            row = pack_changes(self._changes)
            pending.events += (index, *row)
            pending.topics.update(dict.fromkeys(row.topics.split(","), index))
            totals.events += row.count
            totals.event_bytes += row.size
            self._changes = []
        if self._decided:
            pending.audit += (index, len(self._decided), pack_decided(self._decided))
            totals.audit += len(self._decided)
            self._decided = []
        if (
            totals.events > totals.events_max
            or totals.event_bytes > totals.event_bytes_max
            or totals.audit > totals.audit_max
        ):
            self._write()  # what goes first is the oldest, be it written yet or not
            totals.evict(self._cursor)

    def _change(self, row: RareRow | Gone, index: int) -> None:
        """What is rare is written at once."""
        if type(row) is Gone:
            if row.topic == CONFIG:
                self._pending.delete_config(row.key)
            else:
                self._cursor.execute(DELETE[row.topic], (row.key,))
            return
        self._cursor.execute(PUT[type(row)], row)
        if type(row) is SettingRow:
            self._totals.changed(row)
        elif type(row) is ClusterRow:
            self._check_protocol(row.protocol, index)

    def _write(self) -> None:
        self._touched.update(self._pending.topics)
        self._pending.write(self._cursor)

    def _check_protocol(self, protocol: int, index: int) -> None:
        if protocol > self._machine.protocol_max:
            raise Refused(
                f"the cluster speaks protocol {protocol} at entry {index}, this conveyord up to "
                f"{self._machine.protocol_max}; upgrade this node to the version of the others"
            )


class _Applying(Tables):
    """The tables and what is pending, without counting what has been counted."""

    def __init__(self, cursor: sqlite3.Cursor, totals: Totals, pending: Pending) -> None:
        super().__init__(cursor)
        self._totals = totals
        self.config = pending.config  # type: ignore[method-assign]  # every entry calls it: without a call between

    def config_size(self) -> tuple[int, int]:
        return self._totals.config_entries, self._totals.config_bytes
