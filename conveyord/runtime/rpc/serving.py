"""The requests that the other side has made on one connection, each run as its handler wants it."""

from __future__ import annotations

import math
from typing import Any

import outcome
import trio

from conveyord.core.wire.frames import Body
from conveyord.core.wire.heads import Cancel, Credit, End, Error, FrameRefused, Item, Message, Reply, Request
from conveyord.runtime.rpc.deadlines import Deadlines
from conveyord.runtime.rpc.handlers import Answer, Handlers, Incoming, Inline, Mode, Remote, Replied, Unary
from conveyord.runtime.rpc.incoming_stream import item_bytes
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.outbox import Outbox
from conveyord.runtime.rpc.outcomes import DEADLINE, NO_SUCH_METHOD, TOO_MANY_REQUESTS, told

IDLE_WORKERS_MAX = 256  # kept for the next requests


class _Outlet:
    """Sends the items of one stream within its credit."""

    def __init__(self, number: int, outbox: Outbox, items: int, size: int) -> None:
        self._number = number
        self._outbox = outbox
        self._granted = (items, size)
        self._sent = (0, 0)
        self._more = trio.Event()

    async def send(self, payload: bytes, body: Body = b"") -> None:
        data = self._outbox.framed(Item(self._number, payload), body)
        await trio.lowlevel.checkpoint()
        # As long as any byte of credit is left an item may be sent: one that is larger than the window would never go.
        while self._sent[0] >= self._granted[0] or self._sent[1] >= self._granted[1]:
            self._more = trio.Event()
            await self._more.wait()
        await self._outbox.wait_room()
        self._sent = self._sent[0] + 1, self._sent[1] + item_bytes(len(payload), len(body))
        self._outbox.put(data, body)
        self._outbox.wake()

    def grant(self, items: int, size: int) -> None:
        self._granted = max(self._granted[0], items), max(self._granted[1], size)
        self._more.set()


class _Open:
    """A request that is being answered."""

    __slots__ = ("handler", "incoming", "is_late", "is_open", "is_unwanted", "number", "outlet", "scope")

    def __init__(
        self, number: int, handler: Any, incoming: Incoming, outlet: _Outlet | None, scope: trio.CancelScope
    ) -> None:
        self.number = number
        self.handler = handler
        self.incoming = incoming
        self.outlet = outlet
        self.scope = scope
        self.is_open = True
        self.is_late = self.is_unwanted = False

    def expire(self) -> None:
        """The deadline is over."""
        self.is_late = True
        self.scope.cancel()


class _Worker:
    """A task that answers one request after the other: to start one for each would cost more than most answers.

    Each of its requests has the worker's scope for itself. Once that is cancelled the worker ends.
    """

    __slots__ = ("scope", "task")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.task: trio.lowlevel.Task | None = None  # while it is idle


