"""`conveyord.core.raft.replication`: claims of the Raft paper, 5.3 to 5.5 and figures 7 and 8, one by one."""

from __future__ import annotations

import pytest

from conveyord.core.errors import Corrupt
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import (
    Accepted,
    Append,
    AppendReply,
    Event,
    Fetched,
    Heartbeat,
    HeartbeatReply,
    NotLeader,
    Persisted,
    Propose,
    Receive,
    SnapshotSent,
    Tick,
    VoteRequest,
)
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import HardState, Kind, Mark, Options
from tests.unit.raft.rig import Cluster, T, entries_of

ABC = Membership(frozenset("abc"))


def loaded(*terms: int, term: int | None = None, commit: int = 0, voters: str = "abc") -> Loaded:
    hard = HardState(max([0, *terms]) if term is None else term, None, commit)
    return Loaded(hard, membership=Membership(frozenset(voters)), entries=entries_of(terms))


def test_a_command_is_applied_by_everyone_in_the_order_of_the_log() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", b"x", b"y")
    cluster.propose("a", b"z")
    cluster.settle()
    assert set(map(tuple, cluster.commands().values())) == {(b"x", b"y", b"z")}
    assert cluster["a"].answers == [Accepted(0, 2, 1), Accepted(1, 3, 1), Accepted(0, 4, 1)]


def test_what_is_committed_is_told_by_the_next_entries_or_else_in_a_moment() -> None:
    cluster = Cluster(tell_seconds=0.002)
    cluster.elect("a")
    cluster.settle()
    leader, follower = cluster["a"].node, cluster["b"].node
    cluster.propose("a", b"x")
    cluster.settle()
    assert leader.state.commit == 2
    assert leader.state.applied == 2, "nobody else need know of it for that"
    assert follower.state.commit == 1
    cluster.propose("a", b"y")
    assert [message.commit for message in cluster.mail if isinstance(message, Append)] == [2, 2]
    cluster.settle()
    assert follower.state.commit == 2
    assert leader.deadline == cluster.now + 0.002
    cluster.now = leader.deadline
    cluster.step("a", Tick())
    assert [type(message) for message in cluster.mail] == [Append, Append]
    cluster.settle()
    assert follower.state.commit == leader.state.commit == 3
    assert leader.deadline > cluster.now + 0.002, "it is told once"


def test_a_follower_drops_a_proposal_and_says_who_leads() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("b", b"x")
    assert cluster["b"].answers == [NotLeader(0, "this node does not lead", "a")]


def test_an_append_is_acknowledged_when_it_is_on_disk_and_not_before() -> None:
    cluster = Cluster()
    cluster.step("b", Receive(Append("a", "b", 1, 0, 0, tuple(entries_of([1])), 0)))
    assert cluster.mail == []
    cluster.sync("b")
    assert cluster.mail == [AppendReply("b", "a", 1, 1)]


def test_a_leader_counts_its_own_copy_only_when_it_is_on_its_disk() -> None:
    cluster = Cluster()
    cluster.elect("a")
    commit = cluster["a"].node.state.commit
    cluster.propose("a", b"x")
    cluster.cut = lambda message: message.sender == "c"
    for _ in range(5):
        cluster.deliver()
        cluster.sync("b")
    assert cluster["a"].node.state.commit == commit
    cluster.sync("a")
    assert cluster["a"].node.state.commit == commit + 1


def test_followers_may_commit_what_their_leader_has_not_on_disk_yet_but_it_applies_nothing_of_it() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", b"x")
    for _ in range(5):
        cluster.deliver()
        cluster.sync("b"), cluster.sync("c")
    assert cluster["a"].node.state.commit == 2
    assert cluster.commands()["a"] == []
    cluster.sync("a")
    assert cluster.commands()["a"] == [b"x"]


