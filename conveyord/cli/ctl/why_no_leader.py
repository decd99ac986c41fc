"""`conveyorctl raft why-no-leader`: asks a node what it knows of that."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from conveyord.cli.ctl.asking import Asking, asks_nodes
from conveyord.cli.ctl.output import printable, show_done

if TYPE_CHECKING:
    from conveyord.api.messages import Diagnosis


@click.command("why-no-leader")
@asks_nodes()
def why_no_leader(asking: Asking, output: str) -> None:
    """Say why nobody leads, as a node sees it, and what to do about it.

    Servers that cannot be reached are named first: that may be all there is to it.
    """
    from conveyord.api.client_http import DeadlinePassed
    from conveyord.api.messages import WhyNoLeader
    from conveyord.api.operations import WHY_NO_LEADER
    from conveyord.core.errors import Retryable

    servers = asking.target().servers
    for server in servers:
        try:
            reply = asking.client((server,)).call(WHY_NO_LEADER, WhyNoLeader())
        except (Retryable, DeadlinePassed) as error:
            click.echo(printable(str(error)), err=True)
        else:
            show_done(reply, _text(reply), output)
            return
    raise Retryable(
        f"no node can be asked ({', '.join(map(str, servers))}): start one; on the machine of a node that does not "
        "start, `conveyorctl raft verify --data-dir DIR` looks at what it has"
    )


def _text(reply: Diagnosis) -> str:
    findings = [f"  seen: {finding}" for finding in reply.findings]
    return "\n".join([reply.verdict, *findings, *(f"  do: {remedy}" for remedy in reply.remedies)])
