"""The heads of frames: one msgpack array per kind, its first element the number of the kind (docs/wire.md).

A field is only ever added at the end, with a default: who does not know it skips it, and who misses it takes the
default. A new kind needs a higher protocol version, because a kind that is not known is refused.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from conveyord.core.errors import ConveyordError

PROTOCOL_MIN = 1
PROTOCOL_MAX = 1

METHOD_CHARS_MAX = 128
NAME_CHARS_MAX = 256  # of a node, a cluster, a purpose
CREDENTIAL_CHARS_MAX = 4096
SENTENCE_CHARS_MAX = 4096  # of an error or a goodbye; longer ones are cut by the sender
NUMBER_MAX = 2**53 - 1  # what every language holds exactly

Number = Annotated[int, Meta(ge=0, le=NUMBER_MAX)]
Id = Annotated[int, Meta(ge=1, le=NUMBER_MAX)]
Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
Method = Annotated[str, Meta(min_length=1, max_length=METHOD_CHARS_MAX)]
Sentence = Annotated[str, Meta(max_length=SENTENCE_CHARS_MAX)]


class Head(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all kinds."""


class Hello(Head, tag=1, frozen=True):
    """The first frame of each side. cluster: None for a node that is in none yet. node: "" for a client that is none.

    incarnation: counts the starts of the node. purpose: "rpc" or "bulk". frame_bytes_max, requests_max: what the
    sender takes; 0 if it does not say.
    """

    protocol_min: Number
    protocol_max: Number
    cluster: Name | None
    node: Name
    incarnation: Number
    purpose: Name
    credential: Annotated[str, Meta(max_length=CREDENTIAL_CHARS_MAX)] | None = None
    software: Name = ""
    frame_bytes_max: Number = 0
    requests_max: Number = 0


class Goodbye(Head, tag=2, frozen=True):
    """The last frame of a side: why it closes the connection."""

    code: Name
    message: Sentence = ""


class Ping(Head, tag=3, frozen=True):
    """Asks for a pong with the same number."""

    number: Number


class Pong(Head, tag=4, frozen=True):
    """Answers a ping."""

    number: Number


class Request(Head, tag=5, frozen=True):
    """Asks for a reply or for a stream. The ids of a side rise.

    deadline_ms: how much time is left, from when the frame was made; None if there is no limit.
    credit_items, credit_bytes: the first credits of a stream (see Credit); 0 and 0 ask for one reply.
    """

    id: Id
    method: Method
    deadline_ms: Number | None = None
    payload: bytes = b""
    credit_items: Number = 0
    credit_bytes: Number = 0


class Reply(Head, tag=6, frozen=True):
    """The answer to a request, and its end."""

    id: Id
    payload: bytes = b""


class Error(Head, tag=7, frozen=True):
    """The failure of a request or a stream, and its end."""

    id: Id
    code: Name
    message: Sentence = ""


class Message(Head, tag=8, frozen=True):
    """One way: there is no answer, and it may be lost."""

    method: Method
    payload: bytes = b""


class Item(Head, tag=9, frozen=True):
    """One of the items of a stream."""

    id: Id
    payload: bytes = b""


class End(Head, tag=10, frozen=True):
    """A stream has come to its end."""

    id: Id


class Credit(Head, tag=11, frozen=True):
    """How much of a stream may be sent in all, from its beginning: absolute, so that none is counted twice."""

    id: Id
    credit_items: Number
    credit_bytes: Number


class Cancel(Head, tag=12, frozen=True):
    """Whoever asked does not want the answer any more."""

    id: Id


AnyHead = Hello | Goodbye | Ping | Pong | Request | Reply | Error | Message | Item | End | Credit | Cancel
KINDS = range(1, 13)


def common_protocol(mine: tuple[int, int], theirs: tuple[int, int]) -> int | None:
    """The highest protocol version that both sides speak, or None. Each: lowest and highest, inclusive."""
    highest = min(mine[1], theirs[1])
    return highest if highest >= max(mine[0], theirs[0]) else None


class FrameRefused(ConveyordError):
    """Bytes that are no frame, or a frame that may not be where it is. The connection cannot go on.

    reason: one word, to count by.
    """

    code = "FRAME_REFUSED"

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
