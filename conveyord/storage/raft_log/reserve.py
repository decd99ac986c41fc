"""Space that is kept so that a node whose disk fills can still vote, and hand over what it leads."""

from __future__ import annotations

import os
from pathlib import Path

from conveyord.storage.disk import FULL_ERRNOS, sync_directory

RESERVE_BYTES = 16 * 1024 * 1024
"""The write at hand (a message's worth of entries), a checkpoint of a whole write-ahead log, and hundreds of votes."""

ROOM_FACTOR = 2  # as much again must be free before it is taken anew: else the two would take turns


class Reserve:
    """One preallocated file. Blocking; raises OSError, but for a full disk."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes
        self.is_there = False

    is_there: bool
    """Whether the space is set aside."""

    def make(self) -> bool:
        """Set the space aside, if it is not and there is room for twice as much. Returns whether it is."""
        if not self.is_there:
            self.is_there = self._is_whole() or self._allocate()
        return self.is_there

    def free(self) -> bool:
        """Give the space back to the disk. Returns whether there was any."""
        was_there, self.is_there = self.is_there, False
        if was_there:
            self._path.unlink(missing_ok=True)
            # File systems with a journal hand freed blocks out again when the journal is committed, not before.
            sync_directory(self._path.parent)
        return was_there

    def _is_whole(self) -> bool:
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        return found.st_size == self._size_bytes and found.st_blocks * 512 >= self._size_bytes

    def _allocate(self) -> bool:
        self._path.unlink(missing_ok=True)
        disk = os.statvfs(self._path.parent)
        if disk.f_bavail * disk.f_frsize < ROOM_FACTOR * self._size_bytes:
            return False
        try:
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(descriptor, 0, self._size_bytes)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            if error.errno not in FULL_ERRNOS:
                raise
            self._path.unlink(missing_ok=True)
            return False
        return True
