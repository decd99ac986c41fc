"""What others are told of a session: the group, how far every sink is, and the display, how far behind we are."""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial

import trio

from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import Tail, TopicPartition
from conveyord.engine.health import SourceHealth
from conveyord.engine.kafka.partitions import Partitions
from conveyord.engine.kafka.pump import Pump
from conveyord.engine.kafka.reading import Reading
from conveyord.engine.kafka.starting import signed

PUBLISH_SECONDS = 1.0


class Publisher:
    """For the trio thread, unless a method says otherwise."""

    def __init__(self, reading: Reading, partitions: Partitions, pump: Pump, health: SourceHealth) -> None:
        self._reading = reading
        self._partitions = partitions
        self._pump = pump
        self._health = health
        self._is_due = False
        self._base = health.records, health.bytes, health.pauses, health.errors.copy()

    async def run(self) -> None:
        """Commit the group's offsets behind the sinks, and bring the figures up to date, for ever."""
        committed_at = trio.current_time()
        while True:
            await trio.sleep(min(PUBLISH_SECONDS, self._reading.commit_seconds))
            self.gauge()
            if trio.current_time() - committed_at >= self._reading.commit_seconds:
                committed_at = trio.current_time()
                self.commit(wait=False)

    def commit(self, *, wait: bool) -> None:
        """Have the group go on behind every sink, soon. wait: nobody polls before that is known to have arrived."""
        # By the pump's thread, as it comes to it: what is worked out here could be another member's by then.
        if self._reading.group is not None and (wait or not self._is_due):  # else the thread has not come to the last
            self._is_due = True
            self._pump.do(partial(self._commit, wait=wait))

    def _commit(self, tail: Tail, *, wait: bool) -> None:
        """By the pump's thread."""
        self._is_due = False
        tail.commit(self.offsets(self._partitions.ours), wait=wait)

    def offsets(self, places: Collection[TopicPartition]) -> dict[TopicPartition, Position]:
        """How far every sink is in each partition, unless the group was to be told more. By the pump's thread."""
        known, found = self._partitions, dict[TopicPartition, Position]()
        for place in places:
            reached = known.reached(place)
            if reached is not None and reached >= known.published.get(place, -1):
                found[place] = Position(reached, signed(known.beginnings[place].mark, known.progress.run))
                known.published[place] = reached
        return found

    def gauge(self) -> None:
        """Bring the figures up to date."""
        health, pump, known = self._health, self._pump, self._partitions
        records, value_bytes, pauses, errors = self._base
        health.records, health.bytes = records + pump.records, value_bytes + pump.value_bytes
        health.pauses = pauses + pump.pauses
        health.errors.update({code: max(0, n + errors[code] - health.errors[code]) for code, n in pump.errors.items()})
        places = self._partitions.ours  # and not the lanes: when reading ends, they are closed
        health.partitions = len(places)
        ends, lags = pump.ends, dict[str, int]()
        ages, now_ms = list[float](), time.time() * 1000
        is_known = True
        for place in places:
            if place not in ends:
                is_known = False
                continue
            lag = lags[str(place)] = max(0, ends[place] - known.sent_to(place))
            if lag and place in known.newest_sent_ms:
                ages.append((now_ms - known.newest_sent_ms[place]) / 1000)
        health.lags = lags
        health.lag_records = sum(lags.values()) if is_known else None
        has_lag = any(lags.values())
        health.lag_seconds = max(0.0, *ages) if ages else None if has_lag or not is_known else 0.0
