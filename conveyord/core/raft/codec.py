"""Messages between nodes as bytes: one byte for the kind, then its fields as one msgpack array.

A field that a newer version adds stands behind the others and has a default, so that older ones read on; a kind of
message that is not known here is refused, and Raft does without it. What is decoded has the right types, and nothing
else of it was checked: entries carry their own checksums.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_type_hints

import msgspec

from conveyord.core.errors import Refused
from conveyord.core.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
)

KINDS: tuple[type[Message], ...] = (
    VoteRequest,
    VoteReply,
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    TimeoutNow,
    ReadRequest,
    ReadReply,
)
"""The place of each is its number on the wire: only ever add at the end."""
_NUMBERS = {kind: number for number, kind in enumerate(KINDS)}
_encoder = msgspec.msgpack.Encoder()


def _row_of(kind: type[Message]) -> type[Any]:
    """A struct of the same fields, that is read from an array."""
    hints = get_type_hints(kind)
    rows = [
        (one.name, hints[one.name]) if one.default is one.default_factory else (one.name, hints[one.name], one.default)
        for one in fields(kind)
    ]
    return msgspec.defstruct(kind.__name__, rows, array_like=True, frozen=True, gc=False)


_ROWS = [_row_of(kind) for kind in KINDS]
_decoders = [msgspec.msgpack.Decoder(row) for row in _ROWS]
_names = [tuple(one.name for one in fields(kind)) for kind in KINDS]


def encode(message: Message) -> bytes:
    """The bytes of a message."""
    kind = type(message)
    number = _NUMBERS[kind]
    values = [getattr(message, name) for name in _names[number]]
    return bytes((number,)) + _encoder.encode(values)


def decode(data: bytes) -> Message:
    """The inverse of `encode`. Raises Refused for anything else."""
    number = data[0] if data else -1
    if not 0 <= number < len(KINDS):
        raise Refused(f"a Raft message of kind {number} came, this conveyord knows {len(KINDS)}; upgrade this node")
    try:
        row = _decoders[number].decode(memoryview(data)[1:])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Refused(f"what came as a Raft message is none: {error}") from error
    return KINDS[number](*[getattr(row, name) for name in _names[number]])
