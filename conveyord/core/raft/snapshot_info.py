"""What is said of a snapshot: where in the log it is, and how its file is known again."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft import membership
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.types import Mark

_Row = tuple[int, int, bytes, bytes, int, int, bytes]
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(_Row).decode


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """What a sender offers: the snapshot's place in the log, its size unpacked and as a file, and its digest."""

    mark: Mark
    membership: Membership
    state_bytes: int
    file_bytes: int
    digest: bytes


def encode(info: SnapshotInfo) -> bytes:
    """As it travels."""
    members = membership.encode(info.membership)
    return _encode((*info.mark, members, info.state_bytes, info.file_bytes, info.digest))


def decode(data: bytes) -> SnapshotInfo:
    """The inverse of `encode`. Raises Refused for anything else."""
    try:
        index, term, chain, members, state_bytes, file_bytes, digest = _decode(data)
        return SnapshotInfo(Mark(index, term, chain), membership.decode(members), state_bytes, file_bytes, digest)
    except (msgspec.MsgspecError, Corrupt) as error:
        raise Refused(f"what came as the offer of a snapshot is none: {error}") from error
