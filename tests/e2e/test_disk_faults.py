"""Full and read-only disks, real ones: ext4 in a file and tmpfs, mounted for the test.

The run ends with exit code 1 and a sentence; the table stays as the last commit left it; once there is
room again the next run goes on to exactly once.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.e2e.harness import Ended, Job, line

pytestmark = pytest.mark.check

MIB = 1024 * 1024
RECORDS = 24_000
DISK_MIB = 48
ROOM_BYTES = 5 * MIB  # for some commits of a megabyte, not for all
REMOUNT_SECONDS_MAX = 30.0


def mount(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)


@contextmanager
def mounted(kind: str, image: Path, place: Path) -> Iterator[Path]:
    """A small file system of its own at `place`."""
    if os.geteuid() != 0:
        pytest.fail("these tests mount file systems: run them as root (in a container or VM of their own)")
    place.mkdir(parents=True)
    if kind == "tmpfs":
        done = mount("-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", place)
    else:
        with image.open("wb") as file:
            file.truncate(DISK_MIB * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-m", "0", str(image)], check=True)
        done = mount("-o", "loop", image, place)
    if done.returncode:
        pytest.fail(f"mounting {kind} failed ({done.stderr.strip()}); these tests need a machine that can mount")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(place: Path, *, leave_bytes: int) -> Path:
    """Take all room but `leave_bytes` with a file, which is returned."""
    ballast = place / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while (free := free_bytes(place)) > leave_bytes or leave_bytes == 0:
            file.write(b"\0" * min(MIB, max(free - leave_bytes, 4096)))
    os.sync()
    return ballast


def free_bytes(place: Path) -> int:
    status = os.statvfs(place)
    return status.f_bavail * status.f_frsize


def noisy(count: int) -> bytes:
    """Records that do not compress, so that they fill a disk soon."""
    return b"".join(line(number, noise=os.urandom(400).hex()) for number in range(count))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    source = {"type": "file_jsonl", "path": "in/*", "block_bytes": 262144}
    made = Job(tmp_path, source=source, sink={"commit": {"rows": 2_000, "every": "0.2s"}})
    (made.input / "a.jsonl").write_bytes(noisy(RECORDS))
    return made


def is_consistent(job: Job) -> int:
    """Assert that the table holds the first records without a hole, and say how many."""
    held = job.ids()
    assert held == list(range(len(held)))
    return len(held)


def finish(job: Job) -> None:
    job.run().succeeded()
    job.holds(range(RECORDS))
    job.audit()
    assert not job.orphans()


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
@pytest.mark.parametrize("what", ["data directory", "warehouse"])
def test_a_disk_that_fills_up_stops_the_run_and_the_next_goes_on(job: Job, kind: str, what: str) -> None:
    place = job.data_dir if what == "data directory" else job.data_dir / "warehouse"
    with mounted(kind, job.home / "image", place):
        ballast = fill(place, leave_bytes=ROOM_BYTES)
        job.run().failed("No space left|is full|disk is full", "free space")
        held = is_consistent(job)
        assert held < RECORDS
        job.run().failed("No space left|is full|disk is full", "free space")
        assert is_consistent(job) >= held
        ballast.unlink()
        finish(job)


@pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
def test_a_disk_without_any_room_is_named_at_the_start(job: Job, kind: str) -> None:
    with mounted(kind, job.home / "image", job.data_dir):
        ballast = fill(job.data_dir, leave_bytes=0)
        job.run().failed("No space left|full", "free space")
        ballast.unlink()
        finish(job)


@pytest.mark.parametrize("what", ["data directory", "warehouse"])
def test_a_disk_that_is_read_only_at_the_start_is_named(job: Job, what: str) -> None:
    place = job.data_dir if what == "data directory" else job.data_dir / "warehouse"
    with mounted("ext4", job.home / "image", place):
        mount("-o", "remount,ro", place)
        job.run().failed(str(job.data_dir), "[Rr]ead-only", "writable")
        mount("-o", "remount,rw", place)
        finish(job)


def test_a_warehouse_that_becomes_read_only_stops_the_run_and_the_next_goes_on(job: Job) -> None:
    job.sink["commit"] = {"rows": 400}  # many moments without an open file, in which it can be remounted
    place = job.data_dir / "warehouse"
    with mounted("ext4", job.home / "image", place):
        ended = read_only_meanwhile(job, place)
        ended.failed("[Rr]ead-only", "writable")
        assert is_consistent(job) < RECORDS
        mount("-o", "remount,rw", place)
        job.sink["commit"] = {}
        finish(job)


def read_only_meanwhile(job: Job, place: Path) -> Ended:
    running = job.start()
    assert running.saw("committed")
    deadline = time.monotonic() + REMOUNT_SECONDS_MAX
    while mount("-o", "remount,ro", place).returncode:
        assert time.monotonic() < deadline, "the file system was busy all the time"
    return running.wait()
