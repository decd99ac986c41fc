"""Every operation there is, in one table. `docs/api.md` and OpenAPI are made from it."""

from __future__ import annotations

from typing import Any

from conveyord.api import messages as m
from conveyord.api.operation import Operation, Where
from conveyord.core.state.rows import CLUSTER, CONFIG, MEMBERS, SETTINGS, STANDINGS, TOKENS
from conveyord.core.state.tokens import ADMIN, OPERATOR, VIEWER

STATUS = Operation(
    "status.get", "GET", "/status", m.StatusGet, m.Status, VIEWER, "How the node is that you ask, and who leads."
)
WHY_NO_LEADER = Operation(
    "raft.why",
    "GET",
    "/raft/why-no-leader",
    m.WhyNoLeader,
    m.Diagnosis,
    VIEWER,
    "Why nobody leads, as this node sees it.",
)
MEMBERS_LIST = Operation(
    "members.list", "GET", "/members", m.MembersList, m.Members, VIEWER, "All nodes.", topics=(MEMBERS, STANDINGS)
)
MEMBER_GET = Operation(
    "members.get", "GET", "/members/{node}", m.MemberGet, m.OneMember, VIEWER, "One node.", topics=(MEMBERS, STANDINGS)
)
MEMBER_ADD = Operation(
    "members.add", "POST", "/members", m.MemberAdd, m.MemberAdded, ADMIN, "Invite a node that is in no cluster yet.",
    is_read=False, where=Where.LEADER,
)  # fmt: skip
MEMBER_REMOVE = Operation(
    "members.remove", "DELETE", "/members/{node}", m.MemberRemove, m.Changed, ADMIN, "Remove a node for good.",
    is_read=False, is_idempotent=False, where=Where.LEADER,
)  # fmt: skip
MEMBER_PROMOTE = Operation(
    "members.promote", "POST", "/members/{node}/promote", m.MemberPromote, m.Changed, ADMIN,
    "Make a learner that has caught up a voter.", is_read=False, where=Where.LEADER,
)  # fmt: skip
MEMBER_DEMOTE = Operation(
    "members.demote", "POST", "/members/{node}/demote", m.MemberDemote, m.Changed, ADMIN, "Make a voter a learner.",
    is_read=False, where=Where.LEADER,
)  # fmt: skip
LEADER_TRANSFER = Operation(
    "leader.transfer", "POST", "/leader/transfer", m.LeaderTransfer, m.Transferred, OPERATOR,
    "Hand leadership over.", is_read=False, is_idempotent=False, where=Where.LEADER,
)  # fmt: skip
CONFIG_GET = Operation(
    "config.get", "GET", "/config/{key:path}", m.ConfigGet, m.OneConfigEntry, VIEWER, "One configuration entry.",
    topics=(CONFIG,),
)  # fmt: skip
CONFIG_LIST = Operation(
    "config.list", "GET", "/config", m.ConfigList, m.ConfigEntries, VIEWER, "Configuration entries, a page of them.",
    topics=(CONFIG,),
)  # fmt: skip
CONFIG_PUT = Operation(
    "config.put", "PUT", "/config/{key:path}", m.ConfigPutRequest, m.Changed, OPERATOR,
    "Write a configuration entry.", is_read=False,
)  # fmt: skip
CONFIG_DELETE = Operation(
    "config.delete", "DELETE", "/config/{key:path}", m.ConfigDeleteRequest, m.Changed, OPERATOR,
    "Remove a configuration entry.", is_read=False, is_idempotent=False,
)  # fmt: skip
SETTINGS_LIST = Operation(
    "settings.list", "GET", "/settings", m.SettingsList, m.Settings, VIEWER, "All settings of the cluster.",
    topics=(SETTINGS,),
)  # fmt: skip
SETTING_SET = Operation(
    "settings.set", "PUT", "/settings/{name}", m.SettingSet, m.Changed, ADMIN, "Change a setting.", is_read=False
)
TOKENS_LIST = Operation(
    "tokens.list", "GET", "/tokens", m.TokensList, m.Tokens, ADMIN, "All tokens, without what is secret.",
    topics=(TOKENS,),
)  # fmt: skip
TOKEN_CREATE = Operation(
    "tokens.create", "POST", "/tokens", m.TokenCreateRequest, m.TokenCreated, ADMIN, "Make a token.",
    is_read=False, is_idempotent=False,
)  # fmt: skip
TOKEN_REVOKE = Operation(
    "tokens.revoke", "POST", "/tokens/{id}/revoke", m.TokenRevokeRequest, m.Changed, ADMIN,
    "Let a token be of no use any more.", is_read=False,
)  # fmt: skip
TOKEN_DELETE = Operation(
    "tokens.delete", "DELETE", "/tokens/{id}", m.TokenDeleteRequest, m.Changed, ADMIN,
    "Remove a token that was revoked or has expired.", is_read=False, is_idempotent=False,
)  # fmt: skip
AUDIT_LIST = Operation(
    "audit.list", "GET", "/audit", m.AuditList, m.Audit, ADMIN,
    "What was asked of the cluster, the newest first; a page ends behind an index.",
    topics=(CLUSTER, SETTINGS, MEMBERS, CONFIG, TOKENS),
)  # fmt: skip
EVENTS_AFTER = Operation(
    "events.after", "GET", "/events", m.EventsAfter, m.Events, VIEWER,
    "What happened behind a cursor: in order, without gaps, or an error that says so.",
)  # fmt: skip
BACKUP_CREATE = Operation(
    "backups.create", "POST", "/backups", m.BackupCreate, m.OneBackup, ADMIN, "Take a backup of the state.",
    is_read=False, is_idempotent=False,
)  # fmt: skip
BACKUP_LIST = Operation("backups.list", "GET", "/backups", m.BackupList, m.Backups, ADMIN, "Backups of a store.")
BACKUP_DESCRIBE = Operation(
    "backups.describe", "GET", "/backups/{id}", m.BackupDescribe, m.OneBackup, ADMIN, "One backup of a store."
)
BACKUP_CLEANUP = Operation(
    "backups.cleanup", "POST", "/backups/cleanup", m.BackupCleanup, m.BackupsRemoved, ADMIN,
    "Remove all but the newest backups of a store.", is_read=False,
)  # fmt: skip

OPERATIONS: tuple[Operation[Any, Any], ...] = (
    STATUS, WHY_NO_LEADER,
    MEMBERS_LIST, MEMBER_GET, MEMBER_ADD, MEMBER_REMOVE, MEMBER_PROMOTE, MEMBER_DEMOTE, LEADER_TRANSFER,
    CONFIG_GET, CONFIG_LIST, CONFIG_PUT, CONFIG_DELETE, SETTINGS_LIST, SETTING_SET,
    TOKENS_LIST, TOKEN_CREATE, TOKEN_REVOKE, TOKEN_DELETE, AUDIT_LIST, EVENTS_AFTER,
    BACKUP_CREATE, BACKUP_LIST, BACKUP_DESCRIBE, BACKUP_CLEANUP,
)  # fmt: skip
