"""The thread of a node's state: applies what is committed, and switches to snapshots.

A leader's entries are tried out while they are on their way to the disks: what they reply is known then as soon as they
are committed, and little is left to be done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import structlog

from conveyord.core.errors import StorageFull
from conveyord.core.raft.types import Entry, Mark
from conveyord.runtime.raft.ports import StatePort
from conveyord.runtime.raft.worker import Report, Worker

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 1.0  # after which a state whose disk is full is tried again
Applied = Callable[[Sequence[Entry], Sequence[bytes]], None]
Switched = Callable[[Mark, Mark], None]


class TryOut(NamedTuple):
    """Entries that may be committed next."""

    entries: tuple[Entry, ...]


class Forget(NamedTuple):
    """Take back what was tried out."""


Job = tuple[Entry, ...] | Mark | TryOut | Forget


class Applying:
    """Methods are for the trio thread."""

    def __init__(self, state: StatePort, on_applied: Applied, on_tried: Applied, on_switched: Switched) -> None:
        """on_applied, on_tried: entries and their replies. on_switched: the mark before, and that of the snapshot."""
        self._state = state
        self._on_applied = on_applied
        self._on_tried = on_tried
        self._on_switched = on_switched
        self._worker = Worker[Job]("raft-state", self._work)
        self.is_full = False
        """Whether the disk of the state has no room, and what is committed waits for that."""

    async def run(self) -> None:
        """Work until cancelled. Raises what the state raises: the process must end then."""
        await self._worker.run()

    def apply(self, entries: tuple[Entry, ...]) -> None:
        """Apply what was committed."""
        self._worker.put(entries)

    def try_out(self, entries: tuple[Entry, ...]) -> None:
        """See what entries reply that are not committed. Nothing comes of it if there is other work."""
        self._worker.put(TryOut(entries))

    def forget(self) -> None:
        """They will perhaps not be committed."""
        self._worker.put(Forget())

    def later(self, entries: tuple[Entry, ...]) -> Later:
        """The same when the deadline of what is returned has come."""
        return Later(entries, self._worker.put)

    def switch(self, mark: Mark) -> None:
        """Make a staged snapshot the state."""
        self._worker.put(mark)

    def _work(self, jobs: Sequence[Job], report: Report) -> None:
        for job in jobs:
            if isinstance(job, Mark):
                self._switch(job, report)
            elif isinstance(job, Forget):
                self._state.forget()
            elif not isinstance(job, TryOut):
                self._apply(job, report)
            elif job is jobs[-1]:  # else it comes too late
                self._try_out(job.entries, report)

    def _try_out(self, entries: tuple[Entry, ...], report: Report) -> None:
        if entries[0].index != self._state.mark.index + 1:
            return  # a snapshot has come before them
        try:
            replies = self._state.try_out(entries)
        except StorageFull:
            return  # `apply` will say so
        report(partial(self._on_tried, entries, replies))

    def _switch(self, mark: Mark, report: Report) -> None:
        before = self._state.mark
        if self._with_room(lambda: self._state.switch(mark)):
            report(lambda: self._on_switched(before, mark))

    def _apply(self, entries: tuple[Entry, ...], report: Report) -> None:
        have = self._state.mark.index  # a snapshot may have come before them
        rest = entries if entries[0].index > have else tuple(entry for entry in entries if entry.index > have)
        replies = list[bytes]()
        if rest and self._with_room(lambda: replies.extend(self._state.apply(rest))):
            report(partial(self._on_applied, rest, replies))

    def _with_room(self, act: Callable[[], None]) -> bool:
        """Do it as soon as the disk has room for it. False: this is stopping, and nothing came of it."""
        while not self._worker.is_stopping:
            try:
                act()
            except StorageFull as error:
                if not self.is_full:
                    log.error("the disk of the state is full; what is committed waits for it", reason=str(error))
                self.is_full = True
                time.sleep(AGAIN_SECONDS)
            else:
                self.is_full = False
                return True
        return False


class Later:
    """Entries that are applied at a deadline, see `Deadlines`."""

    __slots__ = ("_entries", "_put", "is_open")

    def __init__(self, entries: tuple[Entry, ...], put: Callable[[tuple[Entry, ...]], None]) -> None:
        self._entries = entries
        self._put = put
        self.is_open = True

    def expire(self) -> None:
        """Apply them now."""
        self.is_open = False
        self._put(self._entries)
