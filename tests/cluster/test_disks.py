"""Disks of real processes that stall or fill up: another node leads, nothing is lost, and the node comes back."""

from __future__ import annotations

import base64
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.cluster.processes import NodeProcess, Processes, Unanswered, processes, until

pytestmark = [
    pytest.mark.check,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting a file system needs root"),
]
VOTER = ("voter", "ready")
THREE = dict.fromkeys("abc", VOTER)
DISK_BYTES = 200 * 1024 * 1024


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=60)


@contextmanager
def freezable(home: Path) -> Iterator[Path]:
    """A file system of its own, at `home`. Thawed at the end, as a process that waits for it cannot be killed."""
    home.mkdir(parents=True)
    image = home.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    run("mkfs.ext4", "-q", str(image))
    run("mount", "-o", "loop", str(image), str(home))
    try:
        yield home
    finally:
        thaw(home)
        until(lambda: subprocess.run(["umount", str(home)], check=False, capture_output=True).returncode == 0, "umount")


def thaw(home: Path) -> None:
    subprocess.run(["fsfreeze", "-u", str(home)], check=False, capture_output=True, timeout=30)


@contextmanager
def small(home: Path) -> Iterator[Path]:
    """A file system in memory, at `home`, that is soon full."""
    home.mkdir(parents=True)
    run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(home))
    try:
        yield home
    finally:
        until(lambda: subprocess.run(["umount", str(home)], check=False, capture_output=True).returncode == 0, "umount")


def put(made: Processes, key: str, value: bytes) -> NodeProcess:
    """By whoever takes it; who that was."""

    def once() -> NodeProcess | None:
        for node in made.nodes.values():
            with suppress(Unanswered):
                status, _ = node.ask("PUT", f"/config/{key}", {"value": base64.b64encode(value).decode()}, seconds=2.0)
                if status == 200:
                    return node
        return None

    found = until(once, made.seen)
    assert isinstance(found, NodeProcess)
    return found


def get(node: NodeProcess, key: str) -> bytes | None:
    with suppress(Unanswered):
        status, body = node.ask("GET", f"/config/{key}", seconds=5.0)
        if status == 200:
            return base64.b64decode(body["entry"]["value"])
    return None


def led(made: Processes, name: str) -> NodeProcess:
    """Have this node lead."""
    made.found("abc")

    def once() -> NodeProcess | None:
        leader = made.leader()
        if leader is not None and leader.name != name:
            with suppress(Unanswered):
                leader.ask("POST", "/leader/transfer", {"node": name})
        return leader if leader is not None and leader.name == name else None

    found = until(once, made.seen)
    assert isinstance(found, NodeProcess)
    return found


def test_a_leader_whose_disk_stalls_is_replaced(tmp_path: Path) -> None:
    with processes(tmp_path) as made, freezable(tmp_path / "a"):
        leader = led(made, "a")
        run("fsfreeze", "-f", str(leader.home))
        try:
            with suppress(Unanswered):  # so that it has something to write
                leader.ask("PUT", "/config/stuck", {"value": ""}, seconds=0.5)
            other = made.until_leader(other_than="a")
            put(made, "k", b"v")
        finally:
            thaw(leader.home)
        made.until_members(THREE)
        until(lambda: get(leader, "k") == b"v", made.seen)
        assert other.name != "a"
        for node in made.nodes.values():
            node.kill()


def test_a_leader_whose_disk_is_full_is_replaced_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with processes(tmp_path) as made, small(tmp_path / "a"):
        leader = led(made, "a")
        filler = leader.home / "filler"
        fill(filler)
        deadline = time.monotonic() + 30.0
        number = 0
        while made.nodes["a"].status().get("raft") == "leader" and time.monotonic() < deadline:
            number += 1
            put(made, f"big{number % 8}", os.urandom(128 * 1024))
        other = made.until_leader(other_than="a")
        put(made, "k", b"v")
        filler.unlink()
        until(lambda: get(leader, "k") == b"v", made.seen)
        made.until_members(THREE)
        assert other.name != "a"
        for node in made.nodes.values():
            node.kill()


def test_a_follower_whose_disk_is_full_stops_nobody(tmp_path: Path) -> None:
    with processes(tmp_path) as made, small(tmp_path / "a"):
        led(made, "b")
        full = made.nodes["a"]
        fill(full.home / "filler")
        for number in range(60):
            put(made, f"big{number % 8}", os.urandom(128 * 1024))
        (full.home / "filler").unlink()
        put(made, "k", b"v")
        until(lambda: (full.is_up or full.start() or True) and get(full, "k") == b"v", made.seen)
        made.until_members(THREE)
        for node in made.nodes.values():
            node.kill()


def fill(path: Path) -> None:
    with path.open("wb") as file, suppress(OSError):
        while True:
            file.write(bytes(1024 * 1024))
            file.flush()
