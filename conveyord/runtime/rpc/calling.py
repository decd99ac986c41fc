"""The calls and streams that this side has asked for on one connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import outcome
import trio

from conveyord.core.errors import OutcomeUnknown, Retryable
from conveyord.core.wire.frames import Body
from conveyord.core.wire.heads import Cancel, Credit, End, Error, FrameRefused, Item, Reply, Request
from conveyord.runtime.rpc.handlers import Answer
from conveyord.runtime.rpc.incoming_stream import Stream
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.outbox import Outbox, Ticket
from conveyord.runtime.rpc.outcomes import DeadlineOver, Ending, remote_error


class _Call(Ticket):
    """A call that waits for its answer."""

    __slots__ = ("task",)

    def __init__(self) -> None:
        super().__init__(b"")
        self.task: trio.lowlevel.Task | None = None

    def settle(self, result: outcome.Maybe[Answer]) -> None:
        if self.task is not None:
            trio.lowlevel.reschedule(self.task, result)


class Calls:
    """Numbers requests, and gives each answer to who waits for it."""

    def __init__(self, outbox: Outbox, limits: Limits, counters: Counters) -> None:
        self._outbox = outbox
        self._limits = limits
        self._counters = counters
        self._last_id = 0
        self._calls: dict[int, _Call] = {}
        self._streams: dict[int, Stream] = {}
        self._ending: Ending | None = None

    def __len__(self) -> int:
        return len(self._calls) + len(self._streams)

    async def call(self, method: str, payload: bytes, body: Body, deadline: float) -> Answer:
        """Ask, and wait for the answer. deadline: in trio's time.

        Raises Retryable if the request was not sent, DeadlineOver and OutcomeUnknown if it was and no answer came,
        RemoteError if the handler failed, Refused if the request is too large.
        """
        call = _Call()
        self._last_id = number = self._last_id + 1
        with trio.CancelScope(deadline=deadline) as scope:
            if self._outbox.is_full:
                await self._wait_room(method)
            self._check(method)
            call.data = self._outbox.framed(Request(number, method, _left_ms(deadline), payload), body)
            call.body = body
            self._outbox.put_ticket(call)
            self._calls[number] = call
            if len(self._calls) == 1:
                self._outbox.flush()  # nobody else is about to send: no reason to wait for the writer
            else:
                self._outbox.wake()
            return await self._answer(number, call)
        assert scope.cancelled_caught
        self._counters.cancelled_calls["deadline"] += 1
        raise _too_late(method, was_sent=call.is_written)

    async def _answer(self, number: int, call: _Call) -> Answer:
        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            call.task = None
            if self._calls.pop(number, None) is not None:
                self._give_up(number, call)
            return trio.lowlevel.Abort.SUCCEEDED

        call.task = trio.lowlevel.current_task()
        return await trio.lowlevel.wait_task_rescheduled(abort)  # type: ignore[no-any-return]

    def _give_up(self, number: int, ticket: Ticket) -> None:
        """Take the request back, or have what it began cancelled."""
        if not self._outbox.withdraw(ticket):
            self._outbox.put(self._outbox.framed(Cancel(number)))
            self._outbox.wake()

    @asynccontextmanager
    async def stream(self, method: str, payload: bytes, body: Body, deadline: float) -> AsyncIterator[Stream]:
        """Ask for items; leaving the block before their end cancels the handler. Raises, also from within, as `call`."""
        with trio.move_on_at(deadline) as scope:
            await self._wait_room(method)
        if scope.cancelled_caught:
            raise _too_late(method, was_sent=False)
        self._check(method)
        self._last_id = number = self._last_id + 1
        items, size = self._limits.stream_items, self._limits.stream_bytes
        request = Request(number, method, _left_ms(deadline), payload, items, size)
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
                self._give_up(number, ticket)
                self._counters.cancelled_calls["stream"] += 1

    def _grant(self, number: int, items: int, size: int) -> None:
        if number in self._streams:
            self._outbox.put(self._outbox.framed(Credit(number, items, size)))
            self._outbox.wake()

    async def _wait_room(self, method: str) -> None:
        self._check(method)
        await self._outbox.wait_room()

    def _check(self, method: str) -> None:
        if self._ending is not None:
            raise Retryable(f"{method} was not asked: the connection is gone: {self._ending.message}")

    # What comes from the other side. What was given up meanwhile is not known any more, and is passed over.

    def on_reply(self, head: Reply, body: Body) -> None:
        """Give an answer to who waits."""
        if (call := self._calls.pop(head.id, None)) is not None:
            call.settle(outcome.Value(Answer(head.payload, body)))

    def on_error(self, head: Error, _: Body) -> None:
        """Tell who waits of a failure."""
        error = remote_error(head.code, head.message)
        if (call := self._calls.pop(head.id, None)) is not None:
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


def _left_ms(deadline: float) -> int | None:
    left = deadline - trio.current_time()
    return None if left > 1e9 else max(1, int(left * 1000))


def _too_late(method: str, *, was_sent: bool) -> OutcomeUnknown | Retryable:
    if was_sent:
        return DeadlineOver(f"{method} was not answered within its deadline; it may have had its effect")
    return Retryable(f"{method} could not be sent within its deadline")


def _broken(ending: Ending, *, was_sent: bool) -> OutcomeUnknown | Retryable:
    if was_sent:
        return OutcomeUnknown(f"the connection broke before the answer came: {ending.message}")
    return Retryable(f"the connection broke before the request was sent: {ending.message}")
