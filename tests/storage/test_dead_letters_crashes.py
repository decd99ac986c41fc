"""A crash at any step: what was acknowledged is there and whole, and an operation happened entirely or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

from conveyord.storage.dead_letters import index
from conveyord.storage.dead_letters.letters import Selection
from tests.storage.dead_letters_rig import LANE, PIPELINE, held, letter, opened, queue, segments

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("dead_letters_child.py")
BUDGET_BYTES = 16 * 65_536  # segments of 64 KiB, so that a few letters fill one
KILLS = 25

Held = dict[int, tuple[str, bytes | None]]


class Disk:
    """Takes a copy of the directory before and after every step that a crash could come between.

    A copy is what a killed process leaves. In a second one the power went too: of the segments only what was
    synced is there, followed by zeros.
    """

    def __init__(self, data_dir: Path, copies: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.data_dir = data_dir
        self._copies = copies
        self._synced: dict[str, int] = {}
        self._last: object = None
        self.states: list[Path] = []
        for name in ("open", "pwrite", "fsync", "ftruncate"):
            monkeypatch.setattr(os, name, partial(self._call, getattr(os, name), name))
        unlink = Path.unlink
        monkeypatch.setattr(Path, "unlink", lambda path, **more: self._step(lambda: unlink(path, **more)))
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, *arguments: Any) -> Any:
                return disk._step(lambda: super(Connection, self).execute(*arguments))

            def executemany(self, *arguments: Any) -> Any:
                return disk._step(lambda: super(Connection, self).executemany(*arguments))

        monkeypatch.setattr(index.sqlite3, "connect", partial(sqlite3.connect, factory=Connection))

    def _call(self, function: Callable[..., Any], name: str, *arguments: Any, **more: Any) -> Any:
        ours = "segment-" in (str(arguments[0]) if name == "open" else os.readlink(f"/proc/self/fd/{arguments[0]}"))
        if not ours:
            return function(*arguments, **more)
        result = self._step(lambda: function(*arguments, **more))
        if name == "fsync":
            path = Path(os.readlink(f"/proc/self/fd/{arguments[0]}"))
            self._synced[path.name] = path.stat().st_size
        return result

    def _step(self, act: Callable[[], Any]) -> Any:
        self._copy()
        result = act()
        self._copy()
        return result

    def _unchanged(self, directory: Path) -> bool:
        files = {name: (directory / name).read_bytes() for name in os.listdir(directory) if not name.endswith("-shm")}
        last, self._last = self._last, (files, dict(self._synced))
        return last == self._last

    def _copy(self) -> None:
        directory = self.data_dir / "dead-letters"
        if not directory.exists() or self._unchanged(directory):
            return
        for kind in ("killed", "power"):
            copy = self._copies / f"{len(self.states):05d}"
            (copy / "dead-letters").mkdir(parents=True)
            for name in os.listdir(directory):
                target = copy / "dead-letters" / name
                target.write_bytes((directory / name).read_bytes())
                if kind == "power" and name.startswith("segment"):
                    whole, kept = target.stat().st_size, self._synced.get(name, 0)
                    target.write_bytes(target.read_bytes()[:kept] + bytes(max(whole - kept, 0)))
            self.states.append(copy)


def content(store: Any) -> Held:
    found = list(store.select())
    assert [stored.damage for stored in found if stored.damage] == []
    return {stored.letter.key.offset: (stored.state, stored.letter.raw) for stored in found}


def operations() -> list[Callable[[Any], object]]:
    big = "x" * 9_000
    return [
        lambda store: store.put([letter(1), letter(2)], 1),
        lambda store: store.put([letter(n, text=f"{n}{big}") for n in range(3, 14)], 2),  # fills a segment
        lambda store: store.put([letter(2, text="again"), letter(20, text=big)], 3),
        lambda store: queue(store, Selection(ids=(1, 3, 4))),
        lambda store: store.put([letter(3, text="failed again")], 4),
        lambda store: store.settle(LANE, 2, 5),
        lambda store: store.edit(store.newer_than(PIPELINE, 4, 1)[0].id, raw=b"mended"),
        lambda store: store.put([letter(n, text=f"new{n}") for n in range(5, 11)], 6),  # half of a segment is dead now
        lambda store: store.put([letter(30)], 7),
        lambda store: store.purge(Selection(ids=(2, 5))),
        lambda store: store.purge(Selection()),
        lambda store: store.put([letter(40)], 8),
    ]


def test_a_crash_at_any_step_leaves_the_state_before_or_after(data_dir: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(data_dir, tmp_path / "copies", patch)
        cases: list[tuple[list[Path], Held, Held]] = []
        with opened(data_dir, budget_bytes=BUDGET_BYTES) as store:
            for operation in operations():
                before, first = content(store), len(disk.states)
                operation(store)
                cases.append((disk.states[first:], before, content(store)))
    assert sum(len(states) for states, _, _ in cases) > 60
    for states, before, after in cases:
        for copy in states:
            check(copy, before, after)
            shutil.rmtree(copy)


def check(copy: Path, before: Held, after: Held) -> None:
    with opened(copy, budget_bytes=BUDGET_BYTES) as store:
        assert content(store) in (before, after), copy
        store.put([letter(99, text="goes on")], 9)
        assert store.get(store.last_id(PIPELINE)).letter.raw == b"goes on"
    with opened(copy, budget_bytes=BUDGET_BYTES) as store:
        kept = content(store)
        assert kept.pop(99) == ("dead", b"goes on")
        assert kept in (before, after)
        known = {name for (name,) in store._connected().execute("SELECT id FROM segments")}
        assert {int(path.stem.removeprefix("segment-")) for path in segments(copy)} == known


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"torn", bytes(range(256)) * 50])
def test_a_torn_tail_is_overwritten(data_dir: Path, tail: bytes) -> None:
    with opened(data_dir) as store:
        store.put([letter(1)], 1)
    with segments(data_dir)[0].open("ab") as file:
        file.write(tail)
    with opened(data_dir) as store:
        store.put([letter(2)], 2)
        assert held(store) == {1: b"raw 1", 2: b"raw 2"}
    assert len(segments(data_dir)) == 1


@pytest.mark.check
def test_no_acknowledged_letter_is_lost_by_sigkill(data_dir: Path) -> None:
    """A child puts, replaces, purges and compacts until it is killed; it says what it was told to be durable."""
    random = Random(7)
    acknowledged: dict[int, int] = {}
    for _ in range(KILLS):
        child = subprocess.Popen(
            [sys.executable, str(CHILD), str(data_dir)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        lines = random.randint(3, 60)
        for _ in range(lines):  # then it is somewhere in the put that follows
            offset, version = map(int, child.stdout.readline().split())
            acknowledged[offset] = version
        child.send_signal(signal.SIGKILL)
        for line in child.stdout.read().splitlines(keepends=True):
            if line.endswith("\n"):
                acknowledged.update([tuple(map(int, line.split()))])
        child.stdout.close()
        child.wait()
        with opened(data_dir, budget_bytes=BUDGET_BYTES) as store:
            found = {stored.letter.key.offset: stored for stored in store.select()}
            assert all(stored.damage is None for stored in found.values())
            for offset, version in acknowledged.items():
                raw = found[offset].letter.raw
                assert int(raw[:10]) >= version, f"record {offset}: version {version} was acknowledged"
                assert raw == raw[:10] * (len(raw) // 10)
    assert max(acknowledged.values()) > KILLS
