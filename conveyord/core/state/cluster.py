"""The cluster as a whole: its id, its history, and the protocol that its members speak."""

from __future__ import annotations

import msgpack

from conveyord.core.state.commands import ClusterForm, ClusterRestored, ProtocolRaise
from conveyord.core.state.names import wrong_id
from conveyord.core.state.replies import CONFLICT, INVALID, PROTOCOL, No, Ok
from conveyord.core.state.rows import CLUSTER, Change, ClusterRow, Decision, Moment, View, refused

KEY = "cluster"
"""That of its events: there is only one."""


def check_form(command: ClusterForm) -> No | None:
    """What can be said of it without the state."""
    if command.cluster_protocol == 0:
        return No(INVALID, "protocol 0; the first is 1")
    return wrong_id("cluster", command.cluster_id)


def decide_form(view: View, moment: Moment, command: ClusterForm) -> Decision:
    """See `ClusterForm`."""
    now = view.cluster()
    if now.id == command.cluster_id:
        return Decision(Ok(now.formed))
    if now.id:
        return refused(CONFLICT, f"this is cluster {now.id} already; {command.cluster_id} must have nodes of its own")
    index = moment.index
    return _changed(
        ClusterRow(command.cluster_id, command.cluster_id, moment.at_ms, command.cluster_protocol, index, index)
    )


def check_restored(command: ClusterRestored) -> No | None:
    """What can be said of it without the state."""
    return wrong_id("history", command.history)


def decide_restored(view: View, moment: Moment, command: ClusterRestored) -> Decision:
    """See `ClusterRestored`."""
    return _changed(view.cluster()._replace(history=command.history, changed=moment.index))


def check_raise(command: ProtocolRaise) -> No | None:
    """What can be said of it without the state."""
    return None if command.to else No(INVALID, "protocol 0; the first is 1")


def decide_raise(view: View, moment: Moment, command: ProtocolRaise) -> Decision:
    """See `ProtocolRaise`."""
    now, to = view.cluster(), command.to
    if to <= now.protocol:
        return Decision(Ok(now.protocol))
    known = False
    for member in view.members():
        if member.state == "left":
            continue
        known = True
        if not member.protocol_min <= to <= member.protocol_max:
            return refused(
                PROTOCOL,
                f"member {member.node} (version {member.version}) speaks protocols {member.protocol_min} to "
                f"{member.protocol_max}, not {to}; upgrade it or let it leave first",
            )
    if not known:
        return refused(PROTOCOL, f"no member is known that speaks protocol {to}; start one first")
    return _changed(now._replace(protocol=to, changed=moment.index), reply=to)


def _changed(row: ClusterRow, *, reply: int | None = None) -> Decision:
    event = Change(CLUSTER, KEY, "put", bytes(msgpack.packb(row._asdict())))
    return Decision(Ok(row.changed if reply is None else reply), (row,), (event,))
