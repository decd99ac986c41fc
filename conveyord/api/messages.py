"""Requests and replies of the operations."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from conveyord.api.operation import Index, Read, Reply, Request, Seconds

PageSize = Annotated[int, Meta(ge=1, le=1_000)]

# ------------------------------------------------------------------------------ the node and its cluster


class StatusGet(Request, frozen=True, kw_only=True):
    """Of the node that is asked. It always answers."""


class Peer(Struct, frozen=True, kw_only=True):
    """How far a node is, as the leader knows. lag: entries that it misses. heard_seconds: since its last answer."""

    node: str
    match: int
    lag: int
    heard_seconds: float
    is_caught_up: bool
    gets_snapshot: bool


class Status(Reply, frozen=True, kw_only=True):
    """phase: `seeking` (no cluster yet), `member`, or `draining`. waiting: for what, in a sentence; empty: for nothing.

    raft: `leader`, `follower`, `candidate` or `learner`; empty while seeking. peers: as the leader alone knows.
    """

    node: str
    cluster: str
    version: str
    roles: tuple[str, ...]
    phase: str
    waiting: str
    raft: str
    term: int
    leader: str
    commit: int
    applied: int
    rpc_address: str
    http_address: str
    incarnation: int
    uptime_seconds: float
    disk: str
    peers: tuple[Peer, ...] = ()


class WhyNoLeader(Request, frozen=True, kw_only=True):
    """Ask a node what it knows of why nobody leads."""


class Diagnosis(Reply, frozen=True, kw_only=True):
    """verdict: one sentence. findings: what was seen, a sentence each. remedies: what to do, likewise."""

    has_leader: bool
    verdict: str
    findings: tuple[str, ...]
    remedies: tuple[str, ...]


# ------------------------------------------------------------------------------------------------ members


class MembersList(Read, frozen=True, kw_only=True):
    """All nodes that the cluster knows."""


class MemberGet(Read, frozen=True, kw_only=True):
    """One of them."""

    node: str


class Member(Struct, frozen=True, kw_only=True):
    """A node. standing: `voter`, `learner`, or empty if it is neither. state: empty for one that never said hello."""

    node: str
    standing: str
    state: str
    is_leader: bool
    roles: tuple[str, ...]
    rpc_address: str
    http_address: str
    version: str
    protocols: tuple[int, int]
    incarnation: int
    joined_at_ms: int
    changed_at_ms: int
    changed: int


class Members(Reply, frozen=True, kw_only=True):
    """In the order of their ids."""

    members: tuple[Member, ...]


class OneMember(Reply, frozen=True, kw_only=True):
    """The one that was asked for."""

    member: Member


class MemberAdd(Request, frozen=True, kw_only=True):
    """Invite the node that listens at an RPC address. It must be in no cluster yet; it joins by itself then."""

    address: str


class MemberAdded(Reply, frozen=True, kw_only=True):
    """node: who was invited."""

    node: str


class MemberRemove(Request, frozen=True, kw_only=True):
    """Remove a node for good. force: also one that is up."""

    node: str
    force: bool = False


class MemberPromote(Request, frozen=True, kw_only=True):
    """Make a learner that has caught up a voter."""

    node: str


class MemberDemote(Request, frozen=True, kw_only=True):
    """Make a voter a learner."""

    node: str


class LeaderTransfer(Request, frozen=True, kw_only=True):
    """Hand leadership over. node: to whom; empty for whoever is closest."""

    node: str = ""


class Transferred(Reply, frozen=True, kw_only=True):
    """leader: who leads now."""

    leader: str


class Changed(Reply, frozen=True, kw_only=True):
    """changed: index of the object's last change: its version."""

    changed: int


# ---------------------------------------------------------------------------------- configuration entries


class ConfigGet(Read, frozen=True, kw_only=True):
    """One entry."""

    key: str


class ConfigList(Read, frozen=True, kw_only=True):
    """Entries whose keys begin with `prefix`, those behind the key `behind`, in order. Values only if asked for."""

    prefix: str = ""
    behind: str = ""
    limit: PageSize = 100
    values: bool = False


class ConfigEntry(Struct, frozen=True, kw_only=True):
    """value: base64 in JSON; absent where it was not asked for. created, changed: indices."""

    key: str
    created: int
    changed: int
    size: int
    value: bytes | UnsetType = UNSET


class OneConfigEntry(Reply, frozen=True, kw_only=True):
    """The one that was asked for."""

    entry: ConfigEntry


class ConfigEntries(Reply, frozen=True, kw_only=True):
    """more: whether others follow; ask for those behind the last key."""

    entries: tuple[ConfigEntry, ...]
    more: bool


class ConfigPutRequest(Request, frozen=True, kw_only=True):
    """Write one. expect_index: of its last change, or 0 if it must not be there; absent: whatever is there."""

    key: str
    value: bytes
    expect_index: Index | None = None


class ConfigDeleteRequest(Request, frozen=True, kw_only=True):
    """Remove one, likewise."""

    key: str
    expect_index: Index | None = None


