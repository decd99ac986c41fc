"""A file system of our own from which the power can be taken while a child process writes to it.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMAGE_BYTES = 96 * 1024 * 1024
BALLAST_BYTES = 64 * 1024


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, home: Path) -> None:
        self.image, self.mount_point = home / "disk.img", home / "disk"
        self.mount_point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(self.image)], check=True)
        self.mount()

    def mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self.image), str(self.mount_point)], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", str(self.mount_point)], check=True)

    def cut_under(self, child: Path, *arguments: object) -> list[str]:
        """Run a child that cuts the power by itself, and come back up. Returns the lines that it said to their end."""
        ended = subprocess.run(
            [sys.executable, str(child), *map(str, arguments)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        self.unmount()
        self.mount()
        print(ended.stderr)  # a test that fails shows it
        # The cut may fall into a line; what was not said to its end was not said.
        return [line for line in ended.stdout.splitlines(keepends=True) if line.endswith("\n")]


def leave(disk: Disk, size: int) -> None:
    """Fill the disk, and give so much of it back."""
    path = disk.mount_point / "ballast"
    with path.open("ab", buffering=0) as ballast, pytest.raises(OSError, match="No space left"):
        while True:
            ballast.write(bytes(BALLAST_BYTES))
    os.truncate(path, max(0, path.stat().st_size - size))
    subprocess.run(["sync", "-f", str(path)], check=True)  # ext4 hands freed blocks out again after that
