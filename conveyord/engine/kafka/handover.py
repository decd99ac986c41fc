"""What goes to another member of a group, and what comes from there: nothing is read by two, unless one is lost.

Partitions are given up in the thread that polls, which waits until every sink has what was sent of them; the feed, in
the trio thread, has the sinks commit that meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

import trio

from conveyord.core.errors import Superseded
from conveyord.core.flow.positions import Partition, Position
from conveyord.core.flow.record_log import PartitionReader, TopicPartition
from conveyord.core.units import format_seconds
from conveyord.engine.health import SourceHealth
from conveyord.engine.kafka.hopper import Hopper, Release
from conveyord.engine.kafka.partitions import Partitions
from conveyord.engine.kafka.publishing import Publisher
from conveyord.engine.kafka.pump import Pump
from conveyord.engine.kafka.reading import Inquiry, Reading

WAIT_SLICE_SECONDS = 0.05


class Handover:
    """The session as a member of its group: `Listener`, called by the pump's thread; the rest is for the trio thread.

    Also who knows when every sink has what was sent, whether there is a group or not.
    """

    def __init__(
        self,
        reading: Reading,
        partitions: Partitions,
        inquiry: Inquiry,
        hopper: Hopper,
        pump: Pump,
        publisher: Publisher,
        health: SourceHealth,
    ) -> None:
        self._reading = reading
        self._partitions = partitions
        self._inquiry = inquiry
        self._hopper = hopper
        self._pump = pump
        self._publisher = publisher
        self._health = health
        self._releases: list[Release] = []
        self._has_settled = trio.Event()
        self._is_first_assignment = True

    # -------------------------------------------------------------------------- what the sinks have

    def settled(self, moved: Mapping[Partition, Position]) -> None:
        """Take the news of `Outlet.on_settled`."""
        self._partitions.progress.note_settled(moved)
        self._finish_releases()
        self._has_settled.set()
        self._has_settled = trio.Event()

    async def until_settled(self, places: Collection[TopicPartition]) -> None:
        """Wait until every sink has what was sent of partitions."""
        while self._partitions.unsettled(places):
            await self._has_settled.wait()

    def releasing(self, release: Release) -> list[TopicPartition]:
        """Wait for what was sent of partitions that are to be given up. Returns those of which something is missing."""
        self._releases.append(release)
        self._finish_releases()
        return self._partitions.unsettled(release.partitions)

    def _finish_releases(self) -> None:
        for release in [one for one in self._releases if not self._partitions.unsettled(one.partitions)]:
            self._releases.remove(release)
            release.done.set()

    def must_be_settled(self, why: str) -> None:
        """Raise Superseded if others are about to read what was sent and not committed. why: reading has ended."""
        left = self._partitions.unsettled(self._partitions.ours)
        if left:
            self._supersede(left, f"{why}, and not every sink took what was sent within {self._limit}")

    # -------------------------------------------------------------------------- by the pump's thread

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """See `Listener.assigned`."""
        if self._is_first_assignment:
            self._is_first_assignment = False
        else:
            self._health.rebalances += 1

        def open_those(reader: PartitionReader) -> dict[TopicPartition, int]:
            known = self._partitions
            # As they are known: that one was made anew is for `watch` to see.
            known.topics = {**known.look(reader), **known.topics}
            known.away.difference_update(partitions)
            return known.open([place for place in partitions if place.topic in known.topics], reader)

        return self._inquiry.ask_here(open_those)

    def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """See `Listener.revoked`. Raises Superseded if not every sink has what was sent, within `release_seconds`."""
        if not self._pump.stopping:
            release = self._hopper.release(partitions)
            deadline = time.monotonic() + self._reading.release_seconds
            while not release.done.wait(WAIT_SLICE_SECONDS) and not self._pump.stopping:
                if time.monotonic() > deadline:
                    self._supersede(partitions, f"not every sink took what was read of them within {self._limit}")
        # Once more what was committed without waiting: nobody knows whether that arrived.
        offsets = self._publisher.offsets_to_commit(partitions, again=True)
        if not self._pump.stopping:  # or they are ours to the end, and so is what is unread in them
            self._partitions.away.update(partitions)
        return offsets

    def lost(self, partitions: Collection[TopicPartition]) -> None:
        """See `Listener.lost`. Raises Superseded if not every sink has what was sent, or something is on its way."""
        known = self._partitions
        known.away.update(partitions)
        taken = self._hopper.taken()
        self._hopper.close(partitions)
        if any(taken.get(place, 0) > known.sent_to(place) or not known.is_settled(place) for place in partitions):
            self._supersede(partitions, "the group took this member for dead")

    @property
    def _limit(self) -> str:
        return f"release_timeout ({format_seconds(self._reading.release_seconds)})"

    def _supersede(self, places: Collection[TopicPartition], why: str) -> None:
        """Raise what ends a run without another commit: what it would commit is read by another member."""
        self._pump.stopping = True  # nothing is waited for any more
        names = ", ".join(sorted(map(str, places))[:5])
        raise Superseded(
            f"partitions {names} went to another member of the group {self._reading.group!r} before what was read of "
            f"them was committed: {why}. Nothing more is committed; run again to go on with what the group gives"
        )
