"""Entries of the log that change Raft's members are no commands, but watchers are told what became of each node.

Who still votes because the change is under way counts as a voter until it is done. What a cluster began with stands in
no entry, so the first change tells of every node.
"""

from __future__ import annotations

from conveyord.core.raft.membership import Membership, Standing
from conveyord.core.state.replies import Ok
from conveyord.core.state.rows import STANDINGS, Change, Decision, Gone, Row, StandingRow, View


def decide_membership(view: View, index: int, membership: Membership) -> Decision:
    """What a membership entry changes. index: of the entry."""
    before = {row.node: row.standing for row in view.standings()}
    after = dict.fromkeys(membership.learners, Standing.LEARNER.value)
    after |= dict.fromkeys(membership.electorate, Standing.VOTER.value)
    rows, events = list[Row | Gone](), list[Change]()
    for node in sorted(before.keys() | after.keys()):
        standing = after.get(node)
        if standing == before.get(node):
            continue
        if standing is None:
            rows.append(Gone(STANDINGS, node))
            events.append(Change(STANDINGS, node, "delete", Standing.GONE.value.encode()))
        else:
            rows.append(StandingRow(node, standing, index))
            events.append(Change(STANDINGS, node, "put", standing.encode()))
    return Decision(Ok(), tuple(rows), tuple(events))
