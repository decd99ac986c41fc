"""One owner per data directory: a second writer is refused, readers go beside it."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conveyord.core.errors import Refused, StorageFull


@contextmanager
def owned(data_dir: Path) -> Iterator[None]:
    """Hold `data_dir` as its only writer; create it if missing. Blocking.

    The lock is the kernel's, so it ends with the process however that dies; the file stays.
    Raises Refused if another process holds it, StorageFull if the directory cannot be written.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        remedy = "make it writable or pass --data-dir"
        raise StorageFull(f"data directory {data_dir}: {error.strerror}; {remedy}") from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip()
            raise Refused(
                f"data directory {data_dir} is in use by process {holder or 'unknown'}; "
                "wait for it, stop it, or pass another --data-dir"
            ) from error
        try:
            os.ftruncate(handle, 0)
            os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise StorageFull(f"data directory {data_dir}: {error.strerror}; free space and run again") from error
        yield
    finally:
        os.close(handle)
