"""Joint consensus in a cluster: section 6 of the paper, chapter 4 of the thesis."""

from __future__ import annotations

import itertools

import msgpack
import pytest

from conveyord.core.errors import Refused
from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.raft.messages import (
    Accepted,
    Append,
    AppendReply,
    ChangeMembers,
    Dropped,
    NotLeader,
    Receive,
    Transfer,
)
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import ROOT_CHAIN, HardState, Kind, Options, make_entry
from tests.unit.raft.rig import Cluster, T, entries_of


def change(cluster: Cluster, leader: str, **standings: Standing) -> Accepted | Dropped:
    wanted = tuple(Change(node, standing) for node, standing in standings.items())
    cluster.step(leader, ChangeMembers(0, wanted))
    return cluster[leader].answers[-1]


def grown() -> Cluster:
    """Three voters, led by a, and d, who has been started and is a learner that has everything."""
    cluster = Cluster()
    cluster.elect("a")
    cluster.propose("a", b"x")
    cluster.start("d", Loaded())
    assert isinstance(change(cluster, "a", d=Standing.LEARNER), Accepted)
    cluster.settle()
    cluster.wait(0.5 * T)
    assert cluster.commands()["d"] == [b"x"]
    return cluster


def members(cluster: Cluster) -> set[Membership]:
    return {rig.node.state.membership for rig in cluster.rigs.values()}


def test_a_learner_becomes_a_voter_through_a_joint_membership() -> None:
    cluster = grown()
    assert isinstance(change(cluster, "a", d=Standing.VOTER), Accepted)
    assert cluster["a"].node.state.membership.is_joint
    cluster.settle()
    cluster.wait(0.5 * T)
    assert members(cluster) == {Membership(frozenset("abcd"))}
    kinds = [entry.kind for entry in cluster["d"].applied]
    assert kinds.count(Kind.MEMBERSHIP) == 3


def test_a_joint_membership_commits_nothing_without_a_majority_of_both() -> None:
    cluster = grown()
    change(cluster, "a", b=Standing.GONE, c=Standing.GONE, d=Standing.VOTER)
    commit = cluster["a"].node.state.commit
    cluster.cut = lambda message: isinstance(message, AppendReply) and message.sender in "bc"
    cluster.settle()
    assert cluster["a"].node.state.commit == commit
    cluster.cut = lambda message: isinstance(message, AppendReply) and message.sender in "cd"
    cluster.settle()
    assert cluster["a"].node.state.commit == commit
    cluster.cut = lambda message: False
    cluster.wait(0.5 * T)
    assert cluster["a"].node.state.membership == Membership(frozenset("ad"))


def test_a_leader_that_is_removed_leads_until_that_is_committed_and_then_no_more() -> None:
    cluster = grown()
    change(cluster, "a", a=Standing.GONE)
    assert cluster.roles()["a"] is Role.LEADER
    cluster.settle()
    cluster.wait(3 * T)
    assert cluster.roles()["a"] is Role.FOLLOWER
    assert cluster.leader() in ("b", "c")
    assert cluster["b"].node.state.membership == Membership(frozenset("bc"), frozenset("d"))


def test_a_removed_node_cannot_depose_the_leader() -> None:
    cluster = grown()
    change(cluster, "a", c=Standing.GONE)
    cluster.settle()
    term = cluster["a"].node.state.term
    cluster.wait(20 * T)
    assert (cluster.leader(), cluster["a"].node.state.term) == ("a", term)


def test_one_change_at_a_time() -> None:
    cluster = grown()
    change(cluster, "a", d=Standing.VOTER)
    second = change(cluster, "a", c=Standing.GONE)
    assert isinstance(second, Dropped) and "being changed already" in second.reason


def test_a_change_of_learners_waits_for_the_one_before_as_well() -> None:
    cluster = grown()
    cluster.cut = lambda message: True
    assert isinstance(change(cluster, "a", e=Standing.LEARNER), Accepted)
    second = change(cluster, "a", f=Standing.LEARNER)
    assert isinstance(second, Dropped)
    assert cluster["a"].node.state.membership == Membership(frozenset("abc"), frozenset("de"))


