"""One batch as bytes: a header with checksums, what travels with the rows, and the rows as Arrow IPC with LZ4.

    header   magic "CVFR", number u64, meta bytes u32, payload bytes u64, CRC-32 of meta, of payload, of the
             header before it; little endian
    meta     msgpack: spans, tally, states
    payload  an Arrow IPC stream of one record batch

The header's own checksum makes its lengths trustworthy before anything is read by them. zlib's CRC-32 runs
at several times the speed of LZ4, and CRC-32C would need one more dependency to be as fast.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import msgspec
import pyarrow as pa

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.spill.disk import Bytes

_FIELDS = struct.Struct("<4sQIQII")
_CHECKSUM = struct.Struct("<I")
MAGIC = b"CVFR"
HEADER_BYTES = _FIELDS.size + _CHECKSUM.size


@dataclass(frozen=True, slots=True)
class FrameMeta:
    """What travels with the rows of one batch: see `engine.messages.Batch`."""

    spans: tuple[Span, ...]
    tally: Tally
    states: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """The header of one frame. Sizes in bytes."""

    number: int
    meta_bytes: int
    payload_bytes: int
    meta_checksum: int
    payload_checksum: int

    @property
    def frame_bytes(self) -> int:
        return HEADER_BYTES + self.meta_bytes + self.payload_bytes


def encode_frame(number: int, meta: FrameMeta, data: pa.RecordBatch) -> list[Bytes]:
    """The frame of one batch, as parts to write one after the other."""
    packed = encode_meta(meta)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, data.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
        writer.write_batch(data)
    payload = memoryview(sink.getvalue())
    fields = _FIELDS.pack(MAGIC, number, len(packed), len(payload), zlib.crc32(packed), zlib.crc32(payload))
    return [fields + _CHECKSUM.pack(zlib.crc32(fields)), packed, payload]


def decode_header(raw: bytes) -> FrameHeader | None:
    """The header in `raw`, of HEADER_BYTES bytes; None if these are not the bytes of a header as it was written."""
    (checksum,) = _CHECKSUM.unpack_from(raw, _FIELDS.size)
    magic, *values = _FIELDS.unpack_from(raw)
    if magic != MAGIC or zlib.crc32(raw[: _FIELDS.size]) != checksum:
        return None
    return FrameHeader(*values)


def encode_meta(meta: FrameMeta) -> bytes:
    """`meta` as msgpack."""
    spans = [(*span.partition, span.first, span.end, span.mark) for span in meta.spans]
    return msgspec.msgpack.encode((spans, asdict(meta.tally), dict(meta.states)))


def decode_meta(packed: bytes) -> FrameMeta:
    """The inverse of `encode_meta`. Raises ValueError if another version of conveyord wrote it differently."""
    try:
        spans, tally, states = msgspec.msgpack.decode(packed)
        return FrameMeta(
            tuple(Span(Partition(source, name), first, end, mark) for source, name, first, end, mark in spans),
            Tally(**tally),
            states,
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"its meta was written by another version of conveyord ({error})") from error


def decode_payload(payload: bytes) -> pa.RecordBatch:
    """The batch in a payload whose checksum is right. Raises ValueError (Arrow's) if Arrow cannot read it."""
    with pa.ipc.open_stream(pa.py_buffer(payload)) as reader:
        return reader.read_next_batch()
