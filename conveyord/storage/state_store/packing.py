"""A state becomes the file of a snapshot, and back: compressed, hashed, and never in memory as a whole."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from os import preadv
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

import zstandard

from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.storage.state_store.faults import damaged_snapshot, translated
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.snapshot_head import DIGEST_BYTES, head_of, read_head

PART_BYTES = 1 << 20
WRITE_BYTES = 1 << 17  # for more at once the kernel looks for larger pieces of free memory, which can take longer
ASIDE_BYTES = 1 << 16  # of a part that is worth handing to another thread
# Measured by benchmarks/raft_snapshots.py --levels: -1 saves a tenth of the time for 1.7 times the bytes to send, and 3
# takes three times as long for no fewer.
ZSTD_LEVEL = 1
ZSTD_THREADS = 2
THREADED_BYTES = 8 << 20  # below it, starting the threads takes longer than they save


def pack(state: Path, target: Path, place: Place) -> SnapshotInfo:
    """Write the file `state`, which nobody has open, as a snapshot; on disk when this returns, but for its name."""
    with state.open("rb", buffering=0) as file:
        return pack_open(file.fileno(), target, place)


def pack_open(state: int, target: Path, place: Place) -> SnapshotInfo:
    """The same for what is open as the descriptor `state`, whose place in the file is not used."""
    state_bytes = os.fstat(state).st_size
    threads = ZSTD_THREADS if state_bytes >= THREADED_BYTES else 0
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, threads=threads).compressobj(size=state_bytes)
    buffer, offset = memoryview(bytearray(PART_BYTES)), 0
    with target.open("wb", buffering=0) as written, _Digest() as found:

        def put(part: bytes) -> None:
            found.put(part)
            _write(written, part)

        put(head_of(place, state_bytes))
        while size := preadv(state, [buffer], offset):
            put(compressor.compress(buffer[:size]))
            offset += size
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
        found.put(file.read(body_at))
        body, size = _Body(file, info.file_bytes - body_at - DIGEST_BYTES, found), 0
        with (
            translated(target or path),
            (target or Path(os.devnull)).open("wb", buffering=0) as written,
            _Aside(lambda part: _write(written, part)) as writing,
        ):
            # Read in pieces of a size: one of a few bytes may stand for gigabytes of empty pages.
            reader = zstandard.ZstdDecompressor().stream_reader(cast("BinaryIO", body), read_size=PART_BYTES)
            try:
                while size <= info.state_bytes and (part := reader.read(PART_BYTES)):
                    size += len(part)
                    writing.put(part)
            except zstandard.ZstdError as error:
                raise damaged_snapshot(path, error) from error
            writing.wait()
        while body.read(PART_BYTES):
            pass  # what is behind the frame belongs to the digest
        if found.digest() != info.digest or size != info.state_bytes:
            raise damaged_snapshot(path, "its bytes are not those that its digest is of")
        return info


class _Aside:
    """Does something with parts of a file, one after the other, beside who puts them; a context manager."""

    def __init__(self, act: Callable[[bytes], object]) -> None:
        """act: it is done at once with a small part, and in a thread of its own with a large one."""
        self._act = act
        self._thread = ThreadPoolExecutor(1)  # it starts none before it is given work
        self._last: Future[object] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown()

    def put(self, part: bytes) -> None:
        """Wait for the part before, and raise what came of it; then begin with this one."""
        self.wait()
        if len(part) < ASIDE_BYTES:
            self._act(part)
        else:
            self._last = self._thread.submit(self._act, part)

    def wait(self) -> None:
        """Until all is done. Raises what came of the last part."""
        if self._last is not None:
            self._last.result()


class _Digest(_Aside):
    """BLAKE2b of all parts."""

    def __init__(self) -> None:
        self._found = blake2b(digest_size=DIGEST_BYTES)
        super().__init__(self._found.update)

    def digest(self) -> bytes:
        self.wait()
        return self._found.digest()


class _Body:
    """The next `left` bytes of a file, which are hashed as they are read."""

    def __init__(self, file: BinaryIO, left: int, found: _Digest) -> None:
        self._file = file
        self._left = left
        self._found = found

    def read(self, size: int) -> bytes:
        part = self._file.read(min(size, self._left))
        self._left -= len(part)
        self._found.put(part)
        return part


def _write(file: BinaryIO, part: bytes) -> None:
    """All of `part`: an unbuffered file may take less, on a full disk for one."""
    left = memoryview(part)
    while left:
        left = left[file.write(left[:WRITE_BYTES]) :]
