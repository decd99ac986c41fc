"""What a leader's entries will reply, found out while they are on their way to disks: told once they are committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from conveyord.core.raft.log import Log
from conveyord.core.raft.types import Entry


class Tried(NamedTuple):
    """Entries of one term that follow one another, and the reply of each."""

    entries: Sequence[Entry] = ()
    replies: Sequence[bytes] = ()

    def up_to(self, commit: int, log: Log) -> tuple[Tried, Tried]:
        """Those that are committed, and those that are not yet. None of either is in it twice.

        An entry whose index has another term now is not committed, and neither is any behind it; if the last that might
        be has its term, the log is the same up to there (Raft paper, 5.3), so the others need not be looked at.
        """
        entries, replies = self
        if not entries or entries[0].index > commit:
            return NOTHING, self
        count = min(len(entries), commit + 1 - entries[0].index)
        last, rest = entries[count - 1], Tried(entries[count:], replies[count:])
        if log.term(last.index) != last.term:
            return NOTHING, rest
        return Tried(entries[:count], replies[:count]), rest


NOTHING = Tried()
