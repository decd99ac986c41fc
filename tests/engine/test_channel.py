"""The channel into a stage is bounded by bytes where rows were multiplied, and never stops for good."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

from conveyord.core.flow.tally import Tally
from conveyord.engine import channel as channel_module
from conveyord.engine.channel import Receiver, Sender, open_channel
from conveyord.engine.messages import Ack, Batch, Eos, Message, Watermark

MIB = 1024 * 1024


def batch(mib: int, *, is_multiplied: bool = True) -> Batch:
    rows = mib * MIB // 8
    data = pa.record_batch({"n": pa.repeat(pa.scalar(7), rows)})
    return Batch(data, (), Tally(read=1, added=rows) if is_multiplied else Tally(read=rows), Ack(lambda: None))


def sent_until_full(send: Sender, message: Message) -> int:
    count = 0
    with pytest.raises(trio.WouldBlock):
        while True:
            send.send_nowait(message)
            count += 1
    return count


@pytest.mark.parametrize(
    ("message", "count"),
    [
        (batch(20), 3),
        (batch(60), 1),
        (batch(200), 1),
        (batch(1), 8),
        (batch(60, is_multiplied=False), 8),
        (batch(0), 8),
        (Watermark(1), 8),
    ],
)
async def test_so_many_messages_wait_and_so_many_bytes_but_always_one(message: Message, count: int) -> None:
    send, receive = open_channel(8)
    assert sent_until_full(send, message) == count
    await receive.receive()
    assert sent_until_full(send, message) == 1


async def test_what_is_small_passes_beside_what_waits_for_room() -> None:
    send, receive = open_channel(8)
    send.send_nowait(batch(60))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(send.send, batch(30))
        await wait_all_tasks_blocked()
        send.send_nowait(Watermark(5))
        assert [type(await receive.receive()) for _ in range(3)] == [Batch, Watermark, Batch]


@pytest.mark.parametrize("close", [lambda send, receive: receive.close(), lambda send, receive: send.close()])
async def test_who_waits_for_room_finds_out_that_an_end_was_closed(close: Callable[[Sender, Receiver], None]) -> None:
    send, receive = open_channel(8)
    send.send_nowait(batch(60))

    async def waits() -> None:
        with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
            await send.send(batch(60))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await wait_all_tasks_blocked()
        close(send, receive)


async def test_what_was_sent_before_the_end_is_received_and_then_the_end() -> None:
    send, receive = open_channel(2)
    send.send_nowait(batch(60))
    send.close()
    assert isinstance(await receive.receive(), Batch)
    with pytest.raises(trio.EndOfChannel):
        await receive.receive()


async def test_a_cancelled_send_leaves_no_weight_behind() -> None:
    send, receive = open_channel(1)
    send.send_nowait(Watermark(1))
    with trio.move_on_after(0):
        await send.send(batch(60))
    await receive.receive()
    send.send_nowait(batch(60))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20), st.integers(1, 4))
def test_whatever_is_sent_arrives_in_order_and_never_too_much_of_it_waits(
    sizes: list[tuple[int, bool]], capacity: int
) -> None:
    messages = [batch(mib, is_multiplied=multiplied) for mib, multiplied in sizes]
    received = []

    async def main() -> None:
        send, receive = open_channel(capacity)

        async def sends() -> None:
            for message in messages:
                await send.send(message)
            send.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(sends)
            for _ in messages:
                await wait_all_tasks_blocked()
                waiting = send._load.waiting_bytes
                assert waiting <= 6 * MIB or waiting <= max(message.data.nbytes for message in messages)
                received.append(await receive.receive())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channel_module, "BYTES_MAX", 6 * MIB)
        trio.run(main)
    assert [id(message) for message in received] == [id(message) for message in messages]


async def test_an_end_passes_as_any_message_does() -> None:
    send, receive = open_channel(1)
    send.send_nowait(Eos())
    assert await receive.receive() == Eos()
