"""Arithmetic of majorities. In a joint membership both sets must agree, so the lower result counts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, unique

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.types import NodeId


@unique
class Verdict(Enum):
    """Of a vote that is under way."""

    WON = "won"
    LOST = "lost"
    PENDING = "pending"


def majority_index(voters: Collection[NodeId], match: Mapping[NodeId, int]) -> int:
    """The highest index that a majority of `voters` has; a voter that is not in `match` has nothing."""
    found = sorted((match.get(voter, 0) for voter in voters), reverse=True)
    return found[len(found) // 2]


def committed_index(membership: Membership, match: Mapping[NodeId, int]) -> int:
    """The highest index that is on the disks of a quorum."""
    found = majority_index(membership.voters, match)
    return min(found, majority_index(membership.outgoing, match)) if membership.outgoing else found


def _verdict(voters: Collection[NodeId], votes: Mapping[NodeId, bool]) -> Verdict:
    needed = len(voters) // 2 + 1
    granted = sum(votes.get(voter) is True for voter in voters)
    refused = sum(votes.get(voter) is False for voter in voters)
    if granted >= needed:
        return Verdict.WON
    return Verdict.LOST if refused > len(voters) - needed else Verdict.PENDING


def verdict(membership: Membership, votes: Mapping[NodeId, bool]) -> Verdict:
    """How a vote stands. Who is no voter has no voice."""
    found = {_verdict(membership.voters, votes)}
    if membership.outgoing:
        found.add(_verdict(membership.outgoing, votes))
    if Verdict.LOST in found:
        return Verdict.LOST
    return Verdict.PENDING if Verdict.PENDING in found else Verdict.WON


def has_quorum(membership: Membership, present: Collection[NodeId]) -> bool:
    """Whether those who are `present` are a quorum."""
    return verdict(membership, dict.fromkeys(present, True)) is Verdict.WON
