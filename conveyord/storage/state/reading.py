"""Reads the state beside the thread that changes it. Every answer says of which index it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import starmap
from pathlib import Path
from types import TracebackType
from typing import Generic, NamedTuple, Self, TypeVar

from msgspec.structs import astuple

from conveyord.core.errors import ConfigError
from conveyord.core.raft.membership import Membership
from conveyord.core.state.commands import Command
from conveyord.core.state.machine import MACHINE, Machine
from conveyord.core.state.replies import No
from conveyord.core.state.rows import TOPICS, AuditRow, ClusterRow, ConfigRow, MemberRow, TokenRow
from conveyord.core.state.settings import SETTINGS
from conveyord.storage.state.packed import unpack_decided
from conveyord.storage.state.tables import Tables
from conveyord.storage.state.watching import Behind, Compacted, Events, Topic, Watched, read_events, read_topics
from conveyord.storage.state_store.faults import translated
from conveyord.storage.state_store.reader import StateReader

T = TypeVar("T")
PAGE_BYTES = 1 << 20
EVENTS_LIMIT = 1_000
_KEY_END = "\x7f"  # behind every character that a key can have


class Answer(NamedTuple, Generic[T]):
    """value: what is there at the index of the last entry in the state."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of an answer
    value: T


class Page(NamedTuple, Generic[T]):
    """items: in order. more: whether others follow; ask for those after the last one."""

    items: tuple[T, ...]
    more: bool


class Member(NamedTuple):
    """A node. standing: "voter" or "learner" by Raft's membership at the index, None if it is neither.

    row: None for one that is in that membership, but never told who it is.
    """

    node: str
    standing: str | None
    row: MemberRow | None


