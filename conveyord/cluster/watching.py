"""Wakes who waits for something in the state to be changed, and nobody else."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Sequence

import trio

from conveyord.cluster.reading import Reader
from conveyord.core.errors import ConfigError
from conveyord.core.raft.types import Entry, Mark
from conveyord.core.state.rows import TOPICS
from conveyord.runtime.raft.driver import Driver
from conveyord.storage.state.execute import Executor
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore

WAITERS_MAX = 10_000


class WatchedState:
    """A state as the driver uses it. It remembers which topics were changed. Threads are those of `Replica`."""

    def __init__(self, store: StateStore) -> None:
        self._executor = Executor()
        self._replica = Replica(store, self._executor.execute)
        self._touched: deque[dict[str, int]] = deque()

    @property
    def mark(self) -> Mark:
        """See `StatePort`."""
        return self._replica.mark

    def try_out(self, entries: Sequence[Entry]) -> Sequence[bytes]:
        """See `StatePort`."""
        return self._replica.try_out(entries)

    def forget(self) -> None:
        """See `StatePort`."""
        self._replica.forget()

    def apply(self, entries: Sequence[Entry]) -> Sequence[bytes]:
        """See `StatePort`."""
        replies = self._replica.apply(entries)
        if touched := self._executor.take_touched():
            self._touched.append(touched)
        return replies

    def switch(self, mark: Mark) -> None:
        """See `StatePort`."""
        self._replica.switch(mark)
        self._touched.append(dict.fromkeys(TOPICS, mark.index))  # what it changed nobody can tell: perhaps everything

    def take_snapshot(self) -> Mark:
        """See `StatePort`."""
        return self._replica.take_snapshot()

    def open_snapshot(self, since: int) -> SnapshotFile | None:
        """See `StatePort`."""
        return self._replica.open_snapshot(since)

    def take_touched(self) -> dict[str, int]:
        """The topics that were changed since the last call, with the index of the last change. By one thread."""
        merged = dict[str, int]()
        while self._touched:
            for topic, index in self._touched.popleft().items():
                merged[topic] = max(index, merged.get(topic, 0))
        return merged


class Watches:
    """For the trio thread."""

    def __init__(self, reader: Reader, take_touched: Callable[[], dict[str, int]]) -> None:
        self._reader = reader
        self._take_touched = take_touched
        self._newest = dict.fromkeys(TOPICS, 0)
        self._waiting: dict[str, set[trio.Event]] = {topic: set() for topic in TOPICS}
        self._count = 0

    def newest(self, topics: Collection[str]) -> int:
        """The index of the last change of any of them, as far as it was seen."""
        return max((self._newest[topic] for topic in topics), default=0)

    async def run(self, driver: Driver, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See changes until cancelled."""
        seen = -1
        known = await self._reader.ask(lambda view: view.topics())
        self._see({topic: found.newest for topic, found in known.value.items()})
        task_status.started()
        while True:
            standing = await driver.until(lambda now, seen=seen: now.applied > seen)  # type: ignore[misc]
            seen = standing.applied
            self._see(self._take_touched())

    async def wait_beyond(self, topics: Collection[str], index: int, *, seconds: float) -> None:
        """Wait until one of `topics` was changed behind `index`, for so long at most.

        Raises ConfigError for a topic that there is not. At the limit of those who wait it returns at once: who asks
        gets what is there, as after a time that is over.
        """
        if unknown := set(topics).difference(TOPICS):
            raise ConfigError(f"there is no topic {min(unknown)!r} to wait for; there are {', '.join(TOPICS)}")
        if self._count >= WAITERS_MAX:
            return
        self._count += 1
        try:
            with trio.move_on_after(seconds):
                while self.newest(topics) <= index:
                    await self._woken(topics)
        finally:
            self._count -= 1

    async def _woken(self, topics: Collection[str]) -> None:
        event = trio.Event()
        for topic in topics:
            self._waiting[topic].add(event)
        try:
            await event.wait()
        finally:
            for topic in topics:
                self._waiting[topic].discard(event)

    def _see(self, touched: dict[str, int]) -> None:
        for topic, index in touched.items():
            self._newest[topic] = max(index, self._newest[topic])
            for event in self._waiting[topic]:
                event.set()
