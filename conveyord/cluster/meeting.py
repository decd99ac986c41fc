"""What nodes ask each other before, and when, one of them comes into a cluster. Over RPC, in msgpack.

| method | asked with | answers |
|---|---|---|
| `cluster.meet` | an `Introduction` | that of who is asked |
| `cluster.promise` | a `Proposal` | an `Introduction`: it tells what was promised or refused |
| `cluster.join` | a `Joining` | `Joined`, once the cluster knows the node |
| `cluster.invite` | addresses of a cluster's nodes | the id of who was asked, which is to join |
| `cluster.standing` | nothing | what the caller is to the cluster: `voter`, `learner`, `known` for neither, or `gone` |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from conveyord.cluster.settings import parse_address
from conveyord.core.errors import Refused
from conveyord.core.state.commands import MemberJoin
from conveyord.core.wire.frames import Body
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Side
from conveyord.runtime.rpc.tls import TlsContexts

MEET, PROMISE, JOIN = "cluster.meet", "cluster.promise", "cluster.join"
INVITE, STANDING = "cluster.invite", "cluster.standing"
GONE = "gone"
WITHOUT_DATA = "WITHOUT_DATA"
"""Code of the refusal of a member that has lost its disk."""
MEET_SECONDS = 5.0
JOIN_SECONDS = 15.0  # a leader may have to be found, and the disk may be slow

T = TypeVar("T")
encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Joining:
    """What is to be proposed for a node. has_data: whether it was in the cluster before, and has its log."""

    command: MemberJoin
    has_data: bool


@dataclass(frozen=True, slots=True)
class Joined:
    """cluster: as hellos name it. addresses: of its nodes. index: at which the cluster knows the node."""

    cluster: str
    addresses: Mapping[str, str]
    index: int


def decoded(data: Body, kind: type[T]) -> T:
    """What came, as `kind`. Raises Refused if it is something else."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"this is no {kind.__name__} ({error}); run the same version at all nodes") from error


async def ask_at(
    side: Side, tls: TlsContexts | None, address: str, method: str, what: Any, answer: type[T], *, seconds: float
) -> T:
    """Ask whoever listens at an address. Raises as `dial_once` and `Connection.call` do."""
    async with dial_once(side, parse_address(address), tls=tls) as connection:
        said = await connection.call(method, encode(what), deadline_seconds=seconds)
    return decoded(said.payload, answer)
