"""An edge that puts batches on disk while its target does not keep up (`on_slow: spill`).

What fits goes straight on. Once the channel is full, batches go to the disk queue, and all that follow
behind them, until the queue is empty again. A full disk slows the source, as `block` does.

A frame is kept until every sink behind the edge has it durably, so that a run that is killed finds on
disk what its slow sinks lack. It is still only a cache: what is missing is read from the source again.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import structlog
import trio

from conveyord.core.errors import StorageFull
from conveyord.engine.fan_out import Way
from conveyord.engine.messages import Ack, Batch, Eos, Message, Watermark
from conveyord.storage.spill.frames import FrameMeta
from conveyord.storage.spill.queue import SpillQueue

T = TypeVar("T")

log = structlog.get_logger(__name__)

QUIET_SECONDS = 60.0  # between two log lines that say the same of one edge
RETRY_SECONDS = 1.0  # how long a full disk is left alone if nothing drains meanwhile


@dataclass(frozen=True, slots=True)
class _Frame:
    """A batch on disk, and what of it stays in memory: the branch's acknowledgement."""

    number: int
    ack: Ack


class SpillWay:
    """A `Way` over a disk queue. `drain` must run beside it, and `finish` be called after the run."""

    def __init__(self, way: Way, queue: SpillQueue, *, name: str, threads: trio.CapacityLimiter) -> None:
        """Takes over `queue` with every frame that an earlier run left in it and that is not settled."""
        self._way = way
        self._queue = queue
        self._name = name
        self._threads = threads
        self._waiting: deque[_Frame | Watermark] = deque()
        self._kept: deque[int] = deque()
        self._done: set[int] = set()
        self._settled = 0
        self._changed = trio.Event()
        self._closed = False
        self._broken = False
        self._said_at: dict[str, float] = {}
        self._one_at_a_time = trio.Lock()
        for number, _ in queue.metas():
            self._keep(number, Ack(lambda: None))

    def _keep(self, number: int, ack: Ack) -> None:
        """Remember a frame; its batch's branch is settled by `ack` once the frame is durable elsewhere."""
        self._kept.append(number)
        self._waiting.append(_Frame(number, Ack(partial(self._on_durable, number, ack), root=ack.root)))

    def _on_durable(self, number: int, ack: Ack) -> None:
        ack.settle()
        self._done.add(number)
        while self._kept and self._kept[0] in self._done:
            self._settled = self._kept.popleft()
            self._done.remove(self._settled)
        self._wake()

    def send_nowait(self, message: Message) -> None:
        """See `Way.send_nowait`."""
        if self._broken:
            raise trio.BrokenResourceError
        if not self._waiting:
            self._way.send_nowait(message)
        elif isinstance(message, Watermark):
            self._waiting.append(message)
        else:
            raise trio.WouldBlock

    async def send(self, message: Message) -> None:
        """See `Way.send`: waits for the disk at most, while there is room on it."""
        try:
            self.send_nowait(message)
        except trio.WouldBlock:
            assert not isinstance(message, Eos), "the end is told by closing"
            await self._spill(message)

    async def _spill(self, message: Batch | Watermark) -> None:
        if isinstance(message, Watermark):
            self._waiting.append(message)
            self._wake()
            return
        if not self._waiting:
            self._say("an edge spills to disk")
        meta = FrameMeta(message.spans, message.tally, dict(message.states))
        while not self._broken:
            try:
                number = await self._in_thread(self._queue.append, meta, message.data)
            except StorageFull as error:
                self._say("no room to spill, so the source waits", reason=str(error))
            else:
                self._keep(number, message.ack)
                self._wake()
                return
            if not self._waiting:  # nothing of ours is left on the disk: wait as `block` does
                await self._way.send(message)
                return
            with trio.move_on_after(RETRY_SECONDS):
                await self._changed.wait()
        raise trio.BrokenResourceError

    def _say(self, what: str, **fields: str) -> None:
        """Log a sentence, unless it was just said: an edge may come and go between disk and memory all the time."""
        now = trio.current_time()
        if now >= self._said_at.get(what, -math.inf) + QUIET_SECONDS:
            self._said_at[what] = now
            log.info(what, edge=self._name, **fields)

    def close(self) -> None:
        """See `Way.close`. What is on disk still goes on."""
        self._closed = True
        self._wake()

    async def drain(self) -> None:
        """Send on what was spilled, in order, until this way is closed and empty, or nobody listens."""
        settled = 0
        try:
            while self._waiting or not self._closed:
                if settled < self._settled:
                    settled = self._settled
                    await self._in_thread(self._queue.settle, settled)
                elif self._waiting:
                    entry = self._waiting[0]
                    await self._way.send(entry if isinstance(entry, Watermark) else await self._read(entry))
                    self._waiting.popleft()
                    self._wake()
                else:
                    await self._changed.wait()
        except trio.BrokenResourceError:
            pass  # the stage behind the edge failed and says why itself
        finally:
            self._broken = True
            self._wake()
            self._way.close()

    async def _read(self, frame: _Frame) -> Batch:
        read = await self._in_thread(self._queue.read)
        assert read is not None, "what waits was appended"
        number, meta, data = read
        assert number == frame.number, (number, frame)
        return Batch(data, meta.spans, meta.tally, frame.ack, meta.states, arrived=meta.tally, unit="offsets")

    def finish(self) -> None:
        """Settle what the sinks made durable in the end, and close the queue. Blocking."""
        if self._settled:
            self._queue.settle(self._settled)
        self._queue.close()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        async with self._one_at_a_time:
            return await trio.to_thread.run_sync(work, *args, limiter=self._threads)
