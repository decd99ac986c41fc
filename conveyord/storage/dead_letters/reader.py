"""Reads dead letters beside whoever writes them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from types import TracebackType
from typing import Self

from conveyord.storage.dead_letters.index import open_to_read
from conveyord.storage.dead_letters.queries import LetterQueries


class DeadLetterReader(LetterQueries):
    """The dead letters of one data directory, read-only; a context manager. Takes no lock and creates nothing.

    Without letters, or without the directory, it is empty, and sees the first letter when that comes.
    """

    def __init__(self, data_dir: Path) -> None:
        super().__init__(data_dir)
        self._opened: sqlite3.Connection | None = None

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connected(self) -> sqlite3.Connection | None:
        if self._opened is None:
            self._opened = open_to_read(self._directory)
        return self._opened
