"""The format of a snapshot's file, and its head: what a snapshot says of itself.

| bytes | what |
|---|---|
| 8, 4, 4 | `CONVSNAP`, format version, length of the next field; integers are little-endian and unsigned |
| that many | msgpack: index, term and chain of the mark, membership (`membership.encode`), bytes of the state |
| 4 | CRC-32 of all before |
| the rest but 32 | the SQLite file, one zstd frame |
| 32 | BLAKE2b of all before: the digest, by which the snapshot is known |
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import msgpack

from conveyord.core.errors import Refused
from conveyord.core.raft.membership import decode, encode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import Mark
from conveyord.storage.state_store.faults import damaged_snapshot
from conveyord.storage.state_store.schema import Place

MAGIC = b"CONVSNAP"
FORMAT_VERSION = 1
DIGEST_BYTES = 32
HEAD_BYTES_MAX = 1 << 20  # 255 members with names of kilobytes

_START = struct.Struct("<8sII")
_CRC = struct.Struct("<I")


def head_of(place: Place, state_bytes: int) -> bytes:
    """The bytes with which a snapshot begins."""
    content = bytes(msgpack.packb([*place.mark, encode(place.membership), state_bytes]))
    head = _START.pack(MAGIC, FORMAT_VERSION, len(content)) + content
    return head + _CRC.pack(zlib.crc32(head))


def read_head(path: Path, file: BinaryIO) -> tuple[SnapshotInfo, int]:
    """What a snapshot says of itself, and where its body begins. Raises Corrupt or Refused."""
    file_bytes = os.fstat(file.fileno()).st_size
    start = file.read(_START.size)
    magic, version, length = _START.unpack(start) if len(start) == _START.size else (b"", 0, 0)
    if magic != MAGIC:
        raise damaged_snapshot(path, "it does not begin as one")
    if version > FORMAT_VERSION:
        raise Refused(
            f"{path}: this snapshot has format {version}, this conveyord knows {FORMAT_VERSION}; upgrade this node"
        )
    body_at = _START.size + length + _CRC.size
    if length > HEAD_BYTES_MAX or body_at + DIGEST_BYTES > file_bytes:
        raise damaged_snapshot(path, f"it has {file_bytes} bytes, and a head of {length}")
    head = file.read(length)
    if file.read(_CRC.size) != _CRC.pack(zlib.crc32(start + head)):
        raise damaged_snapshot(path, "the checksum of its head is wrong")
    index, term, chain, membership, state_bytes = msgpack.unpackb(head)
    digest = os.pread(file.fileno(), DIGEST_BYTES, file_bytes - DIGEST_BYTES)
    return SnapshotInfo(Mark(index, term, chain), decode(membership), state_bytes, file_bytes, digest), body_at
