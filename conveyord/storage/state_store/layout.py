"""What lies in the directory of a state store, and what a crash may leave there.

    generation-00000007/state.db   the state, with SQLite's -wal and -shm beside it; the highest number counts
    staged-00000000000000001234/state.db   a checked snapshot of that index which may be switched in, on disk whole
    building-*                     something of the above that is being made
    incoming/<digest>.partial      a snapshot that is being received
    snapshots/00000000000000001234.snapshot   one that was taken here; `.db` and `.tmp` are used on the way

Every state has a directory of its own, and a switch is the rename of a directory. Were the file renamed over the old
one, the old WAL would lie beside the new state for a moment, and SQLite would play it into the new one after a crash.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from conveyord.storage.disk import sync_directory

STATE_FILE = "state.db"
_GENERATION, _STAGED, _BUILDING, _SNAPSHOT = "generation-", "staged-", "building-", ".snapshot"


@dataclass(frozen=True, slots=True)
class Layout:
    """Names below `directory`. Nothing is created but by what says so."""

    directory: Path

    @property
    def incoming(self) -> Path:
        """Where received bytes gather."""
        return self.directory / "incoming"

    @property
    def snapshots(self) -> Path:
        """Where snapshots that were taken here lie."""
        return self.directory / "snapshots"

    def generation(self, number: int) -> Path:
        """The directory of one state."""
        return self.directory / f"{_GENERATION}{number:08}"

    def state(self, number: int) -> Path:
        """The file of one state."""
        return self.generation(number) / STATE_FILE

    def staged(self, index: int) -> Path:
        """The directory of a snapshot that is ready to be switched in."""
        return self.directory / f"{_STAGED}{index:020}"

    def building(self, index: int) -> Path:
        """The directory in which one is made."""
        return self.directory / f"{_BUILDING}{index:020}"

    def snapshot(self, index: int) -> Path:
        """The file of a snapshot that was taken here."""
        return self.snapshots / f"{index:020}{_SNAPSHOT}"

    def partial(self, digest: bytes) -> Path:
        """The file in which the bytes of one snapshot gather."""
        return self.incoming / f"{digest.hex()}.partial"

    def generations(self) -> list[int]:
        """The numbers of all states, oldest first: more than one after a crash only."""
        return sorted(_numbers(self.directory, _GENERATION, ""))

    def all_staged(self) -> list[int]:
        """The indices of what is ready to be switched in, in order."""
        return sorted(_numbers(self.directory, _STAGED, ""))

    def all_snapshots(self) -> list[int]:
        """The indices of the snapshots that were taken here, newest first."""
        return sorted(_numbers(self.snapshots, "", _SNAPSHOT), reverse=True)

    def clear(self) -> None:
        """Remove what a crash left half done. Nothing that is being received: it goes on from where it was."""
        for path in [*self.directory.glob(f"{_BUILDING}*")]:
            shutil.rmtree(path)
        for path in (*self.snapshots.glob("*.db"), *self.snapshots.glob("*.tmp")):
            path.unlink()
        for number in self.generations()[:-1]:
            shutil.rmtree(self.generation(number))

    def discard_staged(self, *, up_to: int | None = None) -> None:
        """Remove what waits to be switched in: all of it, or that up to an index. What cannot be removed stays."""
        for index in self.all_staged():
            if up_to is None or index <= up_to:
                shutil.rmtree(self.staged(index), ignore_errors=True)

    def promote(self, index: int) -> int:
        """Make the snapshot that is staged at `index` the state, atomically and durably. Returns its generation.

        The former generation stays, for the caller to remove once nothing of this process has it open.
        """
        number = max(self.generations(), default=0) + 1
        self.staged(index).rename(self.generation(number))
        sync_directory(self.directory)
        return number


def _numbers(directory: Path, prefix: str, suffix: str) -> Iterator[int]:
    paths = directory.iterdir() if directory.is_dir() else ()
    for name in (path.name for path in paths):
        if name.startswith(prefix) and name.endswith(suffix):
            digits = name[len(prefix) : len(name) - len(suffix)]
            if digits.isascii() and digits.isdigit():
                yield int(digits)
