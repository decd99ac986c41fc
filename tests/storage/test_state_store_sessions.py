"""Client sessions as rows: what is on disk is what is in memory, and an apply writes no more than it changed."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import Corrupt
from conveyord.core.raft.sessions import SessionExpired, Sessions, WindowExceeded
from conveyord.storage.state_store.schema import prepare
from conveyord.storage.state_store.session_rows import load_sessions, store_changes
from tests.storage.kv_state import advance, check_state, open_store

# (session, number, ack_below, what comes after it). Session 0 stands for registering a new one, any other number for
# the one that was registered so many before.
COMMANDS = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 1, 1, 2, 3, 4]),
        st.integers(1, 6),
        st.integers(0, 6),
        st.sampled_from(["", "", "stored", "opened"]),
    ),
    max_size=60,
)


def fresh() -> Sessions:
    return Sessions(sessions_max=3, window=2)


def database() -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    prepare(connection, Path("memory"), ())
    return connection


class Clients:
    """Sends commands to a table, and knows which sessions it has registered."""

    def __init__(self) -> None:
        self._registered = list[int]()

    def reply(self, sessions: Sessions, index: int, back: int, number: int, ack_below: int) -> bytes:
        try:
            if back == 0:
                self._registered.append(index)
                return b"%d" % sessions.register(index)
            session = self._registered[-back] if back <= len(self._registered) else 999
            return sessions.apply(session, number, ack_below, lambda: b"at %d" % index)
        except (SessionExpired, WindowExceeded) as error:
            return error.code.encode()


@given(COMMANDS)
def test_rows_stand_for_the_table_whenever_they_are_written_and_read_again(
    commands: list[tuple[int, int, int, str]],
) -> None:
    memory, stored = fresh(), fresh()
    ours, theirs = Clients(), Clients()
    with closing(database()) as connection:
        for index, (*command, then) in enumerate(commands, 1):
            assert ours.reply(stored, index, *command) == theirs.reply(memory, index, *command)
            assert stored.dump() == memory.dump()
            if then:
                store_changes(connection.cursor(), stored.take_changes())
            if then == "opened":
                stored = fresh()
                load_sessions(connection, Path("memory"), stored)
                assert stored.dump() == memory.dump()
        store_changes(connection.cursor(), stored.take_changes())
        again = fresh()
        load_sessions(connection, Path("memory"), again)
        assert again.dump() == memory.dump()
        with closing(database()) as other:
            store_changes(other.cursor(), memory.take_changes())
            assert list(connection.iterdump()) == list(other.iterdump()), "as at a replica that was never opened again"


@given(COMMANDS, COMMANDS)
def test_rows_are_the_same_however_many_commands_are_written_at_once(
    commands: list[tuple[int, int, int, str]], more: list[tuple[int, int, int, str]]
) -> None:
    rows = []
    for at_once in (False, True):
        sessions, clients = fresh(), Clients()
        with closing(database()) as connection:
            for index, (*command, _) in enumerate([*commands, *more], 1):
                clients.reply(sessions, index, *command)
                if not at_once:
                    store_changes(connection.cursor(), sessions.take_changes())
            store_changes(connection.cursor(), sessions.take_changes())
            rows.append("\n".join(connection.iterdump()))
    assert rows[0] == rows[1]


def test_one_command_among_thousands_of_sessions_writes_its_own_row_only() -> None:
    sessions = Sessions()
    for index in range(1, 3_001):
        sessions.register(index)
        sessions.apply(index, 1, 0, lambda: b"first")
    with closing(database()) as connection:
        store_changes(connection.cursor(), sessions.take_changes())
        before = connection.total_changes
        sessions.apply(1_000, 2, 2, lambda: b"second")
        store_changes(connection.cursor(), sessions.take_changes())
        assert connection.total_changes - before == 1
        store_changes(connection.cursor(), sessions.take_changes())
        assert connection.total_changes - before == 1


def test_what_came_and_went_between_two_writes_is_never_written() -> None:
    sessions = fresh()
    with closing(database()) as connection:
        for index in range(1, 10):
            sessions.register(index)
            sessions.apply(index, 1, 0, lambda: b"reply")
        changes = sessions.take_changes()
        assert [session for session, *_ in changes.used] == [7, 8, 9]
        assert changes.gone == ()
        store_changes(connection.cursor(), changes)
        assert connection.execute("SELECT count(*) FROM raft_sessions").fetchone() == (3,)


def test_replies_that_cannot_be_read_are_told_as_damage(tmp_path: Path) -> None:
    with closing(open_store(tmp_path)) as store:
        advance(store, 60)
        store._connection.execute("UPDATE raft_sessions SET replies = x'c1'")
    with pytest.raises(Corrupt, match=r"the state is damaged \(replies of a client cannot be read"):
        open_store(tmp_path)


def test_a_state_of_the_first_version_goes_on(tmp_path: Path) -> None:
    """It had a row for each reply."""
    with closing(open_store(tmp_path)) as store:
        advance(store, 60)
        digest, connection = store.state_digest(), store._connection
        rows = connection.execute('SELECT session, floor, "use", replies FROM raft_sessions').fetchall()
        connection.execute("DROP TABLE raft_sessions")
        connection.execute('CREATE TABLE raft_sessions (session INTEGER PRIMARY KEY, floor INTEGER, "use" INTEGER)')
        connection.execute("CREATE TABLE raft_replies (session, number, reply, PRIMARY KEY (session, number))")
        for session, floor, use, replies in rows:
            connection.execute("INSERT INTO raft_sessions VALUES (?, ?, ?)", (session, floor, use))
            for number, reply in reversed(msgspec.msgpack.decode(replies, type=dict[int, bytes]).items()):
                connection.execute("INSERT INTO raft_replies VALUES (?, ?, ?)", (session, number, reply))
        assert connection.execute("SELECT count(*) FROM raft_replies").fetchone()[0] > 3
        connection.execute("PRAGMA user_version = 1")
    with closing(open_store(tmp_path)) as store:
        assert store.state_digest() == digest
        advance(store, 90)
        assert check_state(store) == 90
