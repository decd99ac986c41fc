"""What became of proposals: the entry at their index tells, once it is committed.

| who proposes is told | when |
|---|---|
| done, with the index and the reply | `committed` names its number first: the entry at its index is its own |
| not leader, with who leads | `messages.NotLeader`: it is in no log |
| dropped: safe to propose anew | `messages.Dropped`; or `committed` names it second: its place is another's for good |
| outcome unknown: again under the same number | `skipped` or `beyond` names it; this node ends; nothing comes in time |
"""

from __future__ import annotations

from conveyord.core.raft.messages import Accepted


class Proposals:
    """The proposals of this node that wait. Not thread-safe."""

    def __init__(self) -> None:
        self._slots: dict[int, tuple[Accepted, ...]] = {}

    def wait_for(self, first: int, last: int) -> bool:
        """Whether any was put at an index from `first` to `last`."""
        return any(index in self._slots for index in range(first, last + 1))

    def accepted(self, answer: Accepted) -> None:
        """A proposal is in the log. An index may be taken again in a later term."""
        index = answer.index
        self._slots[index] = (*self._slots[index], answer) if index in self._slots else (answer,)

    def committed(self, index: int, term: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The entry at `index` is committed: the numbers that it answers, and those that are lost."""
        slots = self._slots.pop(index, ())
        if len(slots) == 1 and slots[0].term == term:
            return (slots[0].number,), ()  # as nearly always
        ours = tuple(slot.number for slot in slots if slot.term == term)
        return ours, tuple(slot.number for slot in slots if slot.term != term)

    def skipped(self, index: int) -> list[int]:
        """A snapshot stands for everything up to `index`: the numbers whose outcome is unknown."""
        gone = [at for at in self._slots if at <= index]
        return [slot.number for at in gone for slot in self._slots.pop(at)]

    def beyond(self, last: int) -> list[int]:
        """The log was cut, and ends at `last`: the numbers that were put behind it. What is there once may be long in
        coming, and others may have their entries still.
        """
        gone = [at for at in self._slots if at > last]
        return [slot.number for at in gone for slot in self._slots.pop(at)]
