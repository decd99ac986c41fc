"""Accepts connections, greets them, and carries those that are admitted."""

from __future__ import annotations

import errno
from collections.abc import Callable

import structlog
import trio

from conveyord.core.wire.heads import FrameRefused, Hello
from conveyord.runtime.rpc.connection import GOODBYE_SECONDS, Connection
from conveyord.runtime.rpc.greeting import Admit, Side, turn_away, welcome
from conveyord.runtime.rpc.handlers import Admission
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.tls import TlsContexts, TlsTransport
from conveyord.runtime.rpc.transport import SocketTransport, Transport, linger

log = structlog.get_logger(__name__)

BUSY_SECONDS = 0.1  # before accepting again, when the process has no descriptors left
NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class RpcServer:
    """Serves on one or several listeners. One use.

    connections: those that are admitted and alive. on_connection: told of each when it has come; must not block.
    """

    def __init__(
        self,
        side: Side,
        admit: Admit,
        *,
        tls: TlsContexts | None = None,
        on_connection: Callable[[Connection], None] | None = None,
    ) -> None:
        self.connections: set[Connection] = set()
        self._side = side
        self._admit = admit
        self._tls = tls
        self._on_connection = on_connection
        self._accepted = 0

    async def serve(self, listeners: list[trio.SocketListener], *, drain: trio.Event) -> None:
        """Serve until `drain` is set; then accept no more, write what is queued, and part. Closes the listeners."""
        async with trio.open_nursery() as carrying:
            try:
                async with trio.open_nursery() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, carrying)
                    await drain.wait()
                    accepting.cancel_scope.cancel()
            finally:
                for listener in listeners:
                    listener.socket.close()
            async with trio.open_nursery() as closing:
                for connection in list(self.connections):
                    closing.start_soon(connection.close)
            carrying.cancel_scope.cancel()

    async def _accept(self, listener: trio.SocketListener, carrying: trio.Nursery) -> None:
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                log.warning("no connection can be accepted", reason=error.strerror)
                await trio.sleep(BUSY_SECONDS)
                continue
            self._accepted += 1
            carrying.start_soon(self._carry, SocketTransport(stream))

    async def _carry(self, transport: Transport) -> None:
        try:
            connection = await self._greeted(transport)
            if connection is None:
                return
            self._supersede(connection)
            self.connections.add(connection)
            try:
                if self._on_connection is not None:
                    self._on_connection(connection)
                await connection.run()
            finally:
                self.connections.discard(connection)
        finally:
            self._accepted -= 1
            with trio.move_on_after(GOODBYE_SECONDS, shield=True):
                await transport.aclose()

    async def _greeted(self, transport: Transport) -> Connection | None:
        """The connection, or None if it was refused, which is counted, and told to the other side where it listens."""
        counters, limits = self._side.counters, self._side.limits
        try:
            with trio.fail_after(limits.hello_seconds):
                if self._accepted > limits.connections_max:
                    await self._crowded(transport)
                if self._tls is None:
                    return await welcome(self._side, transport, None, self._admitted)
                return await self._welcome_encrypted(transport, self._tls)
        except (Unwelcome, FrameRefused) as refusal:
            log.warning("a connection was refused", reason=str(refusal))
        except trio.TooSlowError:
            counters.refused_connections["hello_deadline"] += 1
            if self._tls is None:
                with trio.move_on_after(GOODBYE_SECONDS):
                    await turn_away(
                        transport, Unwelcome("HELLO_DEADLINE", f"no hello within {limits.hello_seconds:g} s")
                    )
        except trio.BrokenResourceError:
            counters.refused_connections["broken"] += 1
        return None

    def _admitted(self, hello: Hello, names: frozenset[str] | None) -> Admission:
        """Refuse an earlier life of a node whose later one is connected; then it is the owner's turn."""
        newest = max((other.remote.hello.incarnation for other in self._of(hello.node)), default=0)
        if hello.incarnation < newest:
            raise Unwelcome(
                "STALE_INCARNATION",
                f"node {hello.node!r} is connected in its life {newest}, this is its life {hello.incarnation}: "
                "two processes run with one id, or one data directory was copied",
            )
        return self._admit(hello, names)

    def _supersede(self, connection: Connection) -> None:
        """A node that has started again has no more use for the connections of its life before."""
        hello = connection.remote.hello
        for other in self._of(hello.node):
            if other.remote.hello.incarnation < hello.incarnation:
                other.cut("superseded", f"node {hello.node!r} has connected in a later life, {hello.incarnation}")

    def _of(self, node: str) -> list[Connection]:
        return [other for other in self.connections if node and other.remote.node == node]

    async def _welcome_encrypted(self, transport: Transport, tls: TlsContexts) -> Connection:
        encrypted = TlsTransport(transport, tls.context(server_side=True), server_side=True)
        try:
            names = await encrypted.handshake()
        except Unwelcome as error:
            refusal = error
        else:
            return await welcome(self._side, encrypted, names, self._admitted)
        self._side.count(refusal)
        await linger(transport)  # a reset would overtake the alert that tells why
        raise refusal

    async def _crowded(self, transport: Transport) -> None:
        limit = self._side.limits.connections_max
        refusal = Unwelcome("TOO_MANY_CONNECTIONS", f"this node has {limit} connections, and takes no more; try later")
        self._side.count(refusal)
        if self._tls is None:
            await turn_away(transport, refusal)
        raise refusal
