"""When a follower gets a snapshot in place of entries, and what it does with it (Raft paper, section 7)."""

from __future__ import annotations

import pytest

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import (
    Append,
    AppendReply,
    Applied,
    Compacted,
    Install,
    Persisted,
    Receive,
    SnapshotReceived,
    SnapshotSent,
)
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.progress import Mode
from conveyord.core.raft.types import HardState, Mark, Options
from tests.unit.raft.rig import Cluster, T, entries_of

ABC = Membership(frozenset("abc"))


def compacted() -> tuple[Cluster, Mark]:
    """A leader that has compacted its log at entry 4, and c, who has nothing of it."""
    cluster = Cluster()
    cluster.cut = lambda message: "c" in (message.sender, message.to)
    cluster.elect("a")
    cluster.propose("a", b"1", b"2", b"3", b"4", b"5")
    cluster.settle()
    entry = cluster["a"].node.state.log.entry(4)
    assert entry is not None
    mark = Mark(4, entry.term, entry.chain)
    cluster.step("a", Compacted(mark))
    cluster.cut = lambda message: False
    cluster.wait(T)
    return cluster, mark


def test_who_lacks_what_was_compacted_gets_a_snapshot_and_then_the_rest() -> None:
    cluster, mark = compacted()
    assert cluster["a"].snapshots == ["c"]
    term = cluster["a"].node.state.term
    cluster.step("c", SnapshotReceived("a", term, mark, ABC))
    assert cluster["c"].writes[-1].install == Install(mark, ABC)
    assert not any(isinstance(message, AppendReply) for message in cluster.mail)  # it is not on disk yet
    cluster.sync("c")
    cluster.step("c", Applied(mark.index))
    cluster.step("a", SnapshotSent("c", mark.index))
    cluster.settle()
    cluster.wait(T)
    assert [entry.index for entry in cluster["c"].applied] == [5, 6]
    assert cluster["c"].node.state.log.chain(6) == cluster["a"].node.state.log.chain(6)


def test_a_stream_that_did_not_arrive_is_begun_again_at_the_next_sign_of_life() -> None:
    cluster, _ = compacted()
    cluster["a"].snapshots.clear()
    cluster.step("a", SnapshotSent("c", None))
    cluster.propose("a", b"more")
    assert cluster["a"].snapshots == []
    cluster.wait(0.5 * T)
    assert cluster["a"].snapshots == ["c"]


def test_who_has_acknowledged_a_snapshot_is_sent_the_rest_before_the_end_of_its_stream_is_known() -> None:
    cluster, mark = compacted()
    cluster.step("c", SnapshotReceived("a", cluster["a"].node.state.term, mark, ABC))
    cluster.step("c", Applied(mark.index))
    cluster.settle()
    assert cluster["c"].node.state.log.last == cluster["a"].node.state.log.last
    leading = cluster["a"].node.state.leading
    assert leading is not None and leading.peers["c"].mode is Mode.REPLICATE
    cluster.step("a", SnapshotSent("c", mark.index))
    assert leading.peers["c"].mode is Mode.REPLICATE


def test_nothing_but_heartbeats_goes_to_who_gets_a_snapshot() -> None:
    cluster, _ = compacted()
    cluster.propose("a", b"more")
    assert [message for message in cluster.mail if message.to == "c"] == []
    leading = cluster["a"].node.state.leading
    assert leading is not None and leading.peers["c"].mode is Mode.SNAPSHOT


def test_a_snapshot_of_what_the_log_has_drops_nothing_that_follows_it() -> None:
    entries = entries_of([1, 1, 1, 1])
    cluster = Cluster(loaded={"b": Loaded(HardState(1), membership=ABC, entries=entries)})
    mark = Mark(2, 1, entries[1].chain)
    cluster.step("b", SnapshotReceived("a", 1, mark, ABC))
    state = cluster["b"].node.state
    assert (state.log.last, state.commit) == (4, 2)
    assert cluster["b"].writes == []
    assert cluster.mail == [AppendReply("b", "a", 1, 2)]


def test_a_snapshot_of_what_is_committed_changes_nothing() -> None:
    entries = entries_of([1, 1, 1])
    cluster = Cluster(loaded={"b": Loaded(HardState(1, None, 3), membership=ABC, entries=entries)})
    cluster.step("b", SnapshotReceived("a", 1, Mark(2, 1, entries[1].chain), Membership(frozenset("x"))))
    state = cluster["b"].node.state
    assert (state.commit, state.membership) == (3, ABC)
    assert cluster.mail == [AppendReply("b", "a", 1, 3)]


def test_the_members_of_a_snapshot_take_the_place_of_all_that_were_known() -> None:
    """Those of the log that it replaces as well, committed or not."""
    known = [(1, Membership(frozenset("abcd"))), (3, Membership(frozenset("bc")))]
    found = Loaded(HardState(1, None, 1), membership=ABC, memberships=known, entries=entries_of([1, 1, 1]), applied=1)
    cluster = Cluster(loaded={"b": found})
    mark, wanted = Mark(9, 2, b"12345678"), Membership(frozenset("abe"), frozenset("f"))
    cluster.step("b", SnapshotReceived("a", 2, mark, wanted))
    memberships = cluster["b"].node.state.memberships
    assert (memberships.current, memberships.index, memberships.at(9)) == (wanted, 9, wanted)
    assert cluster["b"].writes[-1].install == Install(mark, wanted)
    with pytest.raises(StopIteration):
        memberships.at(8)


