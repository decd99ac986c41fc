"""The power fails while batches are committed: every acknowledged one is in the table afterwards.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyord.storage.lake.catalog import FILE_IO, open_embedded
from tests.storage.lake_rig import NAME, assert_exactly_once, files_on_disk, files_reachable
from tests.storage.power_cut_rig import Disk

CHILD = Path(__file__).with_name("power_cut_child.py")
ROUNDS = 6


def cut_while_committing(disk: Disk, data_dir: Path, file_io: str, when: float | str) -> int:
    """Commit, cut `when` the child is told to, come back up. Returns the last batch that was acknowledged."""
    said = disk.cut_under(CHILD, disk.mount_point, data_dir, file_io, when)
    return int(said[-1].split()[1])


def is_whole(data_dir: Path, acknowledged: int) -> bool:
    catalog = open_embedded(data_dir)
    try:
        table = catalog.load_table(NAME)
        landed = assert_exactly_once(table)
        return landed >= acknowledged and files_reachable(table) <= files_on_disk(table)
    finally:
        catalog.close()  # or the file system stays busy


@pytest.mark.check
def test_after_a_power_cut_the_table_is_whole_and_holds_every_acknowledged_batch(disk: Disk) -> None:
    data_dir = disk.mount_point / "data"
    last = 0
    for number in range(ROUNDS):
        acknowledged = cut_while_committing(disk, data_dir, FILE_IO, 0.1 + 0.17 * number)
        assert acknowledged >= last
        assert is_whole(data_dir, acknowledged)
        last = acknowledged
    assert last > ROUNDS, "hardly anything was committed: the cuts came too early to prove anything"


@pytest.mark.check
def test_a_cut_at_the_moment_of_acknowledgement_takes_nothing_back(disk: Disk) -> None:
    data_dir = disk.mount_point / "data"
    for number in range(2, 5):
        acknowledged = cut_while_committing(disk, data_dir, FILE_IO, f"batch:{number}")
        assert acknowledged == number
        assert is_whole(data_dir, acknowledged)


@pytest.mark.check
def test_with_sqlites_own_settings_an_acknowledged_commit_is_taken_back(disk: Disk) -> None:
    """Why the embedded catalog is opened with `synchronous = EXTRA`."""
    data_dir = disk.mount_point / "data"
    acknowledged = cut_while_committing(disk, data_dir, FILE_IO, "undurable-catalog:3")
    assert acknowledged == 3
    assert not is_whole(data_dir, acknowledged)


@pytest.mark.check
def test_without_our_file_io_the_same_cut_breaks_the_table(disk: Disk) -> None:
    """The negative control: it shows that the cut loses what was not synced."""
    broken = 0
    for number in range(ROUNDS):
        data_dir = disk.mount_point / f"data-{number}"
        plain = "pyiceberg.io.pyarrow.PyArrowFileIO"
        acknowledged = cut_while_committing(disk, data_dir, plain, 0.3)
        try:
            broken += not is_whole(data_dir, acknowledged)
        except Exception:  # noqa: BLE001 - however a reader fails on a table that lost its files
            broken += 1
    assert broken > ROUNDS // 2, "most cuts did no harm: the other test proves little on this machine"
