"""The one thread that owns a tail: it keeps polling whatever happens, and puts what comes into the hopper.

A consumer belongs to one thread, calls back within `poll`, and counts as dead to its group when it does not poll. So
everything about it is done by this thread: others give it commands, which it looks at between two polls.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog
import trio

from conveyord.core.flow.record_log import Event, OutOfRange, Records, Tail, TopicPartition, Vanished
from conveyord.engine.kafka.hopper import Hopper

log = structlog.get_logger(__name__)

ENDS_SECONDS = 0.25
AGAIN_SECONDS = 30.0  # before a sentence is told again: a broker that is down is told of all the time, in turns
SENTENCES_MAX = 20
POLL_SECONDS = 0.05  # a consumer waits so long for a thousand messages; also the longest that a command waits


class Pump:
    """Polls a tail until `stop`. Methods are for the trio thread, unless they say otherwise."""

    def __init__(self, open_tail: Callable[[], Tail], hopper: Hopper) -> None:
        """open_tail: blocking; called by the pump's own thread."""
        self._open_tail = open_tail
        self._hopper = hopper
        self._commands: deque[Callable[[Tail], None]] = deque()
        self._told: deque[OutOfRange | Vanished] = deque()
        self._token = trio.lowlevel.current_trio_token()
        self._news = trio.Event()
        self.is_paused = False
        """Whether nothing is fetched at the moment, as there is no room."""
        self.stopping = False
        self.ends: Mapping[TopicPartition, int] = {}
        """The end of each partition that is followed, as far as it was heard of."""
        self.pauses = 0
        self.records = 0
        self.value_bytes = 0
        self.newest_ms: dict[TopicPartition, int] = {}
        self.errors: Counter[str] = Counter()
        self._said_at: dict[str, float] = {}
        self._ends_at = 0.0

    async def run(self) -> None:
        """Poll until `stop` was called, or the caller is cancelled. Raises what the tail raises."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_cancelled)
            # Not abandoned: a consumer that nobody closes keeps its partitions from the others of its group.
            await trio.to_thread.run_sync(self._work, limiter=trio.CapacityLimiter(1))
            nursery.cancel_scope.cancel()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.stopping = True

    def _work(self) -> None:
        """What the thread does. Blocking."""
        tail = self._open_tail()
        try:
            while not self.stopping or self._commands:
                while self._commands:
                    self._commands.popleft()(tail)
                self._take(tail.poll(POLL_SECONDS))
                self._pace(tail)
                if (now := time.monotonic()) - self._ends_at >= ENDS_SECONDS:
                    self.ends, self._ends_at = tail.ends(), now
                    self._hopper.nudge()
                self._count_errors(tail)
        finally:
            tail.close()

    def _take(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, Records):
                self.records += len(event.offsets)
                self.value_bytes += event.value_bytes
                if event.newest_ms >= 0:
                    self.newest_ms[event.partition] = event.newest_ms
                self._hopper.put(event)
            else:
                self._told.append(event)
                self._token.run_sync_soon(self._notify, idempotent=True)

    def _pace(self, tail: Tail) -> None:
        if not self.is_paused and self._hopper.is_full:
            tail.pause()
            self.is_paused = True
            self.pauses += 1
        elif self.is_paused and self._hopper.is_low:
            tail.resume()
            self.is_paused = False

    def _count_errors(self, tail: Tail) -> None:
        for error in tail.errors():
            self.errors[error.code] += 1
            text, now = str(error), time.monotonic()
            if now - self._said_at.get(text, -AGAIN_SECONDS) >= AGAIN_SECONDS:
                log.warning("Kafka said", code=error.code, reason=text)
                self._said_at = {**dict(list(self._said_at.items())[-SENTENCES_MAX:]), text: now}

    def _notify(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def told(self) -> OutOfRange | Vanished:
        """The next thing that befell a partition."""
        while not self._told:
            await self._news.wait()
        return self._told.popleft()

    def do(self, command: Callable[[Tail], None]) -> None:
        """Have the thread do something with its tail, soon. By any thread."""
        self._commands.append(command)

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        """See `Tail.assign`."""
        self.do(lambda tail: tail.assign(starts))

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        """See `Tail.unassign`."""
        self.do(lambda tail: tail.unassign(partitions))

    def stop(self) -> None:
        """Let `run` return, once all commands that were given are done."""
        self.stopping = True
