"""A file system of our own from which the power can be taken while a child process writes to it.

Needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
IMAGE_BYTES = 96 * 1024 * 1024


class Disk:
    """An ext4 file system in a file."""

    def __init__(self, home: Path) -> None:
        self.image, self.mount_point = home / "disk.img", home / "disk"
        self.mount_point.mkdir()
        with self.image.open("wb") as file:
            file.truncate(IMAGE_BYTES)
        subprocess.run(["mkfs.ext4", "-q", str(self.image)], check=True)
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
