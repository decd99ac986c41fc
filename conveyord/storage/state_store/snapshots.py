"""Takes snapshots of a state while entries are applied to it.

The copy is made by SQLite's backup API through a read-only connection that is in a read transaction from before the
first page to after the last. So all pages are of one mark, the applying thread never waits, and the copy never begins
anew, as it would with every write of another connection (https://www.sqlite.org/backup.html). The price is a WAL that
cannot be cut meanwhile. The copy is compressed and removed; for that time both are on the disk.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from conveyord.core.errors import Refused
from conveyord.storage.disk import make_durable_directories, sync_directory
from conveyord.storage.sqlite_errors import transaction
from conveyord.storage.state_store.faults import translated
from conveyord.storage.state_store.layout import STATE_FILE, Layout
from conveyord.storage.state_store.packing import pack
from conveyord.storage.state_store.reader import StateReader
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.snapshot_head import SnapshotInfo

SNAPSHOTS_KEPT = 2  # one is being sent while the next is taken
STEP_PAGES = 4_096  # 16 MiB between two moments at which the copying thread can be interrupted


class Snapshots:
    """Those that were taken of one state. Blocking; usable from any thread, but one `take` at a time."""

    def __init__(self, layout: Layout) -> None:
        """layout: of the store."""
        self._layout = layout

    def take(self, *, keep: int = SNAPSHOTS_KEPT) -> SnapshotInfo:
        """Take one of the state as it is, and remove all but the newest `keep`. Durable on return.

        The log may be compacted up to its mark then: not only is it on disk, but also the state that it was taken
        from, so that a node whose power fails never comes back with less than its log begins with. Raises StorageFull,
        with nothing left behind; Refused if no entry was applied yet.
        """
        layout = self._layout
        copy = layout.snapshots / "taking.db"
        with translated(layout.snapshots):
            make_durable_directories(layout.snapshots)
            try:
                with StateReader(layout.directory) as reader, transaction(reader.connection, "BEGIN"):
                    place = reader.place()
                    path = layout.snapshot(place.mark.index)
                    if path.exists():
                        with SnapshotFile(path) as taken:
                            return taken.info
                    with translated(layout.state(reader.generation)):
                        _copy(reader.connection, place, copy)
                    _sync(layout, reader.generation)
                info = self._publish(copy, path, place)
            finally:
                copy.unlink(missing_ok=True)
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

    def _publish(self, copy: Path, path: Path, place: Place) -> SnapshotInfo:
        temporary = path.with_suffix(".tmp")
        try:
            info = pack(copy, temporary, place)
            temporary.rename(path)
        except Exception:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
        return info


def _copy(connection: sqlite3.Connection, place: Place, target: Path) -> None:
    """Copy what the transaction of `connection` sees."""
    if place.mark.index == 0:
        raise Refused(f"{target.parent}: no entry is in the state yet, so there is nothing to take a snapshot of")
    target.unlink(missing_ok=True)
    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        copy.execute("PRAGMA journal_mode = OFF")  # nobody wants half of it
        copy.execute("PRAGMA synchronous = OFF")
        copy.execute("PRAGMA cache_size = 50")  # every page passes once; fewer stay in the processor's cache
        connection.backup(copy, pages=STEP_PAGES)


def _sync(layout: Layout, generation: int) -> None:
    """Put everything that was applied so far on disk.

    Only the WAL has to be synced: what is not in it any more is in the file, and was synced there first. The file
    itself is not opened, as closing it again would give up SQLite's locks on it.
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
