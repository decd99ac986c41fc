"""`conveyord.core.raft.elections`: who has left, or is not known to have come, may still be needed (Ongaro's thesis,
4.2.2). Found by simulation.
"""

from __future__ import annotations

from conveyord.core.raft.membership import Membership, encode
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import ROOT_CHAIN, Entry, HardState, Kind, make_entry
from tests.unit.raft.rig import Cluster, T

AB, A = frozenset("ab"), frozenset("a")
OLD, JOINT, NEW = Membership(AB), Membership(A, outgoing=AB), Membership(A)


def entry(before: list[Entry], kind: Kind, data: bytes) -> Entry:
    chain = before[-1].chain if before else ROOT_CHAIN
    return make_entry(chain, len(before) + 1, 1, kind, data)


def log(*memberships: Membership) -> list[Entry]:
    found = [entry([], Kind.NOOP, b"")]
    for membership in memberships:
        found.append(entry(found, Kind.MEMBERSHIP, encode(membership)))
    return found


def loaded(*memberships: Membership, commit: int) -> Loaded:
    known = list(enumerate(memberships, 2))
    return Loaded(HardState(1, "b", commit), membership=OLD, memberships=known, entries=log(*memberships))


def test_who_left_campaigns_until_that_is_committed_as_the_others_may_not_have_heard_of_it() -> None:
    """b led, committed the joint membership, appended the one without itself, and stopped. a needs the vote of b, and
    does not get it, as b has more in its log; so b must lead once more, and bring a what it lacks.
    """
    cluster = Cluster("ab", loaded={"a": loaded(JOINT, commit=2), "b": loaded(JOINT, NEW, commit=2)}, membership=OLD)
    cluster.wait(10 * T)
    assert cluster.leader() == "a"
    assert cluster["a"].node.state.membership == NEW
    assert cluster["a"].node.state.commit == cluster["a"].node.state.log.last


def test_who_left_does_not_campaign_any_more_when_that_is_committed() -> None:
    cluster = Cluster("ab", loaded={"a": loaded(JOINT, NEW, commit=3), "b": loaded(JOINT, NEW, commit=3)})
    cluster.cut = lambda _: True
    cluster.wait(10 * T)
    assert cluster["b"].node.state.leader is None
    assert all(message.sender == "a" for message in cluster.mail)


def test_a_learner_whose_vote_is_needed_and_who_knows_more_campaigns() -> None:
    """a has an uncommitted entry that makes the learner c a voter, and so needs the vote of c. c does not give it: it
    has an entry of d in a later term instead, and is a learner still by its log; d is gone for good. b has neither.
    """
    with_learner = Membership(frozenset("abd"), frozenset("c"))
    joint = Membership(frozenset("abcd"), outgoing=frozenset("abd"))
    begun = log(with_learner)
    of_a = [*begun, entry(begun, Kind.MEMBERSHIP, encode(joint))]
    of_c = [*begun, make_entry(begun[-1].chain, 3, 2, Kind.COMMAND, b"x")]
    cluster = Cluster(
        "abc",
        loaded={
            "a": Loaded(HardState(2, None, 2), memberships=[(2, with_learner), (3, joint)], entries=of_a),
            "b": Loaded(HardState(2, None, 2), memberships=[(2, with_learner)], entries=begun),
            "c": Loaded(HardState(2, None, 2), memberships=[(2, with_learner)], entries=of_c),
        },
    )
    cluster.wait(20 * T)
    assert cluster.leader() in {"a", "b"}, "c led until its entry was committed, and made room then"
    for node in "abc":
        assert cluster[node].node.state.log.term(3) == 2
        assert cluster[node].node.state.membership == with_learner


def test_a_learner_whose_vote_nobody_needs_does_not_campaign() -> None:
    known = Membership(frozenset("ab"), frozenset("c"))
    begun = log(known)
    cluster = Cluster(
        "abc",
        loaded={node: Loaded(HardState(1, None, 2), memberships=[(2, known)], entries=begun) for node in "abc"},
    )
    cluster.cut = lambda _: True
    cluster.wait(10 * T)
    assert all(message.sender != "c" for message in cluster.mail)
