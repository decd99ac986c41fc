"""What goes to another member of a group, and what comes from there: nothing is read by two, unless one is lost.

Partitions are given up in the thread that polls, which waits until every sink has what was sent of them; the feed, in
the trio thread, has the sinks commit that meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from typing import NoReturn, TypeVar

import trio

from conveyord.core.errors import Retryable, Superseded
from conveyord.core.flow.positions import Partition, Position
from conveyord.core.flow.record_log import PartitionReader, TopicPartition
from conveyord.core.units import format_seconds
from conveyord.engine.health import SourceHealth
from conveyord.engine.kafka.hopper import Hopper, Release
from conveyord.engine.kafka.partitions import Owed, Partitions
from conveyord.engine.kafka.publishing import Publisher
from conveyord.engine.kafka.pump import Pump
from conveyord.engine.kafka.reading import Inquiry, Reading

WAIT_SLICE_SECONDS = 0.05
ASK_AGAIN_SECONDS = 1.0
PLACES_NAMED_MAX = 5
TAKEN_FOR_DEAD = "the group took this member for dead"
T = TypeVar("T")


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
        self._demanded: dict[TopicPartition, int] = {}

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

    def must_owe_nothing(self) -> None:
        """Reading has ended. Raise Superseded if others read, or are about to read, what was sent."""
        left = self._partitions.unsettled(self._partitions.ours)
        if left:
            self._supersede(left, f"reading ended, and not every sink took what was sent within {self._limit}")
        self._demand(self._partitions.progress.owed, TAKEN_FOR_DEAD)

    # -------------------------------------------------------------------------- by the pump's thread

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """See `Listener.assigned`."""
        if self._is_first_assignment:
            self._is_first_assignment = False
        else:
            self._health.rebalances += 1

        def opened(reader: PartitionReader) -> dict[TopicPartition, int]:
            known = self._partitions
            # As they are known: that one was made anew is for `watch` to see.
            known.topics = {**known.look(reader), **known.topics}
            known.away.difference_update(partitions)
            return known.open([place for place in partitions if place.topic in known.topics], reader)

        starts = self._ask(opened)
        if partitions:
            self._settle_debts(partitions)
        return starts

    def _ask(self, question: Callable[[PartitionReader], T]) -> T:
        """What the reader says; where nobody answers, asked again until `outage_timeout`."""
        deadline = time.monotonic() + self._reading.outage_seconds
        while True:
            try:
                return self._inquiry.ask_here(question)
            except Retryable:
                if self._pump.stopping or time.monotonic() >= deadline:
                    raise
                time.sleep(ASK_AGAIN_SECONDS)

    def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """See `Listener.revoked`. Raises Superseded if not every sink has what was sent, within `release_seconds`."""
        if not self._pump.stopping:
            release = self._hopper.release(partitions)
            deadline = time.monotonic() + self._reading.release_seconds
            while not release.done.wait(WAIT_SLICE_SECONDS) and not self._pump.stopping:
                if time.monotonic() > deadline:
                    self._supersede(partitions, f"not every sink took what was read of them within {self._limit}")
        offsets = self._publisher.offsets(partitions)
        if not self._pump.stopping:  # or they are ours to the end, and so is what is unread in them
            self._partitions.away.update(partitions)
        return offsets

    def untold(self, told: Mapping[TopicPartition, int | None], why: str) -> None:
        """See `Listener.untold`. Raises Superseded if what every sink has is read again by who is given it now."""
        self._demand(self._debts(told), why)

    def lost(self, told: Mapping[TopicPartition, int | None]) -> None:
        """See `Listener.lost`. Raises Superseded if not every sink has what was sent, or something is on its way.

        What every sink has and the group was not told of is owed: until it is known who was given that meanwhile.
        """
        known = self._partitions
        known.away.update(told)
        taken = self._hopper.taken()
        self._hopper.close(told)
        if any(taken.get(place, 0) > known.sent_to(place) or not known.is_settled(place) for place in told):
            self._supersede(told, TAKEN_FOR_DEAD)
        known.progress.owed |= self._debts(told)
        if self._pump.stopping:
            self._demand(self._partitions.progress.owed, TAKEN_FOR_DEAD)

    def _debts(self, told: Mapping[TopicPartition, int | None]) -> dict[TopicPartition, Owed]:
        """Those partitions in which every sink is further than the group."""
        known, found = self._partitions, dict[TopicPartition, Owed]()
        for place, offset in told.items():
            reached = known.reached(place)
            group_at = known.group_at.get(place) if offset is None else offset
            # Where the group had no offset it is owed nothing until something came.
            if reached is not None and reached > (known.beginnings[place].at if group_at is None else group_at):
                found[place] = Owed(group_at, reached)
        return found

    def _settle_debts(self, given: Collection[TopicPartition]) -> None:
        """Raise Superseded for what others may have read a second time since it was lost: what is not given back, or
        has moved in their hands.
        """
        known = self._partitions
        owed, known.progress.owed = known.progress.owed, {}
        # Another one that has read the same may have committed the very same offset: who did it is in the mark.
        untouched = {one for one, debt in owed.items() if one in given and self._is_as_left(one, debt)}
        self._demand({one: debt for one, debt in owed.items() if one not in untouched}, TAKEN_FOR_DEAD)

    def _is_as_left(self, place: TopicPartition, debt: Owed) -> bool:
        known = self._partitions
        return known.group_at.get(place) == debt.told or place in known.group_is_ours

    @property
    def _limit(self) -> str:
        return f"release_timeout ({format_seconds(self._reading.release_seconds)})"

    def _supersede(self, places: Collection[TopicPartition], why: str) -> NoReturn:
        """Raise what ends a run without another commit: what it would commit is read by another member."""
        self._pump.stopping = True  # nothing is waited for any more
        raise Superseded(
            f"partitions {_named(places)} went to another member of the group {self._reading.group!r} before what was "
            f"read of them was committed: {why}. Nothing more is committed; run again to go on with what the group "
            "gives"
        )

    def _demand(self, owed: Mapping[TopicPartition, Owed], why: str) -> None:
        """Raise Superseded if something is owed; it names what was demanded before as well."""
        if owed:
            self._pump.stopping = True
            self._demanded |= {place: debt.reached for place, debt in owed.items()}
            raise Superseded(
                f"the group {self._reading.group!r} was not told what was read of "
                f"{_named([f'{place} up to {reached}' for place, reached in self._demanded.items()])}: {why}. The "
                "table has that; a member that is given these partitions before this one is run again reads it a "
                "second time"
            )


def _named(places: Collection[object]) -> str:
    shown = sorted(map(str, places))
    more = len(shown) - PLACES_NAMED_MAX
    return ", ".join(shown[:PLACES_NAMED_MAX]) + (f" and {more} more" if more > 0 else "")
