"""Everything has a limit: what is in flight, uncommitted, in memory, in one message."""

from __future__ import annotations

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Accepted, Append, Applied, Dropped, Persisted, Propose, Ready, Tick
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.types import ENTRY_BYTES, Entry, NodeId, Options
from tests.unit.raft.rig import Cluster, T


def test_messages_in_flight_are_limited_in_number_and_in_bytes() -> None:
    cluster = Cluster(options=Options(inflight_messages=4, append_bytes=10, inflight_bytes=10_000))
    cluster.elect("a")
    for _ in range(20):
        cluster.propose("a", b"0123456789")
    assert sum(message.to == "b" and bool(message.entries) for message in cluster.mail) == 4  # type: ignore[attr-defined]
    cluster.settle()
    assert len(cluster.commands()["b"]) == 20


class Counting(Cluster):
    """Keeps how many entries were in flight to c at most."""

    most_entries = 0

    def seen(self, name: NodeId, ready: Ready) -> None:
        sent = [m for m in (*self.mail, *ready.messages) if isinstance(m, Append) and m.to == "c"]
        self.most_entries = max(self.most_entries, sum(len(message.entries) for message in sent))


def test_a_peer_that_was_silent_is_not_sent_all_that_it_lacks_at_once() -> None:
    options = Options(inflight_bytes_min=4 * (10 + ENTRY_BYTES))
    cluster = Counting(options=options)
    cluster.elect("a")
    cluster.cut = lambda message: "c" in (message.to, message.sender)
    for _ in range(20):
        cluster.propose("a", b"0123456789")
        cluster.settle()
    cluster.cut = lambda message: False
    cluster.most_entries = 0
    cluster.wait(3 * options.heartbeat_seconds)
    assert 4 <= cluster.most_entries <= 8
    assert len(cluster.commands()["c"]) == 20


def test_proposals_beyond_the_limit_of_what_is_uncommitted_are_dropped_until_some_are_committed() -> None:
    cluster = Cluster(options=Options(uncommitted_bytes=2 * (10 + ENTRY_BYTES)))
    cluster.elect("a")
    cluster.propose("a", *[b"0123456789"] * 4)
    assert [type(answer) for answer in cluster["a"].answers] == [Accepted, Accepted, Dropped, Dropped]
    cluster.settle()
    cluster.propose("a", b"again")
    assert isinstance(cluster["a"].answers[-1], Accepted)


def test_the_limit_of_what_is_uncommitted_holds_for_proposals_that_come_one_by_one() -> None:
    cluster = Cluster(options=Options(uncommitted_bytes=200))
    cluster.elect("a")
    for _ in range(40):
        cluster.propose("a", b"0123456789")
    kinds = [type(answer) for answer in cluster["a"].answers]
    assert kinds == [Accepted] * 3 + [Dropped] * 37
    assert "200 bytes wait to be committed or written here" in cluster["a"].answers[-1].reason  # type: ignore[union-attr]
    assert cluster["a"].answers[-1].leader is None  # type: ignore[union-attr]
    cluster.settle()
    cluster.propose("a", b"again")
    assert isinstance(cluster["a"].answers[-1], Accepted)


def test_a_leader_whose_own_disk_lags_takes_only_so_much() -> None:
    """Its followers commit without it; what waits for its disk must not grow for ever."""
    cluster = Cluster(options=Options(uncommitted_bytes=500))
    cluster.elect("a")
    for _ in range(40):
        cluster.propose("a", b"0123456789")
        for _ in range(4):
            cluster.deliver()
            cluster.sync("b"), cluster.sync("c")
    kinds = [type(answer) for answer in cluster["a"].answers]
    assert kinds == [Accepted] * 7 + [Dropped] * 33
    cluster.settle()
    cluster.propose("a", b"again")
    assert isinstance(cluster["a"].answers[-1], Accepted)


def test_a_node_that_applies_slowly_holds_no_more_than_its_window() -> None:
    """What is committed and on disk can be read again when its turn comes."""
    options = Options(window_bytes=2_000, apply_bytes=500)
    node = RaftNode("a", Loaded(membership=Membership(frozenset("a"))), options, random=lambda: 0.5, now=0.0)
    node.step(Tick(), node.deadline)
    handed = list[Entry]()
    for _ in range(200):
        node.step(Propose(((0, b"0123456789"),)), 2.0)
        ready = node.ready()
        handed += ready.committed
        if ready.write is not None:
            node.step(Persisted(ready.write.token), 2.0)
            handed += node.ready().committed
    assert node.state.commit > 150
    assert node.state.log.window_bytes < 2_500
    node.step(Applied(handed[-1].index), 2.0)
    (fetch,) = node.ready().fetches
    assert (fetch.peer, fetch.first) == ("a", handed[-1].index + 1)


def test_a_message_is_limited_however_small_its_entries_are() -> None:
    """An entry takes more than its data: a message of a million empty ones would be no small message."""
    cluster = Cluster(options=Options(append_bytes=10 * ENTRY_BYTES))
    cluster.cut = lambda message: message.to == "b"
    cluster.elect("a")
    cluster.propose("a", *[b""] * 100)
    cluster.settle()
    cluster.cut = lambda message: False
    cluster.wait(0.5 * T, settle=False)
    for _ in range(20):
        assert all(len(message.entries) <= 10 for message in cluster.mail if isinstance(message, Append))
        cluster.sync("b")
        cluster.deliver()
    assert cluster["b"].node.state.log.last == 101


def test_what_is_not_on_disk_or_not_committed_stays_in_memory_whatever_the_window() -> None:
    """Else it could be read from nowhere, or be dropped from the disk while it is read."""
    cluster = Cluster(options=Options(window_bytes=100))
    cluster.elect("a")
    for _ in range(20):
        cluster.propose("a", b"0123456789")
        for _ in range(4):
            cluster.deliver()
            cluster.sync("b"), cluster.sync("c")
    log = cluster["a"].node.state.log
    assert cluster["a"].node.state.commit > 10
    assert log.window <= log.stable < 5
    cluster.settle()
    assert log.window > 15
    cluster.cut = lambda message: "a" in (message.sender, message.to)
    commit = cluster["a"].node.state.commit
    for _ in range(20):
        cluster.propose("a", b"0123456789")
        cluster.settle()
    assert log.stable == log.last > commit + 10
    assert log.window <= commit + 1
