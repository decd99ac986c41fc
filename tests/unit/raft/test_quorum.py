"""Majorities against counting by hand, and joint ones against both halves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.quorum import Verdict, committed_index, has_quorum, majority_index, verdict

NODES = st.sampled_from("abcdefg")
SETS = st.frozensets(NODES, min_size=1)
MATCH = st.dictionaries(NODES, st.integers(0, 6))


@given(SETS, MATCH)
def test_a_majority_has_the_majority_index_and_none_has_the_next(voters: frozenset[str], match: dict[str, int]) -> None:
    found = majority_index(voters, match)

    def holders(index: int) -> int:
        return sum(match.get(voter, 0) >= index for voter in voters)

    assert 2 * holders(found) > len(voters)
    assert 2 * holders(found + 1) <= len(voters)


@given(SETS, SETS, MATCH)
def test_both_sets_must_have_what_a_joint_membership_commits(
    voters: frozenset[str], outgoing: frozenset[str], match: dict[str, int]
) -> None:
    joint = Membership(voters, outgoing=outgoing)
    assert committed_index(joint, match) == min(majority_index(voters, match), majority_index(outgoing, match))


@given(SETS, SETS | st.just(frozenset()), st.dictionaries(NODES, st.booleans()))
def test_a_vote_is_decided_when_no_later_vote_can_change_it(
    voters: frozenset[str], outgoing: frozenset[str], votes: dict[str, bool]
) -> None:
    membership = Membership(voters, outgoing=outgoing)
    missing = membership.electorate - votes.keys()
    ends = {verdict(membership, {**votes, **dict.fromkeys(missing, answer)}) for answer in (True, False)}
    found = verdict(membership, votes)
    if found is Verdict.PENDING:
        assert ends == {Verdict.WON, Verdict.LOST}
    else:
        assert ends == {found}
    granted = {voter for voter, answer in votes.items() if answer}
    assert (found is Verdict.WON) == has_quorum(membership, granted)


@given(SETS, st.frozensets(NODES), st.frozensets(NODES))
def test_two_quorums_of_one_membership_meet(voters: frozenset[str], one: frozenset[str], two: frozenset[str]) -> None:
    membership = Membership(voters)
    if has_quorum(membership, one) and has_quorum(membership, two):
        assert one & two & voters


@given(SETS, SETS, st.frozensets(NODES), st.frozensets(NODES))
def test_a_joint_quorum_meets_those_of_both_sets(
    voters: frozenset[str], outgoing: frozenset[str], one: frozenset[str], two: frozenset[str]
) -> None:
    if has_quorum(Membership(voters, outgoing=outgoing), one):
        for simple in (Membership(voters), Membership(outgoing)):
            assert not has_quorum(simple, two) or one & two
