"""What a pushed request holds: JSON, a list of it, or JSON lines, plain or compressed. Pure, blocking.

A request is taken whole or not at all, so every record of it is looked at before anything is: the first that cannot
be used is told of by its number.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import zstandard

from conveyord.engine.json.check import first_bad

JSON_TYPES = frozenset({"application/json"})
LINES_TYPES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl", "application/x-jsonlines"})
ENCODINGS = frozenset({"identity", "gzip", "x-gzip", "zstd"})
RECORDS_MAX = 250_000  # of one request; it becomes one batch
PIECE_BYTES = 1024 * 1024  # inflated at a time, so that a bomb is found before it goes off
ZSTD_FEED_BYTES = 512  # fed at a time: 4 bytes make 128 KiB at worst, and there is no other way to stop in between
WINDOW_BYTES_MAX = 8 * 1024 * 1024  # what RFC 8878 wants a decoder of zstd to support
_ONE_LINE = bytes.maketrans(b"\r\n", b"  ")  # between values; within a string JSON has neither


class BodyError(Exception):
    """A body that cannot be used. record: the number of the record at fault, from 0. Becomes an answer."""

    def __init__(self, status: int, code: str, reason: str, *, record: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.code = code
        self.reason = reason
        self.members = {} if record is None else {"record": record}


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a request. lines: one each, joined by line ends. digest: of them, however they were sent."""

    lines: bytes
    count: int
    digest: bytes


def records_of(body: bytes, *, encoding: str, is_lines: bool, bytes_max: int) -> Records:
    """The records of a body. Raises BodyError for one that is damaged, too large, or holds what is no record."""
    text = inflated(body, encoding, bytes_max).removeprefix(b"\xef\xbb\xbf")
    lines = _lines(text) if is_lines else _values(text)
    if len(lines) > RECORDS_MAX:
        raise BodyError(413, "TOO_LARGE", f"{len(lines)} records are more than {RECORDS_MAX}; send fewer at a time")
    joined = b"\n".join(lines)
    bad = first_bad(joined)
    if bad is not None:
        raise BodyError(400, bad.code, f"record {bad.row} (from 0): {bad.reason}; nothing was taken", record=bad.row)
    return Records(joined, len(lines), hashlib.sha256(joined).digest())


def inflated(body: bytes, encoding: str, bytes_max: int) -> bytes:
    """`body` without its content encoding. What comes out beyond `bytes_max` is 16 MiB at most."""
    if encoding == "identity":
        return body
    parts: list[bytes] = []
    size = 0
    try:
        for piece in _zstd(body) if encoding == "zstd" else _gzip(body):
            size += len(piece)
            if size > bytes_max:
                raise BodyError(413, "TOO_LARGE", f"the body inflates to more than {bytes_max} bytes; send less")
            parts.append(piece)
    except (zlib.error, zstandard.ZstdError, EOFError) as error:
        raise BodyError(400, "MALFORMED_BODY", f"the body is not whole {encoding}: {error}") from error
    return b"".join(parts)


def _gzip(body: bytes) -> Iterator[bytes]:
    left = body
    while left:
        member = zlib.decompressobj(wbits=31)
        while not member.eof:
            piece = member.decompress(left, PIECE_BYTES)
            left = member.unconsumed_tail
            if not piece and not left and not member.eof:
                raise EOFError("it ends too early")
            yield piece
        left = member.unused_data


def _zstd(body: bytes) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
    at = 0
    while at < len(body):
        frame = decompressor.decompressobj()
        while not frame.eof:
            if at >= len(body):
                raise EOFError("it ends too early")
            # A stream reader would bound what comes out, but takes a frame that was cut short for a whole one.
            yield frame.decompress(body[at : at + ZSTD_FEED_BYTES])
            at += ZSTD_FEED_BYTES
        at = min(at, len(body)) - len(frame.unused_data)


def _lines(text: bytes) -> list[bytes]:
    lines = (line.removesuffix(b"\r") for line in text.split(b"\n"))
    return [line for line in lines if line.strip(b" \t\r")]


def _values(text: bytes) -> list[bytes]:
    """One JSON object, or the elements of a list of them, each on one line."""
    try:
        if text.lstrip(b" \t\r\n").startswith(b"["):
            values = msgspec.json.decode(text, type=list[msgspec.Raw])
        else:
            values = [msgspec.json.decode(text, type=msgspec.Raw)]
    except (msgspec.DecodeError, RecursionError) as error:
        raise BodyError(400, "MALFORMED_BODY", f"the body is not JSON: {error}") from error
    return [bytes(value).translate(_ONE_LINE).strip() for value in values]
