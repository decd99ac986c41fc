"""What everything that must survive a power cut asks of the file system. Blocking throughout."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})
"""Nothing more can be written for now: full, over quota, or read-only."""

PARTS_MAX = 1024  # the kernel's limit of one call (IOV_MAX)


def sync_directory(path: Path) -> None:
    """Put the entries of one directory on disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(path: Path) -> Path:
    """Create `path` with its parents; returns the deepest directory that existed already."""
    existing = path
    while not existing.exists():
        existing = existing.parent
    path.mkdir(parents=True, exist_ok=True)
    return existing


def make_durable_directories(path: Path) -> None:
    """Create `path` with its parents, each on disk when this returns."""
    existing = make_directories(path)
    while path != existing:
        path = path.parent
        sync_directory(path)


def write_all(descriptor: int, parts: Sequence[bytes | memoryview], offset: int) -> None:
    """Write `parts` one after the other from `offset` on, however often the kernel stops short."""
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        written = os.pwritev(descriptor, left[:PARTS_MAX], offset)
        if written == 0:
            raise OSError(errno.EIO, "a write wrote nothing")
        offset += written
        while left and written >= len(left[0]):
            written -= len(left.pop(0))
        if written:
            left[0] = left[0][written:]


def write_file(path: Path, content: bytes) -> None:
    """Put a whole file in place, on disk when this returns: all of `content` or, after a crash, what was there.

    The name with `.tmp` behind it is used on the way, and may be left by a crash.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(descriptor, [content], 0)
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):  # what could not be written is what counts
            temporary.unlink()
        raise
    finally:
        os.close(descriptor)
    temporary.rename(path)
    sync_directory(path.parent)


def truncate(path: Path, size: int) -> None:
    """Cut `path` to `size` bytes, on disk when it returns."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
