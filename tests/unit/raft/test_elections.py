"""`conveyord.core.raft.elections` and `conveyord.core.raft.leadership`, claim by claim.

The Raft paper, 5.2, 5.4.1 and 8; Ongaro's thesis, 4.2.3, 6.2 and 9.6.
"""

from __future__ import annotations

import pytest

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import (
    Accepted,
    Append,
    AppendReply,
    DiskHealth,
    Heartbeat,
    HeartbeatReply,
    Message,
    Persisted,
    Read,
    ReadRequest,
    Receive,
    Tick,
    TimeoutNow,
    Transfer,
    VoteReply,
    VoteRequest,
)
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import HardState
from tests.unit.raft.rig import DEFAULTS, Cluster, T, entries_of


def test_everyone_begins_as_a_follower_and_the_first_whose_time_runs_out_leads() -> None:
    cluster = Cluster()
    assert set(cluster.roles().values()) == {Role.FOLLOWER}
    cluster.wait(1.1 * T)
    assert cluster.roles() == {"a": Role.LEADER, "b": Role.FOLLOWER, "c": Role.FOLLOWER}
    assert {rig.node.state.leader for rig in cluster.rigs.values()} == {"a"}


@pytest.mark.parametrize("names", ["a", "ab", "abcde"])
def test_any_number_of_nodes_elects_one(names: str) -> None:
    cluster = Cluster(names)
    cluster.wait(1.1 * T)
    assert list(cluster.roles().values()).count(Role.LEADER) == 1


def test_a_node_alone_leads_only_when_its_own_vote_is_on_disk() -> None:
    cluster = Cluster("a")
    cluster.wait(1.1 * T, settle=False)
    assert cluster.roles() == {"a": Role.CANDIDATE}
    cluster.sync("a")
    assert cluster.roles() == {"a": Role.LEADER}


def test_a_vote_leaves_when_it_is_on_disk_and_not_before() -> None:
    cluster = Cluster()
    cluster.step("b", Receive(VoteRequest("a", "b", 1, 0, 0)))
    assert cluster.mail == []
    assert cluster["b"].writes[0].hard_state == HardState(1, "a", 0)
    cluster.sync("b")
    assert cluster.mail == [VoteReply("b", "a", 1, granted=True)]


def test_a_candidate_asks_for_votes_only_when_its_own_is_on_disk() -> None:
    cluster = Cluster()
    cluster.step("a", Receive(HeartbeatReply("b", "a", 0, 0)))
    cluster.wait(T, settle=False)
    cluster.deliver(), cluster.deliver()
    assert cluster.roles()["a"] is Role.CANDIDATE
    assert cluster.mail == []
    cluster.sync("a")
    assert cluster.mail == [VoteRequest("a", to, 1, 0, 0) for to in "bc"]


def test_a_node_votes_once_per_term() -> None:
    cluster = Cluster()
    for candidate in ("a", "c", "a"):
        cluster.step("b", Receive(VoteRequest(candidate, "b", 1, 0, 0)))
    cluster.sync("b")
    assert [(m.to, m.granted) for m in cluster.mail if isinstance(m, VoteReply)] == [
        ("a", True),
        ("c", False),
        ("a", True),
    ]


@pytest.mark.parametrize(("term", "waits"), [(3, True), (2, False)])
def test_who_gives_a_vote_waits_anew_for_a_leader_and_who_refuses_does_not(term: int, waits: bool) -> None:
    cluster = Cluster(loaded={"b": Loaded(HardState(3), membership=Membership(frozenset("abc")))})
    before = cluster["b"].node.deadline
    cluster.now = 0.9 * before
    cluster.step("b", Receive(VoteRequest("c", "b", term, 9, 9)))
    assert (cluster["b"].node.deadline > before) is waits


def test_a_vote_outlives_a_restart() -> None:
    cluster = Cluster(loaded={"b": Loaded(HardState(3, "a", 0), membership=Membership(frozenset("abc")))})
    cluster.step("b", Receive(VoteRequest("c", "b", 3, 0, 0)))
    cluster.sync("b")
    assert cluster.mail == [VoteReply("b", "c", 3, granted=False)]


