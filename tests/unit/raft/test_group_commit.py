"""Writes in groups come to the same as one by one, on the real log."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.raft import group_commit
from conveyord.core.raft.group_commit import grouped
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Install, Write
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import ROOT_CHAIN, Entry, HardState, Kind, Mark, make_entry
from conveyord.storage.raft_log.log import RaftLog

MEMBERS = Membership(frozenset({"n"}))


@st.composite
def histories(draw: st.DrawFn) -> list[Write]:
    """Writes as a node makes them: appends, now and then after a truncation or as what follows a snapshot."""
    entries, base, term, writes = list[Entry](), Mark(), 1, list[Write]()
    for token in range(1, draw(st.integers(1, 12)) + 1):
        kind = draw(st.sampled_from(["append", "append", "append", "truncate", "install", "vote"]))
        truncate_from, install = None, None
        if kind == "truncate" and entries:
            term += 1
            truncate_from = draw(st.integers(entries[0].index, entries[-1].index))
            del entries[truncate_from - base.index - 1 :]
        elif kind == "install":
            last = entries[-1].index if entries else base.index
            base, entries = Mark(last + draw(st.integers(1, 3)), term, b"%08d" % token), []
            install = Install(base, MEMBERS)
        elif kind == "vote":
            term += 1
        new = list[Entry]()
        for _ in range(draw(st.integers(0, 3))):
            chain = entries[-1].chain if entries else base.chain
            index = entries[-1].index if entries else base.index
            new.append(make_entry(chain, index + 1, term, Kind.COMMAND, b"x" * draw(st.integers(0, 30))))
            entries.append(new[-1])
        writes.append(Write(token, HardState(term, "n", base.index), truncate_from, tuple(new), install))
    return writes


def landed(writes: list[Write]) -> Loaded:
    with tempfile.TemporaryDirectory() as home:
        log = RaftLog(Path(home) / "raft.db", node="n", reserve_bytes=4096)
        log.load(0)
        for write in writes:
            log.write(write)
        found = log.load(log.base.index)
        log.close()
        return found


@settings(max_examples=40, deadline=None)
@given(histories())
def test_groups_come_to_the_same(writes: list[Write]) -> None:
    groups = grouped(writes)
    assert len(groups) <= len(writes)
    assert groups[-1].token == writes[-1].token
    assert landed(groups) == landed(writes)


def test_appends_are_one_transaction_up_to_a_limit_of_bytes() -> None:
    chain, writes = ROOT_CHAIN, list[Write]()
    for index in range(1, 11):
        entry = make_entry(chain, index, 1, Kind.COMMAND, b"x" * (group_commit.GROUP_BYTES // 4))
        chain = entry.chain
        writes.append(Write(index, None, None, (entry,), None))
    groups = grouped(writes)
    assert [len(group.entries) for group in groups] == [3, 3, 3, 1]
    assert [group.token for group in groups] == [3, 6, 9, 10]
    assert grouped(writes[:1]) == writes[:1]


def test_a_group_has_the_last_hard_state_that_any_of_it_has() -> None:
    states = [HardState(1, "n", 1), None, HardState(1, "n", 3), None]
    writes = [Write(token, state, None, (), None) for token, state in enumerate(states, 1)]
    assert grouped(writes) == [Write(4, HardState(1, "n", 3), None, (), None)]