class Serving:
    """Runs handlers in `nursery`, which belongs to the connection."""

    def __init__(
        self,
        handlers: Handlers,
        outbox: Outbox,
        deadlines: Deadlines,
        limits: Limits,
        counters: Counters,
        caller: Remote,
        nursery: trio.Nursery,
    ) -> None:
        self._by_method = handlers.by_method
        self._outbox = outbox
        self._deadlines = deadlines
        self._limits = limits
        self._counters = counters
        self._caller = caller
        self._nursery = nursery
        self._open: dict[int, _Open] = {}
        self._idle: list[_Worker] = []
        self._last_id = 0
        self._messages = 0

    def __len__(self) -> int:
        return len(self._open) + self._messages

    def on_request(self, head: Request, body: Body) -> None:
        """Begin to answer. Raises FrameRefused if the id was used before."""
        number = head.id
        if number <= self._last_id:
            raise FrameRefused("id", f"a request has the id {number} after {self._last_id}; ids must rise")
        self._last_id = number
        if (found := self._by_method.get(head.method)) is None:
            self._refuse(number, NO_SUCH_METHOD, f"there is no method {head.method!r} here")
            return
        mode, handler = found
        if (mode is Mode.STREAM) != (head.credit_items > 0):
            self._refuse(
                number, NO_SUCH_METHOD, f"{head.method} answers with {'items' if mode is Mode.STREAM else 'one reply'}"
            )
            return
        left_ms = head.deadline_ms
        deadline = math.inf if left_ms is None else trio.current_time() + left_ms / 1000
        incoming = Incoming(head.method, head.payload, body, self._caller, deadline)
        if mode is Mode.INLINE:
            self._inline(number, handler, incoming)
        elif len(self) >= self._limits.requests_max:
            self._refuse(
                number, TOO_MANY_REQUESTS, f"{len(self)} requests are open on this connection, at most so many may be"
            )
        else:
            outlet = (
                _Outlet(number, self._outbox, head.credit_items, head.credit_bytes) if mode is Mode.STREAM else None
            )
            self._begin(number, handler, incoming, outlet)

    def on_message(self, head: Message, body: Body) -> None:
        """Hand a one-way message to its handler; drop it if there is none, or no room."""
        mode, handler = self._by_method.get(head.method, (Mode.STREAM, None))
        incoming = Incoming(head.method, head.payload, body, self._caller, math.inf)
        if mode is Mode.INLINE:
            try:
                handler(incoming)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises must not end the connection
                self._failed(error, head.method)
        elif mode is Mode.STREAM:
            self._counters.dropped_messages["no_such_method"] += 1
        elif len(self) >= self._limits.requests_max:
            self._counters.dropped_messages["too_many_requests"] += 1
        else:
            self._messages += 1
            self._nursery.start_soon(self._run_message, handler, incoming)

    def on_credit(self, head: Credit, _: Body) -> None:
        """Let a stream send more."""
        if (opened := self._open.get(head.id)) is not None and opened.outlet is not None:
            opened.outlet.grant(head.credit_items, head.credit_bytes)

    def on_cancel(self, head: Cancel, _: Body) -> None:
        """Cancel a handler whose answer nobody wants."""
        if (opened := self._open.get(head.id)) is not None:
            opened.is_unwanted = True
            opened.scope.cancel()

    def _inline(self, number: int, handler: Inline, incoming: Incoming) -> None:
        try:
            data, body = self._framed(number, handler(incoming))
        except Exception as error:  # noqa: BLE001 - as above
            data, body = self._framed_error(number, *self._failed(error, incoming.method)), b""
        self._outbox.put(data, body)  # the task that reads flushes after each batch of frames

    def _begin(self, number: int, handler: Any, incoming: Incoming, outlet: _Outlet | None) -> None:
        """Give a request to a worker that is idle, or to a new one."""
        worker = self._idle.pop() if self._idle else _Worker()
        opened = self._open[number] = _Open(number, handler, incoming, outlet, worker.scope)
        self._deadlines.add(incoming.deadline, opened)
        if worker.task is None:
            self._nursery.start_soon(self._work, worker, opened)
        else:
            trio.lowlevel.reschedule(worker.task, outcome.Value(opened))
            worker.task = None

    async def _work(self, worker: _Worker, opened: _Open) -> None:
        scope = worker.scope
        with scope:
            while True:
                frame: tuple[bytes, Body] | None = None
                try:
                    frame = await self._answered(opened)
                finally:
                    del self._open[opened.number]
                    opened.is_open = False
                    self._settle(opened, frame)
                if scope.cancel_called or len(self._idle) >= IDLE_WORKERS_MAX:
                    return
                opened = await self._next(worker)

    async def _next(self, worker: _Worker) -> _Open:
        """Be idle until there is a request."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(worker)
            return trio.lowlevel.Abort.SUCCEEDED

        worker.task = trio.lowlevel.current_task()
        self._idle.append(worker)
        return await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[no-any-return]

    async def _answered(self, opened: _Open) -> tuple[bytes, Body]:
        """The last frame of the answer, of which there is room for in the outbox."""
        number = opened.number
        try:
            if opened.outlet is None:
                frame = self._framed(number, await opened.handler(opened.incoming))
                if self._outbox.is_full:
                    await self._outbox.wait_room()
                return frame
            await opened.handler(opened.incoming, opened.outlet)
            return self._outbox.framed(End(number)), b""
        except Exception as error:  # noqa: BLE001 - as above
            return self._framed_error(number, *self._failed(error, opened.incoming.method)), b""

    def _settle(self, opened: _Open, frame: tuple[bytes, Body] | None) -> None:
        """Send the last frame. frame: None if the handler was cancelled."""
        if opened.is_unwanted:
            self._counters.cancelled_calls["caller"] += 1
            return
        if frame is None:
            if not opened.is_late:
                return  # the connection ends
            self._counters.cancelled_calls["deadline"] += 1
            message = f"{opened.incoming.method} was not done within its deadline"
            frame = self._framed_error(opened.number, DEADLINE, message), b""
        self._outbox.put(*frame)
        if self._open:
            self._outbox.wake()  # others are about to answer too
        else:
            self._outbox.flush()

    async def _run_message(self, handler: Unary, incoming: Incoming) -> None:
        try:
            await handler(incoming)
        except Exception as error:  # noqa: BLE001 - as above
            self._failed(error, incoming.method)
        finally:
            self._messages -= 1

    def _framed(self, number: int, answer: Replied) -> tuple[bytes, Body]:
        if isinstance(answer, Answer):
            return self._outbox.framed(Reply(number, answer.payload), answer.body), answer.body
        return self._outbox.framed(Reply(number, answer or b"")), b""

    def _framed_error(self, number: int, code: str, message: str) -> bytes:
        return self._outbox.framed(Error(number, code, message))

    def _failed(self, error: Exception, method: str) -> tuple[str, str]:
        code, message = told(error, method)
        self._counters.failed_requests[code.lower()] += 1
        return code, message

    def _refuse(self, number: int, code: str, message: str) -> None:
        self._counters.refused_requests[code.lower()] += 1
        self._outbox.put(self._framed_error(number, code, message))