@pytest.mark.parametrize(("last_index", "last_term"), [(1, 2), (9, 1), (0, 0)])
def test_nobody_votes_for_a_log_that_is_older(last_index: int, last_term: int) -> None:
    members = Membership(frozenset("abc"))
    cluster = Cluster(loaded={"b": Loaded(HardState(2), membership=members, entries=entries_of([1, 2]))})
    for pre in (True, False):
        cluster.step("b", Receive(VoteRequest("a", "b", 3, last_index, last_term, pre)))
    cluster.sync("b")
    assert [message.granted for message in cluster.mail if isinstance(message, VoteReply)] == [False, False]


@pytest.mark.parametrize(("last_index", "last_term"), [(2, 2), (9, 2), (1, 3)])
def test_a_vote_goes_to_any_log_that_is_at_least_as_new(last_index: int, last_term: int) -> None:
    members = Membership(frozenset("abc"))
    cluster = Cluster(loaded={"b": Loaded(HardState(2), membership=members, entries=entries_of([1, 2]))})
    cluster.step("b", Receive(VoteRequest("a", "b", 3, last_index, last_term)))
    cluster.sync("b")
    assert cluster.mail == [VoteReply("b", "a", 3, granted=True)]


def test_a_candidate_with_votes_of_a_minority_does_not_lead() -> None:
    cluster = Cluster("abcde")
    cluster.cut = lambda message: not (isinstance(message, VoteRequest | VoteReply) and message.pre)
    cluster.wait(T)
    assert cluster.roles()["a"] is Role.CANDIDATE
    cluster.step("a", Receive(VoteReply("b", "a", 1, granted=True)))
    cluster.step("a", Receive(VoteReply("b", "a", 1, granted=True)))
    assert cluster.roles()["a"] is Role.CANDIDATE
    cluster.step("a", Receive(VoteReply("c", "a", 1, granted=True)))
    assert cluster.roles()["a"] is Role.LEADER


def test_times_of_elections_are_drawn_anew_between_one_and_two_timeouts() -> None:
    drawn = iter([0.0, 0.1, 0.999, 0.25, 0.5, 0.75])  # the second is for the numbers of reads
    node = RaftNode("a", Loaded(membership=Membership(frozenset("ab"))), DEFAULTS, random=lambda: next(drawn), now=10.0)
    found = []
    for _ in range(4):
        found.append(node.deadline - max(10.0, node.state.now))
        node.step(Tick(), node.deadline)
    assert found == pytest.approx([T, 1.999 * T, 1.25 * T, 1.5 * T])


def test_nobody_campaigns_while_the_leader_is_heard() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.wait(50 * T)
    assert (cluster.leader(), cluster["a"].node.state.term) == ("a", 1)


HIGHER = (
    Append("c", "a", 7, 0, 0, (), 0),
    AppendReply("c", "a", 7, 0),
    Heartbeat("c", "a", 7, 0, 0),
    HeartbeatReply("c", "a", 7, 0),
    VoteReply("c", "a", 7, granted=False),
    VoteRequest("c", "a", 7, 9, 9, transfer=True),
    ReadRequest("c", "a", 7, 1),
)


@pytest.mark.parametrize("message", HIGHER, ids=lambda message: type(message).__name__)
def test_whoever_hears_of_a_higher_term_follows_in_it(message: Message) -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.step("a", Receive(message))
    assert (cluster.roles()["a"], cluster["a"].node.state.term) == (Role.FOLLOWER, 7)


@pytest.mark.parametrize("message", HIGHER, ids=lambda message: type(message).__name__)
@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.LEADER])
def test_what_is_said_in_a_past_term_changes_nothing(message: Message, role: Role) -> None:
    hard = HardState(8, None, 0)
    loaded = {name: Loaded(hard, membership=Membership(frozenset("abc"))) for name in "abc"}
    cluster = Cluster(loaded=loaded)
    cluster.elect("a" if role is Role.LEADER else "b")
    state = cluster["a"].node.state
    before = (state.role, state.hard_state, state.leader, state.log.last, state.heard_at)
    cluster.step("a", Receive(message))
    assert (state.role, state.hard_state, state.leader, state.log.last, state.heard_at) == before


