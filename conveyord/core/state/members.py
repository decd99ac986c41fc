"""Nodes as the cluster knows them: who they are, where they are reached, what they know, what state they are in.

| from | to |
|---|---|
| any, unknown | `joining`, when it is started; one that was draining goes on draining |
| see `TRANSITIONS` | the others |
| `left` | nothing, until it is started again or forgotten |
"""

from __future__ import annotations

import msgpack

from conveyord.core.state.commands import MemberForget, MemberJoin, MemberState
from conveyord.core.state.names import MEMBERS_MAX, shown, wrong_address, wrong_id, wrong_roles, wrong_text
from conveyord.core.state.replies import (
    CONFLICT,
    DUPLICATE_NODE,
    INVALID,
    LIMIT,
    NOT_FOUND,
    PROTOCOL,
    STALE,
    WRONG_STATE,
    No,
    Ok,
)
from conveyord.core.state.rows import MEMBERS, Change, Decision, Gone, MemberRow, Moment, View, refused

JOINING, READY, DRAINING, DOWN, LEFT = "joining", "ready", "draining", "down", "left"
TRANSITIONS = {
    JOINING: (READY, DRAINING, DOWN, LEFT),
    READY: (DRAINING, DOWN, LEFT),
    DRAINING: (READY, DOWN, LEFT),
    DOWN: (JOINING, READY, DRAINING, LEFT),
    LEFT: (),
}


def check_join(command: MemberJoin) -> No | None:
    """What can be said of it without the state."""
    if not 0 < command.protocol_min <= command.protocol_max:
        return No(
            INVALID,
            f"protocols {command.protocol_min} to {command.protocol_max}; write the lowest first, from 1 on",
        )
    return (
        wrong_id("node", command.node)
        or wrong_address("RPC", command.rpc_address)
        or wrong_address("HTTP", command.http_address)
        or wrong_roles(command.roles)
        or wrong_text("version", command.version)
    )


def decide_join(view: View, moment: Moment, command: MemberJoin) -> Decision:
    """See `MemberJoin`."""
    node, found = command.node, view.member(command.node)
    speaks = view.cluster().protocol
    if not command.protocol_min <= speaks <= command.protocol_max:
        return refused(
            PROTOCOL,
            f"the cluster speaks protocol {speaks}, node {node} (version {command.version}) {command.protocol_min} to "
            f"{command.protocol_max}; run a version that knows it",
        )
    if found is None and len(list(view.members())) >= MEMBERS_MAX:
        return refused(LIMIT, f"there are {MEMBERS_MAX} members, at most that many; forget those that have left")
    state = DRAINING if found and found.state == DRAINING else JOINING
    row = MemberRow(
        node,
        command.rpc_address,
        command.http_address,
        ",".join(command.roles),
        command.version,
        command.protocol_min,
        command.protocol_max,
        command.incarnation,
        state,
        joined_at_ms=found.joined_at_ms if found else moment.at_ms,
        changed_at_ms=found.changed_at_ms if found and found.state == state else moment.at_ms,
        changed=moment.index,
    )
    if found is not None and found.incarnation >= command.incarnation:
        return _not_started_anew(found, row)
    return _put(row)


def check_state(command: MemberState) -> No | None:
    """What can be said of it without the state."""
    if command.state not in TRANSITIONS:
        return No(INVALID, f"{shown(command.state)} is no state of a member; write one of {', '.join(TRANSITIONS)}")
    return wrong_id("node", command.node)


def decide_state(view: View, moment: Moment, command: MemberState) -> Decision:
    """See `MemberState`."""
    node, to, found = command.node, command.state, view.member(command.node)
    if found is None:
        return refused(NOT_FOUND, f"no member is called {node}; start it first")
    if command.incarnation != found.incarnation:
        return refused(
            STALE, f"this is of incarnation {command.incarnation} of node {node}, which is at {found.incarnation} now"
        )
    if wrong := _unexpected(found, command.expect_index):
        return Decision(wrong)
    if found.state == to:
        return Decision(Ok(found.changed))
    if to not in TRANSITIONS[found.state]:
        can = ", ".join(TRANSITIONS[found.state]) or "nothing until it is started again"
        return refused(WRONG_STATE, f"node {node} is {found.state} and cannot be {to}; it can be {can}")
    return _put(found._replace(state=to, changed_at_ms=moment.at_ms, changed=moment.index))


def check_forget(command: MemberForget) -> No | None:
    """What can be said of it without the state."""
    return wrong_id("node", command.node)


def decide_forget(view: View, moment: Moment, command: MemberForget) -> Decision:
    """See `MemberForget`."""
    node, found = command.node, view.member(command.node)
    if found is None:
        return refused(NOT_FOUND, f"no member is called {node}; nothing to forget")
    if wrong := _unexpected(found, command.expect_index):
        return Decision(wrong)
    if found.state != LEFT:
        return refused(WRONG_STATE, f"node {node} is {found.state}; only one that has left can be forgotten")
    return Decision(Ok(moment.index), (Gone(MEMBERS, node),), (Change(MEMBERS, node, "delete", None),))


def _not_started_anew(found: MemberRow, row: MemberRow) -> Decision:
    """A message of a start that is known already, or of one before."""
    node = found.node
    if found.incarnation > row.incarnation:
        return refused(
            STALE, f"node {node} is at incarnation {found.incarnation}, this is of {row.incarnation}; start it anew"
        )
    if found.state == LEFT:
        return refused(WRONG_STATE, f"node {node} has left; start it again to let it join")
    same = row._replace(
        state=found.state, joined_at_ms=found.joined_at_ms, changed_at_ms=found.changed_at_ms, changed=found.changed
    )
    if same != found:
        return refused(
            DUPLICATE_NODE,
            f"node {node} runs at {found.rpc_address} as incarnation {found.incarnation}, and at {row.rpc_address} as "
            "the same; stop one of the two, and give it a data directory of its own",
        )
    return Decision(Ok(found.changed))


def _unexpected(found: MemberRow, expected: int | None) -> No | None:
    if expected is None or expected == found.changed:
        return None
    return No(
        CONFLICT, f"member {found.node} was changed last at index {found.changed}, expected {expected}; read it again"
    )


def _put(row: MemberRow) -> Decision:
    event = Change(MEMBERS, row.node, "put", bytes(msgpack.packb(row._asdict())))
    return Decision(Ok(row.changed), (row,), (event,))
