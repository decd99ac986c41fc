"""Several commands in one entry: what a leader is given at once costs every log and message a single one then.

A bundle is a msgpack array of its commands, and the reply to its entry an array of their replies, in the same order.
All of a bundle have one index. So no two of them may be about the same object, whose version that is: each says what it
is about, and one that does not has an entry of its own (docs/decisions/0014).
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec import Struct

from conveyord.core.errors import Refused

BUNDLE_COMMANDS = 1_024
BUNDLE_BYTES = 256 * 1024
"""Of the commands of one: about what a peer is sent at once at first, see `Options.inflight_bytes_min`."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class Asked(Struct, frozen=True, gc=False):
    """A command that is to be proposed. about: the object that it is about; None if it needs an entry of its own."""

    number: int
    command: bytes
    about: str | None


def bundled(asked: Sequence[Asked]) -> list[list[Asked]]:
    """What goes into one entry each. Those about one object stay in their order."""
    found, bundle, objects, size = list[list[Asked]](), list[Asked](), set[str](), 0
    for one in asked:
        about, size = one.about, size + len(one.command)
        if about is None:
            found.append([one])
            size -= len(one.command)
            continue
        if not bundle or about in objects or size > BUNDLE_BYTES or len(bundle) >= BUNDLE_COMMANDS:
            bundle, objects, size = [], set(), len(one.command)
            found.append(bundle)
        bundle.append(one)
        objects.add(about)
    return found


def pack(parts: Sequence[bytes]) -> bytes:
    """Commands as the data of an entry, or their replies as its reply."""
    return _encode(parts)


def unpack(data: bytes) -> list[bytes]:
    """The inverse of `pack`. Raises Refused for anything else."""
    try:
        return _decode(data)
    except msgspec.MsgspecError as error:
        raise Refused(f"a bundle of commands cannot be read ({error}); run one version on all nodes") from error