@pytest.mark.parametrize("of", ["append", "heartbeat"])
def test_what_is_acknowledged_in_a_past_term_is_not_counted(of: str) -> None:
    """Neither as a copy, nor as a leader heard, nor for a read."""
    loaded = {name: Loaded(HardState(8), membership=Membership(frozenset("abc"))) for name in "abc"}
    cluster = Cluster(loaded=loaded)
    cluster.cut = lambda message: isinstance(message, Append | AppendReply | HeartbeatReply)
    cluster.elect("a")
    state = cluster["a"].node.state
    assert state.leading is not None
    cluster.step("a", Read(7))
    peer = state.leading.peers["b"]
    before = (peer.match, peer.round, peer.acked_at, state.commit)
    assert before[:2] == (0, 0) and before[3] < state.log.last
    cluster.now += 0.1 * T
    past = state.term - 1
    late = AppendReply("b", "a", past, state.log.last) if of == "append" else HeartbeatReply("b", "a", past, 1)
    cluster.step("a", Receive(late))
    assert (peer.match, peer.round, peer.acked_at, state.commit) == before
    assert cluster["a"].reads == []


def test_an_own_vote_of_a_past_term_that_is_on_disk_only_now_is_not_counted() -> None:
    cluster = Cluster("ab")
    a, tokens = cluster["a"], list[int]()
    for term in (1, 2):
        cluster.now += 2 * T
        cluster.step("a", Tick())
        cluster.step("a", Receive(VoteReply("b", "a", term, granted=True, pre=True)))
        assert (a.node.state.role, a.node.state.term) == (Role.CANDIDATE, term)
        tokens.append(a.writes[-1].token)
    cluster.step("a", Persisted(tokens[0]))
    assert a.node.state.votes == {}
    cluster.step("a", Persisted(tokens[1]))
    assert a.node.state.votes == {"a": True}


def test_a_node_with_a_higher_term_gets_back_into_the_cluster() -> None:
    """hashicorp #524 and etcd's empty reply: the others follow its term, and elect anew."""
    cluster = Cluster(loaded={"c": Loaded(HardState(9), membership=Membership(frozenset("abc")))})
    cluster.cut = lambda message: "c" in (message.sender, message.to)
    cluster.elect("a")
    cluster.propose("a", b"x")
    cluster.settle()
    cluster.cut = lambda message: False
    cluster.wait(4 * T)
    assert cluster.commands()["c"] == [b"x"]
    assert {rig.node.state.term for rig in cluster.rigs.values()} == {10}


def test_a_node_that_knows_no_members_campaigns_for_nothing() -> None:
    """Who is a member stands in the log and nowhere else (PySyncObj #133)."""
    cluster = Cluster("abc")
    cluster.start("d", Loaded())
    cluster.cut = lambda message: "d" not in (message.sender, message.to)
    cluster.wait(10 * T, settle=False)
    assert not [message for message in cluster.mail if message.sender == "d"]
    assert cluster.roles()["d"] is Role.FOLLOWER


def test_a_split_vote_is_decided_in_a_later_term() -> None:
    cluster = Cluster("abcd")
    for name in "ab":  # both campaign at the same moment, and each gets one more vote
        cluster[name].node.state.election_at = 0.0
        cluster.step(name, Tick())
    cluster.cut = lambda message: {message.sender, message.to} in ({"a", "d"}, {"b", "c"}, {"a", "b"})
    cluster.settle()
    assert cluster.leader() is None
    cluster.cut = lambda message: False
    cluster.wait(3 * T)
    assert list(cluster.roles().values()).count(Role.LEADER) == 1


