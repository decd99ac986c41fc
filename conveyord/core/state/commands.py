"""Every command there is. What one does is said here; how it is decided stands in the module of its topic.

A command is a line of the log for ever: its tag, its fields and their order never change, and neither does what it
does to a given state. A field more is a new command under a new tag, with the protocol that brought it.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Generic, TypeVar

from msgspec import Meta, Struct

ACTOR_CHARS_MAX = 256
COUNT_MAX = 2**63 - 1  # what SQLite can keep
Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Line = Annotated[str, Meta(max_length=1_024)]
"""Names, addresses and the like. It keeps what is refused short as well; closer limits are in `names.py`."""
Roles = Annotated[tuple[Line, ...], Meta(max_length=16)]
Digest = Annotated[bytes, Meta(max_length=64)]


class Command(Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Base of all. protocol: that of the cluster from which on it may be proposed. shares_entry: whether it concerns
    its target and nothing else, so that others may be in its entry that have other ones.
    """

    protocol: ClassVar[int] = 1
    shares_entry: ClassVar[bool] = False

    @classmethod
    def operation(cls) -> str:
        """Its tag: what the audit calls it."""
        return str(cls.__struct_config__.tag)

    @property
    def target(self) -> str:
        """What it is about, for the audit."""
        return ""

    @property
    def about(self) -> str | None:
        """The object that it is about, if it may share an entry: see `core/raft/bundles.py`."""
        return self.target if self.shares_entry else None

    @property
    def is_repeatable(self) -> bool:
        """Whether it does no harm when it is applied again, at any later time: then it needs no session.

        An expected index does that for it, unless it is 0: an index comes once, that nothing is there may come again.
        """
        return False


class SessionOpen(Command, frozen=True, tag="session.open"):
    """Open a session. Ok: its number. Repeated, another session is opened, which nobody uses."""

    @property
    def is_repeatable(self) -> bool:
        return True


class ClusterForm(Command, frozen=True, tag="cluster.form"):
    """Give the cluster its id and first protocol. Ok: the index at which it got them, also if it has this id."""

    cluster_id: Line
    cluster_protocol: Count

    @property
    def target(self) -> str:
        return self.cluster_id

    @property
    def is_repeatable(self) -> bool:
        return True


class ClusterRestored(Command, frozen=True, tag="cluster.restored"):
    """Say that what follows is not what once followed: the state is a backup's. Cursors of before are worth nothing.

    history: an id that was never used. Ok: the index.
    """

    history: Line

    @property
    def target(self) -> str:
        return self.history


class ProtocolRaise(Command, frozen=True, tag="cluster.protocol"):
    """Let commands up to `to` be used, once every member knows them. Ok: the protocol in use, which may be higher."""

    to: Count

    @property
    def target(self) -> str:
        return str(self.to)

    @property
    def is_repeatable(self) -> bool:
        return True


class SettingChange(Command, frozen=True, tag="setting.change"):
    """Change one of `settings.SETTINGS`. Ok: the index of its last change, this one if its value is another."""

    name: Line
    value: Count
    expect_index: Count | None = None

    @property
    def target(self) -> str:
        return self.name

    @property
    def is_repeatable(self) -> bool:
        return bool(self.expect_index)


class MemberJoin(Command, frozen=True, tag="member.join"):
    """A node was started: it is `joining`, or goes on draining. Ok: the index of the member's last change.

    incarnation: higher at every start of the node, so that an old message changes nothing. protocol_min, protocol_max:
    what its software knows.
    """

    node: Line
    rpc_address: Line
    http_address: Line
    roles: Roles
    version: Line
    protocol_min: Count
    protocol_max: Count
    incarnation: Count

    @property
    def target(self) -> str:
        return self.node

    @property
    def is_repeatable(self) -> bool:
        return True


class MemberState(Command, frozen=True, tag="member.state"):
    """Move a member to another state, see `members.TRANSITIONS`. Ok: the index of its last change.

    incarnation: that the news is of.
    """

    node: Line
    incarnation: Count
    state: Line
    expect_index: Count | None = None

    @property
    def target(self) -> str:
        return self.node

    @property
    def is_repeatable(self) -> bool:
        return bool(self.expect_index)


class MemberForget(Command, frozen=True, tag="member.forget"):
    """Remove a member that has left. Ok: the index."""

    node: Line
    expect_index: Count | None = None

    @property
    def target(self) -> str:
        return self.node

    @property
    def is_repeatable(self) -> bool:
        return bool(self.expect_index)


class ConfigPut(Command, frozen=True, tag="config.put"):
    """Write a configuration entry. Ok: the index. expect_index: of its last change; 0: it must not be there."""

    shares_entry: ClassVar[bool] = True
    key: Line
    value: bytes
    expect_index: Count | None = None

    @property
    def target(self) -> str:
        return self.key

    @property
    def is_repeatable(self) -> bool:
        return bool(self.expect_index)


class ConfigDelete(Command, frozen=True, tag="config.delete"):
    """Remove a configuration entry. Ok: the index."""

    shares_entry: ClassVar[bool] = True
    key: Line
    expect_index: Count | None = None

    @property
    def target(self) -> str:
        return self.key

    @property
    def is_repeatable(self) -> bool:
        return bool(self.expect_index)


class TokenCreate(Command, frozen=True, tag="token.create"):
    """Add a token. Ok: the index. hash: of salt and secret, made by who proposes; the secret is in no log."""

    token: Line
    name: Line
    role: Line
    salt: Digest
    hash: Digest
    expires_at_ms: Count | None = None

    @property
    def target(self) -> str:
        return self.token


class TokenRevoke(Command, frozen=True, tag="token.revoke"):
    """Let a token be of no use any more. Ok: the index of its last change. force: though no admin remains."""

    token: Line
    force: bool = False

    @property
    def target(self) -> str:
        return self.token


class TokenDelete(Command, frozen=True, tag="token.delete"):
    """Remove a token that was revoked or has expired. Ok: the index."""

    token: Line

    @property
    def target(self) -> str:
        return self.token


C = TypeVar("C", bound=Command)


class Envelope(Struct, Generic[C], frozen=True, array_like=True, forbid_unknown_fields=True):
    """A command as it is proposed.

    session: 0 for none, which only a repeatable command may have. number, ack_below: as `core/raft/sessions.py` has
    them. at_ms: Unix time at who proposes, never read for order. actor: on whose behalf, for the audit.
    """

    session: Count
    number: Count
    ack_below: Count
    at_ms: Count
    actor: Annotated[str, Meta(max_length=ACTOR_CHARS_MAX)]
    command: C
