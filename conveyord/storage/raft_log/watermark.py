"""How far the log was on disk for certain, told outside of SQLite.

SQLite takes the first damaged frame of its write-ahead log for the end of it, as a crash leaves one there: without a
second witness one flipped bit would cut acknowledged entries and votes off, and nobody would know. So after each
transaction that was synced its sequence number is written here. That write is not synced, which would cost as much
as the transaction; it is only never early. It is exact while the kernel lives, however the process ends, and half
a minute behind at most after a power cut, which `wal.lost` is for.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from conveyord.core.errors import Corrupt
from conveyord.storage.disk import write_file

_RECORD = struct.Struct("<8sQ")
_CRC = struct.Struct("<I")
_MAGIC = b"cvrmark1"


def read_or_none(path: Path) -> int | None:
    """The sequence number at `path`; None if there is no such file. Blocking.

    Raises Corrupt if it is not whole: it is put in place whole, and written in one sector, so no crash leaves it so.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(content) != _RECORD.size + _CRC.size or content != _encoded(_RECORD.unpack_from(content)[1]):
        raise Corrupt("the watermark is not what was written")
    return int(_RECORD.unpack_from(content)[1])


class Watermark:
    """The open file. Blocking; raises OSError."""

    def __init__(self, path: Path, sequence: int) -> None:
        """Make the file anew, durably. sequence: of what is on disk."""
        write_file(path, _encoded(sequence))
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def raise_to(self, sequence: int) -> None:
        """Everything up to `sequence` is on disk. The record lies within one sector, so no crash tears it."""
        os.pwrite(self._descriptor, _encoded(sequence), 0)

    def sync(self) -> None:
        """Put it on disk itself: before what else could tell of these transactions is overwritten."""
        os.fdatasync(self._descriptor)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._descriptor)


def _encoded(sequence: int) -> bytes:
    record = _RECORD.pack(_MAGIC, sequence)
    return record + _CRC.pack(zlib.crc32(record))
