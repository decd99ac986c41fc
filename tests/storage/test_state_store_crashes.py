"""A state store whose process dies, or whose power fails, at any moment: a state is of one mark, never a mixture."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from conveyord.core.errors import Corrupt, StorageFull
from conveyord.storage.disk import truncate
from conveyord.storage.state_store import packing, store
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from tests.storage.crash_rig import Crashed, crashing
from tests.storage.kv_state import LOG_ENTRIES, advance, check_state, crash_image, mark_of, open_store
from tests.storage.power_cut_rig import Disk
from tests.storage.state_store_child import Follower

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("state_store_child.py")

STEPS: tuple[tuple[Any, str], ...] = (
    *((os, name) for name in ("rename", "unlink", "mkdir", "rmdir", "fsync", "pwritev")),
    (sqlite3, "connect"),
    (packing, "preadv"),
    (packing, "_write"),
    (store, "store_changes"),
    (store, "write_mark"),
    (store, "write_place"),
)
TAKEN, RECEIVED, END = 30, 80, 100


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotFile]:
    """A leader's snapshot."""
    directory = tmp_path_factory.mktemp("leader")
    with closing(open_store(directory)) as leader:
        advance(leader, RECEIVED)
        leader.snapshots.take()
        newest = leader.snapshots.newest()
        assert newest is not None
        with newest:
            yield newest


def live(home: Path, sent: SnapshotFile) -> None:
    """Everything that a store goes through, from wherever it is."""
    follower = Follower(home)
    assert check_state(follower.store) >= follower.base.index
    live_on(follower, sent)
    follower.close()


def live_on(follower: Follower, sent: SnapshotFile) -> None:
    """The same for one that is open."""
    advance(follower.store, TAKEN, batch=20)
    if follower.base.index < TAKEN:
        follower.take()
    if follower.store.mark.index < RECEIVED:
        advance(follower.store, TAKEN + 5)
        follower.receive(sent, chunk_bytes=1_000)
    check_state(follower.store)
    advance(follower.store, END, batch=20)
    follower.take()


def left(home: Path) -> list[str]:
    """The names of all that lies in the directory, but for numbers of generations."""
    return sorted(path.name.partition("-0")[0] for path in (home / "state").rglob("*"))


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """For a process that dies it makes no difference where its files lie, and here no sync takes time."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.mark.usefixtures("unclosed_files")
def test_a_process_may_be_gone_before_any_step(
    memory_dir: Path, sent: SnapshotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking, receiving, staging, switching and applying: the next start has all that was applied, and can go on."""
    with crashing(monkeypatch, STEPS, None) as whole:
        live(memory_dir / "whole", sent)
    expected = left(memory_dir / "whole")
    assert {"rename", "unlink", "rmdir", "fsync", "pwritev", "preadv", "_write"} <= set(whole.names)
    switched = 0
    for at in range(len(whole.names)):
        home, after = memory_dir / f"{at}", memory_dir / f"{at}-after"
        with crashing(monkeypatch, STEPS, at), pytest.raises(Crashed) as crashed:
            live(home, sent)
        crash_image(home, after) if home.exists() else after.mkdir()
        del crashed  # until here it kept the connections open: SQLite would have tidied up
        shutil.rmtree(home, ignore_errors=True)
        with closing(Follower(after)) as follower:
            index = check_state(follower.store)
            assert index >= follower.base.index, whole.names[at]
            switched += follower.base.index == RECEIVED == index
        live(after, sent)
        assert left(after) == expected, (at, whole.names[at])
        shutil.rmtree(after)
    assert switched > 2, "no crash fell between the log's install and the switch"


# ------------------------------------------------------------------------------ the WAL loses its end


@pytest.fixture
def unsynced(memory_dir: Path) -> Iterator[Path]:
    """The directory of a state whose last 300 entries, applied one by one, are in the WAL alone."""
    home = memory_dir / "home"
    with closing(open_store(home)) as store:
        advance(store, 100)
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        advance(store, 400, batch=1)
        yield crash_image(home, memory_dir / "copy")


def test_a_wal_that_lost_its_end_or_was_torn_is_an_earlier_mark_and_never_a_mixture(unsynced: Path) -> None:
    (wal,) = unsynced.rglob("*.db-wal")
    whole, database = wal.read_bytes(), wal.with_name("state.db").read_bytes()
    random, found = Random(3), set[int]()
    for number in range(60):
        at = random.randrange(len(whole))
        if number % 2:
            content = whole[:at] + random.randbytes(len(whole) - at)
        else:
            content = whole[:at]
        wal.write_bytes(content)
        wal.with_name("state.db-shm").unlink(missing_ok=True)
        with closing(open_store(unsynced)) as store:
            found.add(check_state(store))
        wal.with_name("state.db").write_bytes(database)
    assert min(found) < 150
    assert max(found) > 350


