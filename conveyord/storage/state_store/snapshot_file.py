"""A snapshot as it is sent."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

from conveyord.storage.state_store.faults import damaged_snapshot, translated
from conveyord.storage.state_store.packing import unpack
from conveyord.storage.state_store.snapshot_head import read_head


class SnapshotFile:
    """A snapshot to be sent; a context manager. It can be read to its end although it is deleted meanwhile.

    Blocking, and usable from any thread. Nothing but the head is checked: whoever unpacks it checks the rest.
    """

    def __init__(self, path: Path) -> None:
        """Raises Corrupt for a file that is no snapshot or has a damaged head, Refused for a newer format."""
        self.path = path
        with translated(path, damaged=damaged_snapshot):
            self._file = path.open("rb", buffering=0)
            try:
                self.info, _ = read_head(path, self._file)
            except BaseException:
                self._file.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read_chunk(self, offset: int, bytes_max: int) -> bytes:
        """The bytes from `offset` on, at most `bytes_max`; none at the end."""
        with translated(self.path, damaged=damaged_snapshot):
            return os.pread(self._file.fileno(), bytes_max, offset)

    def verify(self) -> None:
        """Read the whole file, and raise Corrupt unless every byte of it is what was written."""
        unpack(self.path, None)
