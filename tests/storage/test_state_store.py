"""The state of a node: entries change it once, in order, whole, and the same at every replica."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlite_utils import Database

from conveyord.core.errors import Corrupt, Refused, Retryable, StorageFull
from conveyord.core.raft.sessions import Sessions
from conveyord.core.raft.types import Entry, Kind, Mark, make_entry
from conveyord.storage.sqlite_errors import transaction
from conveyord.storage.state_store import connections
from conveyord.storage.state_store import store as store_module
from conveyord.storage.state_store.reader import StateReader
from conveyord.storage.state_store.schema import Migration
from conveyord.storage.state_store.shared_memory import SHM_BYTES, ensure_room
from conveyord.storage.state_store.store import StateStore
from tests.sim.machine import Machine
from tests.storage.kv_state import (
    MIGRATIONS,
    KvState,
    advance,
    check_state,
    entries,
    machine_at,
    make_registers,
    mark_of,
    open_store,
    registers,
)

LAST = 150


@pytest.fixture
def store(data_dir: Path) -> Iterator[StateStore]:
    with closing(open_store(data_dir)) as store:
        yield store


# ------------------------------------------------------------------------------ applying


@given(st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=12))
def test_replicas_agree_however_their_entries_are_batched_and_whenever_they_restart(
    batches: list[tuple[int, bool]],
) -> None:
    """The replies and the rows are those of the machine of the simulation, whose twin this state is."""
    machine = Machine()
    expected = [machine.apply(entry) for entry in entries(1, LAST + 1)]
    state, replies = KvState(), list[bytes]()
    with TemporaryDirectory(dir="/dev/shm") as name:
        directory = Path(name)
        store, whole = open_store(directory / "a"), open_store(directory / "b")
        for size, is_restarted in batches:
            first = len(replies) + 1
            replies += store.apply(entries(first, min(first + size, LAST + 1)), state.execute)
            if is_restarted:
                store.close()
                store = open_store(directory / "a")
            check_state(store)
        replies += advance(store, LAST)
        advance(whole, LAST, batch=LAST)
        assert replies == expected
        assert store.state_digest() == whole.state_digest()
        store.close()
        whole.close()


def test_the_twin_tells_of_every_entry_what_the_machine_tells(store: StateStore) -> None:
    state, machine, repeated = KvState(), Machine(), 0
    for entry in entries(1, LAST + 1):
        assert store.apply([entry], state.execute) == [machine.apply(entry)]
        assert (state.ran, state.repeated) == (machine.ran, machine.repeated)
        repeated += state.repeated
    assert repeated > 0


def test_no_entries_are_no_transaction(store: StateStore) -> None:
    assert store.apply((), KvState().execute) == []
    assert store.mark.index == 0


@pytest.mark.parametrize(("first", "end"), [(2, 3), (12, 14), (10, 12)])
def test_a_gap_or_an_entry_that_is_there_already_is_a_bug(store: StateStore, first: int, end: int) -> None:
    advance(store, 10)
    with pytest.raises(AssertionError):
        store.apply(entries(first, end), KvState().execute)
    with pytest.raises(AssertionError):
        store.apply((*entries(11, 12), *entries(13, 14)), KvState().execute)


def test_entries_of_another_log_are_refused_and_change_nothing(store: StateStore) -> None:
    advance(store, 10)
    stranger = make_entry(b"elsewher", 11, 9, Kind.NOOP, b"")
    with pytest.raises(Corrupt, match="entry 11 of the log does not follow"):
        store.apply([stranger], KvState().execute)
    assert check_state(store) == 10


def test_the_index_of_the_wal_has_its_room_as_long_as_the_state_is_open(store: StateStore) -> None:
    found = Path(f"{store.path}-shm").stat()
    assert found.st_blocks * 512 >= SHM_BYTES


def test_a_disk_that_does_not_tell_its_room_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(Retryable, match="missing: No such file.*; check the disk"):
        ensure_room(tmp_path / "missing")


def test_a_full_disk_takes_nothing_and_the_same_entries_are_applied_when_there_is_room(store: StateStore) -> None:
    advance(store, 10)

    def filling(cursor: sqlite3.Cursor, sessions: Sessions, some: Sequence[Entry]) -> list[bytes]:
        replies = state.execute(cursor, sessions, some)
        cursor.execute("CREATE TABLE IF NOT EXISTS ballast (data)")
        for _ in some:
            cursor.execute("INSERT INTO ballast VALUES (zeroblob(100000))")
        return replies

    state = KvState()
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count = {pages + 30}")
    with pytest.raises(StorageFull, match="the log has it"):
        store.apply(entries(11, 60), filling)
    assert check_state(store) == 10
    store._connection.execute("PRAGMA max_page_count = 1000000")
    assert advance(store, 60) == [Machine.apply(machine, entry) for machine in [fresh(10)] for entry in entries(11, 61)]
    assert check_state(store) == 60


def fresh(index: int) -> Machine:
    """The machine after an entry, to go on with."""
    return Machine(machine_at(index).dump())


def test_after_an_error_nothing_is_applied_and_everything_refused_until_the_next_start(data_dir: Path) -> None:
    def failing(cursor: sqlite3.Cursor, sessions: Sessions, some: Sequence[Entry]) -> list[bytes]:
        KvState().execute(cursor, sessions, some)
        raise ZeroDivisionError("a bug")

    with closing(open_store(data_dir)) as store:
        advance(store, 10)
        with pytest.raises(ZeroDivisionError):
            store.apply(entries(11, 20), failing)
        for act in (lambda: advance(store, 11), lambda: store.switch(mark_of(50)), store.state_digest):
            with pytest.raises(Refused, match="since it failed \\(a bug\\); end the process"):
                act()
    with closing(open_store(data_dir)) as store:
        assert check_state(store) == 10
        advance(store, 20)


def test_an_error_of_the_disk_is_never_followed_by_another_try(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(store_module, "write_mark", broken)
        with pytest.raises(Retryable, match="disk I/O error"):
            advance(store, 5)
    with pytest.raises(Refused, match="disk I/O error"):
        advance(store, 5)


# ------------------------------------------------------------------------------ the WAL


def test_the_wal_stays_small_but_while_a_reader_needs_it(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 200_000
    monkeypatch.setattr(store_module, "WAL_BYTES", limit)
    store._checkpoint_at_bytes = limit
    wal = store.path.with_name("state.db-wal")
    sizes = list[int]()
    for end in range(1, 100):
        advance(store, end)
        sizes.append(wal.stat().st_size)
    assert max(sizes) < limit + 50_000
    with store.reader() as reader, transaction(reader.connection, "BEGIN"):
        held = reader.mark()
        advance(store, 300, batch=1)
        assert wal.stat().st_size > 2 * limit
        assert reader.mark() == held
    advance(store, 400, batch=1)
    assert wal.stat().st_size < limit + 50_000
    assert check_state(store) == 400


def test_a_checkpoint_that_finds_no_room_waits_for_the_next(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def execute(self, statement: str, *_: object) -> None:
            if "busy_timeout" in statement:
                return
            assert "wal_checkpoint" in statement
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

    advance(store, 10)
    store._checkpoint_at_bytes = 0
    with monkeypatch.context() as patch:
        patch.setattr(store, "_connection", Full())
        store._checkpoint()
    assert store._checkpoint_at_bytes > store_module.WAL_BYTES
    advance(store, 20)


def test_what_was_applied_stays_so_if_the_file_cannot_be_written_then(
    store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the same entries would be applied again."""

    def refused(_: object) -> None:
        error = sqlite3.OperationalError("attempt to write a readonly database")
        error.sqlite_errorcode = sqlite3.SQLITE_READONLY
        raise error

    advance(store, 10)
    store._checkpoint_at_bytes = 0
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "checkpoint", refused)
        advance(store, 20)
    assert check_state(store) == 20
    advance(store, 30)


