"""`conveyorctl members`: who is in the cluster, who votes, who leads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from conveyord.cli.ctl.asking import Asking, Reading, asks_nodes, confirmed, reads, yes_option
from conveyord.cli.ctl.output import Column, age, moment, show, show_done

if TYPE_CHECKING:
    from conveyord.api.messages import Member


@click.group()
def members() -> None:
    """See who is in the cluster, and change that."""


@members.command("list")
@reads
@asks_nodes()
def list_members(asking: Asking, reading: Reading, output: str) -> None:
    """List all nodes that the cluster knows.

    SINCE is for how long a node has been in its state. A node without a state has not said hello yet.
    """
    from conveyord.api.messages import MembersList
    from conveyord.api.operations import MEMBERS_LIST

    reply = asking.read(MEMBERS_LIST, MembersList(), reading)
    show(reply, _columns(), reply.members, output)


@members.command("get")
@click.argument("node")
@reads
@asks_nodes()
def get(node: str, asking: Asking, reading: Reading, output: str) -> None:
    """Show one node."""
    from conveyord.api.messages import MemberGet
    from conveyord.api.operations import MEMBER_GET

    reply = asking.read(MEMBER_GET, MemberGet(node=node), reading)
    show(reply, _columns(), (reply.member,), output)


@members.command("add")
@click.argument("address")
@asks_nodes()
def add(address: str, asking: Asking, output: str) -> None:
    """Invite the node that listens at ADDRESS, HOST:PORT of its RPC.

    It must be in no cluster yet. It joins by itself then, without a vote at first.
    """
    from conveyord.api.messages import MemberAdd
    from conveyord.api.operations import MEMBER_ADD

    reply = asking.call(MEMBER_ADD, MemberAdd(address=address))
    show_done(reply, f"node {reply.node} is invited", output)


@members.command("remove")
@click.argument("node")
@click.option("--force", is_flag=True, help="Also a node that is up.")
@yes_option
@asks_nodes()
def remove(node: str, force: bool, yes: bool, asking: Asking, output: str) -> None:
    """Remove NODE for good. What it has is not deleted there.

    Refused if too few voters would be left.
    """
    from conveyord.api.messages import MemberRemove
    from conveyord.api.operations import MEMBER_REMOVE

    if confirmed(f"Remove node {node} from the cluster for good", yes=yes):
        reply = asking.call(MEMBER_REMOVE, MemberRemove(node=node, force=force))
        show_done(reply, f"node {node} is removed", output)


@members.command("promote")
@click.argument("node")
@asks_nodes()
def promote(node: str, asking: Asking, output: str) -> None:
    """Make NODE a voter, once it has caught up."""
    from conveyord.api.messages import MemberPromote
    from conveyord.api.operations import MEMBER_PROMOTE

    reply = asking.call(MEMBER_PROMOTE, MemberPromote(node=node))
    show_done(reply, f"node {node} votes", output)


@members.command("demote")
@click.argument("node")
@asks_nodes()
def demote(node: str, asking: Asking, output: str) -> None:
    """Take NODE its vote. It stays in the cluster."""
    from conveyord.api.messages import MemberDemote
    from conveyord.api.operations import MEMBER_DEMOTE

    reply = asking.call(MEMBER_DEMOTE, MemberDemote(node=node))
    show_done(reply, f"node {node} does not vote", output)


@members.command("transfer")
@click.argument("node", required=False, default="")
@asks_nodes()
def transfer(node: str, asking: Asking, output: str) -> None:
    """Have NODE lead, or whoever is closest to the leader of now."""
    from conveyord.api.messages import LeaderTransfer
    from conveyord.api.operations import LEADER_TRANSFER

    reply = asking.call(LEADER_TRANSFER, LeaderTransfer(node=node))
    show_done(reply, f"node {reply.leader} leads", output)


def _columns() -> tuple[Column[Member], ...]:
    now_ms = time.time() * 1000
    return (
        Column("node", lambda member: member.node),
        Column("standing", lambda member: "leader" if member.is_leader else member.standing or "none"),
        Column("state", lambda member: member.state or "unknown"),
        Column("roles", lambda member: ",".join(member.roles)),
        Column("rpc", lambda member: member.rpc_address),
        Column("http", lambda member: member.http_address),
        Column("version", lambda member: member.version),
        Column("protocols", lambda member: "-".join(map(str, member.protocols)), is_wide=True),
        Column("start", lambda member: str(member.incarnation), is_wide=True, is_number=True),
        Column("joined", lambda member: moment(member.joined_at_ms) if member.joined_at_ms else "", is_wide=True),
        Column("changed", lambda member: str(member.changed), is_wide=True, is_number=True),
        Column("since", lambda member: age((now_ms - member.changed_at_ms) / 1000) if member.changed_at_ms else ""),
    )
