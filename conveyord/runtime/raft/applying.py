"""The thread of a node's state: applies what is committed, and switches to snapshots."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import structlog

from conveyord.core.errors import StorageFull
from conveyord.core.raft.types import Entry, Mark
from conveyord.runtime.raft.ports import StatePort
from conveyord.runtime.raft.worker import Report, Worker

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 1.0  # after which a state whose disk is full is tried again
Applied = Callable[[Sequence[Entry], Sequence[bytes]], None]
Switched = Callable[[Mark, Mark], None]


class Applying:
    """Methods are for the trio thread."""

    def __init__(self, state: StatePort, on_applied: Applied, on_switched: Switched) -> None:
        """on_applied: entries and their replies. on_switched: the mark before, and that of the snapshot."""
        self._state = state
        self._on_applied = on_applied
        self._on_switched = on_switched
        self._worker = Worker[tuple[Entry, ...] | Mark]("raft-state", self._work)
        self.is_full = False
        """Whether the disk of the state has no room, and what is committed waits for that."""

    async def run(self) -> None:
        """Work until cancelled. Raises what the state raises: the process must end then."""
        await self._worker.run()

    def apply(self, entries: tuple[Entry, ...]) -> None:
        """Apply what was committed."""
        self._worker.put(entries)

    def later(self, entries: tuple[Entry, ...]) -> Later:
        """The same when the deadline of what is returned has come."""
        return Later(entries, self._worker.put)

    def switch(self, mark: Mark) -> None:
        """Make a staged snapshot the state."""
        self._worker.put(mark)

    def _work(self, jobs: Sequence[tuple[Entry, ...] | Mark], report: Report) -> None:
        for job in jobs:
            if isinstance(job, Mark):
                self._switch(job, report)
            else:
                self._apply(job, report)

    def _switch(self, mark: Mark, report: Report) -> None:
        before = self._state.mark
        self._state.switch(mark)
        report(lambda: self._on_switched(before, mark))

    def _apply(self, entries: tuple[Entry, ...], report: Report) -> None:
        have = self._state.mark.index  # a snapshot may have come before them
        rest = entries if entries[0].index > have else tuple(entry for entry in entries if entry.index > have)
        while not self._worker.is_stopping:
            try:
                replies = self._state.apply(rest)
            except StorageFull as error:
                if not self.is_full:
                    log.error("the disk of the state is full; what is committed waits for it", reason=str(error))
                self.is_full = True
                time.sleep(AGAIN_SECONDS)
            else:
                self.is_full = False
                report(partial(self._on_applied, rest, replies))
                return


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