def test_a_candidate_follows_a_leader_of_its_own_term() -> None:
    cluster = Cluster()
    cluster.cut = lambda message: not (isinstance(message, VoteRequest | VoteReply) and message.pre)
    cluster.wait(T, settle=True)
    assert cluster.roles()["a"] is Role.CANDIDATE
    term = cluster["a"].node.state.term
    cluster.step("a", Receive(Heartbeat("c", "a", term, 0, 0)))
    assert (cluster.roles()["a"], cluster["a"].node.state.leader) == (Role.FOLLOWER, "c")


@pytest.mark.parametrize("stale", [Append("a", "b", 1, 0, 0, (), 0), Heartbeat("a", "b", 1, 0, 0)])
def test_a_leader_of_a_past_term_learns_that_it_is_past(stale: Append | Heartbeat) -> None:
    cluster = Cluster(loaded={"b": Loaded(HardState(5), membership=Membership(frozenset("abc")))})
    cluster.step("b", Receive(stale))
    assert [message.term for message in cluster.mail] == [5]
    assert cluster["b"].node.state.leader is None


@pytest.mark.parametrize("term", [3, 5])
def test_a_pre_candidate_of_a_past_term_learns_that_it_is_past(term: int) -> None:
    """Or a node with the newest log and an old term would ask for ever, and nobody could vote for it."""
    cluster = Cluster(loaded={"b": Loaded(HardState(5), membership=Membership(frozenset("abc")))})
    cluster.step("b", Receive(VoteRequest("a", "b", term, 9, 9, pre=True)))
    assert cluster.mail == [VoteReply("b", "a", 5, granted=False, pre=True)]
    cluster.settle()
    assert cluster["a"].node.state.term == 5


def test_a_node_that_was_cut_off_does_not_raise_the_term_nor_depose_the_leader() -> None:
    cluster = Cluster()
    cluster.elect("a")
    term = cluster["a"].node.state.term
    cluster.cut = lambda message: "c" in (message.sender, message.to)
    cluster.wait(20 * T)
    cluster.cut = lambda message: False
    cluster.wait(5 * T)
    assert cluster.leader() == "a"
    assert {rig.node.state.term for rig in cluster.rigs.values()} == {term}


def test_a_vote_is_refused_unheard_while_a_leader_is_heard_even_at_a_higher_term() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.wait(T)
    for name in "ab":
        before = cluster[name].node.state.term
        cluster.step(name, Receive(VoteRequest("c", name, before + 7, 99, 99)))
        assert (cluster[name].node.state.term, cluster.mail) == (before, [])


def test_a_leader_that_no_quorum_answers_steps_down_within_two_timeouts() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: "a" in (message.sender, message.to)
    cluster.wait(2 * T)
    assert cluster.roles()["a"] is not Role.LEADER


def test_a_leader_whose_followers_are_cut_in_one_direction_steps_down_and_another_leads() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: message.to == "a"  # it sends, and hears nothing
    cluster.wait(6 * T)
    assert cluster.leader() in ("b", "c")


def test_a_learner_gets_everything_and_never_campaigns() -> None:
    cluster = Cluster("abcd", membership=Membership(frozenset("abc"), frozenset("d")))
    cluster.elect("a")
    cluster.propose("a", b"x")
    cluster.settle()
    assert cluster.commands()["d"] == [b"x"]
    cluster.cut = lambda message: message.sender != "d"
    cluster.wait(10 * T)
    assert cluster.roles()["d"] is Role.FOLLOWER
    assert cluster["d"].node.state.term == 1


def test_a_learner_counts_in_no_majority() -> None:
    cluster = Cluster("abcd", membership=Membership(frozenset("abc"), frozenset("d")))
    cluster.elect("a")
    cluster.cut = lambda message: {message.sender, message.to} & set("bc") != set()
    cluster.propose("a", b"x")
    cluster.settle()
    assert cluster.commands()["a"] == []


# ------------------------------------------------------------------------------ handing over


def test_leadership_is_handed_over_without_waiting_for_a_timeout() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.step("a", Transfer("c"))
    cluster.settle()
    assert cluster.roles() == {"a": Role.FOLLOWER, "b": Role.FOLLOWER, "c": Role.LEADER}


