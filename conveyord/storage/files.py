"""Local files as partitions: finding them, recognising them again, and reading them in blocks.

Offsets count decompressed bytes. A file is recognised by its path and by a mark, a digest of its
first bytes up to `MARK_BYTES` or the position, whichever is less: so a file that grows keeps its
identity, a record may be mended at or after the position, and a file that was replaced shows.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import zstandard

from conveyord.core.errors import ConfigError, RecordError, Refused, Retryable
from conveyord.core.flow.positions import Position

MARK_BYTES = 4096  # enough to tell two files of one producer apart, cheap to read at every start
READ_BYTES = 1024 * 1024  # one read of a compressed file, and the most that one step may inflate to
ZSTD_STEP_BYTES = 2048  # a hostile 2 KiB of zstd inflates to at most ~64 MiB, so memory stays bounded
GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
COMPRESSED_SUFFIXES = frozenset({".gz", ".zst"})


@dataclass(frozen=True, slots=True)
class Block:
    """Whole records of one file, standing in `[first, end)`.

    `data` begins at `data_first`, which is past `first` where a header was passed over. A record
    beyond the size limit comes as a block of its own with no data and `oversize` set.
    """

    first: int
    end: int
    data: bytes
    data_first: int
    oversize: bool = False


def discover(pattern: str) -> list[Path]:
    """The files that `pattern` matches, each once, sorted by path, so that every run agrees on the order.

    Paths are absolute and without symbolic links: a file is the same by whatever way it is reached.
    Blocking. Raises ConfigError if there is none: a typo must not look like an empty input.
    """
    files = matching(pattern)
    if not files:
        if Path(pattern).is_dir():
            raise ConfigError(f"path {pattern!r} is a directory; name the files in it, such as {pattern.rstrip('/')}/*")
        raise ConfigError(f"path {pattern!r} matches no file (looked from {Path.cwd()}); correct the path")
    return files


def matching(pattern: str) -> list[Path]:
    """What `discover` finds, which may be nothing. Blocking."""
    paths = {Path(found).resolve() for found in glob.glob(pattern, recursive=True)}
    files = sorted(path for path in paths if path.is_file())
    for path in files:
        try:
            str(path).encode()
        except UnicodeEncodeError as error:
            raise ConfigError(f"path {pattern!r} matches {path!r}, whose name is not UTF-8; rename it") from error
    return files


def open_chunks(path: Path, first: int = 0) -> Iterator[bytes]:
    """The decompressed content of a file from byte `first` on, in chunks of at most about `READ_BYTES`. Blocking.

    The format is recognised by its first bytes, not by the name. Raises RecordError with code
    TRUNCATED_FILE after the last readable chunk if a compressed file ends too early or is damaged,
    ConfigError if the file cannot be opened, and Retryable if the disk or the mount fails while it is read.
    """
    try:
        raw = path.open("rb", buffering=READ_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    with raw:
        try:
            yield from _content(path, raw, first)
        except OSError as error:
            reason = error.strerror or str(error)
            raise Retryable(f"{path}: reading it failed ({reason}); check the disk or mount and run again") from error


def _content(path: Path, raw: BinaryIO, first: int) -> Iterator[bytes]:
    head = raw.read(4)
    raw.seek(0)
    if head.startswith(GZIP_MAGIC):
        yield from _after(first, _inflate_gzip(path, raw.read))
    elif head == ZSTD_MAGIC:
        yield from _after(first, _inflate_zstd(path, raw.read))
    elif path.suffix in COMPRESSED_SUFFIXES and head:
        reason = f"the name ends in {path.suffix} but the content is not of that format; rename or repair it"
        raise RecordError(str(path), reason, code="TRUNCATED_FILE")
    else:
        raw.seek(first)
        while chunk := raw.read(READ_BYTES):
            yield chunk


def _after(first: int, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """`chunks` without their first `first` bytes: a compressed file has to be inflated up to there."""
    seen = 0
    for chunk in chunks:
        if seen + len(chunk) > first:
            yield chunk[max(first - seen, 0) :]
        seen += len(chunk)


def _inflate_gzip(path: Path, read: Callable[[int], bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(wbits=31)
    produced = 0
    pending = b""
    while True:
        if inflater.eof:  # another member may follow, as `cat a.gz b.gz` makes
            pending = inflater.unused_data or pending
            pending = (pending or read(READ_BYTES)).lstrip(b"\0")  # tape padding between members is legal
            if not pending:
                return
            inflater = zlib.decompressobj(wbits=31)
        pending = pending or read(READ_BYTES)
        if not pending:
            raise _truncated(path, produced, "gzip stream ends early")
        try:
            chunk = inflater.decompress(pending, READ_BYTES)
        except zlib.error as error:
            raise _truncated(path, produced, f"gzip stream is damaged ({error})") from error
        pending = inflater.unconsumed_tail
        if chunk:
            produced += len(chunk)
            yield chunk


def _inflate_zstd(path: Path, read: Callable[[int], bytes]) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor()
    inflater = decompressor.decompressobj()
    produced = 0
    inside = False  # within a frame: the file may not end here
    pending = b""
    while pending := pending or read(ZSTD_STEP_BYTES):
        try:
            chunk = inflater.decompress(pending)
        except zstandard.ZstdError as error:
            raise _truncated(path, produced, f"zstd stream is damaged ({error})") from error
        pending, inside = inflater.unused_data, not inflater.eof
        if inflater.eof:
            inflater = decompressor.decompressobj()
        if chunk:
            produced += len(chunk)
            yield chunk
    if inside:
        raise _truncated(path, produced, "zstd stream ends early")


def _truncated(path: Path, produced: int, what: str) -> RecordError:
    reason = f"{what} after {produced} decompressed bytes; restore the file and run again to go on from there"
    return RecordError(str(path), reason, code="TRUNCATED_FILE")


def head_of(path: Path, size_bytes: int) -> bytes:
    """Up to `size_bytes` decompressed bytes from the start of the file, fewer if it ends or breaks before.

    Blocking. A damaged file shows its error when it is read, not here.
    """
    head = bytearray()
    try:
        for chunk in open_chunks(path):
            head += chunk
            if len(head) >= size_bytes:
                break
    except RecordError:
        pass  # the reader meets the same damage at its place and reports it there
    return bytes(head[:size_bytes])


def line_number(path: Path, offset: int) -> int:
    """The number, from 1, of the line that contains decompressed byte `offset`. Blocking, reads up to it."""
    lines, seen = 1, 0
    for chunk in open_chunks(path):
        lines += chunk[: offset - seen].count(b"\n")
        seen += len(chunk)
        if seen >= offset:
            break
    return lines


def is_compressed(path: Path) -> bool:
    """Whether a file is read through a decompressor. Blocking. Raises ConfigError if it cannot be opened."""
    try:
        with path.open("rb") as raw:
            head = raw.read(len(ZSTD_MAGIC))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return head.startswith(GZIP_MAGIC) or head == ZSTD_MAGIC or path.suffix in COMPRESSED_SUFFIXES


def mark_of(head: bytes, end: int, *, inode: int | None = None) -> str:
    """The mark of a file whose content starts with `head`, at position `end`. inode: of a file that is followed."""
    length = min(end, MARK_BYTES, len(head))  # a file may have grown since its head was read
    mark = f"{length}:{hashlib.sha256(head[:length]).hexdigest()[:32]}"
    return mark if inode is None else f"{mark}:{inode}"


def is_of_mark(head: bytes, mark: str) -> bool:
    """Whether a file whose content starts with `head` can be the one that `mark` was made of."""
    length = int(mark.partition(":")[0] or 0)
    return len(head) >= length and mark_of(head, length).split(":") == mark.split(":")[:2]


def inode_of_mark(mark: str) -> int | None:
    """The inode that `mark` names, if it names one."""
    parts = mark.split(":")
    return int(parts[2]) if len(parts) > 2 else None


class BlockReader:
    """Reads one file in blocks of whole records, from a position on. Blocking, one thread at a time.

    boundary: gives the end of the last whole record in a buffer that starts at a record, or 0.
    cuts: offsets at which a block must end, each a former position (another sink's fence). inode: to be
    kept in marks. growing: the last record is left for later as long as it has no end.
    Raises Refused if the file is not the one that `position` was taken in.
    """

    def __init__(
        self,
        path: Path,
        *,
        position: Position | None,
        header_bytes: int,
        boundary: Callable[[bytearray], int],
        block_bytes: int,
        record_bytes_max: int,
        cuts: tuple[int, ...] = (),
        inode: int | None = None,
        growing: bool = False,
    ) -> None:
        self._path = path
        self._inode = inode
        self._growing = growing
        self.start = position.offset if position else 0
        self._header_bytes = header_bytes
        self._boundary = boundary
        self._block_bytes = block_bytes
        self._record_bytes_max = record_bytes_max
        self._cuts = tuple(sorted(cut for cut in cuts if cut > self.start))
        self._head = head_of(path, MARK_BYTES)
        if position:
            self._recognise(position)

    def _recognise(self, position: Position) -> None:
        if not is_of_mark(self._head, position.mark):
            length = position.mark.partition(":")[0]
            raise Refused(
                f"{self._path}: its first {length} bytes are not those that were read before (position "
                f"{position.offset}); it was replaced or edited. Give the new content another name, or restore the file"
            )

    def mark(self, end: int) -> str:
        """The mark to store with a position at `end` of this file."""
        return mark_of(self._head, end, inode=self._inode)

    def blocks(self) -> Iterator[Block]:
        """The blocks from the start position to the end of the file, in order.

        Raises RecordError (TRUNCATED_FILE) after the last whole record if the file is cut or damaged,
        and Refused if the file is shorter than its position.
        """
        buffer, at = bytearray(), self.start
        feed = _Feed(self._from_start())
        want_bytes = self._block_bytes
        while feed.fill(buffer, want_bytes) or buffer:
            last = feed.ended and feed.damage is None and not self._growing
            end = self._records_end(buffer, at, last=last)
            if end:
                yield self._block(at, bytes(memoryview(buffer)[:end]))
                want_bytes = max(self._block_bytes, len(buffer) - end)
            elif feed.ended:
                break  # what is left is the record that the damage cut
            elif want_bytes < self._record_bytes_max:
                want_bytes = min(2 * want_bytes, self._record_bytes_max)
                continue
            else:
                end = at + _pass_over(buffer, feed)
                yield Block(at, end, b"", at, oversize=True)
                at, want_bytes = end, self._block_bytes
                continue
            del buffer[:end]
            at += end
        if feed.damage is not None:
            raise feed.damage

    def _records_end(self, buffer: bytearray, at: int, *, last: bool) -> int:
        """Where the block that starts at `at` ends within `buffer`; 0 if it holds no whole record."""
        cut = next((cut for cut in self._cuts if cut > at), None)
        if cut is not None and cut - at <= len(buffer):
            return cut - at
        return len(buffer) if last else self._boundary(buffer)

    def _block(self, first: int, data: bytes) -> Block:
        end = first + len(data)
        header = max(self._header_bytes - first, 0)
        return Block(first, end, data[header:] if header else data, first + header)

    def _from_start(self) -> Iterator[bytes]:
        """The content from the start position on; Refused if the file ends before it, or if its last line grew."""
        if self.start == 0:
            yield from open_chunks(self._path)
            return
        chunks = open_chunks(self._path, self.start - 1)
        before = next(chunks, b"")
        if not before:
            raise Refused(
                f"{self._path}: was read up to byte {self.start} before but is shorter now; it was truncated. "
                "Restore the file, or give the new content another name"
            )
        rest = before[1:] or next(chunks, b"")
        is_inside_line = self.start > self._header_bytes and before[:1] != b"\n" and rest[:1] not in {b"\n", b"\r"}
        if rest and is_inside_line:
            raise Refused(
                f"{self._path}: its last line was read without a line end up to byte {self.start} and has grown, "
                "so the table holds only its beginning. Restore the line, and put what is new on lines of its own"
            )
        yield from itertools.chain((rest,), chunks)


class _Feed:
    """Chunks drawn into a buffer, remembering how they ended."""

    __slots__ = ("_chunks", "_rest", "damage", "ended")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = memoryview(b"")
        self.ended = False
        self.damage: RecordError | None = None

    def fill(self, buffer: bytearray, want_bytes: int) -> bool:
        """Append to `buffer` until it holds `want_bytes`, never more. Returns False once nothing can follow."""
        while len(buffer) < want_bytes and not self.ended:
            if not self._rest:
                self._draw()
            part = self._rest[: want_bytes - len(buffer)]
            buffer += part
            self._rest = self._rest[len(part) :]
        return not self.ended

    def _draw(self) -> None:
        try:
            chunk = next(self._chunks, None)
        except RecordError as damage:
            self.damage, chunk = damage, None
        self.ended = chunk is None
        self._rest = memoryview(chunk or b"")


def _pass_over(buffer: bytearray, feed: _Feed) -> int:
    """Remove the record at the start of `buffer` up to its line end, and return its length.

    The record does not fit in memory, so only what follows it is kept.
    """
    length = 0
    while (end := buffer.find(b"\n") + 1) == 0:
        length += len(buffer)
        buffer.clear()
        if not feed.fill(buffer, READ_BYTES) and not buffer:
            return length
    del buffer[:end]
    return length + end
