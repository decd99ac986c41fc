"""The power goes, or the process is killed, at any moment: what was acknowledged is there, and nothing was invented.

The power cut needs root and a kernel that mounts ext4 on a loop device.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.storage.power_cut_rig import ROOT, Disk
from tests.storage.raft_log_rig import Contents, Model, found, model_of, next_step

CHILD = Path(__file__).with_name("raft_log_child.py")
CUTS = 100
KILLS = 20
KILLED_AFTER_LINES = 60


def possible(start: Contents, seed: int, said: list[str]) -> list[Contents]:
    """What a log may hold of which these lines were said: all that was acknowledged, and what was being written."""
    model, random = model_of(start), Random(str(seed))
    for _ in said[1:]:
        next_step(random, model)
    acknowledged = model.contents()
    if said:
        next_step(random, model)
    return [acknowledged, model.contents()]


@pytest.mark.check
def test_after_a_hundred_power_cuts_a_log_is_what_was_acknowledged(disk: Disk) -> None:
    directory, held, steps = disk.mount_point / "raft", Model().contents(), 0
    directory.mkdir()
    moments = Random(1)
    for seed in range(CUTS):
        said = disk.cut_under(CHILD, directory, seed, disk.mount_point, moments.choice((0, 0.01, 0.03, 0.1)))
        right = possible(held, seed, said)
        held = found(directory)
        assert held in right, f"cut {seed}, after {len(said) - 1} steps"
        steps += len(said)
    assert steps > 5 * CUTS, "hardly anything was written: the cuts came too early"


@pytest.mark.check
def test_without_syncs_the_same_cut_shows(disk: Disk) -> None:
    """The negative control."""
    wrong = 0
    for seed in range(5):
        directory = disk.mount_point / f"raft-{seed}"
        said = disk.cut_under(CHILD, directory, seed, disk.mount_point, 0.2, "careless")
        try:
            wrong += found(directory) not in possible(Model().contents(), seed, said)
        except Exception:  # noqa: BLE001 - however a log fails that lost its pages
            wrong += 1
    assert wrong


@pytest.mark.check
def test_after_each_of_many_kills_a_log_is_what_was_acknowledged(tmp_path: Path) -> None:
    held, moments = Model().contents(), Random(2)
    for seed in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, str(CHILD), str(tmp_path), str(seed)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        with child:
            assert child.stdout is not None
            said = [child.stdout.readline() for _ in range(moments.randint(1, KILLED_AFTER_LINES))]
            child.kill()
            said += [line for line in child.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        right = possible(held, seed, said)
        held = found(tmp_path)
        assert held in right, f"kill {seed}, after {len(said) - 1} steps"
