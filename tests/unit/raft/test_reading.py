"""`conveyord.core.raft.reading`: ReadIndex as in Ongaro's thesis, 6.4. No answer comes from a state that may be old."""

from __future__ import annotations

import pytest

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import (
    AppendReply,
    Applied,
    Event,
    Heartbeat,
    HeartbeatReply,
    Message,
    Persisted,
    Read,
    ReadReady,
    ReadReply,
    Receive,
    SnapshotReceived,
    Tick,
    Transfer,
)
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.reads import Asker, LeaderReads
from conveyord.core.raft.types import Mark, Options
from tests.unit.raft.rig import Cluster, T

CONFIRMED = [ReadReady(7, is_confirmed=True)]
FAILED = [ReadReady(7, is_confirmed=False)]


def test_a_read_waits_for_heartbeats_that_were_sent_after_it() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.wait(0.2 * T, settle=False)
    early = [message for message in cluster.mail if isinstance(message, Heartbeat)]
    assert early
    cluster.step("a", Read(7))
    for name in "bc":
        cluster.step(name, Receive(early[0]))
    cluster.deliver(only=lambda message: isinstance(message, HeartbeatReply))
    assert cluster["a"].reads == []
    cluster.settle()
    assert cluster["a"].reads == CONFIRMED


def test_many_reads_are_confirmed_by_one_round() -> None:
    cluster = Cluster()
    cluster.elect("a")
    for ticket in range(100):
        cluster.step("a", Read(ticket))
    rounds = {message.round for message in cluster.mail if isinstance(message, Heartbeat)}
    cluster.settle()
    assert len(cluster["a"].reads) == 100
    assert len(rounds) == 1
    state = cluster["a"].node.state
    assert state.leading is not None and state.leading.reads.round == 2


def test_a_leader_confirms_no_read_before_it_has_committed_an_entry_of_its_term() -> None:
    cluster = Cluster()
    cluster.cut = lambda message: isinstance(message, AppendReply)
    cluster.elect("a")
    cluster.step("a", Read(7))
    cluster.settle()
    assert cluster["a"].reads == []
    cluster.cut = lambda message: False
    cluster.wait(0.5 * T)
    assert cluster["a"].reads == CONFIRMED


def test_a_leader_that_was_replaced_confirms_nothing() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: "a" in (message.sender, message.to)
    cluster.elect("b")
    cluster.step("a", Read(7))
    cluster.settle()
    assert cluster["a"].reads == []
    cluster.wait(3 * T)
    assert cluster["a"].reads == FAILED


def test_a_follower_reads_through_its_leader_and_waits_until_it_has_applied_what_the_leader_had() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: message.to == "b" and not isinstance(message, ReadReply)
    cluster.propose("a", b"x")
    cluster.settle()
    cluster.step("b", Read(7))
    cluster.settle()
    assert (cluster["b"].reads, cluster.commands()["b"]) == ([], [])
    cluster.cut = lambda message: False
    cluster.wait(0.5 * T)
    assert (cluster["b"].reads, cluster.commands()["b"]) == (CONFIRMED, [b"x"])


def answered_late(cluster: Cluster) -> ReadReply:
    """b's read 7 at commit 1, whose answer is held back; then something is committed that b does not hear of."""
    held = list[ReadReply]()

    def is_held(message: Message) -> bool:
        held.extend([message] if isinstance(message, ReadReply) else [])
        return isinstance(message, ReadReply)

    cluster.elect("a")
    cluster.cut = is_held
    cluster.step("b", Read(7))
    cluster.settle()
    cluster.wait(0.6 * T)
    cluster.cut = lambda message: "b" in (message.sender, message.to) and not isinstance(message, Heartbeat)
    cluster.wait(0.6 * T)
    cluster.propose("a", b"x")
    cluster.settle()
    assert (cluster["a"].node.state.commit, cluster["b"].node.state.commit) == (2, 1)
    return held[0]


def test_a_late_answer_to_a_read_that_was_given_up_says_nothing_of_one_with_the_same_ticket() -> None:
    """What was committed between the two would not be seen."""
    cluster = Cluster()
    late = answered_late(cluster)
    assert cluster["b"].reads == FAILED
    cluster["b"].reads.clear()
    cluster.step("b", Read(7))
    cluster.step("b", Receive(late))
    assert cluster["b"].reads == []


