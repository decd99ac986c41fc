"""Whether a data directory can keep what a node promises."""

from __future__ import annotations

import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from conveyord.core.units import format_bytes
from conveyord.daemon.doctor.findings import Finding

FREE_BYTES_MIN = 64 * 1024**2  # the log's reserve and a snapshot of a small state
FREE_BYTES_WISHED = 1024**3
SYNCS = 20
SYNC_BYTES = 4096
SYNC_SECONDS_WISHED = 0.02  # a write of the cluster waits for one of them at most nodes
NETWORK = frozenset(
    {"9p", "afs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3", "smbfs"}
)
MEMORY = frozenset({"ramfs", "tmpfs"})


def look_at_directory(data_dir: Path, *, election_seconds: float) -> Iterator[Finding]:
    """Blocking: writes a small file some times, and removes it. Nothing else is made or changed."""
    place = _existing(data_dir)
    if not place.is_dir():
        yield Finding("data directory", "wrong", f"{place} is no directory", "name another one with --data-dir")
        return
    will = "" if place == data_dir else f"; {data_dir} will be made below it"
    try:
        seconds = _sync_seconds(place)
    except OSError as error:
        yield Finding(
            "data directory",
            "wrong",
            f"{place} cannot be written: {error.strerror}",
            "make it writable for this user, make room, or name another one with --data-dir",
        )
        return
    yield Finding("data directory", "ok", f"{place} can be written{will}")
    yield _of_file_system(place)
    yield _of_room(place)
    yield _of_syncs(seconds, election_seconds)


def holder_of(data_dir: Path) -> int | None:
    """The process that runs on the data directory; None if there is none. Blocking. The lock is not touched."""
    try:
        found = (data_dir / "lock").stat()
        locks = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in locks:  # 1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF
        parts = line.split()
        if len(parts) > 5 and parts[1] == "FLOCK" and parts[5].rpartition(":")[2] == str(found.st_ino):
            return int(parts[4])
    return None


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _sync_seconds(place: Path) -> list[float]:
    """How long it took to put a page on disk, each time."""
    found = []
    with tempfile.TemporaryFile(dir=place, prefix=".doctor-") as file:
        for _ in range(SYNCS):
            began = time.monotonic()
            file.write(bytes(SYNC_BYTES))
            file.flush()
            os.fsync(file.fileno())
            found.append(time.monotonic() - began)
    return found


def _of_syncs(seconds: list[float], election_seconds: float) -> Finding:
    usual, worst = statistics.median(seconds), max(seconds)
    found = f"4 KiB are on disk after {usual * 1000:.1f} ms, at worst {worst * 1000:.1f} ms of {len(seconds)}"
    if worst > election_seconds / 2:
        return Finding(
            "syncs",
            "warning",
            found,
            f"with cluster.election_timeout = {election_seconds:g} s such a disk looks like a dead node; use a faster "
            "disk for data_dir, or a longer timeout at all nodes",
        )
    if usual > SYNC_SECONDS_WISHED:
        return Finding("syncs", "warning", found, "every write of the cluster waits for that; use a faster disk")
    return Finding("syncs", "ok", found)


def _of_room(place: Path) -> Finding:
    found = os.statvfs(place)
    free = found.f_bavail * found.f_frsize
    says = f"{format_bytes(free)} are free"
    if free < FREE_BYTES_MIN:
        return Finding("room", "wrong", says, f"a node needs {format_bytes(FREE_BYTES_MIN)} at least; make room")
    if free < FREE_BYTES_WISHED:
        return Finding("room", "warning", says, "a node whose disk fills up hands leadership over; make room in time")
    return Finding("room", "ok", says)


def _of_file_system(place: Path) -> Finding:
    kind = file_system_of(place)
    if kind in NETWORK:
        return Finding(
            "file system",
            "warning",
            f"{place} is on {kind}, over a network",
            "locks and syncs of such file systems cannot be relied on; use a disk of this machine",
        )
    if kind in MEMORY:
        return Finding(
            "file system", "warning", f"{place} is on {kind}, in memory", "all is lost with a restart; use a disk"
        )
    if (block_bytes := os.statvfs(place).f_bsize) < mmap.PAGESIZE:
        return Finding(
            "file system",
            "warning",
            f"{place} is on {kind} with blocks of {block_bytes} bytes, smaller than a page of memory",
            "if it is full, a file that is mapped into memory can end the process (SIGBUS); make one with blocks of "
            f"{mmap.PAGESIZE} bytes, as with `mkfs.ext4 -b {mmap.PAGESIZE}`",
        )
    return Finding("file system", "ok" if kind else "info", kind or "its kind cannot be seen here")


def file_system_of(place: Path) -> str:
    """The kind that the kernel names; empty if it cannot be seen. Blocking."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    real, best, kind = place.resolve(), -1, ""
    for line in mounts:  # ... MOUNT-POINT options [optional ...] - KIND SOURCE options
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), after.split()[0]
    return kind
