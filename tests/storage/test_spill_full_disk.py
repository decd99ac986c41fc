"""A disk that is really full: appends wait, settling goes on, and nothing that was appended is lost.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

import shutil

import pytest

from conveyord.core.errors import StorageFull
from tests.storage.power_cut_rig import Disk
from tests.storage.spill_rig import GIGABYTE, batch, fill, meta, opened, value_of

FRAME_BYTES = 600_000
ROUNDS = 25


@pytest.mark.check
def test_a_queue_on_a_full_disk_drains_and_fills_again(disk: Disk) -> None:
    directory = disk.mount_point / "q"
    queue = opened(directory, budget=GIGABYTE, segment_bytes=4 * FRAME_BYTES)
    value, expected, refused = 0, 0, 0
    with (disk.mount_point / "ballast").open("wb") as ballast:  # until not one block is left
        for _ in range(ROUNDS):
            try:
                while True:
                    queue.append(meta(value), batch(value, size=FRAME_BYTES))
                    value += 1
            except StorageFull:
                refused += 1
            with pytest.raises(OSError, match="No space left"):
                while True:
                    ballast.write(bytes(4096))
                    ballast.flush()
            for _ in range(5):
                assert value_of(queue.read()) == expected
                expected += 1
            queue.settle(queue.settled + 5)
    assert refused == ROUNDS
    queue.close()
    assert shutil.disk_usage(disk.mount_point).free < 10 * FRAME_BYTES
    with opened(directory) as queue:
        assert (queue.settled, queue.last) == (expected, value)
        assert (queue.recovered.quarantined, queue.recovered.torn_bytes) == ((), 0)
        while (read := queue.read()) is not None:
            assert value_of(read) == expected
            expected += 1
        assert expected == value
        fill(queue, [value])