def test_a_late_answer_to_a_read_says_nothing_of_one_with_the_same_ticket_after_a_restart() -> None:
    """A driver that counts its tickets from one in every life is no reason for a stale read."""
    cluster = Cluster()
    late, old = answered_late(cluster), cluster["b"].node.state
    found = Loaded(old.hard_state, membership=cluster.membership, entries=old.log.tail(1), applied=old.applied)
    cluster.start("b", found, share=0.75)
    cluster.step("b", Receive(Heartbeat("a", "b", old.term, 1, 0)))
    for _ in range(3):
        cluster.step("b", Read(7))
    cluster.step("b", Receive(late))
    assert cluster["b"].reads == []


def test_a_forwarded_read_that_nobody_answers_fails_after_a_timeout() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: isinstance(message, ReadReply)
    cluster.step("b", Read(7))
    cluster.wait(1.1 * T)
    assert cluster["b"].reads == FAILED


def test_a_forwarded_read_fails_when_its_node_campaigns_as_it_believes_in_that_leader_no_more() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: True
    at = cluster["b"].node.deadline
    cluster.wait(at - cluster.now - 0.1 * T)
    cluster.step("b", Read(7))
    assert cluster["b"].reads == []
    cluster.wait(0.1 * T)
    assert cluster["b"].reads == FAILED


def test_a_read_where_no_leader_is_known_fails_at_once() -> None:
    cluster = Cluster()
    cluster.step("b", Read(7))
    assert cluster["b"].reads == FAILED


@pytest.mark.parametrize(
    "event",
    [Receive(Heartbeat("c", "a", 7, 0, 0)), SnapshotReceived("c", 7, Mark(9, 7, b"12345678"), Membership())],
    ids=["heartbeat", "snapshot"],
)
def test_a_leader_that_hears_of_another_lets_its_readers_ask_again(event: Event) -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.step("a", Read(7))
    cluster.step("a", event)
    assert cluster["a"].reads == FAILED


def test_a_leader_that_hands_over_lets_its_readers_ask_again() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: isinstance(message, HeartbeatReply)
    cluster.step("a", Read(7))
    cluster.step("a", Transfer("b"))
    cluster.settle()
    assert cluster["a"].reads == FAILED


def test_reads_that_wait_are_limited() -> None:
    cluster = Cluster(options=Options(reads=2))
    cluster.elect("a")
    for ticket in range(3):
        cluster.step("a", Read(ticket))
    assert cluster["a"].reads == [ReadReady(2, is_confirmed=False)]


def test_reads_that_wait_for_a_slow_state_are_limited_too() -> None:
    node = RaftNode("a", Loaded(membership=Membership(frozenset("a"))), Options(reads=2), random=lambda: 0.5, now=0.0)
    node.step(Tick(), node.deadline)
    while (write := node.ready().write) is not None:
        node.step(Persisted(write.token), 2.0)
    assert (node.state.commit, node.state.applied) == (1, 0)
    for ticket in range(4):
        node.step(Read(ticket), 2.0)
    assert node.ready().reads == (ReadReady(2, is_confirmed=False), ReadReady(3, is_confirmed=False))
    node.step(Applied(1), 2.0)
    assert node.ready().reads == (ReadReady(0, is_confirmed=True), ReadReady(1, is_confirmed=True))


def test_a_node_alone_confirms_its_reads_itself() -> None:
    cluster = Cluster("a")
    cluster.elect("a")
    cluster.step("a", Read(7))
    assert cluster["a"].reads == CONFIRMED


def test_reads_that_come_while_a_round_is_open_wait_for_the_next() -> None:
    reads = LeaderReads()
    reads.gathered.append(Asker("a", 1))
    assert reads.begin(5)
    reads.gathered.append(Asker("a", 2))
    assert not reads.begin(6)
    assert (reads.confirm(), reads.index) == ([Asker("a", 1)], 5)
    assert reads.begin(6)
    assert reads.round == 2
