"""A disk with a cache that is lost in a crash, and a platter that is not.

A write is one transaction of SQLite: it lands whole or not at all, and in order. What rots on the platter keeps its
checksum, so it is found where it is read.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from conveyord.core.raft.membership import NOBODY, Membership, decode
from conveyord.core.raft.messages import Write
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import BEGINNING, BLANK, Entry, HardState, Kind, Mark, are_whole, size_of

STATES_KEPT = 8  # of the state store, between its last sync and now


class Quarantined(Exception):
    """What is on the disk is not what was written: it is set aside, and never believed again."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A state at a place in the log. digest: of the state as it was taken."""

    mark: Mark
    membership: Membership
    state: bytes
    digest: int

    def is_whole(self) -> bool:
        """Whether it has the bytes that it was made with."""
        return self.digest == zlib.crc32(self.state)


def take_snapshot(mark: Mark, membership: Membership, state: bytes) -> Snapshot:
    """A snapshot with its digest."""
    return Snapshot(mark, membership, state, zlib.crc32(state))


@dataclass(slots=True)
class Platter:
    """What is there after a crash."""

    hard_state: HardState = BLANK
    base: Mark = BEGINNING
    membership: Membership = NOBODY
    entries: list[Entry] = field(default_factory=list)
    snapshot: Snapshot | None = None

    @property
    def last(self) -> int:
        return self.base.index + len(self.entries)

    def entry(self, index: int) -> Entry | None:
        at = index - self.base.index - 1
        return self.entries[at] if 0 <= at < len(self.entries) else None

    def has(self, index: int, chain: bytes) -> bool:
        """Whether it has the log up to an entry: itself, or as a part of a state."""
        if index <= self.base.index:
            return True
        found = self.entry(index)
        return found is not None and found.chain == chain

    def members_at(self, index: int) -> Membership:
        found = self.membership
        for entry in self.entries[: index - self.base.index]:
            if entry.kind is Kind.MEMBERSHIP:
                found = decode(entry.data)
        return found


class Disk:
    """received: snapshots that came whole and wait to be installed. states: of the state store, oldest first: after
    a crash it is any of them, as it is not synced for every entry. window: entries handed to a node that starts.
    """

    def __init__(self, membership: Membership, window: int) -> None:
        self.platter = Platter(membership=membership)
        self.cache: deque[Write] = deque()
        self.received: dict[int, Snapshot] = {}
        self.states: deque[bytes] = deque()
        self.window = window
        self.is_damaged = False

    def land(self) -> Write:
        """The oldest write reaches the platter. Returns it."""
        write, platter = self.cache.popleft(), self.platter
        if write.install is not None:
            snapshot = self.received[write.install.mark.index]
            platter.base, platter.membership, platter.entries = snapshot.mark, snapshot.membership, []
            platter.snapshot = snapshot
            self.states = deque([snapshot.state])
            self.received = {index: one for index, one in self.received.items() if index > snapshot.mark.index}
        if write.truncate_from is not None:
            del platter.entries[write.truncate_from - platter.base.index - 1 :]
        if write.entries:
            assert write.entries[0].index == platter.last + 1
            platter.entries += write.entries
        if write.hard_state is not None:
            platter.hard_state = write.hard_state
        return write

    @property
    def installs(self) -> bool:
        """Whether a snapshot is about to take the place of everything."""
        return any(write.install is not None for write in self.cache)

    def keep_state(self, dump: bytes) -> None:
        """The state store has committed, and not synced."""
        self.states.append(dump)
        if len(self.states) > STATES_KEPT:
            del self.states[1]

    def crash(self, random: Random) -> None:
        """Lose what is in the caches, but for any part of it that had got through already."""
        for _ in range(random.randint(0, len(self.cache))):
            self.land()
        self.cache.clear()
        self.received.clear()
        lost = random.choice([0, random.randrange(STATES_KEPT), STATES_KEPT])
        while len(self.states) > 1 and lost:
            self.states.pop()
            lost -= 1

    def save(self, snapshot: Snapshot, state: bytes, keep: int, members_at: Callable[[int], Membership]) -> Mark | None:
        """Sync the state, keep a snapshot of it, and drop entries that are older, but for `keep` of them. Returns the
        new base, if there is one.
        """
        platter = self.platter
        platter.snapshot = snapshot
        self.states = deque([state])
        index = min(snapshot.mark.index, platter.last) - keep
        entry = platter.entry(index)
        if entry is None:
            return None
        platter.membership = members_at(index)
        del platter.entries[: index - platter.base.index]
        platter.base = Mark(index, entry.term, entry.chain)
        return platter.base

    def flip(self, random: Random) -> bool:
        """Turn a bit of the log or of the snapshot. Returns whether there was one that nobody had turned."""
        platter = self.platter
        spots = [at for at, entry in enumerate(platter.entries) if entry.data]
        if platter.snapshot is not None and (not spots or random.random() < 0.5):
            old = platter.snapshot
            state = _flipped(old.state, random)
            platter.snapshot = Snapshot(old.mark, old.membership, state, old.digest)
        elif spots:
            at = random.choice(spots)
            platter.entries[at] = platter.entries[at]._replace(data=_flipped(platter.entries[at].data, random))
        else:
            return False
        self.is_damaged = True
        return True

    def read(self, first: int, end: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries from the platter, one at least if it is there. Raises Quarantined."""
        found, size = list[Entry](), 0
        for index in range(first, end):
            entry = self.platter.entry(index)
            if entry is None or (found and size + size_of([entry]) > bytes_max):
                break
            if not are_whole([entry]):
                raise Quarantined(f"entry {index}")
            found.append(entry)
            size += size_of([entry])
        return tuple(found)

    def load(self, applied: int) -> Loaded:
        """What a node that starts finds. applied: by the state. Raises Quarantined."""
        platter = self.platter
        if platter.snapshot is not None and not platter.snapshot.is_whole():
            raise Quarantined("snapshot")
        for entry in platter.entries:
            if not are_whole([entry]):
                raise Quarantined(f"entry {entry.index}")
        self.is_damaged = False  # what was is compacted away
        hint = max(platter.hard_state.commit, applied, platter.base.index)
        first = max(platter.base.index + 1, min(hint + 1, platter.last) - self.window)
        cut = first - platter.base.index - 1
        runs = list[tuple[int, int]]()
        for entry in platter.entries[:cut]:
            if not runs or runs[-1][1] != entry.term:
                runs.append((entry.index, entry.term))
        members = [(one.index, decode(one.data)) for one in platter.entries if one.kind is Kind.MEMBERSHIP]
        return Loaded(
            platter.hard_state, platter.base, platter.membership, members, runs, platter.entries[cut:], applied
        )


def _flipped(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
