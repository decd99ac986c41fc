"""Disks that are full, as root can make them: the process ends with a sentence, and the doctor says so before."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon.node_rig import run, start

pytestmark = pytest.mark.check
DISK_KILOBYTES = 1024


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system of its own")
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_KILOBYTES}k", "tmpfs", str(place)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("free_kilobytes", [0, 24, 124])
def test_a_disk_without_room_ends_the_start_with_a_sentence(tmp_path: Path, disk: Path, free_kilobytes: int) -> None:
    (disk / "other").write_bytes(bytes((DISK_KILOBYTES - free_kilobytes) * 1024))
    ended = start(tmp_path, "--data-dir", disk / "data").running.wait()
    ended.failed("free space|make it writable")


def test_doctor_sees_a_disk_in_memory_without_room(tmp_path: Path, disk: Path) -> None:
    ended = run(tmp_path, "doctor", "--data-dir", disk / "data", "--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    ended.orderly(1)
    assert "is on tmpfs, in memory" in ended.out
    assert "make room" in ended.out


def test_a_disk_that_is_read_only_is_told(tmp_path: Path, disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    ended = start(tmp_path, "--data-dir", disk / "data").running.wait()
    ended.failed("Read-only file system; make it writable")
