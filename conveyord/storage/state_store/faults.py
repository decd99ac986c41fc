"""What an error means for the state of a node, or for a snapshot."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from conveyord.core.errors import Corrupt
from conveyord.storage import sqlite_errors


def damaged_state(path: Path, reason: object) -> Corrupt:
    """A state cannot be used."""
    return Corrupt(
        f"{path}: the state is damaged ({reason}); move the directory {path.parent} away and start the node again: the "
        "state is made anew from the last snapshot and the log"
    )


def damaged_snapshot(path: Path, reason: object) -> Corrupt:
    """The file of a snapshot, or what was unpacked from it, cannot be used."""
    return Corrupt(f"{path}: this snapshot is damaged ({reason}); delete it: another is taken, or asked for")


def translated(
    path: Path, *, damaged: Callable[[Path, object], Corrupt] = damaged_state
) -> AbstractContextManager[None]:
    """Raise errors about `path` as StorageFull, Corrupt or Retryable, with a remedy."""
    return sqlite_errors.translated(
        path, damaged=partial(damaged, path), promise="nothing that was agreed on is lost: the log has it"
    )
