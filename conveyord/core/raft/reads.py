"""Linearizable reads without a log entry: ReadIndex (Ongaro's thesis, 6.4), many confirmed by one round of heartbeats.

A read may be answered from a state that has everything that was committed when the read came, once a quorum has
answered a heartbeat sent after that: then no other leader can have committed anything newer before it.

| a read is | since | until |
|---|---|---|
| gathered | it came | the round before is confirmed, and an entry of this term is committed |
| in the round | heartbeats with the round's number are sent | a quorum has answered one of them |
| confirmed | that | the state has applied its index |
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from conveyord.core.raft.types import NodeId


class Asker(NamedTuple):
    """Who reads. number: the ticket of a read of this node's own, or the number that another has given to its read."""

    node: NodeId
    number: int


@dataclass(slots=True)
class LeaderReads:
    """The reads of one leadership. Rounds are never reused within a term."""

    round: int = 0
    index: int = 0
    gathered: list[Asker] = field(default_factory=list)
    asked: list[Asker] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.gathered) + len(self.asked)

    def begin(self, commit: int) -> bool:
        """Open a round for what was gathered, if none is open. Returns whether heartbeats must go out."""
        if self.asked or not self.gathered:
            return False
        self.round += 1
        self.index = commit
        self.asked, self.gathered = self.gathered, []
        return True

    def confirm(self) -> list[Asker]:
        """A quorum has answered the round: its reads, which `index` is for."""
        asked, self.asked = self.asked, []
        return asked

    def abandon(self) -> list[Asker]:
        """Nobody leads here any more: every read that waits."""
        waiting = [*self.asked, *self.gathered]
        self.asked, self.gathered = [], []
        return waiting
