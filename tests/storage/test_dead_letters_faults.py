"""Damage shows in the letter it hit and nowhere else; a full or read-only disk is a sentence, and loses nothing."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conveyord.core.errors import ConveyordError, Corrupt, Refused, Retryable, StorageFull
from conveyord.storage.dead_letters.letters import Claim, Selection
from conveyord.storage.dead_letters.reader import DeadLetterReader
from tests.storage.dead_letters_rig import LANE, held, letter, opened, queue, segments

EVERYTHING = Selection()


def filled(data_dir: Path) -> Path:
    """Three letters, and the segment that they are in."""
    with opened(data_dir) as store:
        store.put([letter(n, text=f"record {n} " * 50) for n in range(1, 4)], 1)
    return segments(data_dir)[0]


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 10)


def flip_last_payload(path: Path) -> None:
    flip(path, -20)


def flip_last_header(path: Path) -> None:
    flip(path, path.stat().st_size * 2 // 3 + 1)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_last_payload, "the checksum does not match"),
        (flip_last_header, "the checksum does not match"),
        (cut, "the file ends too early"),
    ],
)
def test_damage_is_of_one_letter_only(data_dir: Path, damage: Callable[[Path], None], says: str) -> None:
    damage(filled(data_dir))
    with opened(data_dir) as store, DeadLetterReader(data_dir) as reader:
        assert sum(group.count for group in reader.groups()) == 3
        whole = {stored.id: stored.damage for stored in store.select() if stored.damage is not None}
        assert list(whole) == [3]
        assert says in whole[3]
        assert "segment-00000001.bin, bytes" in whole[3]
        assert (store.get(3).letter.raw, store.get(3).letter.message) == (None, "record 3 is bad")
        assert queue(store) == 3
        damaged = [stored.id for _, stored in store.queued(LANE, 0, 9) if stored.damage]
        assert (damaged, store.withdraw([Claim(3, LANE.sink)])) == ([3], 1)
        assert store.settle(LANE, 3, 2) == [1, 2]
        store.put([letter(4)], 3)
        assert store.purge(Selection(ids=(3,))) == 1
        assert held(store) == {4: b"raw 4"}


def test_a_missing_segment_damages_its_letters_and_they_can_be_mended_and_purged(data_dir: Path) -> None:
    filled(data_dir).unlink()
    with opened(data_dir) as store:
        assert {stored.damage for stored in store.select()} == {"segment-00000001.bin is missing"}
        store.edit(1, raw=b"typed anew")
        store.put([letter(2, text="failed again")], 5)
        assert held(store) == {1: b"typed anew", 2: b"failed again", 3: None}
        assert store.purge(EVERYTHING) == 3
        store.put([letter(1)], 6)
    assert len(segments(data_dir)) == 1


def test_compaction_keeps_the_letter_that_a_damaged_frame_belongs_to(data_dir: Path) -> None:
    path = filled(data_dir)
    flip(path, -20)
    with opened(data_dir) as store:
        assert store.purge(Selection(ids=(1,))) == 1
        assert [(stored.id, stored.damage is None) for stored in store.select()] == [(2, True), (3, False)]
        assert path.exists()
        store.purge(Selection(ids=(2,)))
        store.purge(Selection(ids=(3,)))
        assert segments(data_dir) == []


def test_what_is_written_after_a_truncated_segment_is_whole(data_dir: Path) -> None:
    cut(filled(data_dir))
    with opened(data_dir) as store:
        store.put([letter(9)], 2)
        assert len(segments(data_dir)) == 2
        assert held(store)[9] == b"raw 9"


@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.unlink(),
        lambda index: index.write_bytes(b""),
        lambda index: index.write_bytes(b"not a database" * 1000),
        lambda index: index.write_bytes(index.read_bytes()[:4096] + os.urandom(20_000)),
        lambda index: sqlite3.connect(index).executescript("DROP TABLE letters; PRAGMA wal_checkpoint").close(),
        lambda index: sqlite3.connect(index).executescript("PRAGMA user_version = 9").close(),
    ],
    ids=["deleted", "emptied", "other bytes", "pages lost", "table lost", "newer version"],
)
def test_a_damaged_index_is_corrupt_with_a_remedy(data_dir: Path, damage: Callable[[Path], None]) -> None:
    filled(data_dir)
    index = data_dir / "dead-letters" / "index.db"
    damage(index)

    def read() -> None:
        with DeadLetterReader(data_dir) as reader:
            reader.groups()

    def write() -> None:
        with opened(data_dir) as store:
            store.put([letter(4)], 1)

    for use in (read, write):
        with pytest.raises(Corrupt, match=r"index\.db: the index .* is damaged .*; restore .* or move the directory"):
            use()
    assert len(segments(data_dir)) == 1, "payloads are not touched"


def test_an_index_of_an_older_program_is_not_called_damaged(data_dir: Path) -> None:
    filled(data_dir)
    index = data_dir / "dead-letters" / "index.db"
    sqlite3.connect(index).executescript("PRAGMA user_version = 3").close()
    with pytest.raises(Refused, match=r"an older conveyord wrote it .*; replay, export or purge the letters with"):
        opened(data_dir).__enter__()
    with pytest.raises(Refused, match="an older conveyord"), DeadLetterReader(data_dir) as reader:
        reader.groups()


# -------------------------------------------------------------------- the disk


@pytest.mark.parametrize(
    ("number", "kind", "says"),
    [
        (errno.ENOSPC, StorageFull, "segment-.*No space left on device; free space"),
        (errno.EROFS, StorageFull, "Read-only file system; make it writable"),
        (errno.EIO, Retryable, "Input/output error; check the disk"),
    ],
)
@pytest.mark.parametrize("call", ["open", "pwrite", "fsync"])
def test_a_failed_put_is_a_sentence_and_the_next_one_starts_a_segment(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[ConveyordError], says: str
) -> None:
    with opened(data_dir, budget_bytes=16 * 65_536) as store:
        store.put([letter(1)], 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failing(getattr(os, call), number))
            with pytest.raises(kind, match=says):
                store.put([letter(n, text="x" * 50_000) for n in range(1, 4)], 2)
        assert held(store) == {1: b"raw 1"}, "all or nothing"
        store.put([letter(2)], 3)
        assert held(store) == {1: b"raw 1", 2: b"raw 2"}
    with opened(data_dir) as store:
        assert held(store) == {1: b"raw 1", 2: b"raw 2"}


def failing(function: Callable, number: int) -> Callable:
    def fail(target, *arguments, **more):
        named = str(target) if isinstance(target, Path | str) else os.readlink(f"/proc/self/fd/{target}")
        if "segment-" in named:
            raise OSError(number, os.strerror(number))
        return function(target, *arguments, **more)

    return fail


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.fail("this test mounts a small file system and needs root: run `make check` as root")
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.check
@pytest.mark.parametrize("each", [1, 50])
@pytest.mark.parametrize("size", [100, 60_000])
def test_a_disk_that_fills_up_keeps_every_acknowledged_letter(tmp_path: Path, each: int, size: int) -> None:
    with small_disk(tmp_path / "small", "3m" if size == 100 else "8m") as data_dir:  # room for one `put` and the index
        acknowledged = 0
        with opened(data_dir) as store:
            with pytest.raises(StorageFull, match="free space|full"):
                while True:
                    store.put([letter(acknowledged + n, raw=bytes(size)) for n in range(each)], 1)
                    acknowledged += each
            assert acknowledged
            with pytest.raises(StorageFull):
                store.put([letter(acknowledged + n, raw=bytes(size)) for n in range(each)], 1)
            with DeadLetterReader(data_dir) as reader:
                assert sum(group.count for group in reader.groups()) == acknowledged
        subprocess.run(["mount", "-o", "remount,size=24m", str(data_dir)], check=True)
        with opened(data_dir) as store:
            assert set(held(store)) == set(range(acknowledged))
            assert not [stored for stored in store.select() if stored.damage]
            store.put([letter(10**6, raw=bytes(size))], 2)
            store.purge(EVERYTHING)


@pytest.mark.check
def test_a_disk_without_any_room_is_named(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "64k") as data_dir:
        (data_dir / "ballast").write_bytes(bytes(60 * 1024))
        with opened(data_dir) as store, pytest.raises(StorageFull, match=str(data_dir)):
            store.put([letter(1)], 1)
        with DeadLetterReader(data_dir) as reader:
            assert reader.groups() == []
        (data_dir / "ballast").unlink()
        subprocess.run(["mount", "-o", "remount,size=2m", str(data_dir)], check=True)
        with opened(data_dir) as store:
            store.put([letter(1)], 1)
            assert held(store) == {1: b"raw 1"}


@pytest.mark.check
@pytest.mark.parametrize("how", ["closed", "killed"])
def test_a_read_only_disk_can_be_read_and_refuses_to_be_written(tmp_path: Path, how: str) -> None:
    with small_disk(tmp_path / "small", "8m") as data_dir:
        if how == "closed":
            filled(data_dir)
        else:  # with a write-ahead log that nobody took back
            pid = os.fork()
            if pid == 0:
                opened(data_dir).put([letter(n) for n in range(1, 4)], 1)
                os._exit(0)
            os.waitpid(pid, 0)
        subprocess.run(["mount", "-o", "remount,ro", str(data_dir)], check=True)
        with DeadLetterReader(data_dir) as reader:
            assert [stored.id for stored in reader.select()] == [1, 2, 3]
        with pytest.raises(StorageFull, match="writable|read-only"), opened(data_dir) as store:
            store.put([letter(4)], 1)
        subprocess.run(["mount", "-o", "remount,rw", str(data_dir)], check=True)
        with opened(data_dir) as store:
            store.put([letter(4)], 1)
            assert set(held(store)) == {1, 2, 3, 4}
