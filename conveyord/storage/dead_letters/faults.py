"""What an error of SQLite or of the file system means here, decided in one place."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conveyord.core.errors import ConveyordError, Corrupt, Retryable, StorageFull

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
UNWRITABLE_ERRNOS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
DAMAGE_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
FULL_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
UNWRITABLE_CODES = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})
PRIMARY_CODE_MASK = 0xFF  # extended result codes of SQLite carry the primary one in their low byte


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise errors about `path` as StorageFull, Corrupt or Retryable, with a remedy."""
    try:
        yield
    except sqlite3.Error as error:
        raise _of_sqlite(error, path) or error from error
    except OSError as error:
        raise _of_system(error, path) from error


def damaged_index(index: Path, reason: object) -> Corrupt:
    """The index cannot be used, so that no letter can be found."""
    return Corrupt(
        f"{index}: the index of the dead letters is damaged ({reason}); restore the file from a backup, or move the "
        f"directory {index.parent} away to go on without its letters"
    )


def _of_sqlite(error: sqlite3.Error, path: Path) -> ConveyordError | None:
    extended = getattr(error, "sqlite_errorcode", None)
    if extended is None:  # a mistake of ours, such as a wrong number of parameters
        return None
    code = extended & PRIMARY_CODE_MASK
    if code in DAMAGE_CODES:
        return damaged_index(path, error)
    if code in FULL_CODES or extended in FULL_CODES:
        return StorageFull(f"{path}: {error}; free space and run again, no dead letter is lost")
    if code in UNWRITABLE_CODES:
        return StorageFull(f"{path}: {error}; make the file and its directory writable, then run again")
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR}:
        return Retryable(f"{path}: {error}; check the disk and what else uses this file, then run again")
    return damaged_index(path, error) if code == sqlite3.SQLITE_ERROR and "no such" in str(error) else None


def _of_system(error: OSError, path: Path) -> ConveyordError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in FULL_ERRNOS:
        return StorageFull(f"{path}: {reason}; free space and run again, no dead letter is lost")
    if error.errno in UNWRITABLE_ERRNOS:
        return StorageFull(f"{path}: {reason}; make it writable and run again")
    return Retryable(f"{path}: {reason}; check the disk and run again")
