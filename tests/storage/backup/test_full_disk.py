"""Real file systems that are full: what was there stays, and nothing half is left.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from conveyord.core.errors import StorageFull
from conveyord.storage.backup.backups import open_backups
from conveyord.storage.backup.recovering import recover
from conveyord.storage.backup.restoring import restore
from conveyord.storage.backup.switching import refuse_unfinished
from tests.storage.backup.rig import ABOUT, made, make_node, script, snapshot_of, start
from tests.storage.backup.test_backups import at
from tests.storage.backup.test_restore import node_content
from tests.storage.power_cut_rig import BALLAST_BYTES, Disk, leave

pytestmark = pytest.mark.check


def test_a_backup_that_finds_no_room_leaves_the_others(disk: Disk, tmp_path: Path) -> None:
    home = disk.mount_point / "backups"
    backups = open_backups(home.as_uri(), {})
    with snapshot_of(tmp_path / "taken", script(3_000)) as snapshot:
        whole = backups.create(snapshot, ABOUT)
        leave(disk, 16 * 1024)
        with pytest.raises(StorageFull, match="free space, or remove old backups"):
            for second in range(1, 9):
                backups.create(snapshot, at(second))
        (disk.mount_point / "ballast").unlink()
    listed = backups.list()
    assert whole in [one.manifest for one in listed]
    assert all(one.manifest is not None for one in listed)
    assert all(backups.fetch(one.id, tmp_path / "copy") for one in listed)
    assert not list(home.glob("*.tmp"))


@pytest.mark.parametrize("what", ["restore", "recover"])
def test_without_room_nothing_is_replaced(disk: Disk, tmp_path: Path, what: str) -> None:
    backups, manifest = made(tmp_path, script(3_000))
    data = make_node(disk.mount_point / "data", script(3_000), applied=100)
    before = node_content(data)

    def act() -> None:
        if what == "recover":
            recover(data, "h1", actor="someone", at_ms=1)
        else:
            restore(
                backups, manifest.id, data, node="a", new_history="h1", expect_cluster=None, force=True,
                actor="someone", at_ms=1,
            )  # fmt: skip

    refused = 0
    for left in range(40):
        leave(disk, left * BALLAST_BYTES)
        try:
            act()
        except StorageFull:
            refused += 1
            refuse_unfinished(data)
            assert node_content(data) == before
            (disk.mount_point / "ballast").unlink()
        else:
            break
    assert refused > 2
    (disk.mount_point / "ballast").unlink()
    assert start(data).history == "h1"
    assert len(start(data).config) == 1_000
