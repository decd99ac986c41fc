"""What may leave, and when: the law on the type, held against every order of writes and truncations."""

from __future__ import annotations

from conveyord.core.raft.log import Log
from conveyord.core.raft.membership import NOBODY
from conveyord.core.raft.messages import AppendReply, Install, Message
from conveyord.core.raft.outbox import NOTHING, Outbox, Unsaved
from conveyord.core.raft.types import BEGINNING, BLANK, HardState, Kind, Mark

VOTED = HardState(1, "a", 0)


def fresh() -> tuple[Outbox, Log]:
    return Outbox("b", Unsaved(BLANK, 1)), Log(BEGINNING)


def reply(index: int, to: str = "a") -> Message:
    return AppendReply("b", to, 1, index)


def test_what_promises_nothing_unsaved_leaves_at_once() -> None:
    outbox, log = fresh()
    outbox.promise(reply(0))
    assert outbox.write(BLANK, log) is None
    assert outbox.take(None, (), ()).messages == (reply(0),)
    assert outbox.take(None, (), ()) is NOTHING


def test_a_promise_waits_for_the_write_that_covers_it_even_if_it_adds_nothing_to_it() -> None:
    outbox, log = fresh()
    write = outbox.write(VOTED, log)
    assert write is not None
    outbox.promise(reply(0))
    assert outbox.write(VOTED, log) is None
    assert outbox.take(None, (), ()).messages == ()
    assert outbox.persisted(write.token, log) == []
    assert outbox.take(None, (), ()).messages == (reply(0),)


def test_a_promise_to_oneself_comes_back_when_it_is_kept() -> None:
    outbox, log = fresh()
    log.append(1, Kind.NOOP, b"")
    outbox.promise(reply(1, to="b"))
    write = outbox.write(VOTED, log)
    assert write is not None
    assert (write.hard_state, [entry.index for entry in write.entries]) == (VOTED, [1])
    assert outbox.persisted(write.token, log) == [reply(1, to="b")]
    assert log.stable == 1


def test_a_commit_index_alone_is_no_reason_to_write() -> None:
    outbox, log = fresh()
    assert outbox.write(HardState(0, None, 7), log) is None
    log.append(1, Kind.NOOP, b"")
    write = outbox.write(HardState(0, None, 7), log)
    assert write is not None
    assert write.hard_state == HardState(0, None, 7)


def test_writes_end_in_order_and_each_token_stands_for_those_before_it() -> None:
    outbox, log = fresh()
    tokens = []
    for index in (1, 2, 3):
        log.append(1, Kind.COMMAND, b"")
        outbox.promise(reply(index))
        write = outbox.write(VOTED, log)
        assert write is not None
        tokens.append(write.token)
    outbox.persisted(tokens[1], log)
    assert (log.stable, outbox.take(None, (), ()).messages) == (2, (reply(1), reply(2)))


def test_a_truncation_is_written_only_if_what_it_drops_was() -> None:
    outbox, log = fresh()
    log.append(1, Kind.COMMAND, b"")
    log.append(1, Kind.COMMAND, b"")
    log.truncate(2)
    outbox.truncated(2)
    log.append(2, Kind.COMMAND, b"")
    write = outbox.write(VOTED, log)
    assert write is not None
    assert (write.truncate_from, [entry.term for entry in write.entries]) == (None, [1, 2])
    log.truncate(1)
    outbox.truncated(1)
    second = outbox.write(VOTED, log)
    assert second is not None
    assert (second.truncate_from, second.entries) == (1, ())
    outbox.persisted(write.token, log)
    assert log.stable == 0


def test_of_two_truncations_that_were_not_written_the_longer_one_counts() -> None:
    outbox, log = fresh()
    for _ in range(4):
        log.append(1, Kind.COMMAND, b"")
    outbox.write(VOTED, log)
    for first in (4, 2):
        log.truncate(first)
        outbox.truncated(first)
        log.append(first, Kind.COMMAND, b"")
    write = outbox.write(VOTED, log)
    assert write is not None
    assert (write.truncate_from, [entry.index for entry in write.entries]) == (2, [2])


def test_a_snapshot_takes_the_place_of_all_that_was_to_be_written() -> None:
    outbox, log = fresh()
    log.append(1, Kind.COMMAND, b"")
    mark = Mark(9, 3, b"12345678")
    log.reset(mark)
    outbox.installed(Install(mark, NOBODY))
    log.append(3, Kind.COMMAND, b"x")
    write = outbox.write(VOTED, log)
    assert write is not None
    assert (write.install, write.truncate_from) == (Install(mark, NOBODY), None)
    assert [entry.index for entry in write.entries] == [10]
