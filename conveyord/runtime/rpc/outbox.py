"""What waits to be written on a connection, and the one task that writes it: many frames by one send."""

from __future__ import annotations

from collections import deque

import trio

from conveyord.core.errors import Refused
from conveyord.core.wire.frames import PREFIX_BYTES, Body, opening
from conveyord.core.wire.heads import AnyHead
from conveyord.runtime.rpc.transport import Transport

JOINED_BYTES = 128 * 1024  # frames are copied together up to about this; larger bodies are sent from where they are


class Ticket:
    """A frame of which it matters whether it was written, or that may be withdrawn before."""

    __slots__ = ("body", "data", "is_withdrawn", "is_written")

    def __init__(self, data: bytes, body: Body = b"") -> None:
        self.data = data
        self.body = body
        self.is_written = self.is_withdrawn = False


class Outbox:
    """The frames that wait. One task runs `run`. `frame_bytes_max`: what the other side takes."""

    def __init__(self, transport: Transport, bytes_max: int, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self.bytes = 0
        self.progress = 0  # changes whenever the other side has taken something
        self._transport = transport
        self._bytes_max = bytes_max
        self._entries: deque[bytes | memoryview | Ticket] = deque()
        self._rest: memoryview | None = None  # of what is being written
        self._writer: trio.lowlevel.Task | None = None  # while it has nothing to do
        self._waiting = trio.lowlevel.ParkingLot()  # for room, or until all is written
        self._is_closed = False

    @property
    def is_full(self) -> bool:
        """Whether who can wait should."""
        return self.bytes > self._bytes_max // 2

    @property
    def is_overfull(self) -> bool:
        """Whether more is queued than may be."""
        return self.bytes > self._bytes_max

    @property
    def is_idle(self) -> bool:
        """Whether all has been written."""
        return self._rest is None and not self._entries

    @property
    def is_torn(self) -> bool:
        """Whether a frame may be on the wire in part, so that nothing may follow but the rest of it."""
        return self._rest is not None

    def framed(self, head: AnyHead, body: Body = b"") -> bytes:
        """A frame up to its body. Raises Refused if the other side would not take it."""
        data = opening(head, len(body))
        size = len(data) - PREFIX_BYTES + len(body)
        if size > self.frame_bytes_max:
            raise Refused(f"a frame of {size} bytes is more than the other side takes, which is {self.frame_bytes_max}")
        return data

    def put(self, data: bytes, body: Body = b"") -> None:
        """Queue a frame. `wake` or `flush` sees to it that it is written. The body must not change until then."""
        self._entries.append(data)
        self.bytes += len(data) + len(body)
        if body:
            self._entries.append(body if isinstance(body, bytes) else memoryview(body))

    def put_ticket(self, ticket: Ticket) -> None:
        """Queue a frame that is watched."""
        self._entries.append(ticket)
        self.bytes += len(ticket.data) + len(ticket.body)

    def withdraw(self, ticket: Ticket) -> bool:
        """Take a frame back. False if it is too late for that."""
        if ticket.is_written:
            return False
        self.bytes -= len(ticket.data) + len(ticket.body)
        ticket.data = ticket.body = b""
        ticket.is_withdrawn = True
        return True

    def close(self) -> None:
        """Let nobody wait any more."""
        self._is_closed = True
        self._waiting.unpark_all()

    def wake(self) -> None:
        """Let the writer run soon: after the tasks that are about to queue something too."""
        if self._writer is not None:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None

    def flush(self) -> None:
        """Write at once what can be written without waiting; the writer does the rest, and meets what is broken."""
        if self._rest is not None or not self._entries:
            return
        if not self._transport.is_direct:
            self.wake()
            return
        self._rest = batch = self._batch()
        try:
            sent = self._transport.send_now(batch)
        except trio.BrokenResourceError:
            self.wake()
            return
        self._rest = batch[sent:] if sent < len(batch) else None
        self._sent(sent)
        if not self.is_idle:
            self.wake()

    async def wait_room(self) -> None:
        """Wait until there is room for more, or the outbox is closed."""
        while self.is_full and not self._is_closed:
            await self._waiting.park()

    async def wait_idle(self) -> None:
        """Wait until all is written, or the outbox is closed."""
        while not self.is_idle and not self._is_closed:
            await self._waiting.park()

    async def run(self) -> None:
        """Write what is queued, until cancelled. Raises as a transport does."""
        while True:
            if self.is_idle:
                await self._sleep()
                continue
            await self.write_some()

    async def write_some(self) -> None:
        """Write some of what is queued."""
        if self._rest is None:
            self._rest = self._batch()
        rest = self._rest
        sent = await self._transport.send_some(rest) if rest else 0
        self._rest = rest[sent:] if sent < len(rest) else None
        self._sent(sent)

    async def _sleep(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._writer = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)

    def _sent(self, count: int) -> None:
        self.bytes -= count
        self.progress += count
        if self._waiting and not self.is_full:
            self._waiting.unpark_all()

    def _batch(self) -> memoryview:
        """The next bytes to be written; empty if all that waited was withdrawn."""
        entries = self._entries
        parts: list[bytes | memoryview] = []
        size = 0
        while entries and size < JOINED_BYTES:
            entry = entries[0]
            if isinstance(entry, Ticket):
                entries.popleft()
                if entry.is_withdrawn:
                    continue
                entry.is_written = True
                if entry.body:
                    entries.appendleft(memoryview(entry.body))
                entry = entry.data
            elif parts and size + len(entry) > JOINED_BYTES:
                break
            else:
                entries.popleft()
            parts.append(entry)
            size += len(entry)
        return memoryview(parts[0] if len(parts) == 1 else b"".join(parts))
