"""What one durable transaction does to a log, worked out before it is begun."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import cast

import apsw

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.membership import Membership, encode
from conveyord.core.raft.messages import Write
from conveyord.core.raft.types import ENTRY_BYTES, Entry, Mark, size_of
from conveyord.storage.many_rows import insert
from conveyord.storage.raft_log.database import SET_HEAD
from conveyord.storage.raft_log.head import Head, row_of

SWEEP_ENTRIES = 1000  # compacted entries that one transaction deletes at least: some half a millisecond
SWEEP_BYTES = 1 << 20  # unless they have more than this
SWEEP_FACTOR = 2  # and so many times what is new, so that sweeping keeps up with any rate

INSERT = 'INSERT INTO entries ("index", term, kind, data, crc, chain) VALUES (?, ?, ?, ?, ?, ?)'
TRUNCATE = 'DELETE FROM entries WHERE "index" >= ?'
SWEEP = 'DELETE FROM entries WHERE "index" < ?'
OLDEST = 'SELECT "index", length(data) FROM entries WHERE "index" < ? ORDER BY "index" LIMIT ?'
PLACE = 'SELECT term, chain FROM entries WHERE "index" = ?'


@dataclass(frozen=True, slots=True)
class Step:
    """head: after it. drop_from: the first of the entries that go, if any do. entries: that follow what is left."""

    head: Head
    drop_from: int | None = None
    entries: Sequence[Entry] = ()


def step_of(connection: apsw.Connection, head: Head, write: Write) -> Step:
    """What a `Write` comes to. A write that does not fit the log is a bug of ours: AssertionError."""
    base, members, drop_from = head.base, head.members, write.truncate_from
    last, chain = head.last_index, head.last_chain
    if write.install is not None:
        assert write.install.mark.index > base.index, (write.install, base)
        base, members = write.install.mark, encode(write.install.membership)
        last, chain, drop_from = base.index, base.chain, base.index + 1
    elif drop_from is not None:
        assert base.index < drop_from, (drop_from, base)
        if drop_from <= last:
            _, _, chain = _place(connection, head, drop_from - 1)
            last = drop_from - 1
    if write.entries:
        assert write.entries[0].index == last + 1, (write.entries[0].index, last)
        last, chain = last + len(write.entries), write.entries[-1].chain
        assert write.entries[-1].index == last, (write.entries[-1].index, last)
    hard_state = write.hard_state or head.hard_state
    assert hard_state.term >= head.hard_state.term, (hard_state, head.hard_state)
    is_new_term, voted = hard_state.term > head.hard_state.term, head.hard_state.vote
    assert is_new_term or voted in (None, hard_state.vote), (hard_state, head.hard_state)
    after = Head(head.node, head.sequence + 1, hard_state, base, members, last, chain)
    return Step(after, drop_from, write.entries)


def founding(head: Head, membership: Membership) -> Step:
    """What it takes to begin a cluster with these members. Raises Refused if the node is in one, or was asked to be."""
    if head._replace(sequence=0, members=b"") != Head(head.node, members=b""):
        raise Refused(
            f"the log of node {head.node} holds entries up to {head.last_index} and term {head.hard_state.term}; "
            "a cluster is founded by nodes whose logs are empty, others join it"
        )
    return Step(head._replace(members=encode(membership), sequence=head.sequence + 1))


def compaction(connection: apsw.Connection, head: Head, base: Mark, membership: Membership) -> Step:
    """What it takes to let the log begin after `base`, a place in it."""
    assert head.base.index < base.index <= head.last_index, (base, head.base, head.last_index)
    assert _place(connection, head, base.index) == base, base
    return Step(head._replace(base=base, members=encode(membership), sequence=head.sequence + 1))


def commit(connection: apsw.Connection, step: Step, *, sweeps: bool) -> bool:
    """Do it in one transaction. The caller rolls back if it fails.

    sweeps: whether there may be entries that are not above the base. Some of them are deleted along with it; returns
    whether there may be more.
    """
    connection.execute("BEGIN IMMEDIATE")
    if step.drop_from is not None:
        connection.execute(TRUNCATE, (step.drop_from,))
    is_left = sweeps and _sweep(connection, step)
    if step.entries:
        insert(connection.execute, INSERT, list(chain.from_iterable(step.entries)))
    connection.execute(SET_HEAD, row_of(step.head))
    connection.execute("COMMIT")
    return is_left


def _sweep(connection: apsw.Connection, step: Step) -> bool:
    end = step.head.base.index + 1
    entries_max = max(SWEEP_ENTRIES, SWEEP_FACTOR * len(step.entries))
    left_bytes = max(SWEEP_BYTES, SWEEP_FACTOR * size_of(step.entries))
    sweep_end = 0
    for index, data_bytes in connection.execute(OLDEST, (end, entries_max)):
        sweep_end = cast(int, index) + 1
        left_bytes -= ENTRY_BYTES + cast(int, data_bytes)
        if left_bytes <= 0:
            break
    connection.execute(SWEEP, (sweep_end,))
    return 0 < sweep_end < end


def _place(connection: apsw.Connection, head: Head, index: int) -> Mark:
    if index == head.base.index:
        return head.base
    found = connection.execute(PLACE, (index,)).fetchall()
    if not found:
        raise Corrupt(f"entry {index} is missing")
    term, chain = found[0]
    return Mark(index, cast(int, term), cast(bytes, chain))
