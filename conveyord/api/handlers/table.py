"""Which function carries out which operation."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from conveyord.api import operations as op
from conveyord.api.context import Caller, Context
from conveyord.api.handlers import backups, config, events, members, settings, status, tokens
from conveyord.api.operation import Operation, Reply

Handler = Callable[[Context, Caller, Any], Awaitable[Reply]]

HANDLERS: Mapping[Operation[Any, Any], Handler] = {
    op.STATUS: status.get,
    op.WHY_NO_LEADER: status.why,
    op.MEMBERS_LIST: members.list_,
    op.MEMBER_GET: members.get,
    op.MEMBER_ADD: members.add,
    op.MEMBER_REMOVE: members.remove,
    op.MEMBER_PROMOTE: members.promote,
    op.MEMBER_DEMOTE: members.demote,
    op.LEADER_TRANSFER: members.transfer,
    op.CONFIG_GET: config.get,
    op.CONFIG_LIST: config.list_,
    op.CONFIG_PUT: config.put,
    op.CONFIG_DELETE: config.delete,
    op.SETTINGS_LIST: settings.list_,
    op.SETTING_SET: settings.set_,
    op.TOKENS_LIST: tokens.list_,
    op.TOKEN_CREATE: tokens.create,
    op.TOKEN_REVOKE: tokens.revoke,
    op.TOKEN_DELETE: tokens.delete,
    op.AUDIT_LIST: events.audit,
    op.EVENTS_AFTER: events.after,
    op.BACKUP_CREATE: backups.create,
    op.BACKUP_LIST: backups.list_,
    op.BACKUP_DESCRIBE: backups.describe,
    op.BACKUP_CLEANUP: backups.cleanup,
}