def test_a_snapshot_of_a_past_leader_is_not_taken() -> None:
    cluster = Cluster(loaded={"b": Loaded(HardState(5), membership=ABC)})
    cluster.step("b", SnapshotReceived("a", 4, Mark(9, 4, b"12345678"), ABC))
    assert (cluster["b"].node.state.commit, cluster.mail, cluster["b"].writes) == (0, [], [])


def test_a_log_that_a_snapshot_replaces_keeps_nothing_of_writes_that_were_under_way() -> None:
    entries = entries_of([1, 1, 1])
    cluster = Cluster(loaded={"b": Loaded(HardState(1), membership=ABC)})
    cluster.step("b", Receive(Append("a", "b", 1, 0, 0, tuple(entries), 0)))
    (first,) = cluster["b"].writes
    mark = Mark(9, 2, b"12345678")
    cluster.step("b", SnapshotReceived("c", 2, mark, ABC))
    cluster.step("b", Persisted(first.token))
    state = cluster["b"].node.state
    assert (state.log.last, state.log.stable, state.commit, state.handed) == (9, 9, 9, 9)
    assert cluster.commands()["b"] == []


def test_a_write_that_was_under_way_says_nothing_of_what_comes_after_a_snapshot() -> None:
    cluster = Cluster(loaded={"b": Loaded(HardState(1), membership=ABC)})
    cluster.step("b", Receive(Append("a", "b", 1, 0, 0, tuple(entries_of([1] * 12)), 0)))
    (first,) = cluster["b"].writes
    mark = Mark(9, 2, b"12345678")
    cluster.step("b", SnapshotReceived("c", 2, mark, ABC))
    cluster.step("b", Receive(Append("c", "b", 2, 9, 2, tuple(entries_of([2] * 3, after=mark)), 12)))
    cluster.step("b", Persisted(first.token))
    state = cluster["b"].node.state
    assert (state.log.last, state.log.stable, cluster.commands()["b"]) == (12, 9, [])


def test_who_has_another_entry_where_the_log_was_compacted_gets_a_snapshot() -> None:
    """Found by simulation: leader and follower told each other the same for ever."""
    old = entries_of([1, 1])
    new = entries_of([1, 2, 2])
    mark = Mark(2, 2, new[1].chain)
    leader = Loaded(HardState(2, None, 2), mark, ABC, entries=new[2:], applied=2)
    cluster = Cluster(loaded={"a": leader, "b": leader, "c": Loaded(HardState(1), membership=ABC, entries=old)})
    cluster.elect("a")
    cluster.wait(T)
    assert cluster["a"].snapshots == ["c"]


def test_a_compaction_that_a_snapshot_has_overtaken_changes_nothing() -> None:
    entries = entries_of([1, 1, 1])
    cluster = Cluster(loaded={"b": Loaded(HardState(1, None, 3), membership=ABC, entries=entries)})
    cluster["b"].node.step(Applied(3), 0.0)
    mark = Mark(9, 2, b"12345678")
    cluster.step("b", SnapshotReceived("a", 2, mark, ABC))
    cluster.step("b", Compacted(Mark(2, 1, entries[1].chain)))
    state = cluster["b"].node.state
    assert (state.log.base, state.membership) == (mark, ABC)


def test_a_snapshot_says_that_its_entries_are_applied_before_the_driver_does() -> None:
    """It is taken beside everything else, so it may be told first."""
    entries = entries_of([1, 1, 1])
    found = Loaded(HardState(1, None, 3), membership=ABC, entries=entries)
    node = RaftNode("b", found, Options(), random=lambda: 0.5, now=0.0)
    assert node.ready().committed == tuple(entries)
    node.step(Compacted(Mark(2, 1, entries[1].chain)), 0.0)
    assert (node.state.log.base.index, node.state.applied) == (2, 2)
    assert node.ready().committed == ()
    node.step(Applied(3), 0.0)
    assert (node.state.applied, node.ready().committed) == (3, ())


def test_members_of_before_a_compaction_are_not_kept() -> None:
    d, e = Membership(frozenset("abc"), frozenset("d")), Membership(frozenset("abc"), frozenset("e"))
    entries = entries_of([1, 1, 1])
    found = Loaded(HardState(1, None, 3), membership=ABC, memberships=[(1, d), (3, e)], entries=entries, applied=3)
    cluster = Cluster(loaded={"b": found})
    cluster.step("b", Compacted(Mark(2, 1, entries[1].chain)))
    memberships = cluster["b"].node.state.memberships
    assert (memberships.at(2), memberships.current) == (d, e)
    with pytest.raises(StopIteration):
        memberships.at(1)


def test_who_has_all_that_was_compacted_and_nothing_more_needs_no_snapshot() -> None:
    entries = entries_of([1, 1, 1, 1, 1])
    leader = Loaded(HardState(1, None, 4), Mark(3, 1, entries[2].chain), ABC, entries=entries[3:], applied=4)
    follower = Loaded(HardState(1), membership=ABC, entries=entries[:3])
    cluster = Cluster(loaded={"a": leader, "b": leader, "c": follower})
    cluster.elect("a")
    cluster.wait(T)
    assert cluster["a"].snapshots == []
    assert cluster["c"].node.state.log.last == 6
