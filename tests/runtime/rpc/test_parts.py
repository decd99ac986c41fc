"""Memory that is used again, deadlines by one task, and limits that fit together."""

from __future__ import annotations

import gc
from typing import Self

import pytest
import trio
import trio.testing

from conveyord.core.wire.frames import FrameDecoder, opening
from conveyord.core.wire.heads import Message, Ping
from conveyord.runtime.rpc.deadlines import PRUNED_MIN, Deadlines
from conveyord.runtime.rpc.keeping import Keeper
from conveyord.runtime.rpc.limits import Limits
from conveyord.runtime.rpc.memory import BLOCK_BYTES, Memory
from conveyord.runtime.rpc.outbox import Outbox
from conveyord.runtime.rpc.outcomes import Ending
from conveyord.runtime.rpc.transport import StreamTransport
from tests.runtime.rpc.rpc_rig import pair, side
from tests.runtime.rpc.test_calls import answering


def test_a_block_is_used_again_only_when_nobody_holds_it() -> None:
    memory = Memory(10 * BLOCK_BYTES)
    held = memoryview(memory.allocate(BLOCK_BYTES))[10:20]
    held[:] = b"0123456789"
    other = memory.allocate(BLOCK_BYTES)
    other[:] = bytes([255]) * len(other)
    assert bytes(held) == b"0123456789"
    first = held.obj
    number = id(first)
    del first, held
    assert id(memory.allocate(BLOCK_BYTES - 5)) == number
    assert memory.kept_bytes == 2 * BLOCK_BYTES


def test_no_more_is_kept_than_the_limit() -> None:
    memory = Memory(4 * BLOCK_BYTES)
    held = [memory.allocate(size * BLOCK_BYTES) for size in (1, 2, 3, 1, 5, 1)]
    assert [len(block) // BLOCK_BYTES for block in held] == [1, 2, 3, 1, 5, 1]
    assert memory.kept_bytes <= 4 * BLOCK_BYTES
    del held
    assert len(memory.allocate(100)) == BLOCK_BYTES
    assert memory.kept_bytes <= 4 * BLOCK_BYTES


async def test_an_attachment_stays_as_it_is_while_it_is_held(autojump_clock: trio.testing.MockClock) -> None:
    async with pair(side("a"), side("b", answering()[0])) as both:
        bodies = [bytes([number]) * 200_000 for number in range(20)]
        held = [(await both.here.call("echo", b"", body, deadline_seconds=5)).body for body in bodies]
        assert [bytes(body) for body in held] == bodies


async def test_answered_calls_hold_nothing_until_their_deadline(autojump_clock: trio.testing.MockClock) -> None:
    class Marked(bytes):
        living = 0

        def __new__(cls, size: int) -> Self:
            cls.living += 1
            return super().__new__(cls, size)

        def __del__(self) -> None:
            Marked.living -= 1

    async with pair(side("a"), side("b", answering()[0])) as both:
        for _ in range(10):
            await both.here.call("echo.later", b"", Marked(1000), deadline_seconds=100_000)
        gc.collect()
        assert Marked.living == 0


class Due:
    def __init__(self, is_open: bool = True) -> None:
        self.is_open = is_open
        self.expired: list[float] = []

    def expire(self) -> None:
        self.expired.append(trio.current_time())


async def test_deadlines_come_in_time_whatever_their_order(autojump_clock: trio.testing.MockClock) -> None:
    deadlines = Deadlines()
    dues = {seconds: Due() for seconds in (5.0, 1.0, 3.0, 0.0)}
    closed, never = Due(is_open=False), Due()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        await trio.testing.wait_all_tasks_blocked()
        for seconds, due in dues.items():
            deadlines.add(seconds, due)
        deadlines.add(2.0, closed)
        deadlines.add(float("inf"), never)
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert {seconds: due.expired for seconds, due in dues.items()} == {
        seconds: [pytest.approx(seconds, abs=1e-3)] for seconds in dues
    }
    assert closed.expired == never.expired == []


def test_what_is_done_with_does_not_pile_up() -> None:
    deadlines = Deadlines()
    for number in range(100_000):
        deadlines.add(float(number), Due(is_open=number % 1000 == 0))
        assert len(deadlines) <= 2 * PRUNED_MIN


@pytest.mark.parametrize(
    "wrong",
    [{"frame_bytes_max": 64 * 1024 * 1024}, {"messages_bytes_max": 2**40}, {"requests_max": 0}, {"stream_items": 0}],
)
def test_limits_that_do_not_fit_together_are_a_bug(wrong: dict[str, int]) -> None:
    with pytest.raises(AssertionError):
        Limits(**wrong)  # type: ignore[arg-type]


def kept(limits: Limits) -> tuple[Keeper, FrameDecoder]:
    decoder = FrameDecoder(limits.frame_bytes_max)
    stream = trio.testing.memory_stream_pair()[0]
    return Keeper(
        decoder, Outbox(StreamTransport(stream), limits.queued_bytes_max, limits.frame_bytes_max), limits
    ), decoder


def looked_until(keeper: Keeper, limits: Limits, begin: float, end: float) -> Ending | None:
    now = begin
    while now < end:
        if (ending := keeper.look(now)) is not None:
            return ending
        now += limits.tick_seconds
    return None


async def test_a_process_that_stood_still_does_not_blame_the_other_side() -> None:
    limits = Limits(stall_seconds=1000)
    keeper, decoder = kept(limits)
    decoder.receive(opening(Ping(1))[:5])
    assert looked_until(keeper, limits, 0, 9) is None
    assert looked_until(keeper, limits, 3600, 3600.8) is None  # there was no time to read
    ending = looked_until(keeper, limits, 3600.8, 3700)
    assert ending is not None
    assert ending.reason == "slow_frame"


async def test_a_frame_has_its_seconds_and_those_of_its_size() -> None:
    limits = Limits(stall_seconds=1000, pong_seconds=1000, frame_seconds=2)
    for size, seconds in ((100, 2), (8 * 1024 * 1024, 10)):
        keeper, decoder = kept(limits)
        decoder.receive(opening(Message("m"), size))
        assert looked_until(keeper, limits, 0, seconds) is None
        ending = looked_until(keeper, limits, seconds, seconds + 2)
        assert ending is not None
        assert ending.reason == "slow_frame"
