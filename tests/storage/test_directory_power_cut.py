"""The power fails while files are committed to a directory: every acknowledged commit is there afterwards.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storage.directory_rig import KINDS, ROWS, Run, leftovers, offsets
from tests.storage.power_cut_rig import Disk

pytestmark = pytest.mark.check

CHILD = Path(__file__).with_name("directory_power_cut_child.py")
ROUNDS = 4


def cut_while_committing(disk: Disk, root: Path, kind: str, when: str) -> int:
    """Commit, cut `when` the child is told to, come back up. Returns how many commits were acknowledged."""
    said = disk.cut_under(CHILD, disk.mount_point, root, kind, when)
    return int(said[-1].split()[1])


def landed(root: Path, kind: str) -> int:
    """Assert that the directory is whole. Returns how many commits it holds."""
    run = Run(root, kind).open()
    try:
        assert offsets(root) == list(range(run.next_offset))
        assert not leftovers(root)
        return run.next_offset // ROWS
    finally:
        run.close()


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_power_cut_a_directory_is_whole_and_holds_every_acknowledged_commit(disk: Disk, kind: str) -> None:
    root, last = disk.mount_point / "out", 0
    for number in range(ROUNDS):
        acknowledged = cut_while_committing(disk, root, kind, f"{0.05 + 0.13 * number:.2f}")
        assert acknowledged >= last
        last = landed(root, kind)
        assert last >= acknowledged
    assert last > ROUNDS, (
        "nothing was committed beside the first of each run: the cuts came too early to prove anything"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_at_the_moment_of_acknowledgement_takes_nothing_back(disk: Disk, kind: str) -> None:
    root = disk.mount_point / "out"
    for number in (1, 2, 5):
        acknowledged = cut_while_committing(disk, root, kind, f"commit:{number}")
        assert acknowledged == number
        assert landed(root, kind) == number


def test_without_syncs_the_same_cut_takes_commits_back(disk: Disk) -> None:
    """The negative control: it shows that the cut loses what was not synced."""
    root = disk.mount_point / "out"
    assert cut_while_committing(disk, root, "parquet", "undurable:3") == 3
    assert not root.exists() or landed(root, "parquet") < 3
