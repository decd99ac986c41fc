"""Looks at a Kafka and reads ranges of it: `core/flow/record_log.py: PartitionReader` by librdkafka."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from conveyord.core.errors import Refused, Retryable
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import (
    LOG_END,
    LOG_START,
    Extent,
    Meta,
    OutOfRange,
    Records,
    Topic,
    TopicPartition,
    Vanished,
)
from conveyord.core.units import format_seconds
from conveyord.storage.kafka.connection import Connection, Contact
from conveyord.storage.kafka.tail import KafkaTail

if TYPE_CHECKING:
    from confluent_kafka import Consumer
    from confluent_kafka import TopicPartition as Place
    from confluent_kafka.admin import ClusterMetadata, OffsetSpec, TopicDescription

POLL_SECONDS = 0.1
GONE = frozenset({"UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_PARTITION", "_UNKNOWN_TOPIC"})
COORDINATOR_SETTLING = frozenset({"COORDINATOR_LOAD_IN_PROGRESS", "COORDINATOR_NOT_AVAILABLE", "NOT_COORDINATOR"})
SETTLING_SECONDS = 0.2  # between two questions while leaders and coordinators are being chosen
SILENCE_SECONDS_MAX = 60.0
"""Of a range that is being read: longer than any election, shorter than anyone's patience."""
UNKNOWN_ID = "AAAAAAAAAAAAAAAAAAAAAA"  # the id of topics at brokers that have none


