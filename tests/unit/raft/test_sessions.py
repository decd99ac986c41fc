"""Sessions: once, with the first reply, whatever is sent again; and the same at every replica."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.raft.sessions import SessionExpired, Sessions, WindowExceeded


def counting() -> tuple[list[int], Callable[[], bytes]]:
    runs = list[int]()

    def execute() -> bytes:
        runs.append(1)
        return b"reply %d" % len(runs)

    return runs, execute


def test_a_command_that_comes_again_is_not_run_and_gets_its_first_reply() -> None:
    sessions, (runs, execute) = Sessions(), counting()
    session = sessions.register(7)
    assert [sessions.apply(session, 1, 1, execute) for _ in range(3)] == [b"reply 1"] * 3
    assert sessions.apply(session, 2, 1, execute) == b"reply 2"
    assert sessions.apply(session, 1, 1, execute) == b"reply 1"
    assert len(runs) == 2


def test_a_reply_that_was_acknowledged_is_forgotten_and_its_command_never_run_again() -> None:
    sessions, (runs, execute) = Sessions(), counting()
    session = sessions.register(7)
    sessions.apply(session, 1, 1, execute)
    sessions.apply(session, 2, 2, execute)
    with pytest.raises(SessionExpired, match="command 1 was acknowledged"):
        sessions.apply(session, 1, 1, execute)
    assert len(runs) == 2


def test_the_session_that_was_used_least_recently_goes_first() -> None:
    sessions, (_, execute) = Sessions(sessions_max=2), counting()
    sessions.register(1), sessions.register(2)
    sessions.apply(1, 1, 1, execute)
    sessions.register(3)
    sessions.apply(1, 2, 1, execute)
    with pytest.raises(SessionExpired, match="session 2 has expired"):
        sessions.apply(2, 1, 1, execute)
    assert len(sessions) == 2


def test_commands_under_way_are_limited_and_what_is_beyond_is_not_run() -> None:
    sessions, (runs, execute) = Sessions(window=2), counting()
    session = sessions.register(1)
    for number in (1, 2):
        sessions.apply(session, number, 1, execute)
    with pytest.raises(WindowExceeded, match="at most 2"):
        sessions.apply(session, 3, 1, execute)
    assert len(runs) == 2
    assert sessions.apply(session, 3, 2, execute) == b"reply 3"


COMMANDS = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 6), st.integers(0, 6)), max_size=40)


def lived(sessions: Sessions, commands: list[tuple[int, int, int]], first: int = 1) -> list[bytes]:
    """The replies to commands; session 0 stands for registering a new one."""
    replies = []
    for index, (session, number, ack_below) in enumerate(commands, first):
        try:
            if session == 0:
                replies.append(b"%d" % sessions.register(index))
            else:
                replies.append(sessions.apply(session, number, ack_below, lambda index=index: b"at %d" % index))
        except (SessionExpired, WindowExceeded) as error:
            replies.append(error.code.encode())
    return replies


@given(COMMANDS, st.integers(0, 40))
def test_a_replica_that_starts_from_a_dump_goes_on_as_the_others(
    commands: list[tuple[int, int, int]], cut: int
) -> None:
    whole, restored = (Sessions(sessions_max=3, window=2) for _ in range(2))
    expected = lived(whole, commands)
    before = Sessions(sessions_max=3, window=2)
    lived(before, commands[:cut])
    restored.load(before.dump())
    assert lived(restored, commands[cut:], first=cut + 1) == expected[cut:]
    assert restored.dump() == whole.dump()
