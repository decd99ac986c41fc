"""How many bytes all queues of a process may keep on disk together."""

from __future__ import annotations

import threading


class SpillBudget:
    """Bytes of disk shared by the queues that are open. Thread-safe.

    What was on disk when a queue was opened is charged even beyond the limit: it is there already, and
    reading it is what makes room.
    """

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self._lock = threading.Lock()
        self._in_use = 0

    @property
    def in_use(self) -> int:
        return self._in_use

    @property
    def available(self) -> int:
        return max(self.bytes_max - self._in_use, 0)

    def reserve(self, size: int) -> bool:
        """Take `size` bytes, or nothing and False if so many are not left."""
        with self._lock:
            if self._in_use + size > self.bytes_max:
                return False
            self._in_use += size
            return True

    def charge(self, size: int) -> None:
        """Count `size` bytes that are on disk already."""
        with self._lock:
            self._in_use += size

    def release(self, size: int) -> None:
        """Give back `size` bytes."""
        with self._lock:
            assert size <= self._in_use, "gave back more than was taken"
            self._in_use -= size