def test_what_was_lost_is_applied_again_with_the_same_replies(unsynced: Path, memory_dir: Path) -> None:
    (wal,) = unsynced.rglob("*.db-wal")
    truncate(wal, wal.stat().st_size // 2)
    with closing(open_store(unsynced)) as store, closing(open_store(memory_dir / "other")) as other:
        lost_from = store.mark.index
        assert 100 < lost_from < 400
        assert advance(store, 450, batch=7) == advance(other, 450)[lost_from:]
        assert store.state_digest() == other.state_digest()


# ------------------------------------------------------------------------------ kill -9, and a power cut


def said(lines: list[str], what: str) -> int:
    """The last number that a child said."""
    return max([0, *(int(line.split()[1]) for line in lines if line.startswith(what))])


def survived(home: Path, *, at_least: int) -> int:
    """What is there after a crash is a state of the log, and goes on to the end of the same. Returns its index."""
    with closing(Follower(home)) as follower:
        index = check_state(follower.store)
        assert index >= max(at_least, follower.base.index)
        assert follower.store.mark == mark_of(index)
    return index


def killed(home: Path, seed: int, *, after_lines: int) -> list[str]:
    """The whole lines that a child said before it was killed."""
    child = subprocess.Popen(
        [sys.executable, str(CHILD), str(home), str(seed)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        lines = [line for _, line in zip(range(after_lines), child.stdout, strict=False)]
        child.kill()
        lines += child.stdout
    return [line for line in lines if line.endswith("\n")]


@pytest.mark.check
@pytest.mark.timeout(300)
def test_a_child_that_is_killed_again_and_again_never_loses_what_it_applied(memory_dir: Path) -> None:
    random, home, ends, index = Random(11), memory_dir / "home", 0, 0
    home.mkdir()
    for seed in range(30):
        lines = killed(home, seed, after_lines=random.randint(1, 120))
        index = survived(home, at_least=said(lines, "applied"))
        if index == LOG_ENTRIES:
            shutil.rmtree(home)
            home.mkdir()
            ends += 1
    assert ends * LOG_ENTRIES + index > 500, "hardly anything was applied"


def cut(disk: Disk, home: Path, seed: int, seconds: float, *careless: str) -> tuple[int, int]:
    """One life that ends with the power. Returns the index that is there, and the one that was said.

    The snapshots that were taken are removed, as a state that is older than its log would be made anew from them.
    """
    lines = disk.cut_under(CHILD, home, seed, disk.mount_point, seconds, *careless)
    for path in home.rglob("*.snapshot"):
        with SnapshotFile(path) as snapshot:
            snapshot.verify()  # its bytes are on disk before it has its name
    shutil.rmtree(home / "state" / "snapshots", ignore_errors=True)
    index = survived(home, at_least=said(lines, "base"))
    if index == LOG_ENTRIES:
        shutil.rmtree(home)
        home.mkdir()
    return index, said(lines, "applied")


@pytest.mark.check
def test_after_a_power_cut_the_state_is_no_older_than_where_the_log_begins(disk: Disk) -> None:
    home, lost = disk.mount_point / "home", 0
    home.mkdir()
    for seed in range(8):
        index, applied = cut(disk, home, seed, 0.1 + 0.2 * seed)
        lost += max(0, applied - index)  # it may have gone on after it spoke last
    assert lost > 0, "every applied entry was there: the cut takes nothing, and shows nothing"


@pytest.mark.check
def test_without_the_sync_of_a_snapshot_the_same_cut_leaves_a_gap(disk: Disk) -> None:
    """The negative control."""
    home = disk.mount_point / "home"
    home.mkdir()
    with pytest.raises((AssertionError, Corrupt)):
        for seed in range(20):
            cut(disk, home, seed, 0.3, "careless")


# ------------------------------------------------------------------------------ a disk that is really full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    if os.geteuid() != 0:
        pytest.fail("full-disk tests mount a file system and need root: run `make check` as root")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.check
def test_a_store_on_a_full_disk_goes_on_from_where_it_was_when_there_is_room(
    small_disk: Path, memory_dir: Path, sent: SnapshotFile
) -> None:
    """Applying, taking, receiving, staging and switching, each on a disk that has less and less room."""
    refusals, rooms = 0, range(0, 2_000_000, 20_000)
    for room in rooms:
        ballast, home = small_disk / "ballast", small_disk / "home"
        home.mkdir()
        follower: Follower | None = Follower(home)  # a state is not opened without room
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - room))
        for _ in range(2):  # the second time with the room that it lacked
            try:
                follower = follower or Follower(home)
                live_on(follower, sent)
            except StorageFull:
                refusals += 1
                ballast.unlink()
                if follower is not None and follower.store._failed is not None:  # it was switching
                    follower.close()
                    follower = None
        assert follower is not None
        assert check_state(follower.store) == END
        follower.close()
        shutil.rmtree(home)
        ballast.unlink(missing_ok=True)
    assert 10 < refusals < len(rooms)
