"""The process stops at every step of every operation: what is opened then is what was promised.

A step is one call that changes the file system. The process "dies" before it, after it, or, for a write,
in the middle; nothing it would do afterwards reaches the disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conveyord.storage.spill.queue import SpillQueue
from tests.storage.spill_rig import drain, files_of, fill, flip, frames_of, opened, segments, values_in

STEPS = ("open", "pwritev", "ftruncate", "fsync", "fdatasync", "unlink", "rename", "mkdir", "link")
STEPS_MAX = 500  # no scenario has so many; a sweep that does not end is a bug of the sweep


class Died(BaseException):
    """The process is gone: no handler of the code under test may catch this."""


class Mortal:
    """Counts the steps and stops at one of them. From then on every step fails."""

    def __init__(self, patched: pytest.MonkeyPatch, root: Path, *, at: int, how: str) -> None:
        self.count = 0
        self.dead = False
        self._at, self._how, self._root = at, how, str(root)
        for name in STEPS:
            patched.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **named: Any) -> Any:
            if name == "open" and not args[1] & (os.O_CREAT | os.O_TRUNC):
                return real(*args, **named)
            if self.dead:
                raise Died
            self.count += 1
            if self.count != self._at:
                return real(*args, **named)
            self.dead = True
            if self._how == "after":
                real(*args, **named)
            elif self._how == "middle" and name == "pwritev":
                descriptor, parts, offset = args
                whole = b"".join(parts)
                os.lseek(descriptor, offset, os.SEEK_SET)
                os.write(descriptor, whole[: len(whole) // 2])
            raise Died

        return step


def abandon(queue: SpillQueue | None) -> None:
    """Close the descriptors of a dead process's queue as the kernel would."""
    if queue is None:
        return
    for descriptor in (queue._writing, queue._ledger._descriptor):
        if descriptor is not None:
            os.close(descriptor)
    if queue._reading is not None:
        queue._reading[1].close()


class Told:
    """What the engine was told, and what it asked for last."""

    def __init__(self) -> None:
        self.queue: SpillQueue | None = None
        self.appended: list[int] = []  # values whose append returned, or was under way (then the last)
        self.is_sure = True
        self.settled = 0
        self.settling = 0
        self.base = 0  # number of the frame before appended[0]

    def append(self, value: int) -> None:
        self.is_sure = False
        self.appended.append(value)
        fill(self.queue, [value])
        self.is_sure = True

    def settle(self, number: int) -> None:
        self.settling = number
        self.queue.settle(number)
        self.settled = number


def life(told: Told, directory: Path) -> None:
    """Every operation: open, append with rolls, settle within and across segments, and up to the end."""
    told.queue = opened(directory)
    for value in range(9):
        told.append(value)
    assert [told.queue.read()[0] for _ in range(3)] == [1, 2, 3]
    for number in (1, 2, 6):
        told.settle(number)
    for value in range(9, 14):
        told.append(value)
    told.settle(14)
    told.append(14)
    told.settle(15)
    for value in range(15, 18):
        told.append(value)
    told.queue.close()
    told.queue = None


def sweep(scenario: Callable[[Path, pytest.MonkeyPatch, int, str], bool], how: str, tmp_path: Path) -> int:
    """Run `scenario` with a death at step 1, 2, 3 ... until it survives. Returns how many steps it has."""
    for at in range(1, STEPS_MAX):
        with pytest.MonkeyPatch.context() as patched:
            if not scenario(tmp_path / f"{how}-{at}", patched, at, how):
                return at - 1
    raise AssertionError("the sweep does not end")


@pytest.mark.parametrize("how", ["before", "middle", "after"])
def test_after_a_stop_anywhere_the_queue_holds_exactly_what_was_not_settled(tmp_path: Path, how: str) -> None:
    def scenario(directory: Path, patched: pytest.MonkeyPatch, at: int, how: str) -> bool:
        told = Told()
        with patched.context() as inner:
            mortal = Mortal(inner, tmp_path, at=at, how=how)
            try:
                life(told, directory)
            except Died:
                pass
        abandon(told.queue)
        with opened(directory) as queue:
            assert queue.recovered.quarantined == ()
            # What was being settled or appended may have been done or not; everything else is certain.
            assert queue.settled in {told.settled, told.settling}
            held = drain(queue)
            expected = told.appended[queue.settled :]
            assert held == expected or (not told.is_sure and held == expected[:-1])
            fill(queue, [1000])
            assert drain(queue) == [1000]
        assert values_in(directory) == [*held, 1000]
        return mortal.dead

    assert sweep(scenario, how, tmp_path) > 40


@pytest.mark.parametrize("how", ["before", "middle", "after"])
def test_a_stop_while_discarding_leaves_a_prefix(tmp_path: Path, how: str) -> None:
    def scenario(directory: Path, patched: pytest.MonkeyPatch, at: int, how: str) -> bool:
        queue = opened(directory)
        fill(queue, range(14))
        queue.settle(2)
        with patched.context() as inner:
            mortal = Mortal(inner, tmp_path, at=at, how=how)
            try:
                queue.discard_after(6)
            except Died:
                pass
        abandon(queue)
        held = values_in(directory)
        assert held == list(range(2, 2 + len(held)))
        assert 4 <= len(held) <= 12
        assert mortal.dead or len(held) == 4
        return mortal.dead

    assert sweep(scenario, how, tmp_path) >= 4


@pytest.mark.parametrize("how", ["before", "middle", "after"])
@pytest.mark.parametrize("damage", ["bit", "torn", "missing", "definition", "ledger"])
def test_a_stop_while_recovering_changes_nothing_about_what_comes_out(tmp_path: Path, damage: str, how: str) -> None:
    pristine = tmp_path / "pristine"
    with opened(pristine) as queue:
        fill(queue, range(14))
        queue.settle(1)
    paths = segments(pristine)
    digest = "b" if damage == "definition" else "a"
    if damage == "bit":
        flip(paths[1], frames_of(paths[1])[1][0] + 90)
    elif damage == "torn":
        os.truncate(paths[-1], paths[-1].stat().st_size - 10)
    elif damage == "missing":
        paths[1].unlink()
    elif damage == "ledger":
        (pristine / "ledger").unlink()
    expected = {
        "bit": [*range(1, 5)],
        "torn": [*range(1, 13)],
        "missing": [*range(1, 4)],
        "definition": [],
        "ledger": [*range(14)],
    }
    files = files_of(pristine)

    def scenario(directory: Path, patched: pytest.MonkeyPatch, at: int, how: str) -> bool:
        directory.mkdir()
        for name, content in files.items():
            (directory / name).write_bytes(content)
        with patched.context() as inner:
            mortal = Mortal(inner, tmp_path, at=at, how=how)
            try:
                opened(directory, digest=digest).close()
            except Died:
                pass
        with opened(directory, digest=digest) as queue:
            assert drain(queue) == expected[damage]
            fill(queue, [77])
        with opened(directory, digest=digest) as queue:
            assert drain(queue) == [*expected[damage], 77]
        return mortal.dead

    assert sweep(scenario, how, tmp_path) >= 2
