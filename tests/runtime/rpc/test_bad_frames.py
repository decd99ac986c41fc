"""A side that dawdles, floods, lies or is gone: refused with a counted reason, and nothing grows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.wire.frames import MAGIC, PREFIX, opening
from conveyord.core.wire.heads import Credit, Error, Goodbye, Hello, Message, Ping, Pong, Reply, Request
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.greeting import Side, welcome
from conveyord.runtime.rpc.handlers import Answer, Handlers, Incoming, Outlet
from conveyord.runtime.rpc.transport import StreamTransport
from tests.runtime.rpc.rpc_rig import CLUSTER, LIMITS, Wire, anyone, pair, side, stranger
from tests.runtime.rpc.test_calls import answering


def large(incoming: Incoming) -> Answer:
    return Answer(b"", bytes(100_000))


async def test_a_frame_that_is_too_large_is_refused_before_it_comes(autojump_clock: trio.testing.MockClock) -> None:
    there = side("b")
    async with stranger(there) as (wire, _connection):
        await wire.stream.send_all(PREFIX.pack(MAGIC, 10, LIMITS.frame_bytes_max))
        [goodbye] = await wire.hear_to_the_end()
        assert isinstance(goodbye, Goodbye)
        assert goodbye.code == "OVERSIZE"
        assert "at most 1048576 are taken" in goodbye.message
    assert there.counters.refused_frames == {"oversize": 1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", "magic"),
        (PREFIX.pack(MAGIC, 2, 0) + b"\x91\x63", "unknown_kind"),
        (PREFIX.pack(MAGIC, 2, 0) + b"\x91\x05", "malformed_head"),
        (opening(Hello(1, 1, CLUSTER, "x", 1, "rpc")), "unexpected"),
        (opening(Request(5, "echo")) + opening(Request(5, "echo")), "id"),
        (opening(Request(5, "echo")) + opening(Request(4, "echo")), "id"),
    ],
)
async def test_what_is_no_frame_ends_the_connection_with_its_reason(
    data: bytes, reason: str, autojump_clock: trio.testing.MockClock
) -> None:
    there = side("b", answering()[0])
    async with stranger(there) as (wire, _connection):
        await wire.stream.send_all(data)
        goodbye = (await wire.hear_to_the_end())[-1]
        assert isinstance(goodbye, Goodbye)
        assert goodbye.code == reason.upper()
    assert there.counters.refused_frames == there.counters.ended_connections == {reason: 1}


async def test_a_connection_that_ends_within_a_frame_is_truncated(autojump_clock: trio.testing.MockClock) -> None:
    there = side("b")
    async with stranger(there) as (wire, _connection):
        await wire.stream.send_all(opening(Ping(1))[:-1])
        await wire.stream.send_eof()  # type: ignore[attr-defined]
        await trio.sleep(1)
    assert there.counters.refused_frames == {"truncated": 1}


@given(
    st.lists(
        st.binary(max_size=60) | st.sampled_from([MAGIC, b"\x00\x00\x00\x03\x00\x00\x00\x00", opening(Ping(1))]),
        max_size=12,
    )
)
def test_any_bytes_end_in_order(pieces: list[bytes]) -> None:
    async def main() -> None:
        there = side("b", answering()[0])
        async with stranger(there) as (wire, connection):
            try:
                for piece in pieces:
                    await wire.stream.send_all(piece)
                await wire.stream.send_eof()  # type: ignore[attr-defined]
            except trio.BrokenResourceError:
                pass
            await wire.hear_to_the_end()
        assert connection.ending is not None
        assert connection.ending.reason != "shutdown"

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


async def test_ten_thousand_requests_are_answered_or_refused(autojump_clock: trio.testing.MockClock) -> None:
    handlers, seen = answering()
    limits = replace(LIMITS, requests_max=100)
    there = side("b", handlers, limits)
    async with stranger(there) as (wire, connection):
        for first in range(1, 10_001, 100):
            await wire.say(*[Request(number, "sleep", 60_000) for number in range(first, first + 100)])
        refusals = [await wire.hear() for _ in range(9_900)]
        assert {type(head) for head in refusals} == {Error}
        assert {head.code for head in refusals} == {"TOO_MANY_REQUESTS"}  # type: ignore[union-attr]
        assert connection.open_requests == len(seen["began"]) == 100
        assert there.counters.refused_requests == {"too_many_requests": 9_900}
        await wire.say(Ping(3))
        assert await wire.hear() == Pong(3)


async def test_ten_thousand_streams_are_opened_or_refused(autojump_clock: trio.testing.MockClock) -> None:
    handlers = Handlers()

    async def idle(incoming: Incoming, outlet: Outlet) -> None:
        await trio.sleep_forever()

    handlers.stream("watch", idle)
    there = side("b", handlers, replace(LIMITS, requests_max=100))
    async with stranger(there) as (wire, connection):
        for first in range(1, 10_001, 100):
            await wire.say(*[Request(number, "watch", None, b"", 1, 1) for number in range(first, first + 100)])
        for _ in range(9_900):
            assert isinstance(await wire.hear(), Error)
        assert connection.open_requests == 100
    assert connection.open_requests == 0


async def test_messages_beyond_the_limit_are_dropped() -> None:
    handlers, _seen = answering()
    there = side("b", handlers, replace(LIMITS, requests_max=10))
    async with stranger(there) as (wire, connection):
        await wire.say(*[Message("sleep")] * 1000)
        await trio.testing.wait_all_tasks_blocked()
        assert connection.open_requests == 10
        assert there.counters.dropped_messages == {"too_many_requests": 990}


async def test_a_frame_that_trickles_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    there = side("b")
    async with stranger(there) as (wire, connection):
        frame = opening(Message("note", bytes(1000)))
        try:
            for byte in frame:
                await wire.stream.send_all(bytes([byte]))
                await trio.sleep(0.5)
        except trio.BrokenResourceError:
            pass
        assert connection.ending is not None
        assert connection.ending.reason == "slow_frame"
    assert there.counters.ended_connections == {"slow_frame": 1}


async def test_small_frames_in_small_pieces_are_no_slow_frame(autojump_clock: trio.testing.MockClock) -> None:
    handlers, seen = answering()
    async with stranger(side("b", handlers)) as (wire, connection):
        whole = b"".join(opening(Message("note", b"%d" % number)) for number in range(40))
        step = 17
        for at in range(0, len(whole), step):
            await wire.stream.send_all(whole[at : at + step])
            await trio.sleep(1)
        assert len(seen["messages"]) == 40
        assert connection.ending is None


@asynccontextmanager
async def unread(there: Side) -> AsyncIterator[tuple[Wire, Connection]]:
    """A connection on which nothing is taken before the other end reads it, which it does not."""
    ours, theirs = trio.testing.lockstep_stream_pair()
    wire = Wire(ours)
    met: list[Connection] = []

    async def accept() -> None:
        met.append(await welcome(there, StreamTransport(theirs), None, anyone))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept)
        nursery.start_soon(wire.say, Hello(1, 1, CLUSTER, "x", 1, "rpc"))
        await wire.hear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(met[0].run)
        yield wire, met[0]


async def test_a_side_that_does_not_read_inline_replies_is_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    handlers, _ = answering()
    handlers.inline("inline large", large)
    there = side("b", handlers)
    async with unread(there) as (wire, connection):
        with trio.move_on_after(5):
            await wire.say(*[Request(number, "inline large") for number in range(1, 1001)])
        assert connection.ending is None
        assert LIMITS.queued_bytes_max < connection.queued_bytes < LIMITS.queued_bytes_max + 200_000
        await trio.sleep(LIMITS.stall_seconds + 2)
        assert connection.ending is not None
        assert connection.ending.reason == "not_reading"
        assert connection.queued_bytes < LIMITS.queued_bytes_max + 200_000
        assert there.counters.ended_connections == {"not_reading": 1}


async def test_a_side_that_reads_slowly_gets_all_inline_replies(autojump_clock: trio.testing.MockClock) -> None:
    handlers = Handlers()
    handlers.inline("inline large", large)
    there = side("b", handlers)
    async with unread(there) as (wire, connection), trio.open_nursery() as nursery:
        nursery.start_soon(lambda: wire.say(*[Request(number, "inline large") for number in range(1, 201)]))
        for number in range(1, 201):
            assert await wire.hear() == Reply(number)
            await trio.sleep(0.01)
            assert connection.queued_bytes < LIMITS.queued_bytes_max + 200_000
        assert connection.ending is None


async def test_answers_of_tasks_wait_for_room_until_the_other_side_is_cut_off(
    autojump_clock: trio.testing.MockClock,
) -> None:
    there = side("b", answering()[0])
    async with unread(there) as (wire, connection):
        await wire.say(*[Request(number, "large", None, b"900000") for number in range(1, 41)])
        await trio.sleep(1)
        assert connection.ending is None
        assert connection.open_requests > 30
        assert connection.queued_bytes < LIMITS.queued_bytes_max // 2 + 1_000_000
        await trio.sleep(15)
        assert connection.ending is not None
        assert connection.ending.reason == "not_reading"


async def test_a_silent_side_is_asked_and_then_cut_off(autojump_clock: trio.testing.MockClock) -> None:
    there = side("b")
    async with stranger(there) as (wire, connection):
        began = trio.current_time()
        assert await wire.hear() == Ping(1)
        await wire.say(Pong(1))
        assert await wire.hear() == Ping(2)
        assert connection.ending is None
        with pytest.raises(EOFError):
            await wire.hear()
        assert 8 < trio.current_time() - began < 20
        assert connection.ending is not None
        assert connection.ending.reason == "silent"
    assert there.counters.ended_connections == {"silent": 1}


async def test_two_sides_that_have_nothing_to_say_stay_connected(autojump_clock: trio.testing.MockClock) -> None:
    async with pair(side("a"), side("b", answering()[0])) as both:
        await trio.sleep(1000)
        assert (await both.here.call("echo", b"on", deadline_seconds=1)).payload == b"on"


async def test_a_credit_for_nothing_is_passed_over() -> None:
    async with stranger(side("b", answering()[0])) as (wire, _connection):
        await wire.say(Credit(4, 1, 1), Request(5, "echo", None, b"x"))
        assert await wire.hear() == Reply(5, b"x")


async def test_a_side_that_takes_next_to_nothing_is_still_answered(autojump_clock: trio.testing.MockClock) -> None:
    async with stranger(side("b", answering()[0]), frame_bytes_max=1) as (wire, connection):
        await wire.say(Request(1, "nope"), Request(2, "refuse"), Request(3, "large", None, b"40000"), Ping(1))
        heads = [await wire.hear() for _ in range(4)]
        assert {type(head) for head in heads} == {Error, Pong}
        assert {head.code for head in heads if isinstance(head, Error)} == {"NO_SUCH_METHOD", "REFUSED"}
        assert connection.ending is None
