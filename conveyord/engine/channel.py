"""The bounded channel into a stage: so many messages may wait in it, and so many bytes of multiplied rows.

A batch that a source cut is as large as its block. What a stage makes several rows of each of may be a hundred
times as large, and a channel that counts batches alone would let gigabytes of those wait.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from conveyord.engine.messages import Batch, Message

BYTES_MAX = 64 * 1024 * 1024  # waiting in one channel; as much as a full channel of blocks of the usual 8 MiB


@dataclass(slots=True)
class _Load:
    """The bytes that wait in a channel, and those who wait until there are fewer."""

    waiting_bytes: int = 0
    is_over: bool = False
    room: trio.lowlevel.ParkingLot = field(default_factory=trio.lowlevel.ParkingLot)

    def admits(self, size_bytes: int) -> bool:
        """Whether so much more may wait. The first always may, however large it is."""
        return self.is_over or not size_bytes or not self.waiting_bytes or self.waiting_bytes + size_bytes <= BYTES_MAX

    def less(self, size_bytes: int) -> None:
        """So much waits no more."""
        self.waiting_bytes -= size_bytes
        self.room.unpark_all()

    def end(self) -> None:
        """An end was closed: who waits finds that out from the channel."""
        self.is_over = True
        self.room.unpark_all()


class Sender(trio.abc.SendChannel[Message]):
    """The end of a channel that messages go in by."""

    def __init__(self, channel: trio.MemorySendChannel[tuple[Message, int]], load: _Load) -> None:
        self._channel = channel
        self._load = load

    def send_nowait(self, message: Message) -> None:
        """Raises trio.WouldBlock if it must wait, trio.BrokenResourceError if nobody listens any more."""
        size_bytes = _multiplied_bytes(message)
        if not self._load.admits(size_bytes):
            raise trio.WouldBlock
        self._channel.send_nowait((message, size_bytes))
        self._load.waiting_bytes += size_bytes

    async def send(self, message: Message) -> None:
        """Waits for room. Raises trio.BrokenResourceError if nobody listens any more."""
        size_bytes = _multiplied_bytes(message)
        while not self._load.admits(size_bytes):
            await self._load.room.park()
        self._load.waiting_bytes += size_bytes
        try:
            await self._channel.send((message, size_bytes))
        except BaseException:  # cancelled, or nobody listens: it never got in
            self._load.less(size_bytes)
            raise

    def close(self) -> None:
        """Nothing follows."""
        self._channel.close()
        self._load.end()

    async def aclose(self) -> None:
        """See trio.abc.AsyncResource."""
        self.close()
        await trio.lowlevel.checkpoint()


class Receiver(trio.abc.ReceiveChannel[Message]):
    """The end of a channel that messages come out by."""

    def __init__(self, channel: trio.MemoryReceiveChannel[tuple[Message, int]], load: _Load) -> None:
        self._channel = channel
        self._load = load

    async def receive(self) -> Message:
        """See trio.abc.ReceiveChannel."""
        message, size_bytes = await self._channel.receive()
        self._load.less(size_bytes)
        return message

    def close(self) -> None:
        """Stop listening; whoever sends next, or waits to, finds out."""
        self._channel.close()
        self._load.end()

    async def aclose(self) -> None:
        """See trio.abc.AsyncResource."""
        self.close()
        await trio.lowlevel.checkpoint()


def open_channel(capacity: int) -> tuple[Sender, Receiver]:
    """A channel in which `capacity` messages may wait, of `BYTES_MAX` together where they are multiplied rows."""
    send, receive = trio.open_memory_channel[tuple[Message, int]](capacity)
    load = _Load()
    return Sender(send, load), Receiver(receive, load)


def _multiplied_bytes(message: Message) -> int:
    """How much a batch takes, if it has more rows than records were read; to weigh others would cost more than a hop.

    Buffers that it shares with other batches count as far as its own rows stand in them.
    """
    return int(message.data.nbytes) if isinstance(message, Batch) and message.tally.added else 0
