"""The calls and streams that this side has asked for on one connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import outcome
import trio

from conveyord.core.errors import OutcomeUnknown, Retryable
from conveyord.core.wire.frames import Body
from conveyord.core.wire.heads import Cancel, Credit, End, Error, FrameRefused, Item, Reply, Request
from conveyord.runtime.rpc.deadlines import Deadlines
from conveyord.runtime.rpc.handlers import Answer
from conveyord.runtime.rpc.incoming_stream import Stream
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.outbox import Outbox, Ticket
from conveyord.runtime.rpc.outcomes import DeadlineOver, Ending, remote_error

MILLISECONDS_MAX = 2**40  # more is no deadline


class _Call(Ticket):
    """A call that waits for its answer."""

    __slots__ = ("calls", "is_open", "method", "number", "task")

    def __init__(self, calls: Calls, number: int, method: str, data: bytes, body: Body) -> None:
        super().__init__(data, body)
        self.calls = calls
        self.number = number
        self.method = method
        self.is_open = True
        self.task = trio.lowlevel.current_task()

    def settle(self, result: outcome.Maybe[Answer]) -> None:
        """Wake up who waits."""
        self._close()
        trio.lowlevel.reschedule(self.task, result)

    def expire(self) -> None:
        """The deadline is over."""
        self.calls.give_up(self)
        self.settle(outcome.Error(_too_late(self.method, was_sent=self.is_written)))

    def abort(self, _: object) -> trio.lowlevel.Abort:
        """Who waits was cancelled."""
        self.calls.give_up(self)
        self._close()
        return trio.lowlevel.Abort.SUCCEEDED

    def _close(self) -> None:
        self.is_open = False
        self.data = self.body = b""  # the deadlines may know this for a while still, but not what was asked


class Calls:
    """Numbers requests, and gives each answer to who waits for it."""

    def __init__(self, outbox: Outbox, deadlines: Deadlines, limits: Limits, counters: Counters) -> None:
        self._outbox = outbox
        self._deadlines = deadlines
        self._limits = limits
        self._counters = counters
        self._last_id = 0
        self._calls: dict[int, _Call] = {}
        self._streams: dict[int, Stream] = {}
        self._ending: Ending | None = None

    def __len__(self) -> int:
        return len(self._calls) + len(self._streams)

    async def call(self, method: str, payload: bytes, body: Body, seconds: float) -> Answer:
        """Ask, and wait for the answer. seconds: until the deadline.

        Raises Retryable if the request was not sent, DeadlineOver and OutcomeUnknown if it was and no answer came,
        RemoteError if the handler failed, Refused if the request is too large.
        """
        outbox = self._outbox
        deadline = trio.current_time() + seconds
        if outbox.is_full:
            await self._wait_room(method, deadline)
            seconds = deadline - trio.current_time()
        self._check(method)
        self._last_id = number = self._last_id + 1
        data = outbox.framed(Request(number, method, _milliseconds(seconds), payload), body)
        call = self._calls[number] = _Call(self, number, method, data, body)
        self._deadlines.add(deadline, call)
        outbox.put_ticket(call)
        if len(self._calls) == 1:
            outbox.flush()  # nobody else is about to send: no reason to wait for the writer
        else:
            outbox.wake()
        return await trio.lowlevel.wait_task_rescheduled(call.abort)  # type: ignore[no-any-return]

    def give_up(self, call: _Call) -> None:
        """Take a request back that nobody waits for any more, or have what it began cancelled."""
        if self._calls.pop(call.number, None) is not None:
            self._counters.cancelled_calls["given_up"] += 1
            self._withdraw(call.number, call)

    def _withdraw(self, number: int, ticket: Ticket) -> None:
        if not self._outbox.withdraw(ticket):
            self._outbox.put(self._outbox.framed(Cancel(number)))
            self._outbox.wake()

    @asynccontextmanager
    async def stream(self, method: str, payload: bytes, body: Body, deadline: float) -> AsyncIterator[Stream]:
        """Ask for items; leaving the block before their end cancels the handler. Raises as `call`, also within."""
        await self._wait_room(method, deadline)
        self._check(method)
        self._last_id = number = self._last_id + 1
        items, size = self._limits.stream_items, self._limits.stream_bytes
        request = Request(number, method, _milliseconds(deadline - trio.current_time()), payload, items, size)
        ticket = Ticket(self._outbox.framed(request, body), body)
        stream = Stream(method, items, size, deadline, lambda items, size: self._grant(number, items, size))
        self._outbox.put_ticket(ticket)
        self._streams[number] = stream
        self._outbox.wake()
        stream.ticket = ticket
        try:
            yield stream
        finally:
            if self._streams.pop(number, None) is not None:
                self._withdraw(number, ticket)
                self._counters.cancelled_calls["given_up"] += 1

    def _grant(self, number: int, items: int, size: int) -> None:
        if number in self._streams:
            self._outbox.put(self._outbox.framed(Credit(number, items, size)))
            self._outbox.wake()

    async def _wait_room(self, method: str, deadline: float) -> None:
        with trio.move_on_at(deadline) as scope:
            await self._outbox.wait_room()
        if scope.cancelled_caught:
            raise _too_late(method, was_sent=False)

    def _check(self, method: str) -> None:
        if self._ending is not None:
            raise Retryable(f"{method} was not asked: the connection is gone: {self._ending.message}")

    # What comes from the other side. What was given up meanwhile is not known any more, and is passed over.

    def on_reply(self, head: Reply, body: Body) -> None:
        """Give an answer to who waits."""
        if (call := self._calls.get(head.id)) is not None:
            if not call.is_written:
                raise FrameRefused("unexpected", f"request {head.id} was answered before it was sent")
            del self._calls[head.id]
            call.settle(outcome.Value(Answer(head.payload, body)))

    def on_error(self, head: Error, _: Body) -> None:
        """Tell who waits of a failure."""
        error = remote_error(head.code, head.message)
        if (call := self._calls.get(head.id)) is not None:
            if not call.is_written:
                raise FrameRefused("unexpected", f"request {head.id} was answered before it was sent")
            del self._calls[head.id]
            call.settle(outcome.Error(error))
        elif (stream := self._streams.pop(head.id, None)) is not None:
            stream.end(error)

    def on_item(self, head: Item, body: Body) -> None:
        """Put an item where its reader finds it. Raises FrameRefused if there was no credit for it."""
        if (stream := self._streams.get(head.id)) is not None:
            stream.put(Answer(head.payload, body))
        elif head.id in self._calls:
            raise FrameRefused("unexpected", "an item came where one reply was asked for")

    def on_end(self, head: End, _: Body) -> None:
        """Tell a reader that there are no more items."""
        if (stream := self._streams.pop(head.id, None)) is not None:
            stream.end(None)

    def fail(self, ending: Ending) -> None:
        """The connection is gone: tell everybody who waits whether the request was sent."""
        self._ending = ending
        calls, self._calls = self._calls, {}
        streams, self._streams = self._streams, {}
        for call in calls.values():
            call.settle(outcome.Error(_broken(ending, was_sent=call.is_written)))
        for stream in streams.values():
            stream.end(_broken(ending, was_sent=stream.ticket is None or stream.ticket.is_written))


def _milliseconds(seconds: float) -> int | None:
    return None if seconds > MILLISECONDS_MAX / 1000 else max(1, int(seconds * 1000))


def _too_late(method: str, *, was_sent: bool) -> OutcomeUnknown | Retryable:
    if was_sent:
        return DeadlineOver(f"{method} was not answered within its deadline; it may have had its effect")
    return Retryable(f"{method} could not be sent within its deadline")


def _broken(ending: Ending, *, was_sent: bool) -> OutcomeUnknown | Retryable:
    if was_sent:
        return OutcomeUnknown(f"the connection broke before the answer came: {ending.message}")
    return Retryable(f"the connection broke before the request was sent: {ending.message}")
