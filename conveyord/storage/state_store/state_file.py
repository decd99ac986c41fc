"""The file of a state, read without SQLite while SQLite has it open.

When a process closes any descriptor of a file, it gives up all POSIX locks it has on that file, SQLite's among them
(https://www.sqlite.org/howtocorrupt.html, 2.2). So there is one descriptor of every state in this process, for as long
as any connection to it is open, and whoever has a connection has a `StateFile` too, closed after it.
"""

from __future__ import annotations

import os
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class _Open:
    descriptor: int
    users: int


_Key = tuple[int, int]  # device and inode: a path may be given to another file
_open: dict[_Key, _Open] = {}
_guard = threading.RLock()  # the end of a user that was not closed may come at any line of this thread


class StateFile:
    """A share of the descriptor of one file; usable from any thread. Letting go of the last share closes it."""

    def __init__(self, path: Path) -> None:
        """path: a state that exists. Raises OSError."""
        with _guard:
            status = path.stat()
            key = status.st_dev, status.st_ino
            if key not in _open:
                _open[key] = _Open(os.open(path, os.O_RDONLY | os.O_CLOEXEC), 0)
            _open[key].users += 1
            self.descriptor = _open[key].descriptor
            self._let_go = weakref.finalize(self, _let_go, key)

    def close(self) -> None:
        """Give the share back, after the connection that it goes with was closed."""
        self._let_go()


def _let_go(key: _Key) -> None:
    with _guard:
        _open[key].users -= 1
        if not _open[key].users:
            os.close(_open.pop(key).descriptor)
