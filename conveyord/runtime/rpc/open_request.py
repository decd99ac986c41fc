"""A request that is being answered: its deadline, its cancellation, the credit of its stream, the task it runs in."""

from __future__ import annotations

from typing import Any

import trio

from conveyord.core.wire.frames import Body
from conveyord.core.wire.heads import Item
from conveyord.runtime.rpc.handlers import Incoming
from conveyord.runtime.rpc.incoming_stream import item_bytes
from conveyord.runtime.rpc.outbox import Outbox


class CreditedOutlet:
    """Sends the items of one stream within its credit."""

    def __init__(self, number: int, outbox: Outbox, items: int, size: int) -> None:
        self._number = number
        self._outbox = outbox
        self._granted = (items, size)
        self._sent = (0, 0)
        self._waiting = trio.lowlevel.ParkingLot()  # for credit

    async def send(self, payload: bytes, body: Body = b"") -> None:
        data = self._outbox.framed(Item(self._number, payload), body)
        await trio.lowlevel.checkpoint()
        # As long as any byte of credit is left an item may be sent: one that is larger than the window would never go.
        # Both are looked at again after each wait: another task may send on the same stream.
        while True:
            if self._sent[0] >= self._granted[0] or self._sent[1] >= self._granted[1]:
                await self._waiting.park()
            elif self._outbox.is_full:
                await self._outbox.wait_room()
                await trio.lowlevel.checkpoint()  # where it ends if the connection does
            else:
                break
        self._sent = self._sent[0] + 1, self._sent[1] + item_bytes(len(payload), len(body))
        self._outbox.put(data, body)
        self._outbox.wake()

    def grant(self, items: int, size: int) -> None:
        self._granted = max(self._granted[0], items), max(self._granted[1], size)
        self._waiting.unpark_all()


class OpenRequest:
    """A request that is being answered."""

    __slots__ = ("handler", "incoming", "is_late", "is_open", "is_unwanted", "number", "outlet", "scope")

    def __init__(
        self, number: int, handler: Any, incoming: Incoming, outlet: CreditedOutlet | None, scope: trio.CancelScope
    ) -> None:
        self.number = number
        self.handler = handler
        self.incoming: Any = incoming
        self.outlet = outlet
        self.scope = scope
        self.is_open = True
        self.is_late = self.is_unwanted = False

    def expire(self) -> None:
        """The deadline is over."""
        self.is_late = True
        self.scope.cancel()

    def close(self) -> None:
        """It is answered. The deadlines may know it for a while still, but not what was asked."""
        self.is_open = False
        self.handler = self.incoming = None


class Worker:
    """A task that answers one request after the other: to start one for each would cost more than most answers.

    Each of its requests has the worker's scope for itself. Once that is cancelled the worker ends.
    """

    __slots__ = ("scope", "task")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None  # while it is idle
