"""Frames as bytes: a prefix of twelve bytes, a head, and a body that is passed on untouched (docs/wire.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from conveyord.core.wire.heads import KINDS, AnyHead, FrameRefused

MAGIC = b"CVR1"
PREFIX = struct.Struct("!4sII")  # magic, bytes of the head, bytes of the body
PREFIX_BYTES = PREFIX.size
BUFFER_BYTES = 128 * 1024  # taken at a time; many small frames
LARGE_BYTES = 48 * 1024  # a frame from this size on is received into memory of its own, if it is not all here
BODY_ALIGNMENT = 64  # of a large frame's body in memory: what Arrow recommends for its buffers

Body = bytes | bytearray | memoryview
Frame = tuple[AnyHead, Body]
Allocate = Callable[[int], bytearray]

_encode = msgspec.msgpack.Encoder().encode
_decode: Callable[[Body], AnyHead] = msgspec.msgpack.Decoder(AnyHead).decode
_pack = PREFIX.pack
_unpack = PREFIX.unpack_from


def opening(head: AnyHead, body_bytes: int = 0) -> bytes:
    """A frame up to its body, of which `body_bytes` bytes must follow."""
    encoded = _encode(head)
    return _pack(MAGIC, len(encoded), body_bytes) + encoded


class FrameDecoder:
    """Turns bytes into frames. One use: for one direction of one connection.

    Bytes are put where `room` says, and then told by `filled`; large frames are thus received into memory that is
    handed on as it is. `frame_bytes_max` limits head and body together, and may be raised between two frames.
    `allocate` gives memory of at least a size.
    After a refusal nothing more comes: `room` raises it again each time.
    """

    def __init__(self, frame_bytes_max: int, *, allocate: Allocate = bytearray) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._allocate = allocate
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._begin = self._end = 0
        self._large: memoryview | None = None
        self._large_filled = self._large_body_at = 0
        self._refusal: FrameRefused | None = None

    @property
    def expected_bytes(self) -> int:
        """How many bytes the frame has that has begun and is not whole, as far as known; 0 if there is none."""
        if self._large is not None:
            return len(self._large)
        have = self._end - self._begin
        if have < PREFIX_BYTES:
            return PREFIX_BYTES if have else 0
        _, head_bytes, body_bytes = _unpack(self._buffer, self._begin)
        return PREFIX_BYTES + int(head_bytes) + int(body_bytes)

    def room(self) -> memoryview:
        """Where the next bytes belong; never empty. Raises FrameRefused if what came before is no frame."""
        if self._refusal is not None:
            raise self._refusal
        if self._large is not None:
            return self._large[self._large_filled :]
        return self._buffer[self._end :]

    def filled(self, count: int) -> list[Frame]:
        """The frames that are whole now that `count` bytes of the last `room` are filled. `room` tells of refusals."""
        frames: list[Frame] = []
        try:
            if self._large is None:
                self._end += count
                self._take_small(frames)
            else:
                self._large_filled += count
                if self._large_filled == len(self._large):
                    frames.append(self._take_large(self._large))
        except FrameRefused as refusal:
            self._refusal = refusal
        return frames

    def receive(self, data: Body) -> list[Frame]:
        """The frames that are whole with `data`, which is copied. Raises FrameRefused if there was no frame before."""
        frames: list[Frame] = []
        view = memoryview(data)
        while view:
            room = self.room()
            count = min(len(room), len(view))
            room[:count] = view[:count]
            view = view[count:]
            frames += self.filled(count)
            if self._refusal is not None:
                break
        return frames

    def finish(self) -> None:
        """Say that no more bytes come. Raises FrameRefused, also if that is in the midst of a frame."""
        if self._refusal is not None:
            raise self._refusal
        if expected := self.expected_bytes:
            raise FrameRefused("truncated", f"the connection ended within a frame of {expected} bytes")

    def _take_small(self, frames: list[Frame]) -> None:
        buffer, begin, end, size = self._buffer, self._begin, self._end, 0
        try:
            while end - begin >= PREFIX_BYTES:
                magic, head_bytes, body_bytes = _unpack(buffer, begin)
                size = PREFIX_BYTES + head_bytes + body_bytes
                if magic != MAGIC or size - PREFIX_BYTES > self.frame_bytes_max:
                    raise self._refused_prefix(bytes(magic), size - PREFIX_BYTES)
                if end - begin < size:
                    break
                at = begin + PREFIX_BYTES
                body_at = at + head_bytes
                begin += size
                frames.append((decode_head(buffer[at:body_at]), bytes(buffer[body_at:begin]) if body_bytes else b""))
        finally:
            self._begin = begin
        if begin == end:
            self._begin = self._end = 0
        elif size >= LARGE_BYTES and end - begin >= PREFIX_BYTES:
            self._start_large()
        elif len(buffer) - end < LARGE_BYTES:
            buffer[: end - begin] = bytes(buffer[begin:end])
            self._begin, self._end = 0, end - begin

    def _refused_prefix(self, magic: bytes, size: int) -> FrameRefused:
        if magic != MAGIC:
            return FrameRefused(
                "magic", f"a frame begins with {MAGIC!r}, not with {magic!r}: the peer speaks another protocol"
            )
        return FrameRefused("oversize", f"a frame has {size} bytes, at most {self.frame_bytes_max} are taken")

    def _start_large(self) -> None:
        """Give the frame that has begun memory of its own. Its body is aligned there."""
        _, head_bytes, body_bytes = _unpack(self._buffer, self._begin)
        here = self._buffer[self._begin + PREFIX_BYTES : self._end]
        padding = -head_bytes % BODY_ALIGNMENT
        size = padding + head_bytes + body_bytes
        large = memoryview(self._allocate(size))[padding:size]
        large[: len(here)] = here
        self._large, self._large_filled, self._large_body_at = large, len(here), head_bytes
        self._begin = self._end = 0

    def _take_large(self, large: memoryview) -> Frame:
        self._large = None
        body_at = self._large_body_at
        return decode_head(large[:body_at]), large[body_at:] if body_at < len(large) else b""


def decode_head(data: Body) -> AnyHead:
    """The head in `data`. Raises FrameRefused."""
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        kind = _kind(bytes(data[:6]))
        if kind is not None and kind not in KINDS:
            raise FrameRefused("unknown_kind", f"a frame is of kind {kind}, which this version does not know") from None
        raise FrameRefused("malformed_head", f"the head of a frame cannot be read: {error}") from None


def _kind(start: bytes) -> int | None:
    """The number of the kind, which is the first element of an array; None if it is no small number."""
    lengths = {0xDC: 3, 0xDD: 5}  # an array that has its length in two or four bytes
    at = 1 if start and 0x90 < start[0] <= 0x9F else lengths.get(start[0], 6) if start else 6
    return start[at] if at < len(start) and start[at] < 0x80 else None
