"""Bytes to and from the other side: a bare socket where that can be, any stream of trio's otherwise."""

from __future__ import annotations

import contextlib
import socket
from typing import Protocol

import trio

LINGER_SECONDS = 1.0
LINGER_BYTES_MAX = 1024 * 1024
LARGE_ROOM_BYTES = 128 * 1024  # more than the decoder's buffer: what is left of a large frame
WANTED_BYTES = 256 * 1024
PIECE_BYTES = 256 * 1024  # written at a time on a stream, so that progress can be seen


class Transport(Protocol):
    """One receiver and one sender at a time. All raise trio.BrokenResourceError when the connection is gone."""

    is_direct: bool
    """Whether `send_now` can send anything."""

    async def receive_into(self, room: memoryview) -> int:
        """Wait for bytes, put them into `room`, and return how many; 0 at the end."""
        ...

    def send_now(self, data: memoryview, /) -> int:
        """Send what can be sent without waiting, perhaps nothing, and return how many bytes."""
        ...

    async def send_some(self, data: memoryview) -> int:
        """Wait until something could be sent, and return how many bytes."""
        ...

    async def send_eof(self) -> None:
        """Say that no more is sent, where that is possible."""
        ...

    async def aclose(self) -> None:
        """Close at once."""
        ...


class SocketTransport:
    """A TCP socket without trio's wrapping, of which every call costs a schedule point."""

    is_direct = True

    def __init__(self, wrapped: trio.SocketStream) -> None:
        family, kind = wrapped.socket.family, wrapped.socket.type
        # The socket under trio's is not public, so it is taken out by its number.
        self._socket = socket.socket(family, kind, fileno=wrapped.socket.detach())
        self._socket.setblocking(False)
        self._is_drained = True
        self._wanted = 1  # bytes, before the kernel says that there is something to read
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def receive_into(self, room: memoryview) -> int:
        wanted = min(len(room), WANTED_BYTES) if len(room) > LARGE_ROOM_BYTES else 1
        if wanted != self._wanted:
            self._want(wanted)
        # A receive that did not fill its room has emptied the socket: asking again would be in vain.
        if not self._is_drained:
            await trio.lowlevel.checkpoint()
        while True:
            if self._is_drained:
                await self._wait(trio.lowlevel.wait_readable)
            try:
                count = self._socket.recv_into(room)
            except (BlockingIOError, InterruptedError):
                self._is_drained = True
            except (OSError, ValueError) as error:
                raise trio.BrokenResourceError(str(error)) from error
            else:
                self._is_drained = count < len(room)
                return count

    def _want(self, count: int) -> None:
        """Sleep until so many bytes are there: of a large body each packet would wake us up otherwise."""
        with contextlib.suppress(OSError):
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        self._wanted = count

    async def _wait(self, wait: object) -> None:
        try:
            await wait(self._socket)  # type: ignore[operator]
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise trio.BrokenResourceError(str(error)) from error

    def send_now(self, data: memoryview, /) -> int:
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error

    async def send_some(self, data: memoryview) -> int:
        if sent := self.send_now(data):
            if sent < len(data):
                await trio.lowlevel.checkpoint()
            return sent
        await self._wait(trio.lowlevel.wait_writable)
        return self.send_now(data)

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    async def aclose(self) -> None:
        if self._socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
        await trio.lowlevel.checkpoint()


class StreamTransport:
    """Any stream of trio's. What is received is copied once more."""

    is_direct = False

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def receive_into(self, room: memoryview) -> int:
        try:
            data = await self._stream.receive_some(len(room))
        except trio.ClosedResourceError as error:
            raise trio.BrokenResourceError(str(error)) from error
        room[: len(data)] = data
        return len(data)

    def send_now(self, _: memoryview, /) -> int:
        return 0

    async def send_some(self, data: memoryview) -> int:
        piece = data[:PIECE_BYTES]
        try:
            await self._stream.send_all(piece)
        except trio.ClosedResourceError as error:
            raise trio.BrokenResourceError(str(error)) from error
        return len(piece)

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def transport_of(stream: trio.abc.Stream) -> Transport:
    """The fastest way to use a stream. A TCP stream must not be used by anyone else from now on."""
    return SocketTransport(stream) if isinstance(stream, trio.SocketStream) else StreamTransport(stream)


async def send_all(transport: Transport, data: bytes) -> None:
    """Send all of it. For the time before there is an outbox."""
    rest = memoryview(data)
    while rest:
        rest = rest[await transport.send_some(rest) :]


async def linger(transport: Transport) -> None:
    """Read on for a moment: closing a socket with unread bytes may reset it before the last frame has arrived."""
    room = memoryview(bytearray(64 * 1024))
    left = LINGER_BYTES_MAX
    with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(LINGER_SECONDS):
        await transport.send_eof()
        while left > 0 and (count := await transport.receive_into(room)):
            left -= count