class StateView:
    """Blocking. The state in a directory, for one thread; a context manager.

    After a switch to a snapshot it reads the new state. Raises Retryable while there is none, Corrupt if it is damaged.
    """

    def __init__(
        self, directory: Path, *, generation: Callable[[], int] | None = None, machine: Machine = MACHINE
    ) -> None:
        """directory: of the state store. generation: what the store's attribute is; without it, the disk is asked."""
        self._directory = directory
        self._generation = generation
        self._machine = machine
        self._reader: StateReader | None = None

    def close(self) -> None:
        """Let go of the file. Whoever reads on opens it again."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------------------- what is there

    def index(self) -> int:
        """Of the last entry in the state."""
        with self._reading() as (index, _):
            return index

    def cluster(self) -> Answer[ClusterRow]:
        """The cluster, with a blank id before it is formed."""
        with self._reading() as (index, cursor):
            return Answer(index, Tables(cursor).cluster())

    def settings(self) -> Answer[dict[str, tuple[int, int]]]:
        """The value of every setting, and the index of its last change: 0 for a default."""
        with self._reading() as (index, cursor):
            found = {name: (setting.default, 0) for name, setting in SETTINGS.items()}
            cursor.execute("SELECT name, value, changed FROM settings ORDER BY name")
            return Answer(index, found | {name: (value, changed) for name, value, changed in cursor.fetchall()})

    def membership(self) -> Answer[Membership]:
        """Raft's members, those that a cluster began with included."""
        with self._reading() as (index, _):
            return Answer(index, self._membership())

    def member(self, node: str) -> Answer[Member | None]:
        """One node; None if neither the members nor Raft know it."""
        answer = self.members()
        return Answer(answer.index, next((member for member in answer.value if member.node == node), None))

    def members(self) -> Answer[tuple[Member, ...]]:
        """All nodes that members or Raft know, in the order of their ids."""
        with self._reading() as (index, cursor):
            rows = {row.node: row for row in Tables(cursor).members()}
            now = self._membership()
            standings = dict.fromkeys(now.learners, "learner") | dict.fromkeys(now.electorate, "voter")
            nodes = sorted(rows.keys() | standings.keys())
            return Answer(index, tuple(Member(node, standings.get(node), rows.get(node)) for node in nodes))

    def config(self, key: str) -> Answer[ConfigRow | None]:
        """One configuration entry; `changed` is its version, what `expect_index` is compared with."""
        with self._reading() as (index, cursor):
            row = cursor.execute("SELECT * FROM config WHERE key = ?", (key,)).fetchone()
            return Answer(index, ConfigRow(*row) if row else None)

    def config_page(
        self, prefix: str = "", *, after: str = "", limit: int = 100, bytes_max: int = PAGE_BYTES
    ) -> Answer[Page[ConfigRow]]:
        """Entries whose keys begin with `prefix`, in the order of their keys, those behind the key `after`.

        At most `limit`, and no more once there are `bytes_max`. Each page is of an index of its own.
        """
        with self._reading() as (index, cursor):
            cursor.execute(
                "SELECT * FROM config WHERE key >= ? AND key < ? AND key > ? ORDER BY key",
                (prefix, prefix + _KEY_END, after),
            )
            rows, size = list[ConfigRow](), 0
            for row in starmap(ConfigRow, cursor):
                if len(rows) >= limit or size >= bytes_max:
                    return Answer(index, Page(tuple(rows), more=True))
                rows.append(row)
                size += row.size
            return Answer(index, Page(tuple(rows), more=False))

    def token(self, token: str) -> Answer[TokenRow | None]:
        """One token, be it of use or not: see `core.state.tokens.is_usable`."""
        with self._reading() as (index, cursor):
            return Answer(index, Tables(cursor).token(token))

    def tokens(self) -> Answer[tuple[TokenRow, ...]]:
        """All of them, in the order of their ids."""
        with self._reading() as (index, cursor):
            return Answer(index, tuple(Tables(cursor).tokens()))

    def audit(self, *, before: int | None = None, limit: int = 100) -> Answer[Page[AuditRow]]:
        """Commands that were decided on, the newest first, those of an index below `before`.

        limit: where to end, behind all of one index.
        """
        with self._reading() as (index, cursor):
            last = index + 1 if before is None else before
            rows = list[AuditRow]()
            cursor.execute('SELECT "index", decided FROM audit WHERE "index" < ? ORDER BY "index" DESC', (last,))
            for at, decided in cursor:
                if len(rows) >= limit:
                    return Answer(index, Page(tuple(rows), more=True))
                rows += [AuditRow(at, *astuple(one)) for one in reversed(unpack_decided(decided))]
            return Answer(index, Page(tuple(rows), more=False))

    def may_propose(self, session: int, command: Command) -> No | None:
        """Whether a command must not get into the log, see `Machine.may_propose`. The leader asks before it appends."""
        if command.protocol == 1:  # every cluster speaks that
            return self._machine.check(session, command)
        with self._reading() as (_, cursor):
            return self._machine.may_propose(Tables(cursor), session, command)

    # --------------------------------------------------------------------- what has happened

    def topics(self) -> Answer[dict[str, Topic]]:
        """The index of the last event of each topic, for who waits for the next."""
        with self._reading() as (index, cursor):
            return Answer(index, dict.fromkeys(TOPICS, Topic()) | read_topics(cursor))

    def events_after(
        self,
        after: int,
        topics: Collection[str] = TOPICS,
        *,
        history: str | None = None,
        limit: int = EVENTS_LIMIT,
        bytes_max: int = PAGE_BYTES,
    ) -> Watched:
        """What happened to `topics` after the index `after`: events in order, each exactly once, of an entry all.

        history: what came with the cursor; None, and that a backup was restored is noticed only while the state is
        younger than the cursor. limit, bytes_max: where to end, behind a whole entry; one entry there always is.
        Raises ConfigError for a topic that there is not.
        """
        if unknown := set(topics).difference(TOPICS):
            raise ConfigError(f"there is no topic {min(unknown)!r} to watch; there are {', '.join(TOPICS)}")
        with self._reading() as (index, cursor):
            now = Tables(cursor).cluster().history
            if after > index or (history is not None and history != now):
                return Behind(index, now)
            known = read_topics(cursor)
            asked = [known[topic] for topic in topics if topic in known]
            oldest = max((topic.compacted_to for topic in asked), default=0)
            if after < oldest:
                return Compacted(index, oldest, now)
            if all(topic.newest <= after for topic in asked):
                return Events(index, index, now, ())
            through, events = read_events(cursor, after, topics, limit=limit, bytes_max=bytes_max)
            return Events(index, through or index, now, tuple(events))

    # ------------------------------------------------------------------------------ below

    def _open(self) -> StateReader:
        if self._reader is not None and not self._is_current(self._reader):
            self.close()
        if self._reader is None:
            self._reader = StateReader(self._directory)
        return self._reader

    def _membership(self) -> Membership:
        """Raft's members, within the transaction of `_reading`."""
        assert self._reader is not None
        return self._reader.place().membership

    def _is_current(self, reader: StateReader) -> bool:
        return reader.is_current() if self._generation is None else reader.generation == self._generation()

    @contextmanager
    def _reading(self) -> Iterator[tuple[int, sqlite3.Cursor]]:
        """One transaction: what is read in it is of the index that comes with it."""
        reader = self._open()
        with translated(self._directory):
            cursor = reader.connection.cursor()
            cursor.execute("BEGIN")
            try:
                (index,) = cursor.execute('SELECT "index" FROM raft_applied').fetchone()
                yield index, cursor
            finally:
                reader.connection.rollback()
