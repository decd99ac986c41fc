"""Topics and partitions that come, go and are made anew while they are read, and what is done about it.

`Watch.watch` looks for what is new and what is gone, `confirm` has records wait in the hopper until their topic is
known to be what it was, and `heed` deals with what befalls partitions.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog
import trio

from conveyord.core.errors import Refused, Retryable
from conveyord.core.flow.record_log import OutOfRange, Tail, Topic, TopicPartition, Vanished
from conveyord.core.units import format_seconds
from conveyord.engine.health import SourceHealth
from conveyord.engine.kafka.hopper import Hopper
from conveyord.engine.kafka.partitions import PLACES_SHOWN_MAX, Partitions, places_of
from conveyord.engine.kafka.pump import Pump
from conveyord.engine.kafka.reading import Inquiry, Reading
from conveyord.engine.kafka.starting import same_log

log = structlog.get_logger(__name__)

CONFIRM_SECONDS = 0.2  # between two looks while records come: what they wait at most, beside the look itself


class Watch:
    """Three tasks of one session, for the trio thread."""

    def __init__(
        self,
        reading: Reading,
        partitions: Partitions,
        inquiry: Inquiry,
        hopper: Hopper,
        pump: Pump,
        health: SourceHealth,
        *,
        end: Callable[[Retryable], None],
    ) -> None:
        """end: stops the session, which is to begin again because of what it is given."""
        self._reading = reading
        self._partitions = partitions
        self._inquiry = inquiry
        self._hopper = hopper
        self._pump = pump
        self._health = health
        self._end = end
        self._look = trio.Event()
        self._owed: dict[TopicPartition, tuple[int, float]] = {}

    # -------------------------------------------------------------------------- looking

    async def watch(self) -> None:
        """Look for what is new and what is gone, now and then and when there is a reason."""
        down_since: float | None = None
        while True:
            with trio.move_on_after(self._reading.discover_seconds):
                await self._look.wait()
            self._look = trio.Event()
            try:
                await self._compare(await self._inquiry.ask(self._partitions.look))
                await self._see_that_all_moves()
                down_since = None
            except Retryable as error:
                self._health.errors[error.code] += 1
                now = trio.current_time()
                down_since = now if down_since is None else down_since
                if now - down_since >= self._reading.outage_seconds:
                    limit = format_seconds(self._reading.outage_seconds)
                    self._end(Retryable(f"{error}; nobody has answered for longer than outage_timeout ({limit})"))
                    return
                log.warning("Kafka does not answer; waiting", source=self._reading.stage, reason=str(error))

    async def confirm(self) -> None:
        """Let records go on once a look that began after they had come shows their topics to be the same still.

        A consumer reads on in a topic that was made anew as if nothing had happened, at the offsets of the one before.
        Topics never come back, so what came before such a look is of the topic that goes by its mark. Of one that is
        not there, this holds unless another of its name came and went since the look before.
        """
        while True:
            topics, moment = await self._hopper.until_unconfirmed()
            with suppress(Retryable):  # `watch` sees to that
                self._hopper.confirm(await self._unchanged(topics), moment)
            await trio.sleep(CONFIRM_SECONDS)

    async def _unchanged(self, names: frozenset[str]) -> frozenset[str]:
        """Those topics that are not known to be others now. Asks for them alone: a cluster may have thousands."""
        seen = await self._inquiry.ask(lambda reader: reader.topics(names))
        changed = {name for name, topic in seen.items() if not self._is_as_known(topic)}
        if changed or names - seen.keys():
            self._look.set()
        return names - changed

    def _is_as_known(self, topic: Topic) -> bool:
        known = self._partitions.topics.get(topic.name)
        return known is None or same_log(known.incarnation, topic.incarnation)

    async def _see_that_all_moves(self) -> None:
        """End the session if nothing comes of a partition for long although something is there, and there is room.

        A broker that cannot read its own disk sends errors that librdkafka takes for passing, or nothing at all.
        """
        if self._pump.is_paused or self._hopper.is_full:
            self._owed = {}
            return
        now, tips, ends = trio.current_time(), self._hopper.tips(), self._pump.ends
        behind = [place for place, tip in tips.items() if ends.get(place, tip) > tip]
        there = await self._inquiry.ask(lambda reader: reader.extents(behind)) if behind else {}
        owed = {place: tips[place] for place in behind if place in there and tips[place] < there[place].end}
        before, self._owed = self._owed, {}
        for place, tip in owed.items():
            known = before.get(place)
            since = known[1] if known is not None and known[0] == tip else now
            self._owed[place] = tip, since
            if now - since >= self._reading.outage_seconds:
                limit = format_seconds(self._reading.outage_seconds)
                self._end(
                    Retryable(
                        f"{place}: nothing has come from offset {tip} on for longer than outage_timeout ({limit}), "
                        f"although it ends at {there[place].end}; can the broker read that? Its log says so"
                    )
                )
                return

    # -------------------------------------------------------------------------- topics

    async def _compare(self, topics: dict[str, Topic]) -> None:
        known = self._partitions
        for name, before in known.topics.items():
            topic = topics.get(name)
            if topic is None:
                self._lose(before)
            elif name in known.gone or not same_log(before.incarnation, topic.incarnation):
                if self._reading.on_recreated == "fail":
                    raise Refused(
                        f"topic {name!r} was deleted and made anew while it was read; set on_recreated to restart to "
                        "read the new one from its start, or rename the pipeline to start anew"
                    )
                # What is under way still goes by the name of the topic before, so all begins again.
                self._end(Retryable(f"topic {name!r} was made anew; beginning at its start"))
                return
        known.topics = {**known.topics, **topics}
        for name in list(known.gone):
            known.forget(name)
        added = [place for place in places_of(topics.values()) if place not in known.beginnings]
        if added and not self._reading.shares and self._reading.follow:
            starts = await self._inquiry.ask(partial(known.open, added))
            if starts:
                shown = [str(place) for place in starts][:PLACES_SHOWN_MAX]
                log.info("new partitions", source=self._reading.stage, partitions=shown)
            self._pump.assign(starts)

    def _lose(self, topic: Topic) -> None:
        """A topic is not there any more. What was fetched of it is still sent on."""
        if topic.name in self._reading.choice.names:
            if self._reading.on_recreated == "restart":
                self._end(Retryable(f"topic {topic.name!r} is gone; waiting for it to be made anew"))
                return
            raise Refused(
                f"topic {topic.name!r} was deleted while it was read; create it again and set on_recreated to restart, "
                "or take it out of `topics`"
            )
        if topic.name in self._partitions.gone:
            return
        self._partitions.gone.add(topic.name)
        log.warning("a topic is gone", source=self._reading.stage, topic=topic.name)
        if not self._reading.shares:
            self._pump.unassign(places_of([topic]))

    # -------------------------------------------------------------------------- partitions

    async def heed(self) -> None:
        """Deal with what befalls partitions."""
        while True:
            event = await self._pump.told()
            match event:
                case Vanished():
                    self._look.set()
                case OutOfRange(place) if place in self._partitions.beginnings:
                    await self._step_over(place)

    async def _step_over(self, place: TopicPartition) -> None:
        """Go on behind a gap, once everything before it was sent."""
        known = self._partitions
        await known.until_all_sent(place)
        # Who made a topic anew has made it shorter: then `watch` is to see that, and there is no gap in the old one.
        if place.topic not in known.gone and await self._unchanged(frozenset([place.topic])):
            self._pump.do(partial(self._begin_behind, place))

    def _begin_behind(self, place: TopicPartition, tail: Tail) -> None:
        """By the pump's thread, which is the one that gives partitions away: between two polls nobody takes this one,
        and it may be another member's by now, or have come back and been begun behind the gap.
        """
        known = self._partitions
        if not tail.follows(place) or place not in self._hopper.tips() or not known.is_all_sent(place):
            return
        self._hopper.close([place])
        starts = self._inquiry.ask_here(partial(known.open, [place]))
        tail.unassign([place])
        tail.assign(starts)
