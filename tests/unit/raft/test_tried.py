"""What was tried out is told once it is committed, and only if it is what the log has."""

from __future__ import annotations

from conveyord.core.raft.log import Log
from conveyord.core.raft.tried import NOTHING, Tried
from conveyord.core.raft.types import BEGINNING, Kind

REPLIES = [b"one", b"two", b"three"]


def test_what_is_committed_is_told_and_the_rest_later() -> None:
    log = Log(BEGINNING)
    log.append(1, Kind.NOOP, b"")
    entries = log.append_all(1, Kind.COMMAND, [b"a", b"b", b"c"])
    tried = Tried(entries, REPLIES)
    assert tried.up_to(1, log) == (NOTHING, tried)
    done, rest = tried.up_to(3, log)
    assert done == (entries[:2], REPLIES[:2])
    assert rest == (entries[2:], REPLIES[2:])
    assert rest.up_to(9, log) == ((entries[2:], REPLIES[2:]), NOTHING._replace(entries=[], replies=[]))
    assert NOTHING.up_to(9, log) == (NOTHING, NOTHING)


def test_entries_that_others_have_taken_the_place_of_are_never_told() -> None:
    log = Log(BEGINNING)
    entries = log.append_all(1, Kind.COMMAND, [b"a", b"b", b"c"])
    log.truncate(2)
    log.append_all(2, Kind.COMMAND, [b"x", b"y"])
    tried = Tried(entries, REPLIES)
    assert tried.up_to(1, log)[0] == (entries[:1], REPLIES[:1])
    assert tried.up_to(2, log) == (NOTHING, (entries[2:], REPLIES[2:]))
    assert tried.up_to(3, log)[0] == NOTHING
