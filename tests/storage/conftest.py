"""Fixtures of storage tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.storage.power_cut_rig import Disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system whose power can be cut."""
    if os.geteuid() != 0:
        pytest.fail("power-cut tests mount a file system and need root: run `make check` as root")
    disk = Disk(tmp_path)
    try:
        yield disk
    finally:
        disk.unmount()