def test_members_in_a_form_of_a_newer_conveyord_are_refused() -> None:
    """A node that guessed who they are would count the wrong majority."""
    cluster = Cluster("ab")
    newer = make_entry(ROOT_CHAIN, 1, 1, Kind.MEMBERSHIP, msgpack.packb([["a"], [], [], [], ["witness"]]))
    with pytest.raises(Refused, match="upgrade this node"):
        cluster["b"].node.step(Receive(Append("a", "b", 1, 0, 0, (newer,), 0)), cluster.now)


def test_members_are_changed_by_who_leads_and_goes_on_leading() -> None:
    cluster = Cluster()
    cluster.elect("a")
    assert change(cluster, "b", c=Standing.GONE) == NotLeader(0, "this node does not lead", "a")
    cluster.cut = lambda message: message.to == "c"
    cluster.step("a", Transfer("c"))
    found = change(cluster, "a", b=Standing.GONE)
    assert isinstance(found, Dropped) and found.leader == "c"


def test_a_membership_in_the_log_is_in_force_after_a_restart_committed_or_not() -> None:
    abc, joint = Membership(frozenset("abc")), Membership(frozenset("ab"), outgoing=frozenset("abc"))
    for known, commit in itertools.product((joint, joint.left()), (0, 2)):
        hard = HardState(1, None, commit)
        loaded = Loaded(hard, membership=abc, memberships=[(2, known)], entries=entries_of([1, 1]))
        cluster = Cluster(loaded={"c": loaded})
        assert cluster["c"].node.state.membership == known
        assert cluster["c"].node.state.may_lead is (known.is_joint or commit < 2)


def test_no_change_before_the_leader_has_committed_an_entry_of_its_own() -> None:
    cluster = Cluster()
    cluster.cut = lambda message: isinstance(message, AppendReply)
    cluster.elect("a")
    early = change(cluster, "a", c=Standing.GONE)
    assert isinstance(early, Dropped) and "committed nothing yet" in early.reason


@pytest.mark.parametrize("known", [True, False])
def test_nobody_becomes_a_voter_before_it_has_caught_up(known: bool) -> None:
    cluster = Cluster(options=Options(promotion_lag=2))
    cluster.elect("a")
    if known:
        change(cluster, "a", d=Standing.LEARNER)
    cluster.propose("a", b"1", b"2", b"3")
    cluster.settle()
    found = change(cluster, "a", d=Standing.VOTER)
    assert isinstance(found, Dropped) and "at most 2 for a voter; add it as a learner first" in found.reason


def test_a_membership_that_was_not_committed_goes_with_its_entry() -> None:
    cluster = grown()
    cluster.cut = lambda message: message.sender == "a" and isinstance(message, Append)
    change(cluster, "a", b=Standing.GONE)
    assert cluster["a"].node.state.membership.is_joint
    cluster.settle()
    cluster.cut = lambda message: "a" in (message.sender, message.to)
    cluster.elect("b")
    cluster.cut = lambda message: False
    cluster.wait(2 * T)
    assert members(cluster) == {Membership(frozenset("abc"), frozenset("d"))}


def test_a_new_leader_finishes_a_joint_membership_that_it_finds() -> None:
    cluster = grown()
    change(cluster, "a", d=Standing.VOTER)
    index = cluster["a"].node.state.log.last
    cluster.deliver()  # the joint entry reaches everyone; nobody hears that it is committed
    for name in "bcd":
        cluster.sync(name)
    cluster.mail.clear()
    cluster.cut = lambda message: "a" in (message.sender, message.to)
    cluster.elect("b")
    cluster.cut = lambda message: False
    cluster.wait(2 * T)
    assert members(cluster) == {Membership(frozenset("abcd"))}
    assert cluster["b"].node.state.memberships.index > index
