"""One connection between two sides that have met: calls, streams and messages in both directions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import structlog
import trio

from conveyord.core.wire.frames import Body, Frame, FrameDecoder
from conveyord.core.wire.heads import (
    SENTENCE_CHARS_MAX,
    Cancel,
    Credit,
    End,
    Error,
    FrameRefused,
    Goodbye,
    Item,
    Message,
    Ping,
    Pong,
    Reply,
    Request,
)
from conveyord.runtime.rpc.calling import Calls
from conveyord.runtime.rpc.deadlines import Deadlines
from conveyord.runtime.rpc.handlers import Answer, Handlers, Remote
from conveyord.runtime.rpc.incoming_stream import Stream
from conveyord.runtime.rpc.keeping import Keeper
from conveyord.runtime.rpc.limits import FRAME_BYTES_MIN, Counters, Limits
from conveyord.runtime.rpc.outbox import Outbox
from conveyord.runtime.rpc.outcomes import Ending
from conveyord.runtime.rpc.serving import Serving
from conveyord.runtime.rpc.transport import Transport, linger

log = structlog.get_logger(__name__)

GOODBYE_SECONDS = 1.0  # to say why a connection is closed
SILENT_ENDINGS = frozenset({"closed", "broken", "goodbye", "silent", "not_reading"})  # nobody would hear a goodbye


class Connection:
    """Both ends are alike. It lives while `run` runs, once; `handlers` answer the other side.

    early: frames that came with the hello.
    """

    def __init__(
        self,
        transport: Transport,
        decoder: FrameDecoder,
        remote: Remote,
        handlers: Handlers,
        limits: Limits,
        counters: Counters,
        *,
        early: Sequence[Frame] = (),
    ) -> None:
        decoder.frame_bytes_max = limits.frame_bytes_max
        self.remote = remote
        self.ending: Ending | None = None
        self._transport = transport
        self._decoder = decoder
        self._handlers = handlers
        self._limits = limits
        self._counters = counters
        self._early = early
        theirs = max(remote.hello.frame_bytes_max or limits.frame_bytes_max, FRAME_BYTES_MIN)
        self._outbox = Outbox(transport, limits.queued_bytes_max, min(theirs, limits.frame_bytes_max))
        self._deadlines = Deadlines()
        self._calls = Calls(self._outbox, self._deadlines, limits, counters)
        self._keeper = Keeper(decoder, self._outbox, limits)
        self._scope = trio.CancelScope()
        self._serving: Serving | None = None  # while it runs

    # What the owner uses.

    async def call(self, method: str, payload: bytes = b"", body: Body = b"", *, deadline_seconds: float) -> Answer:
        """Ask the other side. payload: msgpack as a rule; body: passed on untouched, and not to be changed.

        Cancelling this cancels the handler. Raises Retryable if the request was not sent, DeadlineOver and
        OutcomeUnknown if it was and no answer came, RemoteError if the handler failed, Refused if it is too large.
        """
        return await self._calls.call(method, payload, body, deadline_seconds)

    def stream(
        self, method: str, payload: bytes = b"", body: Body = b"", *, deadline_seconds: float = math.inf
    ) -> AbstractAsyncContextManager[Stream]:
        """Ask for a stream: `async with connection.stream("watch") as items: async for answer in items: ...`.

        Leaving the block before the end cancels the handler. Raises as `call` does.
        """
        return self._calls.stream(method, payload, body, trio.current_time() + deadline_seconds)

    def send(self, method: str, payload: bytes, body: Body = b"") -> bool:
        """Send a message one way, at once or never. False if it was dropped: the queue is full or the connection gone.

        Raises Refused if it is larger than the other side takes.
        """
        outbox = self._outbox
        if self.ending is not None or outbox.bytes > self._limits.messages_bytes_max:
            self._counters.dropped_messages["closed" if self.ending is not None else "queue_full"] += 1
            return False
        outbox.put(outbox.framed(Message(method, payload), body), body)
        outbox.wake()
        return True

    def flush(self) -> None:
        """Write what is queued at once, as far as that goes without waiting."""
        if self.ending is None:
            self._outbox.flush()

    @property
    def queued_bytes(self) -> int:
        """What waits to be written."""
        return self._outbox.bytes

    @property
    def open_requests(self) -> int:
        """How many requests of the other side are being answered."""
        return 0 if self._serving is None else len(self._serving)

    @property
    def open_calls(self) -> int:
        """How many requests of this side wait for their answer."""
        return len(self._calls)

    def cut(self, reason: str, message: str) -> None:
        """End the connection now. Only the first reason counts; it is told to the other side, if that can hear it."""
        if self.ending is None:
            self.ending = Ending(reason, message)
            self._counters.ended_connections[reason] += 1
            self._calls.fail(self.ending)
            self._outbox.close()
            self._scope.cancel()

    async def close(self, reason: str = "shutdown", message: str = "the node stops") -> None:
        """Let requests be answered, not streams, for at most `stall_seconds`, and end the connection."""
        with trio.move_on_after(self._limits.stall_seconds):
            if self._serving is not None:
                await self._serving.wait_answered()
            await self._outbox.wait_idle()
        self.cut(reason, message)

    async def run(self) -> Ending:
        """Carry the connection until it ends, and tell why it did. Handlers that still run are cancelled."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    serving = Serving(
                        self._handlers,
                        self._outbox,
                        self._deadlines,
                        self._limits,
                        self._counters,
                        self.remote,
                        nursery,
                    )
                    self._serving = serving
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep)
                    nursery.start_soon(self._deadlines.run)
                    await self._read(serving)
        finally:
            self.cut("shutdown", "the node stops")
            with trio.move_on_after(GOODBYE_SECONDS * 2, shield=True):
                await self._part()
            with trio.CancelScope(shield=True) as closing:
                closing.deadline = trio.current_time() + GOODBYE_SECONDS
                await self._transport.aclose()
        assert self.ending is not None
        return self.ending

    # The tasks.

    async def _read(self, serving: Serving) -> None:
        calls = self._calls
        dispatch: dict[type, Callable[[Any, Body], None]] = {
            Request: serving.on_request,
            Message: serving.on_message,
            Credit: serving.on_credit,
            Cancel: serving.on_cancel,
            Reply: calls.on_reply,
            Error: calls.on_error,
            Item: calls.on_item,
            End: calls.on_end,
            Ping: self._on_ping,
            Pong: self._on_pong,
            Goodbye: self._on_goodbye,
        }
        transport, decoder, outbox, keeper = self._transport, self._decoder, self._outbox, self._keeper
        frames = self._early
        try:
            while True:
                for head, body in frames:
                    if (take := dispatch.get(type(head))) is None:
                        raise FrameRefused("unexpected", f"a {type(head).__name__.lower()} came after the greeting")
                    take(head, body)
                    if outbox.is_overfull:
                        await self._pause()
                        if self.ending is not None:
                            return
                keeper.frames += len(frames)
                self._handlers.after_frames()
                outbox.flush()
                count = await transport.receive_into(decoder.room())
                keeper.receipts += 1
                if not count:
                    decoder.finish()
                    self.cut("closed", "the other side closed the connection")
                    return
                frames = decoder.filled(count)
        except FrameRefused as refusal:
            self._counters.refused_frames[refusal.reason] += 1
            self.cut(refusal.reason, str(refusal))
        except trio.BrokenResourceError as error:
            self.cut("broken", f"the connection broke: {error}")
        except Exception as error:
            # A mistake of ours that something from outside has found must not take the node down.
            log.exception("a connection failed", peer=self.remote.node)
            self.cut("internal", f"a mistake in conveyord: {type(error).__name__}; it is in the log of the other side")

    async def _write(self) -> None:
        try:
            await self._outbox.run()
        except trio.BrokenResourceError as error:
            self.cut("broken", f"the connection broke: {error}")

    async def _keep(self) -> None:
        while True:
            await trio.sleep(self._limits.tick_seconds)
            if (ending := self._keeper.look(trio.current_time())) is not None:
                self.cut(ending.reason, ending.message)

    async def _pause(self) -> None:
        """Read no more requests until the other side has read answers. If it does not, the keeper ends this."""
        self._keeper.is_paused = True
        self._outbox.flush()
        await self._outbox.wait_room()
        self._keeper.is_paused = False

    def _on_ping(self, head: Ping, _: Body) -> None:
        self._outbox.put(self._outbox.framed(Pong(head.number)))

    def _on_pong(self, head: Pong, _: Body) -> None:
        pass  # that something came is all that counts

    def _on_goodbye(self, head: Goodbye, _: Body) -> None:
        self.cut("goodbye", f"the other side closed the connection: {head.message or head.code}")

    async def _part(self) -> None:
        """Tell the other side why, if it can hear it."""
        assert self.ending is not None
        if self.ending.reason in SILENT_ENDINGS or self._outbox.is_torn:
            return
        goodbye = Goodbye(self.ending.reason.upper(), self.ending.message[:SENTENCE_CHARS_MAX])
        self._outbox.put(self._outbox.framed(goodbye))
        try:
            while not self._outbox.is_idle:
                await self._outbox.write_some()
        except trio.BrokenResourceError:
            return
        await linger(self._transport)
