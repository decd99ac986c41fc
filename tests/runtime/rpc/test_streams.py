"""Streams: credits bound what a slow reader holds, and either side may end one."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from conveyord.core.errors import Refused, Retryable
from conveyord.core.wire.heads import Credit, End, Goodbye, Item, Reply, Request
from conveyord.runtime.rpc.handlers import Handlers, Incoming, Outlet
from conveyord.runtime.rpc.limits import Limits
from conveyord.runtime.rpc.outcomes import DeadlineOver, RemoteError
from tests.runtime.rpc.rpc_rig import LIMITS, pair, side, stranger

WINDOW = Limits(
    frame_bytes_max=1_000_000,
    queued_bytes_max=4_000_000,
    messages_bytes_max=1_000_000,
    stream_items=8,
    stream_bytes=1000,
)


class Counting:
    """A handler that counts what it has sent."""

    def __init__(self, size: int = 0) -> None:
        self.sent = 0
        self.is_over = False
        self._size = size
        self.handlers = Handlers()
        self.handlers.stream("count", self.count)
        self.handlers.stream("fail", self.fail)
        self.handlers.inline("echo", lambda incoming: incoming.payload)

    async def count(self, incoming: Incoming, outlet: Outlet) -> None:
        try:
            for number in range(int(incoming.payload)):
                await outlet.send(b"%d" % number, bytes(self._size))
                self.sent += 1
        finally:
            self.is_over = True

    async def fail(self, incoming: Incoming, outlet: Outlet) -> None:
        await outlet.send(b"one")
        raise Refused("no more than one")


@pytest.mark.parametrize("size", [0, 10, 400, 5000])
async def test_all_items_come_in_order(size: int, autojump_clock: trio.testing.MockClock) -> None:
    counting = Counting(size)
    async with pair(side("a", limits=WINDOW), side("b", counting.handlers)) as both:
        async with both.here.stream("count", b"500", deadline_seconds=100) as items:
            received = [(int(item.payload), len(item.body)) async for item in items]
        assert received == [(number, size) for number in range(500)]
        assert both.here.open_calls == both.there.open_requests == 0


@pytest.mark.parametrize(("size", "ahead"), [(0, 8), (100, 8), (400, 3), (5000, 1)])
async def test_a_slow_reader_is_not_sent_more_than_its_credit(
    size: int, ahead: int, autojump_clock: trio.testing.MockClock
) -> None:
    counting = Counting(size)
    async with pair(side("a", limits=WINDOW), side("b", counting.handlers)) as both:
        async with both.here.stream("count", b"1000") as items:
            for taken in range(40):
                await trio.sleep(1)
                assert counting.sent <= taken + ahead
                await anext(items)
        await trio.testing.wait_all_tasks_blocked()
        assert counting.is_over


async def test_a_slow_stream_does_not_hold_up_others(autojump_clock: trio.testing.MockClock) -> None:
    counting = Counting(400)
    async with pair(side("a", limits=WINDOW), side("b", counting.handlers)) as both, both.here.stream("count", b"1000"):
        await trio.sleep(10)
        assert (await both.here.call("echo", b"on", deadline_seconds=1)).payload == b"on"


async def test_leaving_a_stream_cancels_its_handler() -> None:
    counting = Counting()
    async with pair(side("a"), side("b", counting.handlers)) as both:
        async with both.here.stream("count", b"1000000") as items:
            await anext(items)
        await trio.testing.wait_all_tasks_blocked()
        assert counting.is_over
        assert both.there.open_requests == both.here.open_calls == 0
        assert both.there_side.counters.cancelled_calls == {"caller": 1}


async def test_a_failure_comes_after_the_items_before_it() -> None:
    async with pair(side("a"), side("b", Counting().handlers)) as both:
        received = []
        with pytest.raises(RemoteError, match="no more than one"):
            async with both.here.stream("fail") as items:
                async for item in items:
                    received.append(item.payload)
        assert received == [b"one"]


async def test_a_stream_has_a_deadline_on_both_sides(autojump_clock: trio.testing.MockClock) -> None:
    counting = Counting()

    async def idle(incoming: Incoming, outlet: Outlet) -> None:
        try:
            await trio.sleep_forever()
        finally:
            counting.is_over = True

    counting.handlers.stream("idle", idle)
    async with pair(side("a"), side("b", counting.handlers)) as both:
        with pytest.raises(DeadlineOver):
            async with both.here.stream("idle", deadline_seconds=3) as items:
                await anext(items)
        assert trio.current_time() == pytest.approx(3, abs=0.01)
        await trio.testing.wait_all_tasks_blocked()
        assert counting.is_over


async def test_a_stream_ends_with_its_connection(autojump_clock: trio.testing.MockClock) -> None:
    counting = Counting()
    async with pair(side("a", limits=WINDOW), side("b", counting.handlers)) as both:
        with pytest.raises(Exception, match="the connection broke before the answer came"):
            async with both.here.stream("count", b"1000000") as items:
                async for item in items:
                    if item.payload == b"100":
                        both.there.cut("shutdown", "bye")
        with pytest.raises(Retryable):
            async with both.here.stream("count", b"1"):
                pass
    assert counting.is_over


async def test_one_reply_and_items_are_not_mistaken_for_each_other() -> None:
    async with pair(side("a"), side("b", Counting().handlers)) as both:
        with pytest.raises(RemoteError, match="answers with one reply"):
            async with both.here.stream("echo") as items:
                await anext(items)
        with pytest.raises(RemoteError, match="answers with items"):
            await both.here.call("count", b"1", deadline_seconds=1)


async def test_items_without_credit_end_the_connection(autojump_clock: trio.testing.MockClock) -> None:
    async with stranger(side("b", limits=WINDOW)) as (wire, connection):

        async def ask() -> None:
            with pytest.raises(Exception, match="without credit"):
                async with connection.stream("count") as items:
                    await trio.sleep(1)
                    async for _ in items:
                        pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            request = await wire.hear()
            assert isinstance(request, Request)
            assert (request.credit_items, request.credit_bytes) == (8, 1000)
            await wire.say(*[Item(request.id, b"x")] * 9)
            assert Goodbye in [type(head) for head in await wire.hear_to_the_end()]
    assert connection.ending is not None
    assert connection.ending.reason == "beyond_credit"


async def test_credits_are_absolute_and_never_shrink() -> None:
    counting = Counting()
    async with stranger(side("b", counting.handlers)) as (wire, _connection):
        await wire.say(Request(1, "count", None, b"20", 2, 100))
        await trio.testing.wait_all_tasks_blocked()
        assert counting.sent == 2
        await wire.say(Credit(1, 5, 100), Credit(1, 3, 50), Credit(1, 5, 100), Credit(99, 1000, 1000))
        await trio.testing.wait_all_tasks_blocked()
        assert counting.sent == 5
        await wire.say(Credit(1, 2**53 - 1, 2**53 - 1))
        heads = [await wire.hear() for _ in range(21)]
        assert [type(head) for head in heads] == [Item] * 20 + [End]


async def test_late_answers_are_passed_over() -> None:
    async with stranger(side("b", Counting().handlers)) as (wire, connection):
        await wire.say(Reply(7, b""), Item(8, b""), End(9), Request(1, "echo", None, b"on"))
        assert await wire.hear() == Reply(1, b"on")
        assert connection.ending is None
        assert LIMITS.stream_items > 0


async def test_two_tasks_may_send_on_one_stream(autojump_clock: trio.testing.MockClock) -> None:
    handlers = Handlers()

    async def twice(incoming: Incoming, outlet: Outlet) -> None:
        async def send(name: bytes) -> None:
            for _ in range(200):
                await outlet.send(name, bytes(300))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, b"x")
            nursery.start_soon(send, b"y")

    handlers.stream("twice", twice)
    async with pair(side("a", limits=WINDOW), side("b", handlers)) as both:
        async with both.here.stream("twice") as items:
            received = [item.payload async for item in items]
        assert (received.count(b"x"), received.count(b"y")) == (200, 200)
