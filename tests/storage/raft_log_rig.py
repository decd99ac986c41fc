"""What a Raft log is to hold, and what one is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from conveyord.core.raft.membership import NOBODY, Membership, decode, encode
from conveyord.core.raft.messages import Install, Write
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import BEGINNING, BLANK, Entry, HardState, Kind, Mark, make_entry
from conveyord.storage.raft_log.log import RaftLog

EVERYTHING = 1 << 40
RESERVE_BYTES = 4096
Contents = tuple[HardState, Mark, Membership, tuple[tuple[int, Membership], ...], tuple[Entry, ...]]


@dataclass
class Model:
    """A log as a list."""

    hard_state: HardState = BLANK
    base: Mark = BEGINNING
    members: Membership = NOBODY
    entries: list[Entry] = field(default_factory=list)

    @property
    def last(self) -> int:
        return self.base.index + len(self.entries)

    @property
    def end(self) -> Mark:
        return self.mark(self.last)

    def mark(self, index: int) -> Mark:
        if index == self.base.index:
            return self.base
        entry = self.entries[index - self.base.index - 1]
        return Mark(index, entry.term, entry.chain)

    def members_at(self, index: int) -> Membership:
        kept = self.entries[: index - self.base.index]
        found = [decode(one.data) for one in kept if one.kind is Kind.MEMBERSHIP]
        return found[-1] if found else self.members

    def write(self, write: Write) -> None:
        if write.install is not None:
            self.base, self.members, self.entries = write.install.mark, write.install.membership, []
        elif write.truncate_from is not None:
            del self.entries[write.truncate_from - self.base.index - 1 :]
        self.entries += write.entries
        self.hard_state = write.hard_state or self.hard_state

    def compact(self, base: Mark, members: Membership) -> None:
        del self.entries[: base.index - self.base.index]
        self.base, self.members = base, members

    def contents(self) -> Contents:
        members = tuple((one.index, decode(one.data)) for one in self.entries if one.kind is Kind.MEMBERSHIP)
        return self.hard_state, self.base, self.members, members, tuple(self.entries)


def model_of(held: Contents) -> Model:
    """A model that holds the same."""
    return Model(*held[:3], list(held[4]))


def contents(loaded: Loaded) -> Contents:
    """Of a log that was loaded with a window for everything."""
    memberships = tuple(loaded.memberships)
    return loaded.hard_state, loaded.base, loaded.membership, memberships, tuple(loaded.entries)


def opened(directory: Path, *, vfs: str | None = None, node: str = "n1") -> RaftLog:
    return RaftLog(directory / "raft.db", node=node, reserve_bytes=RESERVE_BYTES, vfs=vfs)


def found(directory: Path, *, vfs: str | None = None) -> Contents:
    """What the production loader finds."""
    log = opened(directory, vfs=vfs)
    try:
        return contents(log.load(0, window_bytes=EVERYTHING))
    finally:
        log.close()


def entries_after(mark: Mark, term: int, sizes: list[int], *, kind: Kind = Kind.COMMAND) -> tuple[Entry, ...]:
    """Entries whose data has these sizes."""
    made, chain = list[Entry](), mark.chain
    for index, size in enumerate(sizes, mark.index + 1):
        data = encode(membership(index)) if kind is Kind.MEMBERSHIP else (b"%d.%d " % (index, term) * size)[:size]
        made.append(make_entry(chain, index, term, kind, data))
        chain = made[-1].chain
    return tuple(made)


def membership(number: int) -> Membership:
    return Membership(frozenset({"n1", f"n{number}"}))


def appended(
    log: RaftLog, model: Model, sizes: list[int], *, term: int = 1, entries: tuple[Entry, ...] | None = None
) -> None:
    """Write entries of these sizes, or these entries, whose term the node does not take up then."""
    hard = None
    if entries is None:
        vote = "n1" if term > model.hard_state.term else model.hard_state.vote
        hard = HardState(max(term, model.hard_state.term), vote, model.last)
    write = Write(0, hard, None, entries or entries_after(model.end, term, sizes), None)
    log.write(write)
    model.write(write)


Step = Callable[[RaftLog], None]


def next_step(random: Random, model: Model) -> Step:
    """Something that a node asks of its log, by chance. Changes the model; returns the same for a log."""
    kind = random.choices(("append", "truncate", "vote", "install", "compact"), (10, 2, 2, 1, 3))[0]
    if kind == "compact" and model.entries:
        base = model.mark(random.randint(model.base.index + 1, model.last))
        members = model.members_at(base.index)
        model.compact(base, members)
        return lambda log: log.compact(base, members)
    hard, cut, install = model.hard_state, None, None
    if kind == "vote":
        write = Write(0, HardState(hard.term + 1, random.choice(("n1", "n2", None)), hard.commit), None, (), None)
    else:
        end, term = model.end, hard.term
        if kind == "truncate" and model.entries:
            cut = random.randint(model.base.index + 1, model.last)
            end, term = model.mark(cut - 1), hard.term + 1
        if kind == "install":
            end = Mark(model.last + random.randint(-len(model.entries) + 1, 9), hard.term, random.randbytes(8))
            install = Install(end, membership(end.index))
        sizes = [random.choice((0, 10, 200, 200, 9000)) for _ in range(random.choice((0, 1, 1, 3, 30)))]
        member = random.random() < 0.2 and kind != "install"
        added = entries_after(end, max(term, 1), sizes, kind=Kind.MEMBERSHIP if member else Kind.COMMAND)
        write = Write(0, HardState(max(term, 1), hard.vote, end.index), cut, added, install)
    model.write(write)
    return lambda log: log.write(write)
