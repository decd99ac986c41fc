"""Whether a change of voters can be agreed on, and would leave a cluster that can agree on anything."""

from __future__ import annotations

from collections.abc import Collection

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.types import NodeId


def without_voter(membership: Membership, node: NodeId, heard: Collection[NodeId]) -> str:
    """Why `node` must not stop voting; empty if it may. heard: who answered of late, the leader itself among them.

    The change needs a majority of the voters before it and of those after it, and so does everything that follows.
    """
    before = membership.voters
    after = before - {node}
    if not after:
        return f"node {node} is the only voter; let another one vote first"
    for voters, of in ((before, "voters"), (after, f"voters without {node}")):
        up = voters.intersection(heard)
        needed = len(voters) // 2 + 1
        if len(up) < needed:
            silent = ", ".join(sorted(voters - up))
            return (
                f"of the {len(voters)} {of} only {len(up)} are heard, and {needed} are needed to agree; "
                f"start {silent} first, or let another node vote"
            )
    return ""
