"""The ports of core/flow/record_log.py over a fake, the mock or a real Kafka: one test holds all to one law."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import Event, Meta, PartitionReader, Records, Tail, TopicPartition
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.reader import KafkaReader
from conveyord.storage.kafka.tail import KafkaTail
from tests.kafka.cluster import ANSWER_SECONDS_MAX, Cluster
from tests.kafka.fake_log import FakeLog
from tests.kafka.mock import MockBroker

QUICK = {
    "session.timeout.ms": "6000",
    "heartbeat.interval.ms": "200",
    "topic.metadata.refresh.interval.ms": "500",
    "topic.metadata.propagation.max.ms": "1000",
}
"""Settings with which what happens to topics and in groups is heard of soon."""


class Logs:
    """A cluster, and its ports. Blocking."""

    is_fake = False

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._open = ExitStack()

    def open_reader(self) -> PartitionReader:
        """A `PartitionReader` that the caller closes."""
        raise NotImplementedError

    def open_tail(self, group: str | None, wants: Collection[Meta] = ()) -> Tail:
        """A `Tail` that the caller closes."""
        raise NotImplementedError

    def reader(self) -> PartitionReader:
        """A `PartitionReader`, closed at the end of the test."""
        found = self.open_reader()
        self._open.callback(found.close)
        return found

    def tail(self, *, group: str | None = None, wants: Collection[Meta] = ()) -> Tail:
        """A `Tail`, closed at the end of the test."""
        found = self.open_tail(group, wants)
        self._open.callback(found.close)
        return found

    def topic(self, partitions: int = 1, **settings: Mapping[str, str]) -> str:
        """A new topic."""
        return self.cluster.fresh_topic(partitions=partitions, **settings)

    def group(self) -> str:
        """A name that no other test has."""
        return f"g-{uuid.uuid4().hex[:12]}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


class FakeLogs(Logs):
    """Over a fake of its own."""

    is_fake = True

    def __init__(self) -> None:
        self.log = FakeLog()
        super().__init__(self.log)

    def open_reader(self) -> PartitionReader:
        return self.log.reader()

    def open_tail(self, group: str | None, wants: Collection[Meta] = ()) -> Tail:
        return self.log.tail(group=group, wants=wants)


class KafkaLogs(Logs):
    """Over a cluster that answers the protocol."""

    def __init__(self, cluster: Cluster) -> None:
        super().__init__(cluster)
        # The mock lets a group wait until who has left would be dead.
        settings = {**QUICK, "session.timeout.ms": "1500"} if isinstance(cluster, MockBroker) else QUICK
        self.connection = Connection(cluster.bootstrap, settings, 10.0)

    def open_reader(self) -> PartitionReader:
        return KafkaReader(self.connection)

    def open_tail(self, group: str | None, wants: Collection[Meta] = ()) -> Tail:
        return KafkaTail(self.connection, group=group, wants=wants)


def polled(
    tail: Tail, until: Callable[[Sequence[Event]], bool], *, others: Sequence[Tail] = (), seconds: float = 0.1
) -> list[Event]:
    """What a tail gives until that is enough, `others` polled beside it; fails after ANSWER_SECONDS_MAX."""
    found: list[Event] = []
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    while not until(found):
        assert time.monotonic() < deadline, f"only {found} after {ANSWER_SECONDS_MAX} s; {tail.errors()}"
        found += tail.poll(seconds)
        for other in others:
            other.poll(0.01)
    return found


def reaches(ends: Mapping[TopicPartition, int]) -> Callable[[Sequence[Event]], bool]:
    """Whether events have come to these offsets."""

    def is_there(events: Sequence[Event]) -> bool:
        come = {event.partition: event.end for event in events if isinstance(event, Records)}
        return all(come.get(place, 0) >= end for place, end in ends.items())

    return is_there


def records_in(events: Sequence[Event], place: TopicPartition) -> list[tuple[int, bytes | None]]:
    """Offset and value of what came of a partition, in order."""
    return [
        pair
        for event in events
        if isinstance(event, Records) and event.partition == place
        for pair in zip(event.offsets, event.values, strict=True)
    ]


@dataclass
class Member:
    """A listener that keeps what it is told, and reads on from the group's offsets."""

    reader: PartitionReader
    group: str
    owned: set[TopicPartition] = field(default_factory=set)
    told: list[tuple[str, frozenset[TopicPartition]]] = field(default_factory=list)
    at: dict[TopicPartition, int] = field(default_factory=dict)

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.told.append(("assigned", frozenset(partitions)))
        assert not self.owned & set(partitions)
        self.owned |= set(partitions)
        committed = self.reader.committed(self.group, list(partitions))
        starts = {place: committed[place].offset if place in committed else 0 for place in partitions}
        self.at |= starts
        return starts

    def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        self.told.append(("revoked", frozenset(partitions)))
        self.owned -= set(partitions)
        return {place: Position(self.at[place]) for place in partitions}

    def untold(self, told: Mapping[TopicPartition, int | None], why: str) -> None:
        self.told.append(("untold", frozenset(told)))

    def lost(self, told: Mapping[TopicPartition, int | None]) -> None:
        self.told.append(("lost", frozenset(told)))
        self.owned -= told.keys()
