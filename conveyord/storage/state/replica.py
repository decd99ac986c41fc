"""The replicated state as a Raft driver uses it: what entries do that are applied together is written together."""

from __future__ import annotations

from collections.abc import Sequence

from conveyord.core.raft.types import Entry
from conveyord.storage.state.execute import Executor
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.store import StateStore


class StateReplica(Replica):
    """A store, and what carries its entries out, which nobody else uses. Threads and errors are those of the store."""

    def __init__(self, store: StateStore, executor: Executor) -> None:
        super().__init__(store, executor.execute)
        self._executor = executor

    def apply(self, entries: Sequence[Entry]) -> list[bytes]:
        """See `StateStore.apply`."""
        if not entries:
            return []
        with self._executor.together(entries[0].index, entries[-1].index):
            return super().apply(entries)

    def try_out(self, entries: Sequence[Entry]) -> list[bytes]:
        """See `StateStore.try_out`."""
        with self._executor.together(entries[0].index, entries[-1].index):
            return super().try_out(entries)
