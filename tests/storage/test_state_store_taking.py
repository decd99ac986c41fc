"""Snapshots are read where the state lies: of one mark, with SQLite's locks kept, and with nothing left held."""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conveyord.core.errors import Refused, Retryable, StorageFull
from conveyord.core.raft.sessions import Sessions
from conveyord.storage.state_store import packing, snapshots, state_file
from conveyord.storage.state_store import store as store_module
from conveyord.storage.state_store.connections import checkpoint
from conveyord.storage.state_store.reader import StateReader
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.session_rows import load_sessions
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.snapshots import Snapshots
from conveyord.storage.state_store.store import StateStore
from tests.storage.kv_state import advance, check_state, entries, mark_of, open_store
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


class Stepping:
    """A connection that applies an entry between any two steps of a backup, and counts them."""

    def __init__(self, connection: sqlite3.Connection, between: Callable[[], object]) -> None:
        self._connection = connection
        self._between = between
        self.steps = 0

    def backup(self, target: sqlite3.Connection, *, pages: int) -> None:
        def progress(*_: int) -> None:
            self.steps += 1
            self._between()

        self._connection.backup(target, pages=pages, progress=progress)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def restored_index(home: Path, snapshots: Snapshots) -> int:
    """The newest snapshot is whole, and a node that installs it has the state of its mark. Returns that."""
    newest = snapshots.newest()
    assert newest is not None
    with newest, closing(open_store(home)) as restored:
        newest.verify()
        receive(home, newest.path.read_bytes(), newest.info)
        restored.switch(newest.info.mark)
        assert newest.info.membership == membership_at(newest.info.mark.index, home)
        return check_state(restored)


