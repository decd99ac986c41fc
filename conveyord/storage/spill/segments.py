"""Segment files: a header, then frames whose numbers follow one another. Named by the number of the first.

magic "CVSPILL1", first number u64, created u64 (microseconds since the epoch), digest 32 bytes, CRC-32
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from conveyord.storage.spill.disk import READ_BYTES, read_exactly
from conveyord.storage.spill.frames import HEADER_BYTES, FrameHeader, decode_header, decode_meta

SEGMENT_BYTES = 32 * 1024**2  # small enough that settled space comes back soon, large enough to be few files
MAGIC = b"CVSPILL1"
_FIELDS = struct.Struct("<8sQQ32s")
_CHECKSUM = struct.Struct("<I")
SEGMENT_HEADER_BYTES = _FIELDS.size + _CHECKSUM.size
_NAME = re.compile(r"([0-9]{20})\.seg")


@dataclass(frozen=True, slots=True)
class SegmentHeader:
    """How a segment begins. `digest` is that of the definition upstream of the edge, see `digest_of`."""

    first: int
    created_micros: int
    digest: bytes

    def encoded(self) -> bytes:
        fields = _FIELDS.pack(MAGIC, self.first, self.created_micros, self.digest)
        return fields + _CHECKSUM.pack(zlib.crc32(fields))


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a segment cannot be read on from `offset`. torn: as a write that was cut short leaves it."""

    offset: int
    reason: str
    torn: bool = False


@dataclass(frozen=True, slots=True)
class Place:
    """A frame within a segment: its header, and the bytes `[offset, end)` that it takes."""

    offset: int
    header: FrameHeader

    @property
    def end(self) -> int:
        return self.offset + self.header.frame_bytes


def digest_of(text: str) -> bytes:
    """The 32 bytes that stand for a definition in the header of a segment."""
    return hashlib.sha256(text.encode()).digest()


def segment_name(first: int) -> str:
    """The file name of the segment that starts at frame `first`."""
    return f"{first:020d}.seg"


def segments_in(directory: Path) -> list[tuple[int, Path]]:
    """Blocking. The segments of a queue with the numbers they start at, in order. None if there is no directory."""
    if not directory.is_dir():
        return []
    matches = ((_NAME.fullmatch(path.name), path) for path in directory.iterdir())
    return sorted((int(match[1]), path) for match, path in matches if match)


class SegmentFile:
    """One segment open for reading. Blocking, one thread at a time. Raises OSError."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def header(self, *, first: int) -> SegmentHeader | Fault:
        """The segment's header, or why these bytes are not that of a segment which starts at `first`."""
        raw = read_exactly(self._descriptor, SEGMENT_HEADER_BYTES, 0)
        if len(raw) < SEGMENT_HEADER_BYTES or not any(raw):
            return Fault(0, "ends within its header", torn=True)
        magic, number, created_micros, digest = _FIELDS.unpack_from(raw)
        (checksum,) = _CHECKSUM.unpack_from(raw, _FIELDS.size)
        if magic != MAGIC or zlib.crc32(raw[: _FIELDS.size]) != checksum:
            return Fault(0, "its header has a wrong checksum")
        if number != first:
            return Fault(0, f"its header says that it starts at frame {number}")
        return SegmentHeader(number, created_micros, digest)

    def place(self, offset: int, *, number: int, end: int) -> Place | Fault:
        """The frame `number` at `offset` in a segment of `end` bytes. Its meta and payload are not looked at."""
        raw = read_exactly(self._descriptor, min(HEADER_BYTES, end - offset), offset)
        if len(raw) < HEADER_BYTES:
            return Fault(offset, "ends within the header of a frame", torn=True)
        header = decode_header(raw)
        if header is None:
            if self._is_zero(offset, end):  # the file had grown, what was written had not arrived
                return Fault(offset, "ends in zeros", torn=True)
            return Fault(offset, "the header of a frame has a wrong checksum")
        if header.number != number:
            return Fault(offset, f"holds frame {header.number} where {number} belongs")
        place = Place(offset, header)
        if place.end > end:
            return Fault(offset, f"ends within frame {number}", torn=True)
        return place

    def places(self, first: int, *, end: int) -> Iterator[Place | Fault]:
        """The frames from the segment's start up to `end` bytes; a fault, if there is one, comes last."""
        offset, number = SEGMENT_HEADER_BYTES, first
        while offset < end:
            found = self.place(offset, number=number, end=end)
            yield found
            if isinstance(found, Fault):
                return
            offset, number = found.end, number + 1

    def meta(self, place: Place) -> bytes | Fault:
        """The meta of a frame, checked."""
        raw = read_exactly(self._descriptor, place.header.meta_bytes, place.offset + HEADER_BYTES)
        if len(raw) < place.header.meta_bytes or zlib.crc32(raw) != place.header.meta_checksum:
            return Fault(place.offset, f"the meta of frame {place.header.number} has a wrong checksum")
        return raw

    def payload(self, place: Place) -> bytes | Fault:
        """The payload of a frame, checked."""
        start = place.end - place.header.payload_bytes
        raw = read_exactly(self._descriptor, place.header.payload_bytes, start)
        if len(raw) < place.header.payload_bytes or zlib.crc32(raw) != place.header.payload_checksum:
            return self._wrong_payload(place)
        return raw

    def verify(self, place: Place) -> Fault | None:
        """Whether meta and payload of a frame are as they were written, in little memory."""
        packed = self.meta(place)
        if isinstance(packed, Fault):
            return packed
        try:
            decode_meta(packed)
        except ValueError as error:
            return Fault(place.offset, f"frame {place.header.number}: {error}")
        checksum, offset = 0, place.end - place.header.payload_bytes
        while offset < place.end and (
            part := read_exactly(self._descriptor, min(READ_BYTES, place.end - offset), offset)
        ):
            checksum, offset = zlib.crc32(part, checksum), offset + len(part)
        is_right = offset == place.end and checksum == place.header.payload_checksum
        return None if is_right else self._wrong_payload(place)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wrong_payload(self, place: Place) -> Fault:
        return Fault(place.offset, f"the payload of frame {place.header.number} has a wrong checksum")

    def _is_zero(self, offset: int, end: int) -> bool:
        while offset < end and (part := read_exactly(self._descriptor, min(READ_BYTES, end - offset), offset)):
            if part.count(0) < len(part):
                return False
            offset += len(part)
        return True