def test_a_leader_says_what_is_likely_next_write_by_write_once_and_when_all_before_it_is_applied() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.settle()
    leader = cluster["a"]
    leader.likely.clear()
    cluster.propose("a", b"1", b"2")
    assert leader.likely == [(b"1", b"2")]
    cluster.propose("a", b"3")
    cluster.propose("a", b"4", b"5")
    assert leader.likely == [(b"1", b"2")], "the others may be committed without them"
    assert len(leader.writes) == 3
    cluster.settle()
    assert leader.likely == [(b"1", b"2"), (b"3", b"4", b"5")], "all are on this disk by now"
    cluster.propose("a", b"6")
    assert leader.likely[2:] == [(b"6",)]
    assert cluster["b"].likely == cluster["c"].likely == []


def test_what_is_likely_ends_where_the_oldest_write_does() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.settle()
    leader = cluster["a"]
    leader.likely.clear()
    cluster.cut = lambda message: message.to == "c" or message.sender == "c"
    cluster.propose("a", b"1")
    cluster.deliver()
    cluster.propose("a", b"2")
    cluster.propose("a", b"3")
    cluster.sync("b")
    first, *rest = leader.writes
    leader.writes[:] = rest
    cluster.step("a", Persisted(first.token))
    cluster.deliver()
    assert [entry.data for entry in leader.applied][-1] == b"1"
    assert leader.likely == [(b"1",), (b"2",)]


def test_entries_of_another_leader_are_not_tried_out() -> None:
    """They may be of a newer program; who does not understand them must not stop until they are committed."""
    cluster = Cluster(loaded={"a": loaded(1, 1, 1)})
    cluster.cut = lambda message: isinstance(message, Append)
    cluster.elect("a")
    cluster.propose("a", b"own")
    assert cluster["a"].node.state.log.last == 5
    assert cluster["a"].likely == []
    cluster.cut = lambda message: False
    cluster.wait(T)
    cluster.propose("a", b"next")
    assert cluster["a"].likely[-1] == (b"next",)


def test_nothing_is_likely_where_another_leads() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.settle()
    cluster.propose("a", b"lost")
    cluster.mail.clear()
    cluster["b"].likely.clear()
    cluster.elect("b")
    cluster.settle()
    assert b"lost" not in cluster.commands()["a"]
    seen = len(cluster["a"].likely)
    cluster.propose("b", b"kept")
    cluster.settle()
    assert cluster["b"].likely[-1] == (b"kept",)
    assert len(cluster["a"].likely) == seen


@pytest.mark.parametrize(
    "terms",
    [
        (1, 1, 1, 4, 4, 5, 5, 6, 6),
        (1, 1, 1, 4),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 6),
        (1, 1, 1, 4, 4, 5, 5, 6, 6, 6, 7, 7),
        (1, 1, 1, 4, 4, 4, 4),
        (1, 1, 1, 2, 2, 2, 3, 3, 3, 3, 3),
        (),
    ],
    ids="abcdefg",
)
def test_every_log_of_figure_7_becomes_the_leaders(terms: tuple[int, ...]) -> None:
    leaders = (1, 1, 1, 4, 4, 5, 5, 6, 6, 6)
    cluster = Cluster(loaded={"a": loaded(*leaders, term=7), "b": loaded(*terms), "c": loaded(*leaders)})
    cluster.cut = lambda message: "b" in (message.sender, message.to)
    cluster.elect("a")
    cluster.cut = lambda message: False
    cluster.wait(T)
    assert cluster.terms("b") == cluster.terms("a") == [*leaders, 8]
    assert cluster.commands()["b"] == cluster.commands()["a"]


def test_where_logs_differ_a_few_messages_find_out_however_long_they_are() -> None:
    ours, theirs = (1, *[2] * 300), (1, *[3] * 200)
    cluster = Cluster(loaded={"a": loaded(*theirs, term=4), "b": loaded(*ours), "c": loaded(*theirs)})
    cluster.cut = lambda message: "b" in (message.sender, message.to)
    cluster.elect("a")
    cluster.cut = lambda message: False
    rejected = 0
    for _ in range(200):
        cluster.wait(0.05 * T, settle=False)
        rejected += sum(isinstance(m, AppendReply) and m.rejected for m in cluster.deliver())
        for name in "abc":
            cluster.sync(name)
    assert cluster.terms("b") == cluster.terms("a")
    assert 1 <= rejected <= 2


