"""A Kafka in memory: both ports of `core/flow/record_log.py`, and what tests do to a cluster from outside.

`FakeLog` does what `Cluster` does to a real one; its `reader()` and `tail()` are the ports. It has what their contract
speaks of: incarnations of topics, holes of every kind, a last stable offset, groups that hand partitions over step by
step (cooperative), members that are taken for dead, errors on demand. test_conformance.py holds it to the same tests
as a real broker. Nothing happens by itself or by chance, and time is only waited for by `poll`.
"""

from __future__ import annotations

import re
import threading
import zlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any

from conveyord.core.errors import ConveyordError, Refused, Retryable
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import (
    LOG_END,
    LOG_START,
    Event,
    Listener,
    Meta,
    OutOfRange,
    Records,
    Topic,
    TopicPartition,
    Vanished,
    total_bytes,
)
from conveyord.core.flow.record_log import Extent as Reach
from tests.kafka.cluster import Cluster, Extent, Record

CLUSTER_ID = "fake"
RECORDS_A_POLL = 3
"""Few, so that what a real broker gives in one piece comes in several."""
NOW_MS = 1_700_000_000_000  # of a record that has no time of its own


@dataclass(eq=False)
class FakePartition:
    """held: the records by offset; what is not there is a hole. open: where open transactions begin, by number.

    pending: offsets of a transaction that is open, or that was aborted.
    """

    first: int = 0
    end: int = 0
    held: dict[int, Record] = field(default_factory=dict)
    open: dict[int, int] = field(default_factory=dict)

    @property
    def stable(self) -> int:
        """The last stable offset."""
        return min([self.end, *self.open.values()])


@dataclass(eq=False)
class FakeTopic:
    """One incarnation of a topic."""

    incarnation: str
    partitions: list[FakePartition]


@dataclass(eq=False)
class FakeGroup:
    """committed: where it goes on. members: in the order in which they came. owners: who has what."""

    committed: dict[TopicPartition, Position] = field(default_factory=dict)
    members: list[FakeTail] = field(default_factory=list)
    owners: dict[TopicPartition, FakeTail] = field(default_factory=dict)


