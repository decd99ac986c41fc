"""Takes snapshots of a state while entries are applied to it.

Between two applies the WAL is moved into the file, and a read-only connection begins a transaction. While that lasts,
no checkpoint writes anything that is newer than it (https://www.sqlite.org/wal.html, 2.1), so the file stays as it is,
and is compressed from where it lies: entries go to the WAL, which cannot be moved into it meanwhile.

The WAL cannot be moved as a whole while another reader is in a transaction that began before its last entry. Then
SQLite's backup makes a copy through the read-only connection, which is compressed and removed. As that connection is in
its transaction from before the first page to after the last, all are of one mark, and the copy never begins anew, as it
would with every write of another connection (https://www.sqlite.org/backup.html).
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path

from conveyord.core.errors import Refused
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.storage.disk import make_durable_directories, sync_directory
from conveyord.storage.state_store.faults import translated
from conveyord.storage.state_store.layout import STATE_FILE, Layout
from conveyord.storage.state_store.packing import pack, pack_open
from conveyord.storage.state_store.reader import StateReader
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.snapshot_file import SnapshotFile

SNAPSHOTS_KEPT = 2  # one is being sent while the next is taken
STEP_PAGES = 4_096  # 16 MiB between two moments at which the copying thread can be interrupted


class Snapshots:
    """Those that were taken of one state. Blocking; usable from any thread: one `take` waits for another."""

    def __init__(
        self,
        layout: Layout,
        between_applies: Callable[[], AbstractContextManager[bool]],
        syncing: Callable[[], AbstractContextManager[None]],
        taking: threading.Lock,
    ) -> None:
        """layout: of the store. between_applies: nothing is applied in it; whether all that was is in the file.

        syncing: an OSError in it is the end of the store. taking: of the store, held while one is taken.
        """
        self._layout = layout
        self._between_applies = between_applies
        self._syncing = syncing
        self._taking = taking

    def take(self, *, keep: int = SNAPSHOTS_KEPT) -> SnapshotInfo:
        """Take one of the state as it is, and remove all but the newest `keep`. Durable on return.

        The log may be compacted up to its mark then: not only is it on disk, but also the state that it was taken
        from, so that a node whose power fails never comes back with less than its log begins with. Raises StorageFull,
        with nothing left behind; Refused if no entry was applied yet, or the store has failed or was closed. If the
        state cannot be synced, the store has failed.
        """
        with self._taking:
            return self._take(keep)

    def take_open(self) -> SnapshotFile:
        """Likewise, and open it before the next one can remove it."""
        with self._taking:
            return SnapshotFile(self._layout.snapshot(self._take(SNAPSHOTS_KEPT).mark.index))

    def _take(self, keep: int) -> SnapshotInfo:
        layout = self._layout
        with translated(layout.snapshots):
            make_durable_directories(layout.snapshots)
            reader, place, is_in_file = self._begin()
            with reader:  # the transaction ends with it
                path = layout.snapshot(place.mark.index)
                if path.exists():
                    with SnapshotFile(path) as taken:
                        return taken.info
                with self._syncing():
                    _sync(layout, reader.generation)
                if is_in_file:
                    info = _publish(path, lambda target: pack_open(reader.file.descriptor, target, place))
                else:
                    info = self._take_copy(reader, path, place)
            for index in layout.all_snapshots()[max(keep, 1) :]:
                layout.snapshot(index).unlink()
        return info

    def newest(self, *, since: int = 0) -> SnapshotFile | None:
        """The one to send; None if there is none of entry `since` or later: then take one.

        since: where the log begins. After an install the newest one may be older than that, and a follower could not
        go on from it, but would ask for the same again. Raises Corrupt if its head is damaged.
        """
        index = max(self._layout.all_snapshots(), default=0)
        return SnapshotFile(self._layout.snapshot(index)) if index > 0 and index >= since else None

    def _begin(self) -> tuple[StateReader, Place, bool]:
        """A reader in a transaction, what that sees, and whether it is what the file has, and keeps until it ends."""
        with self._between_applies() as is_in_file:
            reader = StateReader(self._layout.directory)
            try:
                reader.connection.execute("BEGIN")
                place = reader.place()
                if place.mark.index == 0:
                    at = self._layout.snapshots
                    raise Refused(f"{at}: no entry is in the state yet, so there is nothing to take a snapshot of")
            except BaseException:
                reader.close()
                raise
            return reader, place, is_in_file

    def _take_copy(self, reader: StateReader, path: Path, place: Place) -> SnapshotInfo:
        copy = self._layout.snapshots / "taking.db"
        try:
            with translated(self._layout.state(reader.generation)):
                _copy(reader.connection, copy)
            return _publish(path, lambda target: pack(copy, target, place))
        finally:
            copy.unlink(missing_ok=True)


def _publish(path: Path, packed: Callable[[Path], SnapshotInfo]) -> SnapshotInfo:
    """Let `packed` write a snapshot, and give it its name."""
    temporary = path.with_suffix(".tmp")
    try:
        info = packed(temporary)
        temporary.rename(path)
    except Exception:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)
    return info


def _copy(connection: sqlite3.Connection, target: Path) -> None:
    """Copy what the transaction of `connection` sees."""
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")  # nobody wants half of it
        copy.execute("PRAGMA synchronous = OFF")
        copy.execute("PRAGMA cache_size = 50")  # every page passes once; fewer stay in the processor's cache
        connection.backup(copy, pages=STEP_PAGES)


def _sync(layout: Layout, generation: int) -> None:
    """Put everything that was applied so far on disk.

    Only the WAL has to be synced: what is not in it any more is in the file, and was synced there first. The file
    itself need not be.
    """
    wal = layout.generation(generation) / f"{STATE_FILE}-wal"
    try:
        descriptor = os.open(wal, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_directory(wal.parent)
        sync_directory(layout.directory)
    except FileNotFoundError:
        pass  # a switch to a later state, which is on disk, has removed this one
