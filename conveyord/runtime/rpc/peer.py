"""Another node, at one address: connected as long as it can be, and dialled again when it is not."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from random import Random

import structlog
import trio

from conveyord.core.errors import ConveyordError, Retryable
from conveyord.core.retry import Backoff
from conveyord.core.wire.frames import Body
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.dialing import Address, dial
from conveyord.runtime.rpc.greeting import RPC, Side
from conveyord.runtime.rpc.handlers import Answer
from conveyord.runtime.rpc.incoming_stream import Stream
from conveyord.runtime.rpc.outcomes import Ending
from conveyord.runtime.rpc.tls import TlsContexts

log = structlog.get_logger(__name__)

BACKOFF = Backoff(base_seconds=0.1, cap_seconds=5.0)
HURRY_SECONDS = 0.05  # between two attempts, however many callers are in a hurry
STEADY_SECONDS = 5.0  # a connection that lasted this long was a good one: the next wait is short again

OnChange = Callable[["Peer", Connection | None], None]


class Peer:
    """Keeps one connection to `address` while `run` runs. `expects`: the node id that must answer there.

    on_change: told when the connection has come (it) and gone (None); must not block.
    """

    def __init__(
        self,
        side: Side,
        address: Address,
        random: Random,
        *,
        expects: str | None = None,
        tls: TlsContexts | None = None,
        purpose: str = RPC,
        backoff: Backoff = BACKOFF,
        on_change: OnChange | None = None,
    ) -> None:
        self.address = address
        self.connection: Connection | None = None
        self.reason = "it was not tried yet"  # why there is no connection
        self._side = side
        self._random = random
        self._expects = expects
        self._tls = tls
        self._purpose = purpose
        self._backoff = backoff
        self._on_change = on_change
        self._hurry = trio.Event()
        self._tried = trio.Event()  # set when the attempt that is due or under way has come to its end

    async def run(self) -> None:
        """Connect, and connect again, until cancelled."""
        failures = 0
        while True:
            began = trio.current_time()
            try:
                connection = await dial(
                    self._side, self.address, tls=self._tls, purpose=self._purpose, expects=self._expects
                )
            except ConveyordError as error:
                reason = str(error)
            else:
                reason = (await self._carry(connection)).message
                if trio.current_time() - began >= STEADY_SECONDS:
                    failures = 0
            failures += 1
            seconds = self._backoff.delay_seconds(failures, self._random)
            if reason != self.reason:  # not each attempt of a night
                log.info("not connected", peer=self._expects, address=self.address, reason=reason)
                self.reason = reason
            self._end_attempt()
            with trio.move_on_after(seconds):
                await self._hurry.wait()
                await trio.sleep_until(began + HURRY_SECONDS)

    async def _carry(self, connection: Connection) -> Ending:
        self.connection = connection
        self._end_attempt()
        self._tell(connection)
        try:
            return await connection.run()
        finally:
            self.connection = None
            self._tell(None)

    def hurry(self) -> None:
        """Try now, if it is waiting to try again: there is a sign that the other side is there."""
        self._hurry.set()

    def _end_attempt(self) -> None:
        self._tried.set()
        self._tried, self._hurry = trio.Event(), trio.Event()

    def _tell(self, connection: Connection | None) -> None:
        if self._on_change is not None:
            self._on_change(self, connection)

    async def call(self, method: str, payload: bytes = b"", body: Body = b"", *, deadline_seconds: float) -> Answer:
        """As `Connection.call`. Without a connection one is tried at once; Retryable if that does not succeed."""
        deadline = trio.current_time() + deadline_seconds
        with trio.move_on_at(deadline) as scope:  # of the connecting alone: what is sent has its own way to be late
            connection = await self.connected()
        if scope.cancelled_caught:
            raise Retryable(f"{method} could not be sent within its deadline: {self.reason}")
        return await connection.call(method, payload, body, deadline_seconds=deadline - trio.current_time())

    def stream(
        self, method: str, payload: bytes = b"", body: Body = b"", *, deadline_seconds: float = float("inf")
    ) -> AbstractAsyncContextManager[Stream]:
        """As `Connection.stream`, on the connection that is there. Raises Retryable if there is none."""
        if (connection := self.connection) is None:
            raise Retryable(f"{method} was not asked: {self.reason}")
        return connection.stream(method, payload, body, deadline_seconds=deadline_seconds)

    def send(self, method: str, payload: bytes, body: Body = b"") -> bool:
        """As `Connection.send`. Without a connection the message is dropped, and nothing is tried for its sake."""
        if (connection := self.connection) is None:
            self._side.counters.dropped_messages["not_connected"] += 1
            return False
        return connection.send(method, payload, body)

    async def connected(self) -> Connection:
        """The connection; if there is none the one that is tried now. Raises Retryable if that does not succeed."""
        if self.connection is None:
            tried = self._tried
            self.hurry()
            await tried.wait()
        if self.connection is None:
            raise Retryable(f"{self._expects or 'the node'} at {self.address[0]}:{self.address[1]}: {self.reason}")
        return self.connection