def test_an_entry_of_an_earlier_term_is_not_committed_by_counting_its_copies() -> None:
    """Figure 8: (c) leads again with an old entry on a majority, which (d) may still overwrite."""
    cluster = Cluster(
        "abcde",
        loaded={
            **{name: loaded(1, 2, term=3, voters="abcde") for name in "abc"},
            "d": loaded(1, term=3, voters="abcde"),
            "e": loaded(1, 3, term=3, voters="abcde"),
        },
    )
    cluster.cut = lambda message: isinstance(message, Append) and any(e.term == 4 for e in message.entries)
    cluster["a"].node.state.election_at = 0.0
    cluster.wait(0.01)
    assert cluster.roles()["a"] is Role.LEADER
    for _ in range(4):
        cluster.wait(T / 4)
    assert cluster["a"].node.state.commit == 0
    cluster.cut = lambda message: False
    cluster.wait(T)
    assert cluster["a"].node.state.commit == 3


@pytest.mark.parametrize(("prev_index", "prev_term"), [(2, 2), (9, 1)])
def test_a_follower_takes_no_entries_that_do_not_follow_on_its_log(prev_index: int, prev_term: int) -> None:
    cluster = Cluster(loaded={"b": loaded(1, 1, 1)})
    cluster.step("b", Receive(Append("a", "b", 1, prev_index, prev_term, (), 9)))
    (reply,) = cluster.mail
    assert isinstance(reply, AppendReply) and (reply.rejected, reply.index) == (True, prev_index)
    assert (cluster["b"].node.state.log.last, cluster["b"].node.state.commit) == (3, 0)


def test_a_leader_keeps_its_own_log_whatever_the_others_say() -> None:
    """Leader Append-Only (figure 3): what it has, it has for good."""
    cluster = Cluster(loaded={"a": loaded(1, 2, 2), "b": loaded(1, 1, 1, 1), "c": loaded(1)})
    cluster.cut = lambda message: isinstance(message, Append | AppendReply)
    cluster.elect("a")
    before = cluster.terms("a")
    for reply in (AppendReply("b", "a", 3, 3, True, 0, 0), AppendReply("c", "a", 3, 0), AppendReply("b", "a", 3, 1)):
        cluster.step("a", Receive(reply))
    cluster.settle()
    assert cluster.terms("a") == before == [1, 2, 2, 3]


def test_a_follower_keeps_what_a_late_message_does_not_contradict() -> None:
    cluster = Cluster(loaded={"b": loaded(1, 1, 1)})
    cluster.step("b", Receive(Append("a", "b", 1, 0, 0, tuple(entries_of([1])), 0)))
    cluster.sync("b")
    assert cluster.terms("b") == [1, 1, 1]
    assert cluster.mail == [AppendReply("b", "a", 1, 1)]


def test_a_follower_commits_no_further_than_the_message_that_it_was_told_in_reaches() -> None:
    cluster = Cluster(loaded={"b": loaded(1, 1, 1)})
    cluster.step("b", Receive(Append("a", "b", 2, 1, 1, (), 3)))
    assert cluster["b"].node.state.commit == 1


def test_a_write_that_ends_late_says_nothing_of_the_entries_that_took_its_place() -> None:
    """The ABA race: an old write of entry 2 is not the new entry 2."""
    cluster = Cluster(loaded={"b": loaded(1)})
    before = cluster["b"].node.state
    cluster.step("b", Receive(Append("a", "b", 2, 1, 1, tuple(entries_of([1, 2])[1:]), 0)))
    (first,) = cluster["b"].writes
    cluster.step("b", Receive(Append("c", "b", 3, 1, 1, tuple(entries_of([1, 3])[1:]), 2)))
    cluster.step("b", Persisted(first.token))
    assert (before.log.last_term, before.log.stable) == (3, 1)
    assert cluster.commands()["b"] == [b"1/1"]
    cluster.sync("b")
    assert cluster["b"].applied[-1].term == 3


