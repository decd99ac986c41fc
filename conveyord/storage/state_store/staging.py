"""A snapshot becomes a state that can be switched to: unpacked aside, checked, and on disk before it has its name."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from conveyord.core.errors import Corrupt
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import Mark
from conveyord.storage.disk import sync_directory
from conveyord.storage.state_store.connections import connect_to_read
from conveyord.storage.state_store.faults import damaged_snapshot, translated
from conveyord.storage.state_store.layout import STATE_FILE, Layout
from conveyord.storage.state_store.packing import unpack
from conveyord.storage.state_store.schema import Migration, Place, check_version, read_place


def stage(layout: Layout, snapshot: Path, info: SnapshotInfo, migrations: Sequence[Migration]) -> None:
    """Blocking. Unpack `snapshot`, which is to be `info`, so that a store can switch to it; durable on return.

    Raises Corrupt if it is not what it says, Refused if a newer conveyord made it, StorageFull if there is no room for
    it unpacked. Nothing is staged then. One that is staged for this index already stays: it may be what the log has
    installed, and there is one state for every index.
    """
    building, staged = layout.building(info.mark.index), layout.staged(info.mark.index)
    try:
        with translated(building):
            shutil.rmtree(building, ignore_errors=True)
            building.mkdir()
            state = building / STATE_FILE
            if unpack(snapshot, state) != info:
                raise damaged_snapshot(snapshot, "it is another one than was offered")
            with ThreadPoolExecutor(1) as thread:
                syncing = thread.submit(_sync, state)  # the disk writes while the processor checks
                _check(snapshot, state, Place(info.mark, info.membership), migrations)
                syncing.result()
            sync_directory(building)
            if staged.exists():
                shutil.rmtree(building)
            else:
                building.rename(staged)
            sync_directory(layout.directory)
    except Exception:
        shutil.rmtree(building, ignore_errors=True)
        raise


def check_staged(layout: Layout, mark: Mark) -> None:
    """Raise Corrupt unless the snapshot of exactly this mark is staged. Its tables were checked when it was."""
    state = layout.staged(mark.index) / STATE_FILE
    if not state.is_file():
        raise damaged_snapshot(state, f"no snapshot of entry {mark.index} is there")
    with translated(state, damaged=damaged_snapshot), closing(connect_to_read(state, immutable=True)) as connection:
        found = read_place(connection, state).mark
    if found != mark:
        raise damaged_snapshot(state, f"it is of entry {found.index} of term {found.term}, not of {mark.term}")


def _check(snapshot: Path, state: Path, place: Place, migrations: Sequence[Migration]) -> None:
    """Its digest says that it is what the sender had; this, that the sender had something that can be used."""
    with translated(snapshot, damaged=damaged_snapshot), closing(connect_to_read(state, immutable=True)) as connection:
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise damaged_snapshot(snapshot, verdict)
        check_version(connection, snapshot, migrations)
        found = _place_or_none(connection, state)
    if found != place:
        raise damaged_snapshot(snapshot, f"what is in it is of {found and found.mark}, not of {place.mark}")


def _place_or_none(connection: sqlite3.Connection, state: Path) -> Place | None:
    try:
        return read_place(connection, state)
    except (sqlite3.OperationalError, Corrupt):  # a database, but no state
        return None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