class KafkaReader:
    """`PartitionReader` on a real cluster. One thread at a time."""

    def __init__(self, connection: Connection) -> None:
        """Raises ConfigError if librdkafka refuses a setting. Connects to nothing yet."""
        self._connection = connection
        self._contact = Contact(connection)
        self._describes = True

    def topics(self, names: Collection[str] | None = None) -> Mapping[str, Topic]:
        """See `PartitionReader.topics`. Raises ConfigError also for one of `names` that this user may not see."""
        if names is not None:
            return self._named(sorted(names)) if names else {}
        metadata = self._contact.metadata()
        found = _partitions_in(metadata, lambda name: not name.startswith("__"))
        described = self._described(sorted(found)) if _has_controller(metadata) else {}
        return {
            name: Topic(name, _incarnation(metadata, described.get(name)), partitions)
            for name, partitions in found.items()
        }

    def _named(self, names: list[str]) -> dict[str, Topic]:
        """Those of `names` that are there. They are asked for alone: this happens several times a second, and a cluster
        may have thousands of others. None is made by that.
        """
        metadata = self._contact.metadata(names[0])
        if _has_controller(metadata):
            described = self._described(names)
            if self._describes:
                return {
                    name: Topic(name, _incarnation(metadata, one), tuple(sorted(part.id for part in one.partitions)))
                    for name, one in described.items()
                }
        metadata = self._contact.metadata()
        found = _partitions_in(metadata, lambda name: name in names)
        return {name: Topic(name, _incarnation(metadata, None), partitions) for name, partitions in found.items()}

    def _described(self, names: list[str]) -> dict[str, TopicDescription]:
        """Descriptions of topics, of those that are there; none at all if the brokers describe no topics."""
        from confluent_kafka import KafkaError, KafkaException, TopicCollection

        if not names or not self._describes:
            return {}
        seconds = self._connection.connect_seconds
        answers = self._contact.admin.describe_topics(TopicCollection(names), request_timeout=seconds)
        found = {}
        for name, answer in answers.items():
            try:
                found[name] = answer.result()
            except KafkaException as error:
                reason = error.args[0]
                if reason.name() == "_UNSUPPORTED_FEATURE":
                    self._describes = False
                    return {}
                if reason.code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise self._contact.failure(reason) from error
        return found

    def extents(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Extent]:
        """See `PartitionReader.extents`."""
        firsts = self.offsets_at(partitions, LOG_START)
        ends = self.offsets_at(partitions, LOG_END)
        return {one: Extent(firsts[one], ends[one]) for one in partitions if one in firsts and one in ends}

    def offsets_at(self, partitions: Collection[TopicPartition], time_ms: int) -> Mapping[TopicPartition, int]:
        """See `PartitionReader.offsets_at`. The end is the last stable offset."""
        from confluent_kafka.admin import OffsetSpec

        specs = {LOG_START: OffsetSpec.earliest, LOG_END: OffsetSpec.latest}
        found = self._asked(partitions, specs[time_ms]() if time_ms in specs else OffsetSpec.for_timestamp(time_ms))
        after = [one for one, offset in found.items() if offset < 0]
        return {**found, **(self._asked(after, OffsetSpec.latest()) if after else {})}

    def _asked(self, partitions: Collection[TopicPartition], spec: OffsetSpec) -> dict[TopicPartition, int]:
        """What the leaders say, those asked again that have just become leaders."""
        from confluent_kafka import IsolationLevel, KafkaError, KafkaException
        from confluent_kafka import TopicPartition as Place

        settling = {
            KafkaError.FENCED_LEADER_EPOCH,
            KafkaError.LEADER_NOT_AVAILABLE,
            KafkaError.NOT_LEADER_FOR_PARTITION,
            KafkaError.UNKNOWN_LEADER_EPOCH,
        }
        seconds = self._connection.connect_seconds
        deadline = time.monotonic() + seconds
        left, found = set(partitions), dict[TopicPartition, int]()
        while left:
            leaderless = False
            asked = {Place(*one): spec for one in left}
            level = IsolationLevel.READ_COMMITTED
            answers = self._contact.admin.list_offsets(asked, isolation_level=level, request_timeout=seconds)
            for place, answer in answers.items():
                partition = TopicPartition(place.topic, place.partition)
                try:
                    found[partition] = answer.result().offset
                except KafkaException as error:
                    has_leader = error.args[0].name() != "_NOENT"
                    leaderless = leaderless or not has_leader
                    is_settling = error.args[0].code() in settling or not has_leader
                    if is_settling and time.monotonic() < deadline:
                        continue
                    if error.args[0].name() not in GONE:
                        raise self._contact.failure(error.args[0]) from error
                left.discard(partition)
            if leaderless:  # so is all that was asked for, which may as well not be there
                left &= self._there()
            if left:
                time.sleep(SETTLING_SECONDS)
        return found

    def _there(self) -> set[TopicPartition]:
        topics = self._contact.metadata().topics
        return {TopicPartition(name, number) for name, topic in topics.items() for number in topic.partitions}

    def committed(self, group: str, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """See `PartitionReader.committed`."""
        from confluent_kafka import Consumer, KafkaException
        from confluent_kafka import TopicPartition as Place

        if not partitions:
            return {}
        # Not by the admin client: librdkafka ends the process (SIGSEGV, its issue 5040) when an admin client asks a
        # coordinator that is still loading, as every coordinator is after its start.
        consumer = Consumer(self._connection.client({"group.id": group, "enable.auto.commit": False}))
        deadline = time.monotonic() + self._connection.connect_seconds
        places: list[Place] = []
        try:
            while True:
                try:
                    places = _committed(consumer, [Place(*one) for one in partitions], deadline - time.monotonic())
                    break
                except KafkaException as error:
                    if error.args[0].name() not in COORDINATOR_SETTLING or time.monotonic() >= deadline:
                        raise self._contact.failure(error.args[0]) from error
                time.sleep(SETTLING_SECONDS)
        finally:
            consumer.close()
        found = [one for one in places if one.offset >= 0]
        return {TopicPartition(one.topic, one.partition): Position(one.offset, one.metadata or "") for one in found}

    def read(
        self, partition: TopicPartition, first: int, end: int, *, wants: Collection[Meta] = ()
    ) -> Iterator[Records]:
        """See `PartitionReader.read`. By a connection of its own. Raises Retryable if nothing comes for a minute."""
        if first >= end:
            return
        extent = self.extents([partition]).get(partition)
        # Beyond the end nothing would ever come, nor would an error.
        if extent is None or first < extent.first or end > extent.end:
            raise _not_there(partition, first, end, first if extent is None or first < extent.first else extent.end)
        tail = KafkaTail(self._connection, group=None, wants=wants)
        try:
            tail.assign({partition: first})
            at, heard = first, time.monotonic()
            while at < end:
                for event in tail.poll(POLL_SECONDS):
                    if isinstance(event, OutOfRange | Vanished):
                        raise _not_there(partition, first, end, at)
                    if event.end > at:
                        piece = until(event, end)
                        at, heard = piece.end, time.monotonic()
                        yield piece
                        if at >= end:
                            return
                if time.monotonic() - heard > SILENCE_SECONDS_MAX:
                    said = "; ".join(str(error) for error in tail.errors()[-1:]) or "no error was told"
                    raise Retryable(
                        f"{partition}: nothing came of [{at}, {end}) for {format_seconds(SILENCE_SECONDS_MAX)} ({said})"
                    )
        finally:
            tail.close()

    def close(self) -> None:
        """See `PartitionReader.close`. An admin client is closed by the collector once nobody has it."""
        del self._contact


def _has_controller(metadata: ClusterMetadata) -> bool:
    """Whether topics can be described: who has no controller (the mock of librdkafka) would be waited for in vain."""
    return metadata.controller_id in metadata.brokers


def _partitions_in(metadata: ClusterMetadata, takes: Callable[[str], bool]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(sorted(topic.partitions))
        for name, topic in metadata.topics.items()
        if takes(name) and topic.error is None
    }


def _incarnation(metadata: ClusterMetadata, topic: TopicDescription | None) -> str:
    """What tells a topic from others of its name. topic: None if the brokers describe none."""
    cluster = metadata.cluster_id or ""
    return cluster if topic is None or str(topic.topic_id) == UNKNOWN_ID else f"{cluster}/{topic.topic_id}"


def _committed(consumer: Consumer, asked: list[Place], seconds: float) -> list[Place]:
    """What a consumer's group has committed. Raises KafkaException also for what is said of one partition."""
    from confluent_kafka import KafkaException

    found: list[Place] = consumer.committed(asked, timeout=max(0.0, seconds))
    for place in found:
        if place.error is not None:
            raise KafkaException(place.error)
    return found


def _not_there(partition: TopicPartition, first: int, end: int, at: int) -> Refused:
    return Refused(
        f"{partition}: offsets from {at} on are not there, of [{first}, {end}) that were to be read; were they "
        "deleted, or the topic?"
    )


def until(records: Records, end: int) -> Records:
    """Those of `records` that stand before `end`."""
    return records if records.end <= end else records.split(end)[0]
