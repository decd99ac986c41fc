"""Payload segments: files that only grow, of frames with a length and a checksum.

The index says where every frame stands, so nothing here is ever searched for. What stands behind the last
frame that the index knows is the rest of a write that never finished, and is overwritten.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from conveyord.storage.disk import sync_directory

HEADER = struct.Struct("<II")  # bytes of the payload, its CRC-32
NAME = re.compile(r"segment-(\d{8,})\.bin")

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[bytes | None, bytes | None]).decode


class Payload(NamedTuple):
    """What a letter carries: the record's own bytes, and the row that arrived at the stage."""

    raw: bytes | None
    row: bytes | None


class Place(NamedTuple):
    """Where a frame stands: `length` bytes, its header included, from byte `position` of a segment."""

    segment: int
    position: int
    length: int
    crc: int


class DamagedFrame(Exception):
    """A frame is not what was written. The text says how it differs."""


def frame_of(payload: Payload) -> bytes:
    """The frame that holds `payload`."""
    body = _encode(payload)
    return HEADER.pack(len(body), zlib.crc32(body)) + body


def crc_of(frame: bytes) -> int:
    """The checksum that a frame carries."""
    return int(HEADER.unpack_from(frame)[1])


def segment_path(directory: Path, segment: int) -> Path:
    """The file of one segment."""
    return directory / f"segment-{segment:08d}.bin"


def segments_on_disk(directory: Path) -> list[int]:
    """The numbers of all segment files, in order; none if there is no directory. Blocking."""
    try:
        return sorted(int(found[1]) for path in directory.iterdir() if (found := NAME.fullmatch(path.name)))
    except FileNotFoundError:
        return []


def read_payload(directory: Path, place: Place) -> Payload:
    """Blocking. The payload at `place`. Raises DamagedFrame if the file lacks it or holds something else."""
    return payload_of(read_frame(directory, place))


def read_frame(directory: Path, place: Place) -> bytes:
    """Blocking. The frame at `place`, checked. Raises DamagedFrame."""
    path = segment_path(directory, place.segment)
    try:
        with path.open("rb", buffering=0) as file:
            frame = os.pread(file.fileno(), place.length, place.position)
    except FileNotFoundError as error:
        raise DamagedFrame(f"{path.name} is missing") from error
    except OSError as error:
        raise DamagedFrame(f"{path.name} cannot be read: {error.strerror}") from error
    where = f"{path.name}, bytes {place.position} to {place.position + place.length}"
    if len(frame) < place.length:
        raise DamagedFrame(f"{where}: the file ends too early")
    length, crc = HEADER.unpack_from(frame)
    if length != place.length - HEADER.size or crc != place.crc or zlib.crc32(frame[HEADER.size :]) != crc:
        raise DamagedFrame(f"{where}: the checksum does not match")
    return frame


def payload_of(frame: bytes) -> Payload:
    """What a checked frame holds."""
    return Payload(*_decode(memoryview(frame)[HEADER.size :]))


class SegmentWriter:
    """Appends frames to the newest segment, and begins another when it is full. Blocking, one thread at a time.

    After an error call `abandon`: a file whose sync failed may have lost what it was given without saying so
    again, so it gets no further frame.
    """

    def __init__(self, directory: Path, *, segment_bytes_max: int) -> None:
        self._directory = directory
        self._segment_bytes_max = segment_bytes_max
        self._descriptor: int | None = None
        self._position = 0
        self.active: int | None = None

    def resume(self, segment: int, end: int) -> None:
        """Go on in a segment of an earlier process at `end`, if it has room and holds everything up to there."""
        path = segment_path(self._directory, segment)
        if end >= self._segment_bytes_max or not path.is_file() or path.stat().st_size < end:
            return
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        os.ftruncate(self._descriptor, end)  # a torn tail must not stand behind what is written next
        self.active, self._position = segment, end

    def append(self, frames: Sequence[bytes], *, next_segment: int) -> list[Place]:
        """Write `frames`; they are on disk when this returns. The result is where each of them stands.

        next_segment: the number for a new segment; should several be needed, those after it.
        """
        places: list[Place] = []
        pending: list[bytes] = []
        for frame in frames:
            if self.active is None or self._position >= self._segment_bytes_max:
                self._flush(pending)
                self._begin(next_segment)
                next_segment += 1
            assert self.active is not None
            places.append(Place(self.active, self._position, len(frame), crc_of(frame)))
            pending.append(frame)
            self._position += len(frame)
        self._flush(pending)
        return places

    def abandon(self) -> None:
        """Close the newest segment for good. The next frame begins another."""
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = self.active = None

    def _begin(self, segment: int) -> None:
        self.abandon()
        path = segment_path(self._directory, segment)
        # A file of this number that the index does not know is what a crash left; nobody refers to it.
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        sync_directory(self._directory)
        self.active, self._position = segment, 0

    def _flush(self, pending: list[bytes]) -> None:
        if not pending:
            return
        assert self._descriptor is not None
        data = memoryview(b"".join(pending))
        position = self._position - len(data)
        while data:
            written = os.pwrite(self._descriptor, data, position)
            data, position = data[written:], position + written
        os.fsync(self._descriptor)
        pending.clear()
