"""What an error means for the dead letters."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from conveyord.core.errors import Corrupt
from conveyord.storage import sqlite_errors


def translated(path: Path) -> AbstractContextManager[None]:
    """Raise errors about `path` as StorageFull, Corrupt or Retryable, with a remedy."""
    return sqlite_errors.translated(path, damaged=partial(damaged_index, path), promise="no dead letter is lost")


def damaged_index(index: Path, reason: object) -> Corrupt:
    """The index cannot be used, so that no letter can be found."""
    return Corrupt(
        f"{index}: the index of the dead letters is damaged ({reason}); restore the file from a backup, or move the "
        f"directory {index.parent} away to go on without its letters"
    )
