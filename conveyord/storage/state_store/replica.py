"""A state as a Raft driver uses it: `runtime/raft/ports.py: StatePort`."""

from __future__ import annotations

from collections.abc import Sequence

from conveyord.core.raft.types import Entry, Mark
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import Execute, StateStore


class Replica:
    """A store, and what its entries do. Threads and errors are those of the store."""

    def __init__(self, store: StateStore, execute: Execute) -> None:
        self._store = store
        self._execute = execute

    @property
    def mark(self) -> Mark:
        """The last entry that is in the state."""
        return self._store.mark

    def apply(self, entries: Sequence[Entry]) -> list[bytes]:
        """See `StateStore.apply`."""
        return self._store.apply(entries, self._execute)

    def try_out(self, entries: Sequence[Entry]) -> list[bytes]:
        """See `StateStore.try_out`."""
        return self._store.try_out(entries, self._execute)

    def forget(self) -> None:
        """See `StateStore.forget`."""
        self._store.forget()

    def switch(self, mark: Mark) -> None:
        """See `StateStore.switch`."""
        self._store.switch(mark)

    def take_snapshot(self) -> Mark:
        """See `Snapshots.take`."""
        return self._store.snapshots.take().mark

    def open_snapshot(self, since: int) -> SnapshotFile | None:
        """See `Snapshots.newest`."""
        return self._store.snapshots.newest(since=since)
