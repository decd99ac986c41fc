"""What the state consists of, what a decision may see of it, and what it may do to it.

A row has the fields of its table, in their order. `changed`: the index of the entry that changed the row last. What
every command makes is a struct: it is made in a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Protocol

from msgspec import Struct

from conveyord.core.state.replies import No, Reply

CLUSTER, SETTINGS, MEMBERS, STANDINGS = "cluster", "settings", "members", "standings"
CONFIG, TOKENS = "config", "tokens"
TOPICS = (CLUSTER, SETTINGS, MEMBERS, STANDINGS, CONFIG, TOKENS)
"""What can be watched, and what each event is of."""


class ClusterRow(NamedTuple):
    """The one row of the cluster. history: differs before and after a restore. formed: the index at which it began."""

    id: str = ""
    history: str = ""
    created_at_ms: int = 0
    protocol: int = 1
    formed: int = 0
    changed: int = 0


class SettingRow(NamedTuple):
    """A setting that was changed; others have the value in `settings.SETTINGS`, for ever."""

    name: str
    value: int
    changed: int


class MemberRow(NamedTuple):
    """A node. roles: joined by commas. joined_at_ms: when it came first. changed_at_ms: when its state changed."""

    node: str
    rpc_address: str
    http_address: str
    roles: str
    version: str
    protocol_min: int
    protocol_max: int
    incarnation: int
    state: str
    joined_at_ms: int
    changed_at_ms: int
    changed: int


class StandingRow(NamedTuple):
    """What a node is to Raft, by the last membership in the log: a voter or a learner."""

    node: str
    standing: str
    changed: int


class ConfigRow(Struct, frozen=True, gc=False):
    """A configuration entry. size: of key and value in bytes."""

    key: str
    created: int
    changed: int
    size: int
    value: bytes


class TokenRow(NamedTuple):
    """A token. revoked_at_ms: None while it is not."""

    id: str
    name: str
    role: str
    salt: bytes
    hash: bytes
    created_at_ms: int
    expires_at_ms: int | None
    revoked_at_ms: int | None
    changed: int


class AuditRow(NamedTuple):
    """A command that was decided on. code: "OK", or that of its refusal."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a row
    at_ms: int
    actor: str
    operation: str
    target: str
    code: str


RareRow = ClusterRow | SettingRow | MemberRow | StandingRow | TokenRow
Row = RareRow | ConfigRow


class Gone(NamedTuple):
    """A row that is to be removed. topic: names its table."""

    topic: str
    key: str


class Change(Struct, frozen=True, array_like=True, gc=False):
    """What watchers are told: that `key` of `topic` is this now, or is gone."""

    topic: str
    key: str
    kind: Literal["put", "delete"]
    value: bytes | None


class Decision(Struct, frozen=True, gc=False):
    """What a command does. grown: by how many entries and bytes the configuration grows."""

    reply: Reply
    rows: tuple[Row | Gone, ...] = ()
    events: tuple[Change, ...] = ()
    grown: tuple[int, int] = (0, 0)


class Moment(Struct, frozen=True, gc=False):
    """Of a command. index: of its entry. at_ms: what who proposed it took for the time."""

    index: int
    at_ms: int


class ConfigHead(Struct, frozen=True, gc=False):
    """A configuration entry without its value."""

    created: int
    changed: int
    size: int


class View(Protocol):
    """The state as it is before a command."""

    def cluster(self) -> ClusterRow: ...
    def setting(self, name: str) -> SettingRow | None: ...
    def member(self, node: str) -> MemberRow | None: ...
    def members(self) -> Iterable[MemberRow]:
        """In the order of their ids."""
        ...

    def standings(self) -> Iterable[StandingRow]: ...
    def config(self, key: str) -> ConfigHead | None: ...
    def config_size(self) -> tuple[int, int]:
        """Entries, and bytes of their keys and values."""
        ...

    def token(self, token: str) -> TokenRow | None: ...
    def tokens(self) -> Iterable[TokenRow]:
        """In the order of their ids."""
        ...


def refused(code: str, message: str) -> Decision:
    """Change nothing, and say why."""
    return Decision(No(code, message))
