"""SIGKILL and power cuts at random moments, over and over in one directory: no frame is wrong, stale or out of order.

A killed process must not lose a frame that it had appended. A power cut may, from the end of the queue;
nothing that was settled or discarded comes back.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.storage.power_cut_rig import Disk

ROOT = Path(__file__).resolve().parents[2]
KILLS, CUTS = 40, 15
LIFE_SECONDS = 0.12  # a few hundred operations; the child's start is waited for and does not count


@dataclass
class Known:
    """What the children said of one queue: the value of every frame it may hold, and what was promised."""

    values: dict[int, int] = field(default_factory=dict)
    settled: int = 0
    settling: int = 0
    last_min: int = 0  # a killed process keeps at least so many
    quarantined: int = 0
    recovered: int = 0
    lost: int = 0
    operations: int = 0
    _recovered: list[int] = field(default_factory=list)

    def hear(self, line: str, *, may_lose: bool) -> None:
        word, *numbers = line.split()
        self.operations += 1
        getattr(self, f"_{word}")(*map(int, numbers), may_lose) if word == "opened" else self._note(word, numbers)

    def _opened(self, settled: int, last: int, quarantined: int, may_lose: bool) -> None:
        assert self.settled <= settled <= max(self.settling, self.settled)
        assert last <= max([settled, *self.values])
        if not may_lose:
            assert last >= max(self.last_min, settled)
            assert quarantined == 0
        self.quarantined += quarantined
        self.recovered += last - settled
        self.lost += max(self.last_min - last, 0)
        self.settled = self.settling = settled
        self.values = {number: value for number, value in self.values.items() if number <= last}
        self.last_min = last
        self._recovered = list(range(settled + 1, last + 1))

    def _note(self, word: str, numbers: list[str]) -> None:
        match word, *map(int, numbers):
            case "recovered", number, value:
                assert number == self._recovered.pop(0)
                assert self.values[number] == value
            case "working", *_:
                assert self._recovered == []
            case "appending", number, value:
                self.values[number] = value
            case "appended", number, _:
                self.last_min = number
            case "settling", number:
                self.settling = number
            case "settled", number:
                self.settled = number
            case "discarding", number:
                self.last_min = min(number, self.last_min)
            case "discarded", number:
                self.values = {known: value for known, value in self.values.items() if known <= number}
            case unknown:
                raise AssertionError(unknown)


def lines_of(directory: Path, life: int, *power: str) -> Iterator[str]:
    """What a child says until it is killed, after a random while of work, or until its disk is cut off."""
    command = [sys.executable, "-m", "tests.storage.spill_child", str(directory), str(life), *power]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stderr is not None
    end = float("inf")
    is_killed = False
    for line in child.stdout:
        yield line
        if line.startswith("working"):
            end = time.monotonic() + random.Random(life).uniform(0.005, LIFE_SECONDS)
        if not power and not is_killed and time.monotonic() > end:
            child.send_signal(signal.SIGKILL)
            is_killed = True
    said = child.stderr.read()
    code = child.wait()
    child.stdout.close()
    child.stderr.close()
    if not power:
        assert code == -signal.SIGKILL, said


def test_a_killed_process_loses_no_frame(tmp_path: Path) -> None:
    live(Known(), tmp_path / "q", lives=4)


@pytest.mark.check
def test_no_kill_of_many_loses_a_frame_or_makes_a_wrong_one(tmp_path: Path) -> None:
    known = Known()
    live(known, tmp_path / "q", lives=KILLS)
    assert known.settled > KILLS


def live(known: Known, directory: Path, *, lives: int) -> None:
    for life in range(lives):
        for line in lines_of(directory, life):
            known.hear(line, may_lose=False)
    assert known.operations > 20 * lives


@pytest.mark.check
def test_no_power_cut_brings_back_what_was_done_or_makes_a_wrong_frame(disk: Disk) -> None:
    known = Known()
    for life in range(CUTS):
        seconds = 0.05 + 0.04 * life
        for line in lines_of(disk.mount_point / "q", life, str(disk.mount_point), str(seconds)):
            known.hear(line, may_lose=True)
        disk.unmount()
        disk.mount()
    assert known.operations > 20 * CUTS
    assert known.recovered > 0
    assert known.lost > 0, "no cut took a frame: they prove little"
