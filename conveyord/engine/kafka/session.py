"""One run of a Kafka source: what is open during it, and how it begins and ends.

    pump (its own thread)    polls, and puts records into the hopper
    feed                     takes jobs out of it, has them decoded in threads, and sends the rows in order
    watch, confirm, heed     see to topics and partitions that come, go and are made anew: watching.py
    publish                  tells the group how far every sink is, and the display how far behind we are: publishing.py

The feed alone sends, so everything that has its place in the order goes through the hopper: records, gaps, and the
giving up of partitions, which handover.py does.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial

import structlog
import trio

from conveyord.core.errors import ConveyordError, Retryable
from conveyord.core.flow.positions import Position, Positions
from conveyord.core.flow.record_log import Topic, TopicPartition
from conveyord.engine.health import SourceHealth
from conveyord.engine.kafka.handover import Handover
from conveyord.engine.kafka.hopper import Hopper
from conveyord.engine.kafka.partitions import Partitions, Progress
from conveyord.engine.kafka.publishing import Publisher
from conveyord.engine.kafka.pump import Pump
from conveyord.engine.kafka.reading import Inquiry, Ports, Reading
from conveyord.engine.kafka.watching import Watch
from conveyord.runtime.nurseries import unwrapped

log = structlog.get_logger(__name__)

AWAITED_SECONDS = 0.5  # between two looks for a topic that is to be made anew
CLEANUP_SECONDS = 10.0  # until the reader's last question is answered, or has timed out


class Session:
    """What is open during one call of a source's `run`. For the trio thread."""

    def __init__(
        self, reading: Reading, ports: Ports, fences: Sequence[Positions], progress: Progress, health: SourceHealth
    ) -> None:
        self.hopper = Hopper(reading.batching, confirms=True)
        self.pump = Pump(ports.open_tail, self.hopper)
        self.partitions = Partitions(reading, self.hopper, fences, progress)
        self.stop = trio.Event()
        """Set: nothing more is taken from the hopper."""
        self._reading = reading
        self._again: Retryable | None = None
        self._failure: Exception | None = None
        self._inquiry = Inquiry(ports.open_reader)
        known, hopper, pump = self.partitions, self.hopper, self.pump
        self._publisher = Publisher(reading, known, pump, health)
        self._watch = Watch(reading, known, self._inquiry, hopper, pump, health, end=self.end)
        self.handover = Handover(reading, known, self._inquiry, hopper, pump, self._publisher, health)

    async def run(self, feed: Callable[[], Awaitable[None]], flush: Callable[[], Awaitable[None]]) -> None:
        """Read until `stop` is set, or to the end if the source is not to follow.

        feed: sends jobs until `hopper.take` has none. flush: has every sink take what was sent, and waits for it.
        """
        await self._inquiry.open()
        watch = self._watch
        try:
            await self._begin()
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    for task in (watch.watch, watch.confirm, watch.heed, self._publisher.run):
                        nursery.start_soon(self._beside, task)
                    async with trio.open_nursery() as inner:
                        inner.start_soon(self.pump.run)
                        try:
                            await self._read(feed, flush)
                        finally:
                            self.pump.stop()
                    nursery.cancel_scope.cancel()
        finally:
            self._publisher.gauge()
            with trio.move_on_after(CLEANUP_SECONDS, shield=True):
                await self._inquiry.close()
        if self._again is not None:
            raise self._again

    async def _begin(self) -> None:
        choice, known = self._reading.choice, self.partitions
        topics = await self._topics()
        places = known.begin(topics)
        if not topics:
            log.warning("no topic matches yet", source=self._reading.stage, topics=choice.shown)
        if self._reading.shares:
            self.pump.do(lambda tail: tail.subscribe(choice.subscription, self.handover))
            return
        starts = await self._inquiry.ask(partial(known.open, places))
        if known.is_finished:
            self.stop.set()
        self.pump.assign(starts)

    async def _topics(self) -> dict[str, Topic]:
        """The topics that are there. One that was read and is to be made anew is waited for, as for a cluster that is
        away. Raises Retryable for one that is not there.
        """
        reading, known = self._reading, self.partitions
        waits = reading.on_recreated == "restart" and bool(known.progress.sent)
        deadline = trio.current_time() + (reading.outage_seconds if waits else 0.0)
        while True:
            topics = await self._inquiry.ask(known.look)
            missing = [name for name in reading.choice.names if name not in topics]
            if not missing or self.stop.is_set():
                return topics
            if trio.current_time() >= deadline:
                raise Retryable(f"topic {missing[0]!r} is not there; create it, or mend its name in `topics`")
            with trio.move_on_after(AWAITED_SECONDS):
                await self.stop.wait()

    async def _beside(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run what goes on beside the feed. What it raises ends reading as any end does: the sinks have what was sent
        before others are given its partitions.
        """
        try:
            await task()
        except ConveyordError as error:
            self._failure = self._failure or error
            self.end()

    async def _read(self, feed: Callable[[], Awaitable[None]], flush: Callable[[], Awaitable[None]]) -> None:
        """Send until the end, and tell the group how far. Raises Superseded if others are about to read what is sent
        already and not committed: whatever ends reading, what was sent goes on to the sinks.
        """
        shares = self._reading.shares
        try:
            await feed()
        except Exception as error:  # noqa: BLE001 - raised below, once it is known what the sinks have
            self._failure = self._failure or error
        if shares:
            with suppress(trio.BrokenResourceError):  # no sink listens any more
                await flush()
            self.handover.must_owe_nothing()
        elif self._failure is None and self._again is None:
            await flush()
        if self._failure is not None:
            raise self._failure
        if shares or self._again is None:
            self._publisher.commit(wait=True)

    def sent(self, place: TopicPartition, position: Position, *, records: bool, newest_ms: int) -> None:
        """Everything of a partition up to `position` was sent. records: there were some."""
        self.partitions.sent(place, position, records=records, newest_ms=newest_ms)
        if self.partitions.is_finished:
            self.end()

    def end(self, again: Retryable | None = None) -> None:
        """Stop reading; and have it begin again afterwards, because of `again`."""
        self._again = self._again or again
        self.stop.set()
        self.hopper.nudge()
