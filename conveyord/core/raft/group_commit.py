"""Several writes of a node as fewer: one sync stands for all that came while the one before it was under way."""

from __future__ import annotations

from collections.abc import Iterable

from conveyord.core.raft.messages import Write
from conveyord.core.raft.types import size_of

GROUP_BYTES = 8 * 1024 * 1024
"""Of the entries of one transaction: so much takes a disk some ten milliseconds, and the next group waits for that."""


def grouped(writes: Iterable[Write]) -> list[Write]:
    """Writes that come to the same, one after the other, with the tokens of the last that each of them stands for.

    writes: in the order of their tokens. What drops entries, or puts a snapshot in their place, begins a new one.
    """
    found, entries_bytes = list[Write](), 0
    for write in writes:
        more_bytes = size_of(write.entries)
        is_more = write.truncate_from is None and write.install is None and entries_bytes + more_bytes <= GROUP_BYTES
        if found and is_more:
            first, entries_bytes = found[-1], entries_bytes + more_bytes
            hard_state = write.hard_state or first.hard_state
            found[-1] = Write(
                write.token, hard_state, first.truncate_from, first.entries + write.entries, first.install
            )
        else:
            found.append(write)
            entries_bytes = more_bytes
    return found