class FakeLog(Cluster):
    """The cluster. Thread-safe."""

    def __init__(self) -> None:
        super().__init__("fake:0")
        self.changed = threading.Condition(threading.RLock())
        self.there: dict[str, FakeTopic] = {}
        self.groups: dict[str, FakeGroup] = {}
        self.commits: list[tuple[str, dict[TopicPartition, Position]]] = []
        """What was committed for groups, in order."""
        self.asked: Callable[[str], None] = lambda _method: None
        """Called with the name of a reader's method before it answers; may raise, or change what is there."""
        self.polled: Callable[[FakeTail], None] = lambda _tail: None
        """Called at the beginning of each poll, by whoever polls; may raise, or change what is there."""
        self.commit_errors: deque[ConveyordError] = deque()
        """With which commits fail, one for each, and do nothing."""
        self.refuses_commits = False
        """Whether every commit fails."""
        self.unreadable: set[TopicPartition] = set()
        """Of which nothing comes, as if the broker could not read its disk."""
        self.looked_for: list[frozenset[str] | None] = []
        """What topics readers were asked for, each time; None: all."""
        self.polls: Counter[str] = Counter()
        """By `paused` and `running`, how often tails were polled."""
        self._numbers = count(1)
        self._transactions = count(1)

    def reader(self) -> FakeReader:
        """A new `PartitionReader`."""
        return FakeReader(self)

    def tail(self, *, group: str | None = None, wants: Collection[Meta] = ()) -> FakeTail:
        """A new `Tail`."""
        return FakeTail(self, group, frozenset(wants))

    @property
    def looks(self) -> int:
        """How often readers were asked for topics."""
        return len(self.looked_for)

    # -------------------------------------------------------------------------- as `Cluster` does

    def create_topic(self, name: str, *, partitions: int = 3, config: Mapping[str, str] | None = None) -> None:
        with self.changed:
            assert name not in self.there, f"{name} is there"
            self.there[name] = FakeTopic(f"id{next(self._numbers)}", [FakePartition() for _ in range(partitions)])
            self._note()

    def delete_topic(self, name: str) -> None:
        with self.changed:
            del self.there[name]
            for group in self.groups.values():
                group.committed = {place: at for place, at in group.committed.items() if place.topic != name}
            self._note()

    def add_partitions(self, name: str, partitions: int) -> None:
        with self.changed:
            found = self.there[name].partitions
            found += [FakePartition() for _ in range(partitions - len(found))]
            self._note()

    def topic_id(self, name: str) -> str:
        return self.there[name].incarnation

    def delete_records(self, name: str, partition: int, *, before: int) -> None:
        with self.changed:
            found = self.there[name].partitions[partition]
            assert found.first <= before <= found.end
            found.first = before
            found.held = {offset: record for offset, record in found.held.items() if offset >= before}
            self._note()

    def compact(self, name: str, partition: int = 0) -> None:
        with self.changed:
            found = self.there[name].partitions[partition]
            last = {record.key: offset for offset, record in found.held.items()}
            found.held = {offset: record for offset, record in found.held.items() if last[record.key] == offset}

    def extents(self, name: str, *, stable: bool = False) -> dict[int, Extent]:
        with self.changed:
            partitions = self.there[name].partitions
            return {
                number: Extent(one.first, one.stable if stable else one.end) for number, one in enumerate(partitions)
            }

    def group_offsets(self, group: str, name: str) -> dict[int, int]:
        with self.changed:
            committed = self.group(group).committed
            return {place.number: at.offset for place, at in sorted(committed.items()) if place.topic == name}

    def commit_group(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        with self.changed:
            self.group(group).committed.update({place: Position(offset) for place, offset in offsets.items()})

    def group_members(self, group: str) -> int:
        with self.changed:
            return len(self.group(group).members)

    def produce(self, name: str, records: Iterable[Record | bytes], **settings: Any) -> list[Record]:
        with self.changed:
            written = [self._append(name, record) for record in records]
            self._note()
        return sorted(written, key=lambda found: (found.partition or 0, found.offset or 0))

    def begin(self, name: str, records: Iterable[Record | bytes], *, transaction: str | None = None) -> Any:
        with self.changed:
            number = next(self._transactions)
            written = [self._append(name, record, number) for record in records]
            return _Transaction(self, name, number, written)

    def _append(self, name: str, record: Record | bytes, transaction: int | None = None) -> Record:
        if isinstance(record, bytes):
            record = Record(value=record, partition=0)
        partitions = self.there[name].partitions
        number = record.partition
        if number is None:
            number = zlib.crc32(record.key or b"") % len(partitions)
        found = partitions[number]
        stamp = NOW_MS if record.timestamp_ms is None else record.timestamp_ms
        record = replace(record, partition=number, offset=found.end, timestamp_ms=stamp)
        found.held[found.end] = record
        if transaction is not None:
            found.open.setdefault(transaction, found.end)
        found.end += 1
        return record

    # -------------------------------------------------------------------------- what only a fake can do

    def skip_offsets(self, name: str, number: int, offsets: int) -> None:
        """Leave a hole."""
        with self.changed:
            self.there[name].partitions[number].end += offsets
            self._note()

    def expel(self, tail: FakeTail) -> None:
        """Take a member for dead: others get what it has, and it hears of it when it polls again."""
        with self.changed:
            group = self.group(tail.group or "")
            tail.lost = [place for place, owner in group.owners.items() if owner is tail]
            group.owners = {place: owner for place, owner in group.owners.items() if owner is not tail}
            group.members.remove(tail)
            self._note()

    def group(self, name: str) -> FakeGroup:
        return self.groups.setdefault(name, FakeGroup())

    def _note(self) -> None:
        self.changed.notify_all()

    def partition(self, place: TopicPartition) -> FakePartition | None:
        """What is there of that name now."""
        topic = self.there.get(place.topic)
        return None if topic is None or place.number >= len(topic.partitions) else topic.partitions[place.number]

    def dealt(self, group: FakeGroup) -> dict[TopicPartition, FakeTail]:
        """Who is to have what: partitions in order, to the members that want their topic, in turn."""
        found: dict[TopicPartition, FakeTail] = {}
        for name in sorted(self.there):
            members = [member for member in group.members if member.wants_topic(name)]
            for number in range(len(self.there[name].partitions) if members else 0):
                found[TopicPartition(name, number)] = members[number % len(members)]
        return found


@dataclass(eq=False)
class _Transaction:
    """A producer with one open transaction."""

    log: FakeLog
    name: str
    number: int
    written: list[Record]

    def commit_transaction(self, _seconds: float = 0.0) -> None:
        self._end(keeps=True)

    def abort_transaction(self, _seconds: float = 0.0) -> None:
        self._end(keeps=False)

    def _end(self, *, keeps: bool) -> None:
        with self.log.changed:
            for found in self.log.there[self.name].partitions:
                if self.number in found.open:
                    del found.open[self.number]
                    found.end += 1  # the marker
            for record in self.written if not keeps else ():
                assert record.partition is not None
                assert record.offset is not None
                self.log.there[self.name].partitions[record.partition].held.pop(record.offset, None)
            self.log._note()


class FakeReader:
    """`PartitionReader` of a `FakeLog`."""

    def __init__(self, log: FakeLog) -> None:
        self._log = log

    def topics(self, names: Collection[str] | None = None) -> Mapping[str, Topic]:
        self._log.looked_for.append(None if names is None else frozenset(names))
        self._log.asked("topics")
        with self._log.changed:
            return {
                name: Topic(name, f"{CLUSTER_ID}/{topic.incarnation}", tuple(range(len(topic.partitions))))
                for name, topic in self._log.there.items()
                if (name in names if names is not None else not name.startswith("__"))
            }

    def extents(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Reach]:
        self._log.asked("extents")
        with self._log.changed:
            there = {place: self._log.partition(place) for place in partitions}
            return {place: Reach(one.first, one.stable) for place, one in there.items() if one is not None}

    def offsets_at(self, partitions: Collection[TopicPartition], time_ms: int) -> Mapping[TopicPartition, int]:
        self._log.asked("offsets_at")
        with self._log.changed:
            there = {place: self._log.partition(place) for place in partitions}
            return {place: self._at(one, time_ms) for place, one in there.items() if one is not None}

    def _at(self, partition: FakePartition, time_ms: int) -> int:
        if time_ms == LOG_START:
            return partition.first
        late = [offset for offset, record in partition.held.items() if (record.timestamp_ms or 0) >= time_ms]
        return partition.stable if time_ms == LOG_END else min(late, default=partition.stable)

    def committed(self, group: str, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        self._log.asked("committed")
        with self._log.changed:
            committed = self._log.group(group).committed
            return {place: committed[place] for place in partitions if place in committed}

    def read(
        self, partition: TopicPartition, first: int, end: int, *, wants: Collection[Meta] = ()
    ) -> Iterator[Records]:
        self._log.asked("read")
        at = first
        while at < end:
            with self._log.changed:
                found = self._log.partition(partition)
                if found is None or at < found.first or end > found.stable:
                    raise Refused(f"{partition}: a part of [{first}, {end}) is not there")
                piece = cut_records(partition, found, at, end, frozenset(wants))
            at = piece.end
            yield piece

    def close(self) -> None: ...


class FakeTail:
    """`Tail` of a `FakeLog`. As with librdkafka, what befalls a partition is told once, and `poll` calls back."""

    def __init__(self, log: FakeLog, group: str | None, wants: frozenset[Meta]) -> None:
        self.log = log
        self.group = group
        self.lost: list[TopicPartition] = []
        self.is_paused = False
        self.is_closed = False
        self.positions: dict[TopicPartition, int] = {}
        self._wants = wants
        self._incarnations: dict[TopicPartition, FakePartition | None] = {}
        self._told_end: dict[TopicPartition, int] = {}
        self._told: dict[TopicPartition, int] = {}
        self._silent: set[TopicPartition] = set()
        self._errors: deque[ConveyordError] = deque()
        self._patterns: list[re.Pattern[str]] = []
        self._listener: Listener | None = None
        self._fatal: Exception | None = None

    # -------------------------------------------------------------------------- what to follow

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        with self.log.changed:
            assert not self.positions.keys() & starts.keys(), f"followed already: {starts}"
            self.positions |= starts
            for place in starts:
                self._told.pop(place, None)
            self._incarnations |= {place: self.log.partition(place) for place in starts}
            self._forget_told(starts)

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        for place in partitions:
            self.positions.pop(place, None)

    def follows(self, partition: TopicPartition) -> bool:
        return partition in self.positions

    def _forget_told(self, places: Collection[TopicPartition]) -> None:
        for place in places:
            self._told_end.pop(place, None)
            self._silent.discard(place)

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        self._patterns = [re.compile(text if text.startswith("^") else re.escape(text) + "$") for text in topics]
        self._listener = listener
        with self.log.changed:
            self.log.group(self.group or "").members.append(self)
            self.log._note()

    def wants_topic(self, name: str) -> bool:
        return any(pattern.match(name) for pattern in self._patterns)

    def pause(self) -> None:
        self.is_paused = True

    def resume(self) -> None:
        self.is_paused = False

    # -------------------------------------------------------------------------- what comes

    def poll(self, seconds: float) -> Sequence[Event]:
        assert not self.is_closed
        self.log.polled(self)
        self.log.polls["paused" if self.is_paused else "running"] += 1
        self._take_part()
        if self._fatal is not None:
            raise self._fatal
        with self.log.changed:
            found = self._events()
            if not found and not self._has_to_act():
                self.log.changed.wait(seconds)
                found = self._events()
        return found

    def _events(self) -> list[Event]:
        found: list[Event] = []
        for place, at in () if self.is_paused else list(self.positions.items()):
            partition = self.log.partition(place)
            if place in self._silent or place in self.log.unreadable:
                continue
            if partition is None or partition is not self._incarnations[place]:
                self._silent.add(place)
                found.append(Vanished(place))
            elif not partition.first <= at <= partition.end:
                self._silent.add(place)
                found.append(OutOfRange(place))
            elif at < partition.stable or self._told_end.get(place) != partition.stable:
                piece = cut_records(place, partition, at, partition.stable, self._wants)
                if piece.end == partition.stable:
                    self._told_end[place] = piece.end
                self.positions[place] = piece.end
                found.append(piece)
        return found

    def ends(self) -> Mapping[TopicPartition, int]:
        with self.log.changed:
            there = {place: self.log.partition(place) for place in self.positions}
            return {place: partition.end for place, partition in there.items() if partition is not None}

    # -------------------------------------------------------------------------- the group

    def _has_to_act(self) -> bool:
        return bool(self.lost or self._moves()[0] or self._moves()[1])

    def _moves(self) -> tuple[list[TopicPartition], list[TopicPartition]]:
        """What is to be given up, and what is free and is to be taken."""
        if self._listener is None:
            return [], []
        group = self.log.group(self.group or "")
        dealt = self.log.dealt(group)
        given = [place for place, owner in group.owners.items() if owner is self and dealt.get(place) is not self]
        free = [place for place, owner in dealt.items() if owner is self and place not in group.owners]
        return given, free

    def _take_part(self) -> None:
        """Do what the group wants of this member. Callbacks are called without the lock, since they may wait."""
        if self._listener is None:
            return
        group = self.log.group(self.group or "")
        if self.lost:
            lost, self.lost = self.lost, []
            self._call(lambda listener: listener.lost({place: self._told.get(place) for place in lost}))
            self.unassign(lost)
            with self.log.changed:
                group.members.append(self)
                self.log._note()
        with self.log.changed:
            given, _ = self._moves()
        if given:
            self._give_up(given)
        with self.log.changed:
            _, free = self._moves()
            group.owners |= dict.fromkeys(free, self)
        if free and self._fatal is None:
            self._call(lambda listener: self.assign(listener.assigned(free)))

    def _give_up(self, places: list[TopicPartition]) -> None:
        self._call(lambda listener: self._hand_over(listener, places))
        self.unassign(places)
        with self.log.changed:
            for place in places:
                self.log.group(self.group or "").owners.pop(place, None)
            self.log._note()

    def _call(self, work: Callable[[Listener], None]) -> None:
        assert self._listener is not None
        try:
            work(self._listener)
        except Exception as error:  # noqa: BLE001 - whatever it is, `poll` raises it
            self._fatal = error

    def _hand_over(self, listener: Listener, places: list[TopicPartition]) -> None:
        offsets = listener.revoked(places)
        self.commit(offsets, wait=True)
        untold = {place: self._told.get(place) for place, at in offsets.items() if self._told.get(place) != at.offset}
        if untold:
            listener.untold(untold, "refused")

    def commit(self, offsets: Mapping[TopicPartition, Position], *, wait: bool) -> None:
        offsets = {place: at for place, at in offsets.items() if self._told.get(place) != at.offset}
        if not offsets or self.group is None:
            return
        with self.log.changed:
            if self.log.commit_errors and not wait:
                self.tell(self.log.commit_errors.popleft())
                return
            if self.log.refuses_commits:
                self.tell(Retryable("the coordinator is loading"))
                return
            self.log.commits.append((self.group, dict(offsets)))
            self.log.group(self.group).committed.update(offsets)
            self._told |= {place: at.offset for place, at in offsets.items()}

    # -------------------------------------------------------------------------- what goes wrong

    def tell(self, error: ConveyordError) -> None:
        """Have `errors` count something that passes."""
        self._errors.append(error)

    def errors(self) -> Sequence[ConveyordError]:
        found = list(self._errors)
        self._errors.clear()
        return found

    def close(self) -> None:
        known = self._fatal
        if self._listener is not None:
            group = self.log.group(self.group or "")
            owned = [place for place, owner in group.owners.items() if owner is self]
            if owned:
                self._give_up(owned)
            with self.log.changed:
                if self in group.members:
                    group.members.remove(self)
                self.log._note()
        self.is_closed = True
        if self._fatal is not None and self._fatal is not known:
            raise self._fatal


def cut_records(
    place: TopicPartition, partition: FakePartition, first: int, end: int, wants: frozenset[Meta]
) -> Records:
    """Some of `[first, end)`: RECORDS_A_POLL at most, up to `end` if nothing more is there before it."""
    offsets = [offset for offset in partition.held if first <= offset < end]
    some = offsets[:RECORDS_A_POLL]
    found = [partition.held[offset] for offset in some]
    values = [record.value for record in found]
    return Records(
        place,
        some,
        values,
        end if len(some) == len(offsets) else some[-1] + 1,
        total_bytes(values),
        NOW_MS if not found or found[-1].timestamp_ms is None else found[-1].timestamp_ms,
        [record.key for record in found] if "key" in wants else None,
        [record.headers for record in found] if "headers" in wants else None,
        [-1 if record.timestamp_ms is None else record.timestamp_ms for record in found]
        if "timestamp" in wants
        else None,
    )
