"""`conveyorctl backup create`: has a node take a backup. The other verbs of backups work on the store directly."""

from __future__ import annotations

import click

from conveyord.cli.ctl.asking import Asking, asks_nodes
from conveyord.cli.ctl.output import moment, show_facts


@click.command("create")
@click.option("--store", required=True, metavar="URL", help="file:///DIRECTORY of the node, or s3://BUCKET/PREFIX.")
@click.option("-s", "--stale", is_flag=True, help="Of what the node has, however old, where nobody leads.")
@asks_nodes()
def create(store: str, stale: bool, asking: Asking, output: str) -> None:
    """Have a node back up the state of the cluster, with everything that was acknowledged before.

    The node writes it, with its own credentials. A directory is one of its machine.
    """
    from conveyord.api.messages import BackupCreate
    from conveyord.api.operations import BACKUP_CREATE
    from conveyord.core.units import format_bytes

    reply = asking.call(BACKUP_CREATE, BackupCreate(store=store, stale=stale))
    backup = reply.backup
    facts = {
        "id": backup.id,
        "cluster": backup.cluster,
        "history": backup.history,
        "index": str(backup.state_index),
        "voters": ", ".join(backup.voters),
        "learners": ", ".join(backup.learners),
        "made": f"{moment(backup.created_at_ms)} by {backup.by}, conveyord {backup.version}",
        "protocol": str(backup.protocol),
        "size": f"{format_bytes(backup.file_bytes)}, {format_bytes(backup.state_bytes)} unpacked",
        "digest": backup.digest,
    }
    show_facts(reply, facts, output)
