"""Two sides that have met, over memory or a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio
import trio.testing

from conveyord.core.wire.frames import FrameDecoder, opening
from conveyord.core.wire.heads import AnyHead, Hello
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.greeting import Me, Side, greet, welcome
from conveyord.runtime.rpc.handlers import Admission, Handlers
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.server import RpcServer
from conveyord.runtime.rpc.tls import TlsContexts
from conveyord.runtime.rpc.transport import StreamTransport

CLUSTER = "c-1"
LIMITS = Limits(frame_bytes_max=1024 * 1024, queued_bytes_max=4 * 1024 * 1024, messages_bytes_max=1024 * 1024)


def side(name: str, handlers: Handlers | None = None, limits: Limits = LIMITS, **said: object) -> Side:
    me = replace(Me(name, 1, CLUSTER), **said)  # type: ignore[arg-type]
    return Side(lambda: me, handlers or Handlers(), limits, Counters())


def anyone(hello: Hello, names: frozenset[str] | None) -> Admission:
    return Admission(role="member")


@dataclass
class Pair:
    """here dialled there; each with its side. wires: the streams, of which one may be made slow."""

    here: Connection
    there: Connection
    here_side: Side
    there_side: Side
    endings: dict[str, object] = field(default_factory=dict)


@asynccontextmanager
async def pair(
    here: Side, there: Side, streams: tuple[trio.abc.Stream, trio.abc.Stream] | None = None
) -> AsyncIterator[Pair]:
    ours, theirs = streams or trio.testing.memory_stream_pair()
    met: dict[str, Connection] = {}

    async def dialling() -> None:
        met["here"] = await greet(here, StreamTransport(ours), None, purpose="rpc", expects=None)

    async def accepting() -> None:
        met["there"] = await welcome(there, StreamTransport(theirs), None, anyone)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dialling)
        nursery.start_soon(accepting)
    both = Pair(met["here"], met["there"], here, there)

    async def carry(name: str) -> None:
        both.endings[name] = (await met[name].run()).reason

    async with trio.open_nursery() as nursery:
        nursery.start_soon(carry, "here")
        nursery.start_soon(carry, "there")
        yield both
        both.here.cut("shutdown", "the test is done")


class Wire:
    """A side that speaks frames by hand."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._decoder = FrameDecoder(16 * 1024 * 1024)
        self._frames: list[tuple[AnyHead, object]] = []

    async def say(self, *heads: AnyHead, body: bytes = b"") -> None:
        await self.stream.send_all(b"".join(opening(head, len(body)) + body for head in heads))

    async def hear(self) -> AnyHead:
        while not self._frames:
            data = await self.stream.receive_some(65536)
            if not data:
                raise EOFError
            self._frames += self._decoder.receive(data)
        return self._frames.pop(0)[0]

    async def hear_to_the_end(self) -> list[AnyHead]:
        heard = []
        try:
            while True:
                heard.append(await self.hear())
        except (EOFError, trio.BrokenResourceError):
            return heard


@asynccontextmanager
async def stranger(there: Side, frame_bytes_max: int = 0) -> AsyncIterator[tuple[Wire, Connection]]:
    """A connection whose other end is spoken by hand, greeted as node `x`."""
    ours, theirs = trio.testing.memory_stream_pair()
    wire = Wire(ours)
    async with trio.open_nursery() as nursery:
        await wire.say(Hello(1, 1, CLUSTER, "x", 1, "rpc", frame_bytes_max=frame_bytes_max))
        connection = await welcome(there, StreamTransport(theirs), None, anyone)
        assert isinstance(await wire.hear(), Hello)
        nursery.start_soon(connection.run)
        yield wire, connection
        connection.cut("shutdown", "the test is done")


@asynccontextmanager
async def serving(
    there: Side, tls: TlsContexts | None = None, admit: object = anyone
) -> AsyncIterator[tuple[RpcServer, tuple[str, int]]]:
    """A server on a free port of the loopback."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = RpcServer(there, admit, tls=tls)  # type: ignore[arg-type]
    address = listeners[0].socket.getsockname()[:2]
    drain = trio.Event()
    async with trio.open_nursery() as nursery:

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            await server.serve(listeners, drain=drain)

        await nursery.start(serve)
        yield server, address
        nursery.cancel_scope.cancel()
