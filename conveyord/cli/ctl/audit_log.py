"""`conveyorctl audit-log`: what was asked of the cluster. `audit` is that of tables."""

from __future__ import annotations

import click

from conveyord.cli.ctl.asking import Asking, Reading, asks_nodes, reads
from conveyord.cli.ctl.output import Column, moment, show


@click.command("audit-log")
@click.option("--before", type=click.IntRange(0), metavar="INDEX", help="What came before that index.")
@click.option(
    "--limit",
    type=click.IntRange(1, 1_000),
    default=100,
    show_default=True,
    help="So many, and what else has the last index.",
)
@reads
@asks_nodes()
def audit_log(before: int | None, limit: int, asking: Asking, reading: Reading, output: str) -> None:
    """List what was asked of the cluster, and by whom, the newest first.

    CODE is OK, or why it was refused. Times are those of the nodes that were asked.
    """
    from conveyord.api.messages import AuditEntry, AuditList
    from conveyord.api.operations import AUDIT_LIST

    reply = asking.read(AUDIT_LIST, AuditList(before=before, limit=limit), reading)
    columns = (
        Column[AuditEntry]("index", lambda entry: str(entry.index), is_number=True),
        Column[AuditEntry]("at", lambda entry: moment(entry.at_ms)),
        Column[AuditEntry]("actor", lambda entry: entry.actor),
        Column[AuditEntry]("operation", lambda entry: entry.operation),
        Column[AuditEntry]("code", lambda entry: entry.code),
        Column[AuditEntry]("target", lambda entry: entry.target),
    )
    show(reply, columns, reply.entries, output)
    if reply.more and output in ("table", "wide"):
        click.echo(f"and older ones: --before {reply.entries[-1].index}", err=True)