@pytest.mark.parametrize("inflight_messages", [1, 64])
def test_who_could_be_sent_nothing_when_entries_were_committed_hears_of_it_with_its_next_reply(
    inflight_messages: int,
) -> None:
    """Found by a transcript: a follower with a slow disk heard of it with the next heartbeat only."""
    cluster = Cluster(options=Options(inflight_messages=inflight_messages))
    cluster.elect("a")
    assert {rig.node.state.commit for rig in cluster.rigs.values()} == {1}
    cluster.propose("a", b"x")
    cluster.deliver()
    for name in "ab":
        cluster.sync(name)
    cluster.deliver()
    cluster.settle()
    assert {rig.node.state.commit for rig in cluster.rigs.values()} == {2}


def test_a_lost_append_is_sent_again_after_a_heartbeat() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", b"x")
    lost = [message for message in cluster.mail if message.to == "b"]
    assert lost
    cluster.mail = [message for message in cluster.mail if message.to != "b"]
    cluster.settle()
    cluster.wait(0.5 * T)
    assert cluster.commands()["b"] == [b"x"]


def test_a_commit_index_that_was_lost_comes_with_the_next_heartbeat() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", b"x")
    cluster.cut = lambda message: isinstance(message, Append) and message.to == "b" and message.commit == 2
    cluster.settle()
    assert (cluster.commands()["b"], cluster.commands()["c"]) == ([], [b"x"])
    cluster.wait(0.3 * T)
    assert cluster.commands()["b"] == [b"x"]


def test_a_follower_that_lost_everything_in_flight_is_found_after_a_heartbeat() -> None:
    """Found by simulation: with the limit in flight used up by lost messages, nothing was sent ever again."""
    cluster = Cluster(options=Options(inflight_messages=2))
    cluster.elect("a")
    cluster.cut = lambda message: message.to == "b" and isinstance(message, Append)
    for command in (b"x", b"y", b"z"):
        cluster.propose("a", command)
        cluster.settle()
    cluster.cut = lambda message: False
    cluster.wait(T)
    assert cluster.commands()["b"] == [b"x", b"y", b"z"]


def test_entries_that_are_no_longer_in_memory_are_read_from_the_disk_for_who_lacks_them() -> None:
    everything = entries_of([1] * 50)
    tail = Loaded(HardState(1, None, 50), membership=ABC, runs=[(1, 1)], entries=everything[-2:], applied=50)
    cluster = Cluster(loaded={"a": tail, "b": Loaded(membership=ABC), "c": tail})
    cluster.elect("a")
    cluster.wait(T)
    while cluster["a"].fetches:
        fetch = cluster["a"].fetches.pop()
        found = everything[fetch.first - 1 : fetch.first + 9]
        cluster.step("a", Fetched(fetch.peer, fetch.first, tuple(found)))
        cluster.settle()
    cluster.wait(T)
    assert len(cluster.commands()["b"]) == 50


def test_committed_entries_that_are_not_in_memory_are_read_from_the_disk_to_be_applied() -> None:
    everything = entries_of([1] * 9)
    node = Loaded(HardState(1, None, 9), membership=Membership(frozenset("a")), runs=[(1, 1)], entries=everything[-1:])
    cluster = Cluster("a", loaded={"a": node})
    cluster.wait(2.1 * T)
    (fetch,) = cluster["a"].fetches
    assert (fetch.peer, fetch.first, fetch.end) == ("a", 1, 9)
    cluster.step("a", Fetched("a", 1, tuple(everything[:8])))
    cluster.settle()
    assert [entry.index for entry in cluster["a"].applied] == list(range(1, 11))
    assert cluster["a"].applied[-1].kind is Kind.NOOP


