"""The law "persist, then send, then apply" as a type: what leaves a node, and when.

A message is either free (it promises nothing that is not on disk) or promised. A promised one waits for the write that
covers everything unsaved at the time it was made, and leaves when the driver has said that this write is on disk. A
promise to oneself is how a node's own vote and its own copy of an entry come to count: no sooner than anybody's.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from conveyord.core.raft.log import Log
from conveyord.core.raft.messages import Accepted, Dropped, Fetch, Install, Message, ReadReady, Ready, Write
from conveyord.core.raft.types import Entry, HardState, NodeId

NOTHING = Ready()


@dataclass(slots=True, eq=False)
class Unsaved:
    """What differs from what was handed out to be written."""

    hard_state: HardState
    first: int
    truncate_from: int | None = None
    install: Install | None = None


@dataclass(slots=True, eq=False)
class _Underway:
    """A write that is not known to be on disk. last: of its entries, lowered if they are truncated meanwhile: that
    an old write ends says nothing of the entries that took the place of its own.
    """

    token: int
    last: int


@dataclass(slots=True, eq=False)
class Outbox:
    """Collects what one or more events lead to, until it is taken."""

    node: NodeId
    unsaved: Unsaved
    free: list[Message] = field(default_factory=list)
    answers: list[Accepted | Dropped] = field(default_factory=list)
    reads: list[ReadReady] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)
    snapshots: list[NodeId] = field(default_factory=list)
    _promised: list[Message] = field(default_factory=list)
    _held: deque[tuple[int, Message]] = field(default_factory=deque)
    _underway: deque[_Underway] = field(default_factory=deque)
    _token: int = 0

    def send(self, message: Message) -> None:
        """Let a message out at once."""
        self.free.append(message)

    def promise(self, message: Message) -> None:
        """Let a message out when everything that is unsaved now is on disk."""
        self._promised.append(message)

    def truncated(self, first: int) -> None:
        """The log has lost its entries from `first` on."""
        unsaved = self.unsaved
        if first < unsaved.first:
            unsaved.truncate_from = min(first, unsaved.truncate_from or first)
            unsaved.first = first
        for write in self._underway:
            write.last = min(write.last, first - 1)

    def installed(self, install: Install) -> None:
        """A snapshot takes the place of the whole log."""
        self.unsaved = Unsaved(self.unsaved.hard_state, install.mark.index + 1, install=install)
        for write in self._underway:
            write.last = 0

    def write(self, hard_state: HardState, log: Log) -> Write | None:
        """The write that is due; None if there is none. A commit index alone is not worth one."""
        unsaved = self.unsaved
        saved = unsaved.hard_state
        changed = unsaved.first <= log.last or hard_state.term != saved.term or hard_state.vote != saved.vote
        if not (changed or self._promised or unsaved.truncate_from or unsaved.install):
            return None  # the usual case, and a quick one
        due = changed or unsaved.truncate_from is not None or unsaved.install is not None
        if due:
            self._token += 1
            self._underway.append(_Underway(self._token, log.last))
        if due or self._underway:
            self._held.extend((self._token, message) for message in self._promised)
        else:
            self.free.extend(message for message in self._promised if message.to != self.node)
            assert all(message.to != self.node for message in self._promised), "a promise to oneself needs a write"
        self._promised.clear()
        if not due:
            return None
        news = hard_state if hard_state != saved else None
        self.unsaved = Unsaved(hard_state, log.last + 1)
        return Write(self._token, news, unsaved.truncate_from, log.tail(unsaved.first), unsaved.install)

    def end_of_write(self, log: Log) -> int:
        """The last entry of the oldest write that is under way, or of the log if none is."""
        return self._underway[0].last if self._underway else log.last

    def take(self, write: Write | None, committed: tuple[Entry, ...], likely: tuple[Entry, ...]) -> Ready:
        """Everything that was collected, once."""
        collected = self.free or self.answers or self.reads or self.fetches or self.snapshots
        if not (write or committed or likely or collected):
            return NOTHING
        ready = Ready(
            write,
            tuple(self.free),
            committed,
            tuple(self.answers),
            tuple(self.reads),
            tuple(self.fetches),
            tuple(self.snapshots),
            likely,
        )
        for taken in (self.free, self.answers, self.reads, self.fetches, self.snapshots):
            taken.clear()
        return ready

    def persisted(self, token: int, log: Log) -> list[Message]:
        """The writes up to `token` are on disk: let out what they promised. Returns the promises to this node."""
        while self._underway and self._underway[0].token <= token:
            log.stable = max(log.stable, self._underway.popleft().last)
        own = list[Message]()
        while self._held and self._held[0][0] <= token:
            message = self._held.popleft()[1]
            (own if message.to == self.node else self.free).append(message)
        return own
