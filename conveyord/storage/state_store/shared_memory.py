"""Room for the file `-shm`, where SQLite keeps the index of a WAL, and which it maps into memory.

Where the disk has no room for a page of it, the process is killed by SIGBUS. SQLite writes one byte of each page
beforehand, which is not enough where blocks are smaller than pages, as ext4 has them below 512 MiB. So a state is
opened only where there is room, and takes it then.
"""

from __future__ import annotations

import os
from pathlib import Path

from conveyord.core.errors import StorageFull
from conveyord.core.units import format_bytes
from conveyord.storage.state_store.faults import translated

ROOM_BYTES = 1024 * 1024
SHM_BYTES = 256 * 1024  # for a WAL of 128 MiB
DESCRIPTORS = Path("/proc/self/fd")


def ensure_room(directory: Path) -> None:
    """Raise StorageFull if there is none for a state in `directory`, Retryable if the disk does not say.

    Others may take it at any time.
    """
    with translated(directory):
        found = os.statvfs(directory)
    free_bytes = found.f_bavail * found.f_frsize
    if found.f_blocks and free_bytes < ROOM_BYTES:  # some file systems tell nothing
        raise StorageFull(
            f"{directory}: {format_bytes(free_bytes)} are free on this disk, {format_bytes(ROOM_BYTES)} are needed at "
            "least; free space and run again, nothing that was agreed on is lost: the log has it"
        )


def take_room(state: Path) -> None:
    """Let the `-shm` of a state that is open in this process have its blocks. Raises OSError if there are none.

    By SQLite's own descriptor: if one of ours were closed, the process would give up all locks that SQLite has on it
    (https://www.sqlite.org/howtocorrupt.html, 2.2).
    """
    if not DESCRIPTORS.is_dir():
        return  # what has no /proc has SQLite's care alone
    wanted = os.stat(f"{state}-shm")  # noqa: PTH116
    for descriptor in map(int, os.listdir(DESCRIPTORS)):  # noqa: PTH208
        try:
            found = os.fstat(descriptor)
        except OSError:
            continue  # closed meanwhile, by another thread
        if os.path.samestat(found, wanted):
            os.posix_fallocate(descriptor, 0, SHM_BYTES)
            return
