"""Which partitions a Kafka source reads, and how far each has come: fetched, sent, and taken by every sink."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import structlog
import trio

from conveyord.core.flow.positions import Partition, Position, Positions
from conveyord.core.flow.record_log import Extent, PartitionReader, Topic, TopicPartition
from conveyord.engine.kafka.hopper import Hopper
from conveyord.engine.kafka.reading import Reading
from conveyord.engine.kafka.starting import Beginning, beginning, same_log, unsigned

log = structlog.get_logger(__name__)

PLACES_SHOWN_MAX = 20  # in one line of the log


class Owed(NamedTuple):
    """What a group has taken of a partition, if anything, and how far every sink is, which it was not told."""

    told: int | None
    reached: int


@dataclass(slots=True)
class Progress:
    """How far a source has got, kept over its sessions, by partition as sinks know it.

    sent: up to where it was sent. sent_records: up to where what was sent held records; behind that, and up to `sent`,
    are only markers of transactions, aborted records and what compaction left out. settled: what every sink has.
    run: what this one is known by in what it commits for its group. owed: what the group took away before it was told.
    """

    sent: dict[Partition, Position] = field(default_factory=dict)
    sent_records: dict[Partition, int] = field(default_factory=dict)
    settled: dict[Partition, int] = field(default_factory=dict)
    run: str = field(default_factory=lambda: secrets.token_hex(6))
    owed: dict[TopicPartition, Owed] = field(default_factory=dict)

    def note_begun(self, found: Beginning, *, told: int | None) -> None:
        """A partition is read from where the slowest sink is, or from where the group is, which is `told`: what is
        before is another's. What this run itself has sent, only settling tells of.
        """
        if found.partition not in self.sent and (found.cuts or found.at == told):
            self.settled.setdefault(found.partition, found.at)

    def note_sent(self, partition: Partition, position: Position, *, records: bool) -> None:
        """Everything up to `position` was sent. records: some came since the position before."""
        if records:  # first, because of `reached`, which another thread asks for
            self.sent_records[partition] = position.offset
        self.sent[partition] = position

    def note_settled(self, moved: Mapping[Partition, Position]) -> None:
        """Take the news of `Outlet.on_settled`."""
        self.settled.update((partition, position.offset) for partition, position in moved.items())

    def is_settled(self, partition: Partition) -> bool:
        """Whether every sink has every record that was sent of a partition."""
        return self.settled.get(partition, -1) >= self.sent_records.get(partition, -1)

    def reached(self, partition: Partition) -> int | None:
        """Where a reader goes on who wants what not every sink has; None if the sinks are not known to have anything.

        Between what every sink has and this are only offsets without a record: nothing comes of them if they are
        read again, ever, and a commit for their sake would be a snapshot for nothing. By any thread.
        """
        floor, sent = self.settled.get(partition), self.sent.get(partition)
        if floor is None or sent is None or not self.is_settled(partition):
            return floor
        return max(floor, sent.offset)


class Partitions:
    """What is read in one session. Methods are for the trio thread, unless they say otherwise."""

    def __init__(self, reading: Reading, hopper: Hopper, fences: Sequence[Positions], progress: Progress) -> None:
        """fences: by sink, what it has."""
        self.progress = progress
        self.topics: dict[str, Topic] = {}
        """What the topics are known as, those that are gone and not forgotten yet among them."""
        self.beginnings: dict[TopicPartition, Beginning] = {}
        self.opened_at: dict[TopicPartition, float] = {}
        """Since when each partition is read, by trio's clock."""
        self.newest_sent_ms: dict[TopicPartition, int] = {}
        """The time of the last record that was sent, by partition."""
        self.group_at: dict[TopicPartition, int] = {}
        """The group's offset of each partition, as it was found when the partition came; not there if it had none."""
        self.group_is_ours: set[TopicPartition] = set()
        """Those of which this run itself has committed that offset."""
        self.published: dict[TopicPartition, int] = {}
        """Behind which the group's offset never goes: as it was found, or as far as anybody was to tell the group."""
        self.gone: set[str] = set()
        """Topics that are not there any more, until every sink has what was fetched of them."""
        self.away: set[TopicPartition] = set()
        """What another member of the group has now."""
        self._reading = reading
        self._hopper = hopper
        self._fences = fences
        self._targets: dict[TopicPartition, int] = {}
        self._unfinished: set[TopicPartition] = set()
        self._first_places: frozenset[TopicPartition] = frozenset()
        self._has_moved = trio.Event()
        self._clock = trio.lowlevel.current_clock()

    # -------------------------------------------------------------------------- opening

    def look(self, reader: PartitionReader) -> dict[str, Topic]:
        """The topics that are there, of those that are chosen. Blocking; by any thread."""
        choice = self._reading.choice
        found = reader.topics(choice.names if choice.is_fixed else None)
        return {name: topic for name, topic in found.items() if choice.takes(name)}

    def begin(self, topics: dict[str, Topic]) -> list[TopicPartition]:
        """These are the topics at the start. Returns their partitions."""
        self.topics = topics
        places = places_of(topics.values())
        self._first_places = frozenset(places)
        return places

    def open(self, places: Collection[TopicPartition], reader: PartitionReader) -> dict[TopicPartition, int]:
        """Open lanes for partitions. Returns where to fetch each from. Blocking; by any thread."""
        reading = self._reading
        extents = reader.extents(places)
        committed = self._committed(reader, places)
        firsts = {
            **reading.begin_at(reader, extents, committed),
            # What was not there when reading began is to be read whole, what was begun goes on where it was.
            **{place: extent.first for place, extent in extents.items() if place not in self._first_places},
            **{place: self.beginnings[place].at for place in extents if place in self.beginnings},
        }
        for place in extents:
            self.group_at.pop(place, None)
        self.group_at |= committed
        self.published |= committed
        held = [Positions({**fence, **self._further(fence)}) for fence in self._fences]
        opened = {
            place: beginning(
                reading.stage,
                place,
                self.topics[place.topic],
                extent,
                held=held,
                first=firsts[place],
                handed_over=committed.get(place) if reading.shares else None,
                on_recreated=reading.on_recreated,
            )
            for place, extent in extents.items()
        }
        for place, found in opened.items():
            self.progress.note_begun(found, told=committed.get(place))
            self._open(place, found, extents[place])
        self._tell_passed_over(opened)
        return {place: found.fetch_at for place, found in opened.items()}

    def _committed(self, reader: PartitionReader, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        """The group's offsets, but for those that are of another topic of a name. Blocking; by any thread."""
        found = reader.committed(self._reading.group, places) if self._reading.group else {}
        known, self.group_is_ours = dict[TopicPartition, int](), self.group_is_ours - set(places)
        for place, position in found.items():
            mark, run = unsigned(position.mark)
            if not mark or same_log(mark, self.topics[place.topic].incarnation):
                known[place] = position.offset
                if run == self.progress.run:
                    self.group_is_ours.add(place)
        return known

    def _open(self, place: TopicPartition, found: Beginning, extent: Extent) -> None:
        self.beginnings[place] = found
        self.opened_at.setdefault(place, self._clock.current_time())
        cuts = list(found.cuts)
        if not self._reading.follow:
            target = self._targets.setdefault(place, extent.end)
            cuts.append(target)
            if found.at < target:
                self._unfinished.add(place)
        self._hopper.open(place, found.at, cuts=cuts, skip_to=found.skip_to, lost_to=found.lost_to)

    def _further(self, fence: Positions) -> dict[Partition, Position]:
        """What was sent in this run beyond what a sink has."""
        sent = self.progress.sent
        return {one: at for one, at in sent.items() if one not in fence or fence[one].offset < at.offset}

    def _tell_passed_over(self, opened: Mapping[TopicPartition, Beginning]) -> None:
        passed = [
            f"{place}: table {found.at}, group {found.skip_to}"
            for place, found in opened.items()
            if found.skip_to is not None
        ]
        if passed:
            log.info(
                "the group is further than the table, so what lies between is passed over: it was read by another "
                "member, or holds no record",
                source=self._reading.stage,
                group=self._reading.group,
                count=len(passed),
                partitions=passed[:PLACES_SHOWN_MAX],
            )

    # -------------------------------------------------------------------------- sending

    def target(self, place: TopicPartition) -> int | None:
        """Where reading of a partition is to end; None if never."""
        return None if self._reading.follow else self._targets.get(place, 0)

    @property
    def is_finished(self) -> bool:
        """Whether everything was sent that is to be; never if the source follows."""
        return not self._reading.follow and not self._unfinished

    def sent(self, place: TopicPartition, position: Position, *, records: bool, newest_ms: int) -> None:
        """Everything of a partition up to `position` was sent. records: there were some."""
        self.progress.note_sent(self.beginnings[place].partition, position, records=records)
        if newest_ms >= 0:
            self.newest_sent_ms[place] = newest_ms
        if place in self._unfinished and position.offset >= self._targets[place]:
            self._unfinished.remove(place)
        self._has_moved.set()
        self._has_moved = trio.Event()

    async def until_all_sent(self, place: TopicPartition) -> None:
        """Wait until what was fetched of a partition was sent."""
        while not self.is_all_sent(place):
            await self._has_moved.wait()

    def is_all_sent(self, place: TopicPartition) -> bool:
        """Whether what was fetched of a partition was sent."""
        tip = self._hopper.tips().get(place)
        return tip is None or tip <= self.sent_to(place)

    def sent_to(self, place: TopicPartition) -> int:
        """Up to where everything was sent of a partition that is, or was, ours. By any thread."""
        known = self.beginnings.get(place)
        if known is None:
            return 0
        sent = self.progress.sent.get(known.partition)
        return known.at if sent is None else max(known.at, sent.offset)

    # -------------------------------------------------------------------------- what every sink has

    def reached(self, place: TopicPartition) -> int | None:
        """How far every sink is in a partition that is, or was, ours; None if that is not known. By any thread."""
        known = self.beginnings.get(place)
        return None if known is None else self.progress.reached(known.partition)

    @property
    def ours(self) -> list[TopicPartition]:
        """What is read, and was not given up. By any thread."""
        return [place for place in list(self.beginnings) if place not in self.away]

    def unsettled(self, places: Collection[TopicPartition]) -> list[TopicPartition]:
        """Those of which some sink has not every record that was sent. By any thread."""
        return [place for place in places if not self.is_settled(place)]

    def is_settled(self, place: TopicPartition) -> bool:
        """Whether every sink has every record that was sent of a partition. By any thread."""
        known = self.beginnings.get(place)
        return known is None or self.progress.is_settled(known.partition)

    def forget(self, name: str) -> None:
        """Let go of a topic that is gone, unless some sink has not everything that was fetched of it."""
        places = [place for place in list(self.beginnings) if place.topic == name]  # the pump adds to them
        if all(self.is_all_sent(place) and self.is_settled(place) for place in places):
            self._hopper.close(places)
            for place in places:
                del self.beginnings[place]
            del self.topics[name]
            self.gone.remove(name)


def places_of(topics: Collection[Topic]) -> list[TopicPartition]:
    """All partitions of `topics`."""
    return [TopicPartition(topic.name, number) for topic in topics for number in topic.partitions]
