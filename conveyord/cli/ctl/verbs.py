"""All verbs that only `conveyorctl` has."""

from __future__ import annotations

import click

from conveyord.cli.ctl.audit_log import audit_log
from conveyord.cli.ctl.backup import backup
from conveyord.cli.ctl.backup_create import create
from conveyord.cli.ctl.completion import completion
from conveyord.cli.ctl.config import config
from conveyord.cli.ctl.context import context
from conveyord.cli.ctl.events import events
from conveyord.cli.ctl.members import members
from conveyord.cli.ctl.raft import raft
from conveyord.cli.ctl.settings import settings
from conveyord.cli.ctl.status import status
from conveyord.cli.ctl.tokens import tokens
from conveyord.cli.ctl.why_no_leader import why_no_leader

# What asks a node, in groups whose other verbs need none.
backup.add_command(create)
raft.add_command(why_no_leader)

VERBS: tuple[click.Command, ...] = (
    audit_log, backup, completion, config, context, events, members, raft, settings, status, tokens,
)  # fmt: skip
