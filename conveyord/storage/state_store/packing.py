"""A state becomes the file of a snapshot, and back: compressed, hashed, and never in memory as a whole."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import zstandard

from conveyord.storage.state_store.faults import damaged_snapshot, translated
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.snapshot_head import DIGEST_BYTES, SnapshotInfo, head_of, read_head

PART_BYTES = 1 << 20
ASIDE_BYTES = 1 << 16  # of a part that is worth handing to another thread
# Measured by benchmarks/raft_snapshots.py --levels: -1 saves a tenth of the time for 1.7 times the bytes to send, and 3
# takes three times as long for no fewer.
ZSTD_LEVEL = 1
ZSTD_THREADS = 2
THREADED_BYTES = 8 << 20  # below it, starting the threads takes longer than they save


def pack(state: Path, target: Path, place: Place) -> SnapshotInfo:
    """Write the file `state`, which nobody has open, as a snapshot; on disk when this returns, but for its name."""
    state_bytes = state.stat().st_size
    threads = ZSTD_THREADS if state_bytes >= THREADED_BYTES else 0
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=threads).compressobj(size=state_bytes)
    with state.open("rb", buffering=0) as file, target.open("wb", buffering=0) as written, _Digest() as found:

        def put(part: bytes) -> None:
            found.update(part)
            _write(written, part)

        put(head_of(place, state_bytes))
        while part := file.read(PART_BYTES):
            put(compressor.compress(part))
        put(compressor.flush())
        digest = found.digest()
        _write(written, digest)
        os.fsync(written.fileno())
        return SnapshotInfo(place.mark, place.membership, state_bytes, written.tell(), digest)


def unpack(path: Path, target: Path | None) -> SnapshotInfo:
    """Check the whole snapshot in `path`, and write its state into `target`, if there is one; that is not synced.

    Raises Corrupt if any byte is not what was written, Refused for a newer format, StorageFull if there is no room.
    `target` may be there then, and is of no use.
    """
    with translated(path, damaged=damaged_snapshot), path.open("rb", buffering=0) as file, _Digest() as found:
        info, body_at = read_head(path, file)
        file.seek(0)
        found.update(file.read(body_at))
        body, size = _Body(file, info.file_bytes - body_at - DIGEST_BYTES, found), 0
        with translated(target or path), (target or Path(os.devnull)).open("wb", buffering=0) as written:
            # Read in pieces of a size: one of a few bytes may stand for gigabytes of empty pages.
            reader = zstandard.ZstdDecompressor().stream_reader(cast("BinaryIO", body), read_size=PART_BYTES)
            try:
                while size <= info.state_bytes and (part := reader.read(PART_BYTES)):
                    size += len(part)
                    _write(written, part)
            except zstandard.ZstdError as error:
                raise damaged_snapshot(path, error) from error
        while body.read(PART_BYTES):
            pass  # what is behind the frame belongs to the digest
        if found.digest() != info.digest or size != info.state_bytes:
            raise damaged_snapshot(path, "its bytes are not those that its digest is of")
        return info


class _Digest:
    """BLAKE2b of parts of a file; large ones are hashed beside whatever is done with them; a context manager."""

    def __init__(self) -> None:
        self._found = blake2b(digest_size=DIGEST_BYTES)
        self._thread = ThreadPoolExecutor(1)  # it starts none before it is given work
        self._last: Future[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def update(self, part: bytes) -> None:
        self._wait()
        if len(part) < ASIDE_BYTES:
            self._found.update(part)
        else:
            self._last = self._thread.submit(self._found.update, part)

    def digest(self) -> bytes:
        self._wait()
        return self._found.digest()

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()


class _Body:
    """The next `left` bytes of a file, which are hashed as they are read."""

    def __init__(self, file: BinaryIO, left: int, found: _Digest) -> None:
        self._file = file
        self._left = left
        self._found = found

    def read(self, size: int) -> bytes:
        part = self._file.read(min(size, self._left))
        self._left -= len(part)
        self._found.update(part)
        return part


def _write(file: BinaryIO, part: bytes) -> None:
    """All of `part`: an unbuffered file may take less, on a full disk for one."""
    left = memoryview(part)
    while left:
        left = left[file.write(left) :]
