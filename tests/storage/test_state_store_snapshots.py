"""Snapshots: taken while entries are applied, sent in pieces, and nothing is ever installed that is not whole."""

from __future__ import annotations

import errno
import os
import sqlite3
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Corrupt, Refused, StorageFull
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.storage.state_store import packing, receiving, shared_memory
from conveyord.storage.state_store import store as store_module
from conveyord.storage.state_store.layout import Layout
from conveyord.storage.state_store.packing import pack
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore
from tests.storage.kv_state import MEMBERS, MIGRATIONS, advance, check_state, crash_image, mark_of, open_store
from tests.storage.state_store_rig import names, receive, snapshot_of

SENT = 200
HELD = 40


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotFile]:
    """A leader's snapshot."""
    with snapshot_of(tmp_path_factory.mktemp("leader"), SENT) as found:
        yield found


@pytest.fixture
def store(data_dir: Path) -> Iterator[StateStore]:
    """One that has less than what is sent."""
    with closing(open_store(data_dir)) as store:
        advance(store, HELD)
        yield store


def offered(path: Path) -> SnapshotInfo:
    with SnapshotFile(path) as snapshot:
        return snapshot.info


# ------------------------------------------------------------------------------ taking


def test_snapshots_are_taken_in_one_thread_while_another_applies(store: StateStore, tmp_path: Path) -> None:
    def take() -> None:
        while store.snapshots.take().mark.index < 600:
            pass

    with ThreadPoolExecutor(1) as thread:
        taking = thread.submit(take)
        while not taking.done() and store.mark.index < 3_000:
            advance(store, store.mark.index + 1)
        taking.result()
    with closing(open_store(tmp_path / "expected")) as expected:
        newest = store.snapshots.newest()
        assert newest is not None
        with newest, closing(open_store(tmp_path / "restored")) as restored:
            receive(tmp_path / "restored", newest.path.read_bytes(), newest.info)
            restored.switch(newest.info.mark)
            advance(expected, check_state(restored))
            assert restored.state_digest() == expected.state_digest()


def test_taking_one_of_the_same_mark_again_is_nothing_and_only_the_newest_are_kept(store: StateStore) -> None:
    directory = store.snapshots._layout.directory
    first = store.snapshots.take()
    assert store.snapshots.take() == first
    for end in (50, 60, 70):
        advance(store, end)
        store.snapshots.take(keep=2)
    assert names(directory) == {"snapshots", *(f"snapshots/{index:020}.snapshot" for index in (60, 70))}
    newest = store.snapshots.newest()
    assert newest is not None
    with newest:
        assert newest.info.mark == mark_of(70)


def test_a_snapshot_from_before_the_log_begins_is_not_sent(
    store: StateStore, data_dir: Path, sent: SnapshotFile
) -> None:
    store.snapshots.take()
    receive(data_dir, sent.path.read_bytes(), sent.info)
    store.switch(sent.info.mark)
    assert store.snapshots.newest(since=SENT) is None
    store.snapshots.take()
    newest = store.snapshots.newest(since=SENT)
    assert newest is not None
    with newest:
        assert newest.info.mark == sent.info.mark


def test_a_snapshot_of_nothing_is_refused(data_dir: Path) -> None:
    with closing(open_store(data_dir)) as store:
        assert store.snapshots.newest() is None
        with pytest.raises(Refused, match="no entry is in the state yet"):
            store.snapshots.take()
        assert names(data_dir) == {"snapshots"}


