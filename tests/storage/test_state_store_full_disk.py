"""A disk that is really full, in steps of less than a page: a state refuses, and is what it was when there is room.

SQLite maps the index of its WAL into memory. A page of it without a block kills the process (SIGBUS), which ext4 has
where its blocks are smaller than pages, as on this small disk. So each attempt is a process of its own.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from conveyord.core.errors import StorageFull
from conveyord.daemon.doctor.directory import look_at_directory
from tests.storage.kv_state import advance, open_store
from tests.storage.power_cut_rig import Disk, leave

pytestmark = pytest.mark.check
REFUSED, APPLIED = 3, 4
ENTRIES = 300
ROOM_BYTES = 16 * 1024 * 1024
KIB = 1024
FRAMES = 4_062  # of the first block of the index (https://www.sqlite.org/walformat.html, 2.3)
FRAME_BYTES = 24 + 4096


def attempt(directory: Path) -> None:
    """In a process of its own."""
    try:
        with closing(open_store(directory)) as store:
            for upto in range(store.mark.index + 10, ENTRIES + 1, 10):
                advance(store, upto)
    except StorageFull:
        os._exit(REFUSED)
    os._exit(APPLIED)


def attempt_open(disk: Disk, directory: Path, left_bytes: int) -> None:
    """In a process of its own: the disk fills as a WAL that a reader lets grow is to have another block of index."""
    with closing(open_store(directory)) as store, store.reader() as reader:
        advance(store, 5)
        reader.connection.execute("BEGIN")
        reader.place()
        wal = Path(f"{store.path}-wal")
        while wal.stat().st_size < (FRAMES - 20) * FRAME_BYTES:
            advance(store, store.mark.index + 1)
        leave(disk, left_bytes)
        try:
            for _ in range(20):
                advance(store, store.mark.index + 1)
        except StorageFull:
            os._exit(REFUSED)
    os._exit(APPLIED)


@pytest.mark.parametrize(
    ("what", "left_bytes"),
    [
        ("made", range(0, 1500 * KIB, 18 * KIB)),
        ("opened", range(0, 1500 * KIB, 18 * KIB)),
        ("open", (*range(0, 120 * KIB, 3 * KIB), 4_000 * KIB)),
    ],
    ids=["made", "opened", "open"],
)
def test_no_room_ends_no_process(disk: Disk, what: str, left_bytes: Sequence[int]) -> None:
    ended = []
    for left in left_bytes:
        directory = disk.mount_point / f"{what}-{left}"
        if what == "opened":
            with closing(open_store(directory)) as store:
                advance(store, 5)
        target, arguments = attempt_open, (disk, directory, left)
        if what != "open":
            leave(disk, left)
            target, arguments = attempt, (directory,)
        process = multiprocessing.get_context("forkserver").Process(target=target, args=arguments)
        process.start()
        process.join(60)
        ended.append(process.exitcode)
        ballast = disk.mount_point / "ballast"
        os.truncate(ballast, ballast.stat().st_size - ROOM_BYTES)
        with closing(open_store(directory)) as store:
            advance(store, max(ENTRIES, store.mark.index + 10))
        shutil.rmtree(directory)
    assert set(ended) == {REFUSED, APPLIED}
    assert ended[-1] == APPLIED


def test_doctor_says_so_before(disk: Disk) -> None:
    found = {one.check: one for one in look_at_directory(disk.mount_point, election_seconds=1.0)}["file system"]
    assert found.verdict == "warning"
    assert "is on ext4 with blocks of 1024 bytes" in found.found
    assert "mkfs.ext4 -b 4096" in found.remedy
