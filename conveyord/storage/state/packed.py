"""What the commands of one entry did, as a row: how each was decided on, and what was changed.

A row for each command would take longer to write than to decide on it. Blobs are msgpack: arrays of the fields of
`Decided` and of `Change`, in the order in which it happened.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import Struct

from conveyord.core.state.rows import Change

EVENT_BYTES = 64
"""What an event counts for beside its key and value."""
AUDIT = "INSERT INTO audit VALUES (?, ?, ?)"
EVENTS = "INSERT INTO events VALUES (?, ?, ?, ?, ?)"

_encode = msgspec.msgpack.Encoder().encode


class Decided(Struct, frozen=True, array_like=True, gc=False):
    """A command that was decided on: `AuditRow` without its index."""

    at_ms: int
    actor: str
    operation: str
    target: str
    code: str


class Changes(NamedTuple):
    """What a row of `events` says beside its index. topics: joined by commas."""

    count: int  # type: ignore[assignment]  # hides tuple.count, which nobody wants of a row
    size: int
    topics: str
    changed: bytes


_decode_decided = msgspec.msgpack.Decoder(list[Decided]).decode
_decode_changes = msgspec.msgpack.Decoder(list[Change]).decode


def pack_decided(decided: Sequence[Decided]) -> bytes:
    """The blob of a row of the audit."""
    return _encode(decided)


def unpack_decided(data: bytes) -> list[Decided]:
    """The inverse of `pack_decided`."""
    return _decode_decided(data)


def pack_changes(changes: Sequence[Change]) -> Changes:
    """A row of `events`."""
    bytes_ = sum([len(change.key) + (len(change.value) if change.value is not None else 0) for change in changes])
    topics = ",".join(sorted({change.topic for change in changes}))
    return Changes(len(changes), EVENT_BYTES * len(changes) + bytes_, topics, _encode(changes))


def unpack_changes(data: bytes) -> list[Change]:
    """Those of the blob of a row."""
    return _decode_changes(data)
