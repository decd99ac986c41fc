"""The requests that the other side has made on one connection, each run as its handler wants it."""

from __future__ import annotations

import math
from typing import Any

import outcome
import trio

from conveyord.core.wire.frames import Body
from conveyord.core.wire.heads import Cancel, Credit, End, Error, FrameRefused, Message, Reply, Request
from conveyord.runtime.rpc.deadlines import Deadlines
from conveyord.runtime.rpc.handlers import Answer, Handlers, Incoming, Inline, Mode, Remote, Replied, Unary
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.open_request import CreditedOutlet, OpenRequest, Worker
from conveyord.runtime.rpc.outbox import Outbox
from conveyord.runtime.rpc.outcomes import DEADLINE, NO_SUCH_METHOD, TOO_MANY_REQUESTS, told

IDLE_WORKERS_MAX = 256  # kept for the next requests


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
        self._open: dict[int, OpenRequest] = {}
        self._idle: list[Worker] = []
        self._last_id = 0
        self._messages = 0
        self._unanswered = 0  # without the streams, which may have no end
        self._waiting = trio.lowlevel.ParkingLot()  # until all is answered

    def __len__(self) -> int:
        return len(self._open) + self._messages

    async def wait_answered(self) -> None:
        """Wait until no request is open but streams."""
        while self._unanswered:
            await self._waiting.park()

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
                CreditedOutlet(number, self._outbox, head.credit_items, head.credit_bytes)
                if mode is Mode.STREAM
                else None
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

    def _begin(self, number: int, handler: Any, incoming: Incoming, outlet: CreditedOutlet | None) -> None:
        """Give a request to a worker that is idle, or to a new one."""
        worker = self._idle.pop() if self._idle else Worker()
        opened = self._open[number] = OpenRequest(number, handler, incoming, outlet, worker.scope)
        self._deadlines.add(incoming.deadline, opened)
        self._unanswered += outlet is None
        if worker.task is None:
            self._nursery.start_soon(self._work, worker, opened)
        else:
            trio.lowlevel.reschedule(worker.task, outcome.Value(opened))
            worker.task = None

    async def _work(self, worker: Worker, opened: OpenRequest | None) -> None:
        scope = worker.scope
        with scope:
            while True:
                frame: tuple[bytes, Body] | None = None
                assert opened is not None
                try:
                    frame = await self._answered(opened)
                finally:
                    del self._open[opened.number]
                    self._settle(opened, frame)
                    self._close(opened)
                opened = frame = None  # an idle worker must not keep what was large
                if scope.cancel_called or len(self._idle) >= IDLE_WORKERS_MAX:
                    return
                opened = await self._next(worker)

    def _close(self, opened: OpenRequest) -> None:
        opened.close()
        self._unanswered -= opened.outlet is None
        if not self._unanswered and self._waiting:
            self._waiting.unpark_all()

    async def _next(self, worker: Worker) -> OpenRequest:
        """Be idle until there is a request."""

        def abort(_: object) -> trio.lowlevel.Abort:
            self._idle.remove(worker)
            return trio.lowlevel.Abort.SUCCEEDED

        worker.task = trio.lowlevel.current_task()
        self._idle.append(worker)
        return await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[no-any-return]

    async def _answered(self, opened: OpenRequest) -> tuple[bytes, Body]:
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

    def _settle(self, opened: OpenRequest, frame: tuple[bytes, Body] | None) -> None:
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