# ----------------------------------------------------------------------------------------------- settings


class SettingsList(Read, frozen=True, kw_only=True):
    """All settings of the cluster."""


class Setting(Struct, frozen=True, kw_only=True):
    """changed: 0 while it has its default."""

    name: str
    value: int
    default: int
    least: int
    most: int
    what: str
    changed: int


class Settings(Reply, frozen=True, kw_only=True):
    """In the order of their names."""

    settings: tuple[Setting, ...]


class SettingSet(Request, frozen=True, kw_only=True):
    """Change one."""

    name: str
    value: Index
    expect_index: Index | None = None


# ------------------------------------------------------------------------------------------------- tokens


class TokensList(Read, frozen=True, kw_only=True):
    """All tokens, without what is secret."""


class Token(Struct, frozen=True, kw_only=True):
    """A token. state: `usable`, `revoked` or `expired`, by the clock of the node that answers."""

    id: str
    name: str
    role: str
    state: str
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    changed: int


class Tokens(Reply, frozen=True, kw_only=True):
    """In the order of their ids."""

    tokens: tuple[Token, ...]


class TokenCreateRequest(Request, frozen=True, kw_only=True):
    """Make one. expires_seconds: from now on; absent: never."""

    name: str
    role: Literal["viewer", "operator", "admin"]
    expires_seconds: Annotated[float, Meta(gt=0, le=10 * 365 * 86_400)] | None = None


class TokenCreated(Reply, frozen=True, kw_only=True):
    """token: what to send as `Authorization: Bearer ...`. It is told this once, and nowhere kept."""

    id: str
    token: str


class TokenRevokeRequest(Request, frozen=True, kw_only=True):
    """Let one be of no use any more. force: though no admin remains."""

    id: str
    force: bool = False


class TokenDeleteRequest(Request, frozen=True, kw_only=True):
    """Remove one that was revoked or has expired."""

    id: str


# --------------------------------------------------------------------------------------- audit and events


class AuditList(Read, frozen=True, kw_only=True):
    """What was asked of the cluster, the newest first. before: an index. limit: a page ends behind all of one index."""

    before: Index | None = None
    limit: PageSize = 100


class AuditEntry(Struct, frozen=True, kw_only=True):
    """code: `OK`, or why it was refused."""

    index: int
    at_ms: int
    actor: str
    operation: str
    target: str
    code: str


class Audit(Reply, frozen=True, kw_only=True):
    """more: whether there are older ones."""

    entries: tuple[AuditEntry, ...]
    more: bool


class EventsAfter(Request, frozen=True, kw_only=True):
    """What happened behind the cursor `after`. topics: joined by commas; empty for all. history: came with it.

    wait_seconds: for so long, if there is nothing yet.
    """

    after: Index
    topics: str = ""
    history: str = ""
    wait_seconds: Seconds = 0.0
    limit: PageSize = 1_000


class Event(Struct, frozen=True, kw_only=True):
    """value: base64 in JSON, of the bytes that docs/state.md tells; null if the key is gone."""

    index: int
    number: int
    topic: str
    key: str
    kind: str
    value: bytes | None


class Events(Reply, frozen=True, kw_only=True):
    """through: the next cursor. history: to hand back with it."""

    through: int
    history: str
    events: tuple[Event, ...]


# ------------------------------------------------------------------------------------------------ backups


class BackupCreate(Request, frozen=True, kw_only=True):
    """Take a backup of the state, with everything that was acknowledged before. By the node that is asked.

    store: `file:///directory` or `s3://bucket/prefix`. stale: of what the node has, however old, without a leader.
    """

    store: str
    stale: bool = False


class BackupList(Request, frozen=True, kw_only=True):
    """Backups of a store, the newest first."""

    store: str


class BackupDescribe(Request, frozen=True, kw_only=True):
    """One of them."""

    store: str
    id: str


class BackupCleanup(Request, frozen=True, kw_only=True):
    """Remove all but the newest `keep`."""

    store: str
    keep: Annotated[int, Meta(ge=1, le=100_000)]


class Backup(Struct, frozen=True, kw_only=True):
    """state_index: of the last entry in it. by: who asked for it, and of which node.

    fault: why it is of no use, and then nothing else is known of it; empty for a whole one.
    """

    id: str
    cluster: str = ""
    history: str = ""
    state_index: int = 0
    voters: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    protocol: int = 0
    version: str = ""
    created_at_ms: int = 0
    by: str = ""
    file_bytes: int = 0
    state_bytes: int = 0
    digest: str = ""
    fault: str = ""


class Backups(Reply, frozen=True, kw_only=True):
    """Those that are there."""

    backups: tuple[Backup, ...]


class OneBackup(Reply, frozen=True, kw_only=True):
    """The one that was made or asked for."""

    backup: Backup


class BackupsRemoved(Reply, frozen=True, kw_only=True):
    """ids: of those that were removed."""

    ids: tuple[str, ...]