def test_a_successor_first_gets_what_it_lacks() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: message.to == "c"
    cluster.propose("a", b"x", b"y")
    cluster.settle()
    cluster.step("a", Transfer("c"))
    assert not any(isinstance(message, TimeoutNow) for message in cluster.mail)
    cluster.propose("a", b"late")
    assert cluster["a"].answers[-1].reason.startswith("leadership goes to node c")
    cluster.cut = lambda message: False
    cluster.wait(0.3 * T)
    assert cluster.leader() == "c"
    assert cluster.commands()["c"] == [b"x", b"y"]


def test_a_handing_over_that_does_not_come_about_is_given_up_after_a_timeout() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: "c" in (message.sender, message.to)
    cluster.step("a", Transfer("c"))
    cluster.wait(1.1 * T)
    assert cluster.leader() == "a"
    cluster.propose("a", b"x")
    cluster.settle()
    assert cluster.commands()["b"] == [b"x"]


def test_leadership_is_handed_over_by_who_has_it_and_to_one_at_a_time() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.step("b", Transfer("c"))
    cluster.step("a", Transfer("z"))
    assert cluster.mail == []
    cluster.propose("a", b"x")
    assert isinstance(cluster["a"].answers[-1], Accepted)
    cluster.settle()
    cluster.step("a", Transfer("b"))
    cluster.step("a", Transfer("c"))
    assert [message.to for message in cluster.mail] == ["b"]


def test_a_node_that_is_asked_by_somebody_else_does_not_campaign() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.step("b", Receive(TimeoutNow("c", "b", cluster["b"].node.state.term)))
    assert cluster.roles()["b"] is Role.FOLLOWER


def test_a_leader_with_a_sick_disk_hands_over() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.step("a", DiskHealth(is_well=False))
    cluster.settle()
    assert cluster.leader() in ("b", "c")
    cluster.cut = lambda message: message.sender != "a" and message.to != "a"
    cluster.wait(5 * T)
    assert cluster.roles()["a"] is Role.FOLLOWER


def test_a_leader_with_a_sick_disk_whom_nobody_relieves_falls_silent() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.cut = lambda message: isinstance(message, TimeoutNow)
    cluster.step("a", DiskHealth(is_well=False))
    cluster.wait(5 * T)
    assert cluster.leader() in ("b", "c")


@pytest.mark.parametrize("pre", [True, False])
def test_a_candidate_whose_disk_gets_sick_does_not_go_on(pre: bool) -> None:
    """It would lead with a disk that takes nothing, and nobody would tell it again."""
    cluster = Cluster()
    cluster.cut = lambda message: isinstance(message, VoteReply) and message.pre is pre
    cluster.wait(T)
    assert cluster.roles()["a"] is (Role.PRE_CANDIDATE if pre else Role.CANDIDATE)
    term = cluster["a"].node.state.term
    cluster.step("a", DiskHealth(is_well=False))
    cluster.cut = lambda message: False
    for name in "bc":
        cluster.step("a", Receive(VoteReply(name, "a", term + pre, granted=True, pre=pre)))
    cluster.settle()
    assert cluster.roles()["a"] is Role.FOLLOWER


def test_a_successor_is_asked_once_and_again_with_each_heartbeat() -> None:
    cluster = Cluster()
    cluster.elect("a")
    cluster.step("a", Transfer("c"))
    for ticket in range(5):
        cluster.step("a", Read(ticket))
    asked = [message for message in cluster.mail if isinstance(message, TimeoutNow)]
    assert len(asked) == 1
    cluster.mail.clear()
    cluster.wait(0.3 * T, settle=False)
    assert [message for message in cluster.mail if isinstance(message, TimeoutNow)] == asked
    cluster.settle()
    assert cluster.leader() == "c"


def test_a_node_alone_with_a_sick_disk_leads_again_when_it_is_well() -> None:
    cluster = Cluster("a")
    cluster.elect("a")
    cluster.step("a", DiskHealth(is_well=False))
    cluster.wait(5 * T)
    assert cluster.leader() is None
    cluster.step("a", DiskHealth(is_well=True))
    cluster.wait(2.1 * T)
    assert cluster.leader() == "a"
