"""What an error of SQLite, or of the file system around it, means: decided in one place for every database here."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from conveyord.core.errors import ConveyordError, Corrupt, Retryable, StorageFull

FULL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT})
UNWRITABLE_ERRNOS = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
DAMAGE_CODES = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
FULL_CODES = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE})
UNWRITABLE_CODES = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM})
PASSING_CODES = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR})
PRIMARY_CODE_MASK = 0xFF  # extended result codes of SQLite carry the primary one in their low byte


@contextmanager
def translated(path: Path, *, damaged: Callable[[object], Corrupt], promise: str) -> Iterator[None]:
    """Raise errors about `path` as StorageFull, Corrupt or Retryable, with a remedy.

    damaged: the error for a file that cannot be used, by the reason. promise: what a full disk does not take, such
    as `no dead letter is lost`. A mistake of ours, such as a wrong number of parameters, goes on as it is.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _of_sqlite(error, path, damaged, promise) or error from error
    except OSError as error:
        raise _of_system(error, path, promise) from error


@contextmanager
def transaction(connection: sqlite3.Connection, begin: str = "BEGIN IMMEDIATE") -> Iterator[sqlite3.Connection]:
    """One transaction: all of it is there on return, or nothing of it happened."""
    connection.execute(begin)
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:  # SQLite has rolled back by itself after some errors
            connection.execute("ROLLBACK")
        raise


def _of_sqlite(
    error: sqlite3.Error, path: Path, damaged: Callable[[object], Corrupt], promise: str
) -> ConveyordError | None:
    extended = getattr(error, "sqlite_errorcode", None)
    if extended is None:
        return None
    code = extended & PRIMARY_CODE_MASK
    if code in DAMAGE_CODES:
        return damaged(error)
    if code in FULL_CODES or extended in FULL_CODES:
        return StorageFull(f"{path}: {error}; free space and run again, {promise}")
    if code in UNWRITABLE_CODES:
        return StorageFull(f"{path}: {error}; make the file and its directory writable, then run again")
    if code in PASSING_CODES:
        return Retryable(f"{path}: {error}; check the disk and what else uses this file, then run again")
    return damaged(error) if code == sqlite3.SQLITE_ERROR and "no such" in str(error) else None


def _of_system(error: OSError, path: Path, promise: str) -> ConveyordError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in FULL_ERRNOS:
        return StorageFull(f"{path}: {reason}; free space and run again, {promise}")
    if error.errno in UNWRITABLE_ERRNOS:
        return StorageFull(f"{path}: {reason}; make it writable and run again")
    return Retryable(f"{path}: {reason}; check the disk and run again")