@pytest.mark.parametrize(
    "event",
    [
        Receive(AppendReply("z", "a", 1, 1)),
        Receive(HeartbeatReply("z", "a", 1, 9)),
        Receive(AppendReply("b", "a", 1, 1, True, 0, 0)),
        Receive(AppendReply("b", "a", 1, 0)),
        Fetched("z", 1, tuple(entries_of([1]))),
        Fetched("b", 1, tuple(entries_of([1]))),
        SnapshotSent("z", 1),
        SnapshotSent("b", 1),
    ],
    ids=str,
)
def test_what_comes_late_or_of_who_is_no_member_or_was_not_asked_for_changes_nothing(event: Event) -> None:
    cluster = Cluster()
    cluster.elect("a")
    leading = cluster["a"].node.state.leading
    before = repr(leading)
    cluster.step("a", event)
    assert (repr(leading), cluster.mail) == (before, [])


def test_a_damaged_entry_is_not_taken_and_comes_again() -> None:
    cluster = Cluster()
    cluster.elect("a")
    state = cluster["b"].node.state
    noop = state.log.entry(1)
    assert noop is not None
    (damaged,) = entries_of([1], after=Mark(1, 1, noop.chain))
    cluster.step("b", Receive(Append("a", "b", state.term, 1, 1, (damaged._replace(data=b"bent"),), 0)))
    assert state.log.last == 1


def test_term_vote_truncation_and_entries_are_one_write() -> None:
    """hashicorp #661: in two writes, a crash between them forgets a vote."""
    cluster = Cluster(loaded={"b": loaded(1, 1, 1)})
    node = cluster["b"].node
    node.step(Receive(VoteRequest("a", "b", 4, 9, 9)), 0.0)
    node.step(Receive(Append("a", "b", 4, 1, 1, tuple(entries_of([1, 4])[1:]), 0)), 0.0)
    write = node.ready().write
    assert write is not None
    assert (write.hard_state, write.truncate_from) == (HardState(4, "a", 0), 2)
    assert [(entry.index, entry.term) for entry in write.entries] == [(2, 4)]


def test_an_entry_has_the_term_that_its_leader_was_elected_in() -> None:
    """hashicorp #695: a term that rose beside the leader's work got into an entry of it."""
    cluster = Cluster()
    cluster.elect("a")
    node = cluster["a"].node
    node.step(Receive(Heartbeat("c", "a", 7, 0, 0)), cluster.now)
    node.step(Propose(((0, b"x"),)), cluster.now)
    ready = node.ready()
    assert ready.answers == (NotLeader(0, "this node does not lead", "c"),)
    assert ready.write is not None and ready.write.entries == ()


# ------------------------------------------------------------------------------ logs that cannot both be right


def test_a_leader_that_lost_what_a_follower_knows_to_be_committed_goes_no_further() -> None:
    """As after a disk that forgot: every later entry of such a leader would overwrite what was promised."""
    cluster = Cluster()
    cluster.elect("a")
    with pytest.raises(Corrupt, match="node b has 9 entries of this leader's log, which ends at 1"):
        cluster.step("a", Receive(AppendReply("b", "a", 1, 9)))


@pytest.mark.parametrize(("prev", "entries"), [(0, 3), (0, 1), (2, 0)])
def test_a_follower_takes_no_other_entry_where_it_has_a_committed_one(prev: int, entries: int) -> None:
    cluster = Cluster(loaded={"b": loaded(1, 1, 2, commit=3)})
    theirs = entries_of([3, 3, 3])[prev : prev + entries]
    with pytest.raises(Corrupt, match="is committed here with term"):
        cluster.step("b", Receive(Append("a", "b", 3, prev, 3 if prev else 0, tuple(theirs), 0)))
