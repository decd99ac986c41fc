"""A disk that is really full, in steps of less than a page: a state refuses, and is what it was when there is room.

SQLite maps the index of its WAL into memory. A page of it without a block kills the process (SIGBUS), which ext4 has
where its blocks are smaller than pages, as on this small disk. So each attempt is a process of its own.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from contextlib import closing
from pathlib import Path

import pytest

from conveyord.core.errors import StorageFull
from conveyord.daemon.doctor.directory import look_at_directory
from tests.storage.kv_state import advance, open_store
from tests.storage.power_cut_rig import Disk, leave

pytestmark = pytest.mark.check
REFUSED, APPLIED = 3, 4
STEP_BYTES = 18 * 1024
ENTRIES = 300
ROOM_BYTES = 8 * 1024 * 1024


def attempt(directory: Path) -> None:
    """In a process of its own."""
    try:
        with closing(open_store(directory)) as store:
            for upto in range(store.mark.index + 10, ENTRIES + 1, 10):
                advance(store, upto)
    except StorageFull:
        os._exit(REFUSED)
    os._exit(APPLIED)


@pytest.mark.parametrize("what", ["made", "opened"])
def test_no_room_ends_no_process(disk: Disk, what: str) -> None:
    ended = []
    for step in range(85):
        directory = disk.mount_point / f"{what}-{step}"
        if what == "opened":
            with closing(open_store(directory)) as store:
                advance(store, 5)
        leave(disk, step * STEP_BYTES)
        process = multiprocessing.get_context("forkserver").Process(target=attempt, args=(directory,))
        process.start()
        process.join(60)
        ended.append(process.exitcode)
        ballast = disk.mount_point / "ballast"
        os.truncate(ballast, ballast.stat().st_size - ROOM_BYTES)
        with closing(open_store(directory)) as store:
            advance(store, ENTRIES)
        shutil.rmtree(directory)
    assert set(ended) == {REFUSED, APPLIED}
    assert ended[-1] == APPLIED


def test_doctor_says_so_before(disk: Disk) -> None:
    found = {one.check: one for one in look_at_directory(disk.mount_point, election_seconds=1.0)}["file system"]
    assert found.verdict == "warning"
    assert "is on ext4 with blocks of 1024 bytes" in found.found
    assert "mkfs.ext4 -b 4096" in found.remedy
