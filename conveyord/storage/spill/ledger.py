"""The number up to which a queue is done, in two slots of one small file that never grows.

A file that is written anew and renamed would need a free block and a directory entry, which is what a full
disk refuses; and settling is what frees its space. So the file is made once, in full, and the older slot is
overwritten in place and synced. A write that is cut short damages that slot alone: the other still holds
the number before, and frames that come again are what a reader has to expect anyhow. SQLite would do the
same with a journal file that may need space.
"""

from __future__ import annotations

import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from conveyord.storage.disk import write_all, write_file

LEDGER_FILE = "ledger"
SLOT_BYTES = 4096  # a page and a sector each, so that one torn write cannot reach both
_FIELDS = struct.Struct("<8sQQ")
_CHECKSUM = struct.Struct("<I")
MAGIC = b"CVLEDGE1"


@dataclass(frozen=True, slots=True)
class _Slot:
    sequence: int
    settled: int

    def encoded(self) -> bytes:
        fields = _FIELDS.pack(MAGIC, self.sequence, self.settled)
        return fields + _CHECKSUM.pack(zlib.crc32(fields))


def read_ledger(directory: Path) -> int | None:
    """Blocking. The number of the last frame that is done; None if there is no ledger, or only a damaged one."""
    slot = _newest(directory / LEDGER_FILE)
    return None if slot is None else slot.settled


class Ledger:
    """The ledger of one queue, open for writing. Blocking, one thread at a time. Raises OSError."""

    def __init__(self, directory: Path, *, settled: int) -> None:
        """Open the ledger of `directory`, or make one that says `settled` if there is none that can be read."""
        path = directory / LEDGER_FILE
        found = _newest(path)
        if found is None:
            found = _Slot(1, settled)
            _create(path, found)
        self._sequence = found.sequence
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)

    def write(self, settled: int) -> None:
        """Put `settled` on disk. If this raises, either this number or the one before it stands there."""
        following = _Slot(self._sequence + 1, settled)
        write_all(self._descriptor, [following.encoded()], (following.sequence % 2) * SLOT_BYTES)
        os.fdatasync(self._descriptor)
        self._sequence = following.sequence

    def close(self) -> None:
        os.close(self._descriptor)


def _create(path: Path, slot: _Slot) -> None:
    content = bytearray(2 * SLOT_BYTES)
    start = (slot.sequence % 2) * SLOT_BYTES
    content[start : start + _FIELDS.size + _CHECKSUM.size] = slot.encoded()
    write_file(path, bytes(content))


def _newest(path: Path) -> _Slot | None:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    slots = [_decode(content[start : start + SLOT_BYTES]) for start in (0, SLOT_BYTES)]
    return max((slot for slot in slots if slot), key=lambda slot: slot.sequence, default=None)


def _decode(raw: bytes) -> _Slot | None:
    if len(raw) < _FIELDS.size + _CHECKSUM.size:
        return None
    magic, sequence, settled = _FIELDS.unpack_from(raw)
    (checksum,) = _CHECKSUM.unpack_from(raw, _FIELDS.size)
    if magic != MAGIC or zlib.crc32(raw[: _FIELDS.size]) != checksum:
        return None
    return _Slot(sequence, settled)
