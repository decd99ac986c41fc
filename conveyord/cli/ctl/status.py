"""`conveyorctl status`: how a node is, or all of them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from conveyord.cli.ctl.asking import Asking, asks_nodes, duration
from conveyord.cli.ctl.output import Column, age, show, show_facts

if TYPE_CHECKING:
    from conveyord.api.client_http import Server
    from conveyord.api.messages import Peer, Status

EXIT_PARTIAL = 4  # as DESIGN section 10 has it
AT_A_TIME_MAX = 16
ONE_SECONDS_MAX = 5.0  # for one node of many
LOOK_SECONDS = 0.2  # between two looks of --wait
UNAUTHENTICATED_STATUS = 401
WAIT_SECONDS_MAX = 3_600.0


class Node(NamedTuple):
    """A member, and how it is; error: why that is not known."""

    node: str
    address: str
    status: Status | None
    error: Exception | None = None


@click.command()
@click.option("--all", "everyone", is_flag=True, help="Of every member. Exit code 4 if some do not answer.")
@click.option("--wait", metavar="DURATION", help="Until the node is in a cluster that has a leader, or for so long.")
@asks_nodes()
def status(everyone: bool, wait: str | None, asking: Asking, output: str) -> int:
    """Show how the node is that is asked, and who leads."""
    from conveyord.core.errors import ConfigError

    if everyone and wait is not None:
        raise ConfigError(
            "--all and --wait exclude each other: it is one node that can be waited for; leave one of them out"
        )
    if everyone:
        return _show_all(asking, output)
    seconds = None if wait is None else duration(wait, "--wait", seconds_max=WAIT_SECONDS_MAX)
    reply = _one(asking) if seconds is None else _with_leader(asking, seconds)
    show_facts(reply, _facts(reply), output)
    if reply.peers and output in ("table", "wide"):
        click.echo()
        show(None, _PEERS, reply.peers, output)
    return 0


def _one(asking: Asking) -> Status:
    from conveyord.api.messages import StatusGet
    from conveyord.api.operations import STATUS

    return asking.call(STATUS, StatusGet())


def _with_leader(asking: Asking, seconds: float) -> Status:
    """How the node is, once it knows a leader. Raises DeadlinePassed with what was missing."""
    from conveyord.api.client import Problem
    from conveyord.api.client_http import DeadlinePassed
    from conveyord.core.errors import Retryable

    deadline = time.monotonic() + seconds
    while True:
        try:
            reply = _one(asking)
            if reply.leader:
                return reply
            missing = reply.waiting or f"node {reply.node} knows no leader; see `conveyorctl raft why-no-leader`"
        except Retryable as error:
            missing = str(error)
        except Problem as error:
            # A node that starts writes a new local token; any other stays as wrong as it is.
            if error.status != UNAUTHENTICATED_STATUS or not asking.target().is_local:
                raise
            missing = str(error)
        if time.monotonic() + LOOK_SECONDS > deadline:
            raise DeadlinePassed(f"after --wait {seconds:g}s: {missing}", was_sent=False)
        time.sleep(LOOK_SECONDS)


def _facts(reply: Status) -> dict[str, str]:
    return {
        "node": reply.node,
        "cluster": reply.cluster or "none yet",
        "version": reply.version,
        "roles": ", ".join(reply.roles),
        "phase": reply.phase,
        "waiting": reply.waiting,
        "raft": f"{reply.raft}, term {reply.term}" if reply.raft else "",
        "leader": reply.leader or "nobody",
        "log": f"committed to {reply.commit}, applied to {reply.applied}",
        "disk": reply.disk,
        "rpc": reply.rpc_address,
        "http": reply.http_address,
        "up": f"{age(reply.uptime_seconds)}, start {reply.incarnation}",
    }


def _show_all(asking: Asking, output: str) -> int:
    from conveyord.api.messages import MembersList
    from conveyord.api.operations import MEMBERS_LIST

    client, target = asking.client(), asking.target()
    members = client.call(MEMBERS_LIST, MembersList(stale=True)).members  # there may be no leader to ask
    is_tls = target.servers[0].is_tls
    with ThreadPoolExecutor(AT_A_TIME_MAX) as threads:
        nodes = list(threads.map(lambda one: _ask(asking, one.node, one.http_address, is_tls=is_tls), members))
    documents = [
        {
            "node": one.node,
            "http_address": one.address,
            "status": one.status,
            "error": None if one.error is None else {"code": getattr(one.error, "code", ""), "message": str(one.error)},
        }
        for one in nodes
    ]
    show({"nodes": documents}, _columns(), nodes, output)
    return EXIT_PARTIAL if any(one.error for one in nodes) else 0


def _ask(asking: Asking, node: str, address: str, *, is_tls: bool) -> Node:
    """How one member is. It is asked at the address that the cluster has of it, with the scheme of the first server."""
    from conveyord.api.client_http import parse_server
    from conveyord.api.messages import StatusGet
    from conveyord.api.operations import STATUS
    from conveyord.core.errors import ConveyordError, Retryable

    try:
        if not address:
            raise Retryable("it has not said where its API is")
        server: Server = parse_server(f"{'https' if is_tls else 'http'}://{address}")
        client = asking.client((server,), seconds_max=ONE_SECONDS_MAX)
        return Node(node, address, client.call(STATUS, StatusGet()))
    except ConveyordError as error:
        return Node(node, address, None, error)


def _columns() -> tuple[Column[Node], ...]:
    def told(head: str, name: str, **how: Any) -> Column[Node]:
        return Column(head, lambda one: "" if one.status is None else str(getattr(one.status, name)), **how)

    return (
        Column("node", lambda one: one.node),
        Column("phase", lambda one: "unreachable" if one.status is None else one.status.phase),
        told("raft", "raft"),
        told("term", "term", is_number=True),
        told("leader", "leader"),
        told("commit", "commit", is_wide=True, is_number=True),
        told("applied", "applied", is_number=True),
        told("disk", "disk"),
        told("start", "incarnation", is_wide=True, is_number=True),
        Column("up", lambda one: "" if one.status is None else age(one.status.uptime_seconds)),
        Column("http", lambda one: one.address),
        told("rpc", "rpc_address", is_wide=True),
        told("version", "version"),
        Column("note", lambda one: str(one.error) if one.status is None else one.status.waiting),
    )


_PEERS: tuple[Column[Peer], ...] = (
    Column("peer", lambda peer: peer.node),
    Column("match", lambda peer: str(peer.match), is_number=True),
    Column("lag", lambda peer: str(peer.lag), is_number=True),
    Column("heard", lambda peer: f"{peer.heard_seconds:.1f}s ago", is_number=True),
    Column(
        "state",
        lambda peer: "gets a snapshot" if peer.gets_snapshot else "caught up" if peer.is_caught_up else "behind",
    ),
)
