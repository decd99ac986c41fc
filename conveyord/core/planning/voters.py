"""Who is to vote: what a leader does, step by step, so that the cluster has the voters that it should. Without I/O.

| a node | and | is made |
|---|---|---|
| that the cluster knows, with a role that needs the state, in no membership | | a learner |
| that has left | is in the membership | gone |
| a member that was down for `dead_server_seconds` | a majority is heard without it | one that has left |
| a voter that is no router, or one too many | does not lead; a majority is heard without it | a learner |
| a learner that is a router, ready, heard, and has caught up | there are too few voters | a voter |

One change of members at a time, so each is decided on what the one before has led to. Nothing is done where the voters
that are heard would be no majority afterwards: a cluster must not lose its quorum by being tidied up.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from conveyord.core.planning.founding import ROUTER
from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.raft.types import NodeId
from conveyord.core.state.members import DOWN, LEFT, READY
from conveyord.core.state.rows import MemberRow

MEMBER_ROLES = frozenset({ROUTER, "scheduler", "sidecar"})
"""Nodes with one of these hold the state (DESIGN.md, section 6)."""
HEARD_TIMEOUTS = 3  # election timeouts within which a node must have answered to count as there
DOWN_TIMEOUTS = 5  # without an answer, after which it counts as down


@dataclass(frozen=True, slots=True)
class Peer:
    """What the leader knows of another member. heard_timeouts: since it answered, in election timeouts."""

    heard_timeouts: float
    heard_seconds: float
    is_caught_up: bool


@dataclass(frozen=True, slots=True)
class Sight:
    """All that a leader decides by. target_voters, dead_server_seconds: settings; 0 seconds for never."""

    leader: NodeId
    membership: Membership
    rows: Mapping[NodeId, MemberRow]
    peers: Mapping[NodeId, Peer]
    target_voters: int
    dead_server_seconds: int

    def is_heard(self, node: NodeId) -> bool:
        """Whether a node is there, as far as the leader can tell."""
        if node == self.leader:
            return True
        peer = self.peers.get(node)
        return peer is not None and peer.heard_timeouts <= HEARD_TIMEOUTS


@dataclass(frozen=True, slots=True)
class Plan:
    """changes: of Raft's members, to be made together. down: nodes to be told of as down. left: as gone for good."""

    changes: tuple[Change, ...] = ()
    down: tuple[NodeId, ...] = ()
    left: tuple[NodeId, ...] = ()
    why: str = ""


def plan(sight: Sight) -> Plan:
    """The next step; an empty one if all is as it should be."""
    down = tuple(sorted(node for node, row in sight.rows.items() if _is_newly_down(sight, node, row)))
    if sight.membership.is_joint or not keeps_quorum(sight, sight.membership.voters):
        return Plan(down=down)
    for step in (_admit, _release, _bury, _demote, _promote):
        if (found := step(sight)) is not None:
            return Plan(found.changes, down, found.left, found.why)
    return Plan(down=down)


def keeps_quorum(sight: Sight, voters: Collection[NodeId]) -> bool:
    """Whether those of `voters` that are heard are a majority of them."""
    return 2 * sum(sight.is_heard(node) for node in voters) > len(voters)


def _is_newly_down(sight: Sight, node: NodeId, row: MemberRow) -> bool:
    peer = sight.peers.get(node)
    return peer is not None and row.state not in (DOWN, LEFT) and peer.heard_timeouts > DOWN_TIMEOUTS


def _admit(sight: Sight) -> Plan | None:
    new = sorted(
        node
        for node, row in sight.rows.items()
        if row.state not in (DOWN, LEFT) and _roles(row) & MEMBER_ROLES and node not in sight.membership.everyone
    )
    if not new:
        return None
    return Plan(tuple(Change(node, Standing.LEARNER) for node in new), why=f"{', '.join(new)}: new, gets the log")


def _release(sight: Sight) -> Plan | None:
    others = sight.membership.everyone - {sight.leader}
    gone = sorted(node for node, row in sight.rows.items() if row.state == LEFT and node in others)
    for node in gone:
        if keeps_quorum(sight, sight.membership.voters - {node}):
            return Plan((Change(node, Standing.GONE),), why=f"{node} has left")
    return None


def _bury(sight: Sight) -> Plan | None:
    if not sight.dead_server_seconds:
        return None
    for node in sorted(sight.membership.everyone - {sight.leader}):
        peer, row = sight.peers.get(node), sight.rows.get(node)
        if peer is None or row is None or row.state != DOWN or peer.heard_seconds < sight.dead_server_seconds:
            continue
        if node in sight.membership.learners or keeps_quorum(sight, sight.membership.voters - {node}):
            why = f"{node} was down for {peer.heard_seconds:.0f} s, longer than dead_server_seconds"
            return Plan(left=(node,), why=why)  # then it is released
    return None


def _demote(sight: Sight) -> Plan | None:
    voters = sight.membership.voters
    strangers = [node for node in voters if node in sight.rows and ROUTER not in _roles(sight.rows[node])]
    # Those that stay are the leader and who is heard; of the others, who is not heard goes first.
    ranked = sorted(voters, key=lambda node: (node != sight.leader, not sight.is_heard(node), node))
    for node in (*sorted(strangers), *reversed(ranked[sight.target_voters :])):
        if node != sight.leader and keeps_quorum(sight, voters - {node}):
            many = f"there are {len(voters)} voters, to be {sight.target_voters}"
            why = f"{node} is no router any more" if node in strangers else many
            return Plan((Change(node, Standing.LEARNER),), why=f"{why}: {node} gets the log, and votes no more")
    return None


def _promote(sight: Sight) -> Plan | None:
    voters = sight.membership.voters
    if len(voters) >= sight.target_voters:
        return None
    for node in sorted(sight.membership.learners):
        row, peer = sight.rows.get(node), sight.peers.get(node)
        if row is None or peer is None or row.state != READY or ROUTER not in _roles(row):
            continue
        if peer.is_caught_up and sight.is_heard(node) and keeps_quorum(sight, voters | {node}):
            why = f"{node} has caught up, and {len(voters)} of {sight.target_voters} voters are there"
            return Plan((Change(node, Standing.VOTER),), why=why)
    return None


def _roles(row: MemberRow) -> frozenset[str]:
    return frozenset(row.roles.split(","))