def test_a_snapshot_is_of_one_mark_while_entries_are_applied_and_checkpoints_tried(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state is read as it lies, a page at a time."""
    read = list[int]()

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        advance(store, store.mark.index + 20)
        busy, frames, moved = checkpoint(store._connection)
        assert (busy, moved) == (1, 0) and frames > 0
        read.append(offset)
        return os.preadv(descriptor, [buffers[0][:4_096]], offset)

    advance(store, 1_000)
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    with monkeypatch.context() as patch:
        patch.setattr(packing, "preadv", preadv)
        info = store.snapshots.take()
    assert read == [4_096 * page for page in range(pages + 1)]
    assert (info.mark, store.mark.index) == (mark_of(1_000), 1_000 + 20 * len(read))
    assert restored_index(tmp_path / "other", store.snapshots) == 1_000
    busy, frames, moved = checkpoint(store._connection)
    assert (busy, moved) == (False, frames)


def test_beside_a_reader_that_needs_an_older_state_a_copy_is_made_which_is_not_begun_anew(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = list[Stepping]()

    class Reader(StateReader):
        def __init__(self, directory: Path) -> None:
            super().__init__(directory)
            made.append(Stepping(self.connection, lambda: advance(store, store.mark.index + 1)))
            self.connection = made[0]  # type: ignore[assignment]

    with store.reader() as other:
        other.connection.execute("BEGIN")
        other.mark()
        advance(store, 1_000)
        with monkeypatch.context() as patch:
            patch.setattr(snapshots, "StateReader", Reader)
            patch.setattr(snapshots, "STEP_PAGES", 1)
            (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
            info = store.snapshots.take()
        assert made[0].steps == pages
        assert (info.mark, store.mark.index) == (mark_of(1_000), 1_000 + pages)
        assert restored_index(tmp_path / "other", store.snapshots) == 1_000
        assert other.mark() == mark_of(HELD)


def test_a_reader_that_sees_the_newest_state_is_no_reason_for_a_copy(
    store: StateStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "_copy", None)
    with store.reader() as other:
        other.connection.execute("BEGIN")
        other.mark()
        store.snapshots.take()
        assert restored_index(tmp_path / "other", store.snapshots) == HELD


def test_threads_take_them_one_after_the_other(store: StateStore, tmp_path: Path) -> None:
    """Backups and the node itself take them as they like. None removes what another one has just taken."""

    def taken(number: int) -> int:
        copy = tmp_path / f"{number}.snapshot"
        for _ in range(5):
            with store.snapshots.take_open() as snapshot:
                copy.write_bytes(snapshot.read_chunk(0, 1 << 24))
            with SnapshotFile(copy) as copied:
                copied.verify()
        return snapshot.info.mark.index

    with ThreadPoolExecutor(6) as threads:
        found = threads.map(taken, range(6))
        for _ in range(100):
            advance(store, store.mark.index + 1)
        assert max(found) <= HELD + 100
    store.snapshots.take()
    assert restored_index(tmp_path / "other", store.snapshots) == HELD + 100


@pytest.mark.parametrize("how", ["disk", "cancelled"])
def test_a_snapshot_that_fails_lets_go_of_the_wal(
    store: StateStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    error = OSError(errno.EIO, "Input/output error") if how == "disk" else KeyboardInterrupt()

    def failing(*_: Any) -> int:
        advance(store, HELD + 100)
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(packing, "preadv", failing)
        with pytest.raises((Retryable, KeyboardInterrupt)):
            store.snapshots.take()
    assert store.path.with_name("state.db-wal").stat().st_size > 0
    busy, frames, moved = checkpoint(store._connection)
    assert (busy, moved) == (False, frames)
    assert check_state(store) == HELD + 100
    assert store.snapshots.take().mark == mark_of(HELD + 100)
    assert names(data_dir) - {f"snapshots/{HELD:020}.tmp"} == {"snapshots", f"snapshots/{HELD + 100:020}.snapshot"}


def test_a_snapshot_that_was_begun_is_completed_beside_a_switch_and_after_the_end(
    store: StateStore, data_dir: Path, tmp_path: Path, sent: SnapshotFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it reads is never closed below it."""
    content, steps = sent.path.read_bytes(), [lambda: store.switch(sent.info.mark), store.close]

    def preadv(descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        if offset and steps:
            steps.pop(0)()
        return os.preadv(descriptor, [buffers[0][:4_096]], offset)

    receive(data_dir, content, sent.info)
    monkeypatch.setattr(packing, "preadv", preadv)
    snapshots = store.snapshots
    assert snapshots.take().mark == mark_of(HELD)
    assert not steps
    assert restored_index(tmp_path / "other", snapshots) == HELD
    with pytest.raises(Refused, match="it was closed"):
        snapshots.take()


def test_nothing_is_applied_between_the_checkpoint_and_the_transaction_that_keeps_the_file_as_it_is(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[tuple[bool, bool]]()

    class Reader(StateReader):
        def place(self) -> Place:
            seen.append((store._using.locked(), self.connection.in_transaction))
            return super().place()

    monkeypatch.setattr(snapshots, "StateReader", Reader)
    store.snapshots.take()
    assert seen == [(True, False), (True, True)]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_a_state_that_could_not_be_synced_is_not_synced_a_second_time(
    store: StateStore, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """That could report success for what is lost, and the log would be cut behind it."""

    def failing(_: int) -> None:
        raise OSError(code, os.strerror(code))

    store.snapshots.take()  # so that the next one makes no directory
    advance(store, HELD + 10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        with pytest.raises((Retryable, StorageFull), match=os.strerror(code)):
            store.snapshots.take()
    for act in (store.snapshots.take, lambda: advance(store, HELD + 20)):
        with pytest.raises(Refused, match="takes nothing more since it failed"):
            act()
    assert store.snapshots._layout.all_snapshots() == [HELD]


def test_a_store_that_failed_gives_no_snapshot(store: StateStore) -> None:
    """What its disk has is not known."""
    with pytest.raises(ZeroDivisionError):
        store.apply(entries(HELD + 1, HELD + 2), lambda *_: b"%d" % (1 // 0))
    with pytest.raises(Refused, match="takes nothing more since it failed"):
        store.snapshots.take()


HOLD_LOCKS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    connection.execute("SELECT * FROM raft_applied").fetchall()
except sqlite3.OperationalError as error:
    print(error)
else:
    print("it is nobody's")
"""


def said_by_a_stranger(path: Path) -> str:
    """What another process is told that wants the file of a state for itself."""
    done = subprocess.run([sys.executable, "-c", HOLD_LOCKS, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_sqlite_keeps_its_locks_through_snapshots_readers_and_the_end_of_the_store(store: StateStore) -> None:
    """A process that closes a file gives up its locks on it, whichever descriptor it was."""
    path = store.path
    store.snapshots.take()
    assert said_by_a_stranger(path) == "database is locked"
    with store.reader():
        store.snapshots.take()
    assert said_by_a_stranger(path) == "database is locked"
    reader = store.reader()
    store.close()
    assert said_by_a_stranger(path) == "database is locked"
    reader.close()
    assert said_by_a_stranger(path) == "it is nobody's"
    assert (path.stat().st_dev, path.stat().st_ino) not in state_file._open


def test_a_reader_that_outlives_the_store_keeps_the_wal_from_another_process(store: StateStore) -> None:
    path = store.path
    with store.reader() as reader:
        reader.connection.execute("BEGIN")
        before = reader.place()
        advance(store, before.mark.index + 50)
        store.close()
        look = "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('SELECT * FROM sqlite_schema').fetchall()"
        subprocess.run([sys.executable, "-c", look, str(path)], check=True)
        assert reader.place() == before
        reader.connection.execute("COMMIT")
        assert reader.place().mark.index == before.mark.index + 50


@pytest.mark.parametrize("way", ["open", "switch"])
def test_sqlite_keeps_its_locks_beside_a_reader_that_comes_and_goes_while_a_state_is_opened(
    store: StateStore, data_dir: Path, sent: SnapshotFile, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    def load(connection: sqlite3.Connection, path: Path, sessions: Sessions) -> None:
        StateReader(data_dir).close()
        load_sessions(connection, path, sessions)

    receive(data_dir, sent.path.read_bytes(), sent.info)
    if way == "open":
        store.close()
    monkeypatch.setattr(store_module, "load_sessions", load)
    with closing(open_store(data_dir) if way == "open" else store) as opened:
        if way == "switch":
            opened.switch(sent.info.mark)
        assert said_by_a_stranger(opened.path) == "database is locked"


def test_a_state_that_cannot_be_opened_is_let_go_of(
    store: StateStore, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.close()
    raised = list[Any]()  # what they hold is not let go of by itself
    with monkeypatch.context() as patch:
        for step in ("load_sessions", "connect_to_write"):
            patch.setattr(store_module, step, lambda *_: 1 // 0)
            with pytest.raises(ZeroDivisionError) as caught:
                open_store(data_dir)
            raised.append(caught)
            assert [path.name for path in store.path.parent.iterdir()] == ["state.db"]
            assert (store.path.stat().st_dev, store.path.stat().st_ino) not in state_file._open
    assert said_by_a_stranger(store.path) == "it is nobody's"


def membership_at(index: int, home: Path) -> Any:
    with closing(open_store(home / "membership")) as store:
        advance(store, index)
        return store.membership
