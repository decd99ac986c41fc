"""The few things a queue asks of the file system, with errors that say what to do."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conveyord.core.errors import ConveyordError, Retryable, StorageFull
from conveyord.storage.disk import FULL_ERRNOS

READ_BYTES = 1024 * 1024  # one read while checksums are computed; more would only cost memory

Bytes = bytes | memoryview


def translated(error: OSError, path: Path) -> ConveyordError:
    """`error` as a sentence: StorageFull for a full or read-only disk, Retryable for the rest."""
    if error.errno == errno.EROFS:
        return StorageFull(f"{path}: the file system is read-only; mount it writable, nothing is lost meanwhile")
    if error.errno in FULL_ERRNOS:
        return StorageFull(f"{path}: {os.strerror(error.errno or 0)}; free space, nothing is lost meanwhile")
    return Retryable(f"{path}: {error.strerror or error}; mend it and run again, the rows are read again")


@contextmanager
def translating(path: Path) -> Iterator[None]:
    """Turn an OSError about `path` into what it asks of the caller."""
    try:
        yield
    except OSError as error:
        raise translated(error, path) from error


def read_exactly(descriptor: int, size: int, offset: int) -> bytes:
    """Blocking. The `size` bytes at `offset`, fewer only where the file ends."""
    data = os.pread(descriptor, size, offset)
    if len(data) == size or not data:
        return data
    parts, got = [data], len(data)  # Linux stops at 2 GiB
    while got < size and (data := os.pread(descriptor, size - got, offset + got)):
        parts.append(data)
        got += len(data)
    return b"".join(parts)
