"""Reads a state beside the thread that changes it."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from conveyord.core.errors import ConveyordError, Retryable
from conveyord.core.raft.types import Mark
from conveyord.storage.state_store.connections import connect_to_read
from conveyord.storage.state_store.faults import translated
from conveyord.storage.state_store.layout import Layout
from conveyord.storage.state_store.schema import Place, read_place, version_of
from conveyord.storage.state_store.state_file import StateFile

OPENINGS_MAX = 5  # a switch may remove what was just found; that it does so several times in a row is no accident


class StateReader:
    """A read-only connection, for the thread that makes it; a context manager.

    What several statements say fits together if they are in one transaction (`BEGIN` to `COMMIT`), however many
    entries are applied meanwhile; a long one makes the WAL grow. After a switch the connection still reads the former
    state: compare `generation` with the store's, or ask `is_current`, and open another one.

    file: the file below the connection.
    """

    def __init__(self, directory: Path) -> None:
        """directory: as the store has it. Raises Retryable if there is no state in it (yet)."""
        self._layout = Layout(directory)
        for _ in range(OPENINGS_MAX):
            self.generation = max(self._layout.generations(), default=0)
            path = self._layout.state(self.generation)
            if self.generation and path.is_file():
                try:
                    self._open(path)
                except ConveyordError:
                    if self.is_current():
                        raise
                else:
                    return
        raise self._no_state()

    def close(self) -> None:
        """Let go of the file."""
        self.connection.close()
        self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, path: Path) -> None:
        with translated(path):
            self.file = StateFile(path)
            try:
                self.connection = connect_to_read(path)
            except BaseException:
                self.file.close()
                raise
        try:
            with translated(path):
                if not version_of(self.connection):
                    raise self._no_state()  # it is being made
            self.place()  # not before does SQLite open all that it needs, by name
        except BaseException:
            self.close()
            raise

    def _no_state(self) -> Retryable:
        directory = self._layout.directory
        return Retryable(f"{directory}: there is no state to read; start the node that owns it, then ask again")

    def is_current(self) -> bool:
        """Whether no other state was switched to since."""
        return self.generation == max(self._layout.generations(), default=0)

    def place(self) -> Place:
        """The last entry in the state, and who was a member there: within a transaction, in what that one sees."""
        path = self._layout.state(self.generation)
        with translated(path):
            return read_place(self.connection, path)

    def mark(self) -> Mark:
        """The last entry in the state, likewise."""
        return self.place().mark