def full_after(count: int, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """The disk takes `count` more writes."""
    write, left = getattr(module, name), [count]

    def filling(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(module, name, filling)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_full_disk_leaves_no_snapshot_and_no_rest_of_one(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with monkeypatch.context() as patch:
        full_after(count, patch, packing, "_write")
        with pytest.raises(StorageFull, match="free space and run again"):
            store.snapshots.take()
    assert names(store.snapshots._layout.directory) == {"snapshots"}
    assert store.snapshots.take().mark == mark_of(HELD)


def test_a_snapshot_can_be_read_to_its_end_though_it_was_removed(store: StateStore) -> None:
    store.snapshots.take()
    newest = store.snapshots.newest()
    assert newest is not None
    with newest:
        expected = newest.path.read_bytes()
        advance(store, 50)
        store.snapshots.take(keep=1)
        assert not newest.path.exists()
        assert newest.read_chunk(0, 100) + newest.read_chunk(100, 10**9) == expected
        assert newest.read_chunk(len(expected), 100) == b""


def test_a_large_state_is_packed_by_several_threads_and_comes_back(tmp_path: Path) -> None:
    state, packed, back = tmp_path / "state", tmp_path / "packed", tmp_path / "back"
    state.write_bytes(Random(1).randbytes(1_000_000) * (1 + packing.THREADED_BYTES // 1_000_000))
    info = pack(state, packed, Place(mark_of(7), MEMBERS))
    assert (info.state_bytes, info.file_bytes) == (state.stat().st_size, packed.stat().st_size)
    assert offered(packed) == info == packing.unpack(packed, back)
    assert back.read_bytes() == state.read_bytes()


def test_empty_pages_do_not_fill_the_memory_when_they_come_back(tmp_path: Path) -> None:
    state, packed, back = tmp_path / "state", tmp_path / "packed", tmp_path / "back"
    with state.open("wb") as file:
        file.truncate(64 << 20)
    pack(state, packed, Place(mark_of(7), MEMBERS))
    assert packed.stat().st_size < 100_000
    tracemalloc.start()
    try:
        packing.unpack(packed, back)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()
    assert back.stat().st_size == 64 << 20


# ------------------------------------------------------------------------------ receiving


@given(st.lists(st.tuples(st.integers(1, 900), st.booleans()), max_size=30))
def test_a_snapshot_arrives_in_any_pieces_over_any_number_of_restarts(
    sent: SnapshotFile, pieces: list[tuple[int, bool]]
) -> None:
    offer = sent.info
    with TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        receiver = SnapshotReceiver(directory, offer, MIGRATIONS)
        for size, is_restarted in [*pieces, (offer.file_bytes, True)]:
            before = receiver.offset
            receiver.append(offer.digest, before, sent.read_chunk(before, size))
            if is_restarted:
                receiver.close()
                open_store(directory).close()
                receiver = SnapshotReceiver(directory, offer, MIGRATIONS)
            assert receiver.offset == min(before + size, offer.file_bytes)
        receiver.stage()
        receiver.close()
        with closing(open_store(directory, base=offer.mark)) as store:
            assert check_state(store) == SENT
            assert names(directory) == {"incoming"}


def test_a_chunk_at_another_place_or_of_another_snapshot_is_refused_and_changes_nothing(
    store: StateStore, data_dir: Path, sent: SnapshotFile
) -> None:
    digest, content = sent.info.digest, sent.path.read_bytes()
    with closing(SnapshotReceiver(data_dir, sent.info, MIGRATIONS)) as receiver:
        receiver.append(digest, 0, content[:100])
        for offset in (0, 50, 99, 101, len(content)):
            with pytest.raises(Refused, match=f"a chunk at {offset} came, but 100 is next"):
                receiver.append(digest, offset, b"x")
        with pytest.raises(Refused, match="a chunk of the snapshot 0000.* came"):
            receiver.append(bytes(32), 100, b"x")
        receiver.append(digest, 100, content[100:])
        receiver.stage()
    store.switch(sent.info.mark)
    assert check_state(store) == SENT


def test_more_bytes_than_were_offered_are_thrown_away(data_dir: Path, sent: SnapshotFile) -> None:
    with closing(SnapshotReceiver(data_dir, sent.info, MIGRATIONS)) as receiver:
        receiver.append(sent.info.digest, 0, sent.path.read_bytes())
        with pytest.raises(Corrupt, match=f"more than {sent.info.file_bytes} bytes came"):
            receiver.append(sent.info.digest, sent.info.file_bytes, b"x")
    assert names(data_dir) == {"incoming"}


def test_an_offer_of_another_snapshot_takes_the_place_of_the_former(
    data_dir: Path, sent: SnapshotFile, store: StateStore
) -> None:
    other = store.snapshots.take()
    for offer in (other, sent.info, sent.info):
        with closing(SnapshotReceiver(data_dir, offer, MIGRATIONS)) as receiver:
            receiver.append(offer.digest, receiver.offset, b"x")
    (partial,) = (data_dir / "incoming").iterdir()
    assert partial.stat().st_size == 2


@pytest.mark.parametrize("step", ["chunk", "unpack", "sync"])
def test_a_full_disk_on_the_way_leaves_the_state_and_what_came(
    store: StateStore, data_dir: Path, sent: SnapshotFile, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    content, half = sent.path.read_bytes(), sent.info.file_bytes // 2
    receiver = SnapshotReceiver(data_dir, sent.info, MIGRATIONS)
    receiver.append(sent.info.digest, 0, content[:half])
    with monkeypatch.context() as patch, pytest.raises(StorageFull, match="the log has it"):
        match step:
            case "chunk":
                full_after(0, patch, receiving, "write_all")
            case "unpack":
                full_after(0, patch, packing, "_write")
            case _:
                full_after(0, patch, os, "fsync")
        receiver.append(sent.info.digest, half, content[half:])
        receiver.stage()
    assert names(data_dir) == {"incoming", f"incoming/{sent.info.digest.hex()}.partial"}
    assert check_state(store) == HELD
    if not receiver.is_complete:
        receiver.append(sent.info.digest, receiver.offset, content[receiver.offset :])
    receiver.stage()
    store.switch(sent.info.mark)
    assert check_state(store) == SENT


# ------------------------------------------------------------------------------ what must never be installed


def check_refused(directory: Path, content: bytes, offer: SnapshotInfo, *, match: str | None = None) -> None:
    """It is refused by a sentence, nothing is staged, and nothing of it is left."""
    with pytest.raises((Corrupt, Refused), match=match):
        receive(directory, content, offer)
    assert names(directory) <= {"incoming"}


def test_no_flipped_bit_is_ever_installed(store: StateStore, data_dir: Path, sent: SnapshotFile) -> None:
    whole, random = sent.path.read_bytes(), Random(5)
    offsets = [*range(0, 140, 3), *(random.randrange(len(whole)) for _ in range(60)), *range(-36, 0, 3)]
    for offset in offsets:
        content = bytearray(whole)
        content[offset] ^= 1 << random.randrange(8)
        check_refused(data_dir, bytes(content), sent.info, match="damaged|upgrade")
    assert check_state(store) == HELD
    receive(data_dir, whole, sent.info)


def test_no_cut_or_foreign_file_is_a_snapshot(data_dir: Path, tmp_path: Path, sent: SnapshotFile) -> None:
    whole, random, path = sent.path.read_bytes(), Random(6), tmp_path / "file"
    contents = [whole[: random.randrange(len(whole))] for _ in range(60)]
    contents += [b"", b"\0" * 5_000, b"SQLite format 3\0" + bytes(5_000), whole + whole, whole[1:]]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(Corrupt, match="this snapshot is damaged"), SnapshotFile(path) as snapshot:
            snapshot.verify()
        padded = content[: len(whole)].ljust(len(whole), b"\0")
        if padded != whole:
            check_refused(data_dir, padded, sent.info)


def test_opening_checks_the_head_alone_and_verifying_everything(tmp_path: Path, sent: SnapshotFile) -> None:
    content, path = bytearray(sent.path.read_bytes()), tmp_path / "file"
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with SnapshotFile(path) as snapshot:
        assert snapshot.info == sent.info
        with pytest.raises(Corrupt, match="another is taken, or asked for"):
            snapshot.verify()
    sent.verify()


def test_a_newer_format_is_refused(data_dir: Path, tmp_path: Path, sent: SnapshotFile) -> None:
    content, path = bytearray(sent.path.read_bytes()), tmp_path / "file"
    content[8] = 2
    path.write_bytes(content)
    with pytest.raises(Refused, match="has format 2, this conveyord knows 1; upgrade this node"):
        SnapshotFile(path)
    check_refused(data_dir, bytes(content), sent.info, match="upgrade this node")


def test_another_snapshot_than_was_offered_is_refused(data_dir: Path, tmp_path: Path, sent: SnapshotFile) -> None:
    """The offer comes from the leader's memory, the file from its disk."""
    content, info = sent.path.read_bytes(), sent.info
    for other in (
        SnapshotInfo(mark_of(SENT + 1), info.membership, info.state_bytes, info.file_bytes, info.digest),
        SnapshotInfo(info.mark, MEMBERS, info.state_bytes, info.file_bytes, info.digest),
    ):
        check_refused(data_dir, content, other, match="another one than was offered")


SPOILT: dict[str, tuple[str, str]] = {
    "newer": ("INSERT INTO raft_migrations VALUES (9, 'later')", "has the migration 'later'"),
    "version": ("PRAGMA user_version = 9", "has version 9"),
    "mark": ("UPDATE raft_applied SET term = 99", "what is in it is of"),
    "members": ("UPDATE raft_applied SET membership = x'9490909090'", "what is in it is of"),
    "no place": ("DELETE FROM raft_applied", "what is in it is of None"),
    "no state": ("DROP TABLE raft_applied", "what is in it is of None"),
    "page": ("", "this snapshot is damaged"),
    "no database": ("", "this snapshot is damaged"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_sender_whose_own_state_is_wrong_does_not_spread_it(
    store: StateStore, data_dir: Path, tmp_path: Path, sent: SnapshotFile, what: str
) -> None:
    """The digest is right, as the file was made of what was there."""
    statement, match = SPOILT[what]
    state, packed = tmp_path / "state.db", tmp_path / "packed"
    packing.unpack(sent.path, state)
    if statement:
        with closing(sqlite3.connect(state, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute(statement)
    else:
        content = bytearray(state.read_bytes())
        start = 4_096 if what == "page" else 0
        content[start : start + 64] = b"\xff" * 64
        state.write_bytes(content)
    info = pack(state, packed, Place(sent.info.mark, sent.info.membership))
    check_refused(data_dir, packed.read_bytes(), info, match=match)
    assert check_state(store) == HELD


# ------------------------------------------------------------------------------ switching


def test_readers_are_told_of_a_switch_and_keep_what_they_had(
    store: StateStore, data_dir: Path, sent: SnapshotFile
) -> None:
    with store.reader() as reader:
        receive(data_dir, sent.path.read_bytes(), sent.info)
        assert reader.is_current()
        assert names(data_dir) == {"incoming", f"staged-{SENT:020}", f"staged-{SENT:020}/state.db"}
        store.switch(sent.info.mark)
        assert not reader.is_current()
        assert reader.generation != store.generation
        assert reader.mark() == mark_of(HELD)
        with store.reader() as other:
            assert (other.generation, other.mark()) == (store.generation, sent.info.mark)
    assert [path.name for path in data_dir.glob("generation-*")] == ["generation-00000002"]
    advance(store, SENT + 20)
    assert check_state(store) == SENT + 20
    assert names(data_dir) == {"incoming"}


def test_a_switch_to_what_is_not_staged_leaves_the_state_usable(
    store: StateStore, data_dir: Path, sent: SnapshotFile
) -> None:
    with pytest.raises(Corrupt, match="no snapshot of entry 60 is there"):
        store.switch(mark_of(60))
    receive(data_dir, sent.path.read_bytes(), sent.info)
    with pytest.raises(Corrupt, match=f"it is of entry {SENT} of term .*, not of 99"):
        store.switch(sent.info.mark._replace(term=99))
    with pytest.raises(AssertionError):
        store.switch(mark_of(HELD))
    assert advance(store, HELD + 1)


def test_a_switch_without_room_leaves_the_state_usable_until_there_is_some(
    store: StateStore, data_dir: Path, sent: SnapshotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(data_dir, sent.path.read_bytes(), sent.info)
    with monkeypatch.context() as patch:
        patch.setattr(shared_memory, "ROOM_BYTES", 1 << 60)
        with pytest.raises(StorageFull, match="are free on this disk, 1048576 TiB are needed at least; free space"):
            store.switch(sent.info.mark)
        assert advance(store, HELD + 1)
    store.switch(sent.info.mark)
    assert check_state(store) == SENT


def test_a_switch_that_fails_halfway_is_completed_by_the_next_start(
    store: StateStore, data_dir: Path, sent: SnapshotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    receive(data_dir, sent.path.read_bytes(), sent.info)
    with monkeypatch.context() as patch:
        full_after(0, patch, store_module, "connect_to_write")
        with pytest.raises(StorageFull):
            store.switch(sent.info.mark)
    with pytest.raises(Refused, match="switching to the snapshot of entry 200 was not completed"):
        advance(store, HELD + 1)
    with closing(open_store(data_dir, base=sent.info.mark)) as again:
        assert check_state(again) == SENT


def test_what_is_staged_and_not_needed_is_removed_by_the_next_start(data_dir: Path, sent: SnapshotFile) -> None:
    receive(data_dir, sent.path.read_bytes(), sent.info)
    receive(data_dir, sent.path.read_bytes(), sent.info)  # it came twice
    with closing(open_store(data_dir)) as store:
        assert store.mark.index == 0
        assert names(data_dir) == {"incoming"}


def test_a_later_snapshot_that_is_staged_meanwhile_outlives_a_switch(
    store: StateStore, data_dir: Path, tmp_path: Path, sent: SnapshotFile
) -> None:
    with closing(open_store(tmp_path / "leader")) as leader:
        advance(leader, SENT + 50)
        later = leader.snapshots.take()
        path = Layout(tmp_path / "leader").snapshot(SENT + 50)
        for content, offer in ((sent.path.read_bytes(), sent.info), (path.read_bytes(), later)):
            receive(data_dir, content, offer)
    store.switch(sent.info.mark)
    assert check_state(store) == SENT
    store.switch(later.mark)
    assert check_state(store) == SENT + 50
    assert names(data_dir) == {"incoming"}


def test_a_wal_that_was_left_beside_the_former_state_is_never_played_into_the_new_one(
    store: StateStore, data_dir: Path, tmp_path: Path, sent: SnapshotFile
) -> None:
    """The process dies between the rename and whatever follows, so that the old files are all still there."""
    receive(data_dir, sent.path.read_bytes(), sent.info)
    wal = store.path.with_name("state.db-wal")
    assert wal.stat().st_size > 0
    copy = crash_image(data_dir, tmp_path / "copy")
    Layout(copy).promote(SENT)
    assert (copy / "generation-00000001" / "state.db-wal").exists()
    with closing(open_store(copy, base=sent.info.mark)) as switched:
        assert check_state(switched) == SENT
    assert not (copy / "generation-00000001").exists()