def test_sessions_that_cannot_be_read_again_end_the_store(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """They have learned of entries that were taken back, and would take those for repeated when they come."""

    def refused(*_: object) -> None:
        error = sqlite3.OperationalError("unable to open database file")
        error.sqlite_errorcode = sqlite3.SQLITE_CANTOPEN
        raise error

    advance(store, 10)
    store.try_out(entries(11, 20), KvState().execute)
    with monkeypatch.context() as patch, pytest.raises(StorageFull):
        patch.setattr(store_module, "load_sessions", refused)
        store.forget()
    with pytest.raises(Refused, match="takes nothing more"):
        advance(store, 20)


def test_nothing_is_written_outside_of_the_directory(store: StateStore) -> None:
    """Statements of many rows at random places put what they may have to take back into a file of SQLite's, else."""
    assert store._connection.execute("PRAGMA temp_store").fetchone() == (2,)


HOLD_WRITE_LOCK = """
import fcntl, sys, time
with open(sys.argv[1], "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX, 1, 120)
    print("held", flush=True)
    sys.stdin.readline()
    time.sleep(0.2)
"""


def test_a_reader_that_keeps_entries_from_being_applied_for_a_moment_is_waited_for(store: StateStore) -> None:
    """One that finds the head of the WAL half written takes SQLite's lock for writing to it, `mode=ro` or not, and
    looks again. Here another process holds it until it is told, and a little longer."""
    store._checkpoint_at_bytes = 0
    advance(store, 10)
    script = [sys.executable, "-c", HOLD_WRITE_LOCK, f"{store.path}-shm"]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdin is not None and reader.stdout is not None
        assert reader.stdout.readline() == "held\n"
        reader.stdin.write("let go\n")
        reader.stdin.flush()
        advance(store, 20)
    assert check_state(store) == 20


def test_a_checkpoint_waits_for_no_reader(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would wait for an hour here."""
    monkeypatch.setattr(connections, "LOCK_WAIT_SECONDS", 3_600)
    with closing(open_store(data_dir)) as store, store.reader() as reader, transaction(reader.connection, "BEGIN"):
        reader.mark()
        advance(store, 10)
        store._checkpoint_at_bytes = 0
        advance(store, 20)
        assert store._checkpoint_at_bytes > store_module.WAL_BYTES
        assert store.snapshots.take().mark == mark_of(20)


# ------------------------------------------------------------------------------ readers


def test_what_a_reader_sees_in_one_transaction_fits_together(store: StateStore) -> None:
    advance(store, 50)
    with store.reader() as reader:
        with transaction(reader.connection, "BEGIN"):
            assert reader.mark() == mark_of(50)
            advance(store, 90)
            assert registers(reader.connection) == machine_at(50).values
            assert reader.mark() == mark_of(50)
        assert registers(reader.connection) == machine_at(90).values
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.connection.execute("DELETE FROM registers")


def test_there_is_no_reader_without_a_state(data_dir: Path) -> None:
    with pytest.raises(Retryable, match="there is no state to read"):
        StateReader(data_dir / "elsewhere")


def test_a_reader_of_a_state_that_is_being_made_is_told_to_come_again(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, prepare, looks = store_module.connect_to_write, connections.prepare, list[str]()

    def look(when: str) -> None:
        looks.append(when)
        with pytest.raises(Retryable, match="there is no state to read"):
            StateReader(data_dir)

    def looking(step: Callable[..., Any], when: str) -> Callable[..., Any]:
        def looked(*arguments: Any) -> Any:
            look(when)
            return step(*arguments)

        return looked

    monkeypatch.setattr(store_module, "connect_to_write", looking(connect, "before it is a database"))
    monkeypatch.setattr(connections, "prepare", looking(prepare, "before it has tables"))
    with closing(open_store(data_dir)) as store:
        assert looks == ["before it is a database", "before it has tables"]
        assert check_state(store) == 0


# ------------------------------------------------------------------------------ migrations


def add_names(database: Database) -> None:
    database["names"].create({"key": int, "name": str}, pk="key")  # type: ignore[union-attr]


def fill_names(database: Database) -> None:
    database["names"].insert_all(  # type: ignore[union-attr]
        {"key": row["key"], "name": f"n{row['value']}"} for row in database["registers"].rows
    )


def fail(database: Database) -> None:
    database["half"].insert({"key": 1})  # type: ignore[union-attr]
    raise ZeroDivisionError("a bug")


def opened(directory: Path, *migrations: Migration) -> StateStore:
    return StateStore.open(directory, migrations=migrations)


def test_a_state_gets_the_migrations_that_it_lacks_in_one_transaction(data_dir: Path) -> None:
    with closing(open_store(data_dir)) as store:
        advance(store, 50)
    with pytest.raises(ZeroDivisionError):
        opened(data_dir, make_registers, add_names, fill_names, fail)
    with closing(opened(data_dir, make_registers)) as store:
        tables = {name for (name,) in store._connection.execute("SELECT name FROM sqlite_schema")}
        assert tables.isdisjoint({"names", "half"})
    for _ in range(2):  # and only once
        with closing(opened(data_dir, make_registers, add_names, fill_names)) as store:
            assert store.mark == mark_of(50)
            names = dict(store._connection.execute("SELECT key, name FROM names"))
            assert names == {key: f"n{value}" for key, value in machine_at(50).values.items()}


@pytest.mark.parametrize("known", [(), (add_names,), (make_registers,)])
def test_a_state_of_a_newer_program_is_refused_and_left_alone(data_dir: Path, known: tuple[Migration, ...]) -> None:
    opened(data_dir, make_registers, add_names).close()
    with pytest.raises(Refused, match="has the migration '(make_registers|add_names)', which this conveyord does not"):
        opened(data_dir, *known)
    opened(data_dir, make_registers, add_names).close()


def test_a_state_of_a_newer_version_is_refused(data_dir: Path) -> None:
    with closing(opened(data_dir)) as store:
        store._connection.execute("PRAGMA user_version = 3")
    with pytest.raises(Refused, match="has version 3, this conveyord knows 2; run the version that wrote it"):
        opened(data_dir)


# ------------------------------------------------------------------------------ where the log begins


def test_a_state_that_is_older_than_its_log_is_made_anew_from_the_snapshot_that_was_taken(data_dir: Path) -> None:
    with closing(open_store(data_dir)) as store:
        advance(store, 50)
        store.snapshots.take()
        advance(store, 60)
    for path in (data_dir / "generation-00000001").iterdir():
        path.write_bytes(b"no database, and longer than a hundred bytes" * 100)
    with pytest.raises(Corrupt, match="move the directory .*generation-00000001 away and start the node again"):
        open_store(data_dir, base=mark_of(40))
    (data_dir / "generation-00000001").rename(data_dir / "aside")
    with closing(open_store(data_dir, base=mark_of(40))) as store:
        assert check_state(store) == 50
        advance(store, 60)


def test_a_state_that_is_older_than_its_log_is_refused_if_no_snapshot_fills_the_gap(data_dir: Path) -> None:
    with closing(open_store(data_dir)) as store:
        advance(store, 50)
        store.snapshots.take()
    with pytest.raises(Corrupt, match="up to 50, the log begins after 51, .* bring this node back as a new member"):
        open_store(data_dir, base=mark_of(51))
    open_store(data_dir, base=mark_of(50)).close()


def test_a_state_of_another_log_is_refused(data_dir: Path) -> None:
    with closing(open_store(data_dir)) as store:
        advance(store, 50)
    with pytest.raises(Corrupt, match="it is of another log"):
        open_store(data_dir, base=Mark(50, 99, b"elsewher"))


# ------------------------------------------------------------------------------ comparing replicas


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE registers SET value = value + 1 WHERE key = (SELECT max(key) FROM registers)",
        "DELETE FROM registers WHERE key = (SELECT min(key) FROM registers)",
        "CREATE TABLE other (a)",
        "UPDATE raft_sessions SET replies = x'8101c400' WHERE session = (SELECT max(session) FROM raft_sessions)",
        "DELETE FROM raft_sessions WHERE session = (SELECT min(session) FROM raft_sessions)",
        "UPDATE raft_applied SET term = term + 1",
    ],
)
def test_the_digest_tells_any_difference(store: StateStore, change: str) -> None:
    advance(store, 200)
    before = store.state_digest()
    assert store.state_digest() == before
    store._connection.execute(change)
    assert store.state_digest() != before


def test_the_digest_does_not_depend_on_how_the_rows_lie_in_the_file(store: StateStore) -> None:
    advance(store, 200)
    before = store.state_digest()
    store._connection.execute("CREATE INDEX by_value ON registers (value, key)")
    store._connection.execute("VACUUM")
    store._connection.execute("INSERT INTO raft_migrations VALUES (7, 'later')")
    assert store.state_digest() == before
    assert len(MIGRATIONS) == 1
