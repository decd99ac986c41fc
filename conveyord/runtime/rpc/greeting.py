"""How two sides meet: hello, the checks that need no one else's opinion, and the refusal that is told in a goodbye."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from conveyord.core.errors import Retryable
from conveyord.core.wire.frames import Frame, FrameDecoder, opening
from conveyord.core.wire.heads import (
    PROTOCOL_MAX,
    PROTOCOL_MIN,
    SENTENCE_CHARS_MAX,
    AnyHead,
    FrameRefused,
    Goodbye,
    Hello,
    common_protocol,
)
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.handlers import Admission, Handlers, Remote
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.memory import Memory
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.tls import tls_failure
from conveyord.runtime.rpc.transport import Transport, linger, send_all

HELLO_BYTES_MAX = 16 * 1024
RPC = "rpc"
BULK = "bulk"


KNOWN_CODES = frozenset(
    {
        "PROTOCOL",
        "FOREIGN_CLUSTER",
        "OWN_ID",
        "LYING_ID",
        "WRONG_NODE",
        "STALE_INCARNATION",
        "TOO_MANY_CONNECTIONS",
        "HELLO_DEADLINE",
    }
)


class _Told(Unwelcome):
    """A refusal by the other side."""


@dataclass(frozen=True, slots=True)
class Me:
    """What this side says of itself. node: "" for a client; cluster: None for a node that is in none yet."""

    node: str
    incarnation: int
    cluster: str | None = None
    credential: str | None = None
    software: str = ""
    protocols: tuple[int, int] = (PROTOCOL_MIN, PROTOCOL_MAX)

    def hello(self, purpose: str, limits: Limits) -> Hello:
        """As the first frame."""
        return Hello(
            *self.protocols,
            self.cluster,
            self.node,
            self.incarnation,
            purpose,
            self.credential,
            self.software,
            limits.frame_bytes_max,
            limits.requests_max,
        )


Admit = Callable[[Hello, frozenset[str] | None], Admission]
"""Says what a side may do, knowing its hello and the node ids of its certificate. Raises Unwelcome. Must not block."""


@dataclass(frozen=True, slots=True)
class Side:
    """What a side brings to each connection. me: asked each time, since a node may join a cluster meanwhile."""

    me: Callable[[], Me]
    handlers: Handlers
    limits: Limits
    counters: Counters
    memory: Memory = field(default_factory=Memory)

    def count(self, refusal: Unwelcome | FrameRefused) -> None:
        """Count a connection that is not to be."""
        if isinstance(refusal, _Told) and refusal.code not in KNOWN_CODES:
            self.counters.refused_connections["other"] += 1  # its words are not ours, and might be any number
        elif isinstance(refusal, Unwelcome):
            self.counters.refused_connections[refusal.code.lower()] += 1
        else:
            self.counters.refused_frames[refusal.reason] += 1


async def welcome(side: Side, transport: Transport, names: frozenset[str] | None, admit: Admit) -> Connection:
    """The side that accepts: hear a hello, and answer it.

    Raises Unwelcome, FrameRefused or BrokenResourceError; a refusal has been counted, and told where it can be heard.
    """
    decoder = FrameDecoder(HELLO_BYTES_MAX, allocate=side.memory.allocate)
    me = side.me()
    try:
        head, early = await _first(transport, decoder)
        if not isinstance(head, Hello):
            raise FrameRefused(
                "unexpected", f"a connection begins with a hello, not with a {type(head).__name__.lower()}"
            )
        protocol = _checked(me, head, names)
        admission = admit(head, names)
        await send_all(transport, opening(me.hello(head.purpose, side.limits)))
    except (Unwelcome, FrameRefused) as error:
        refusal = error
    else:
        remote = Remote(head, protocol, names, admission)
        return Connection(transport, decoder, remote, side.handlers, side.limits, side.counters, early=early)
    side.count(refusal)
    await turn_away(transport, refusal)
    raise refusal


async def greet(
    side: Side, transport: Transport, names: frozenset[str] | None, *, purpose: str, expects: str | None
) -> Connection:
    """The side that dials: say hello, and hear who answers. expects: a node id, or None for whoever is there.

    Raises Unwelcome, by either side, FrameRefused, or Retryable if the connection broke. A refusal has been counted.
    """
    decoder = FrameDecoder(side.limits.frame_bytes_max, allocate=side.memory.allocate)
    me = side.me()
    try:
        await send_all(transport, opening(me.hello(purpose, side.limits)))
        head, early = await _first(transport, decoder)
        if isinstance(head, Goodbye):
            raise _Told(head.code, head.message or f"the other side refuses the connection: {head.code}")
        if not isinstance(head, Hello):
            raise FrameRefused(
                "unexpected", f"a hello is answered with a hello, not with a {type(head).__name__.lower()}"
            )
        protocol = _checked(me, head, names)
        if expects is not None and head.node != expects:
            raise Unwelcome("WRONG_NODE", f"node {expects!r} was expected at this address, but {head.node!r} is there")
    except trio.BrokenResourceError as error:
        if error.__cause__ is not None and (failure := tls_failure(error.__cause__)) is not None:
            side.count(failure)
            raise failure from error
        raise Retryable(f"the connection broke during the greeting: {error}") from error
    except (Unwelcome, FrameRefused) as error:
        refusal = error
    else:
        remote = Remote(head, protocol, names)
        return Connection(transport, decoder, remote, side.handlers, side.limits, side.counters, early=early)
    side.count(refusal)
    if not isinstance(refusal, _Told):
        await turn_away(transport, refusal)
    raise refusal


async def turn_away(transport: Transport, refusal: Unwelcome | FrameRefused) -> None:
    """Tell the other side why there will be no connection, if it listens. The caller sets the deadline."""
    code = refusal.code if isinstance(refusal, Unwelcome) else refusal.reason.upper()
    try:
        await send_all(transport, opening(Goodbye(code, str(refusal)[:SENTENCE_CHARS_MAX])))
    except trio.BrokenResourceError:
        return
    await linger(transport)


async def _first(transport: Transport, decoder: FrameDecoder) -> tuple[AnyHead, list[Frame]]:
    """The first head, and the frames that came with it."""
    while True:
        if not (count := await transport.receive_into(decoder.room())):
            decoder.finish()
            raise trio.BrokenResourceError("the other side closed the connection before its hello")
        if frames := decoder.filled(count):
            return frames[0][0], frames[1:]


def _checked(me: Me, hello: Hello, names: frozenset[str] | None) -> int:
    """The protocol version to speak. Raises Unwelcome."""
    theirs = hello.protocol_min, hello.protocol_max
    if (protocol := common_protocol(me.protocols, theirs)) is None:
        raise Unwelcome(
            "PROTOCOL",
            f"no common protocol version: {me.node or 'a client'} speaks {me.protocols[0]} to {me.protocols[1]}, "
            f"{hello.node or 'a client'} speaks {theirs[0]} to {theirs[1]}; upgrade the older one",
        )
    if hello.cluster is not None and me.cluster is not None and hello.cluster != me.cluster:
        raise Unwelcome(
            "FOREIGN_CLUSTER",
            f"{hello.node or 'the client'} belongs to cluster {hello.cluster}, {me.node or 'the client'} to "
            f"{me.cluster}; check the address, or the data directory that the node was started on",
        )
    if hello.node and hello.node == me.node:
        raise Unwelcome(
            "OWN_ID", f"both sides are node {me.node!r}; give each node a data directory and an id of its own"
        )
    if names is not None and hello.node and hello.node not in names:
        named = ", ".join(sorted(names)) or "no node"
        raise Unwelcome("LYING_ID", f"it says that it is node {hello.node!r}, but its certificate names {named}")
    return protocol
