"""What tests do to a Kafka from outside: topics, records, offsets, groups. Blocking, with a limit on every wait.

Works with any Kafka from 2.5 on, so with one that CONVEYORD_TEST_KAFKA names as well. `tests/kafka/mock.py` replaces
what its broker has not got.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    NewTopic,
    OffsetSpec,
    PartitionMetadata,
    ResourceType,
)

ANSWER_SECONDS_MAX = 30  # for one request; a stalled two-core machine takes seconds at times
READ_RECORDS_MAX = 10_000

COMPACTED = {
    "cleanup.policy": "compact",
    "segment.ms": "100",
    "min.cleanable.dirty.ratio": "0.001",
    "max.compaction.lag.ms": "100",
    "delete.retention.ms": "0",
}
"""Configuration of a topic that is compacted as soon as the broker looks at it. The segment that is being written
never is, so `Cluster.compact` makes it begin a new one."""

SETTLING = {
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.FENCED_LEADER_EPOCH,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_LEADER_EPOCH,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
"""What a broker answers for a moment about a topic just made, or after its start: metadata names leaders before these
have opened their logs. Producers and consumers try again by themselves, requests of an AdminClient do not."""

Headers = Sequence[tuple[str, bytes | None]]


@dataclass(frozen=True, kw_only=True)
class Record:
    """A record to write, or one that was read. value None: a tombstone. timestamp_ms None: when it is written.

    partition None: by key, as librdkafka does it. offset: of a record that was read.
    """

    value: bytes | None
    key: bytes | None = None
    headers: Headers = ()
    timestamp_ms: int | None = None
    partition: int | None = None
    offset: int | None = None


@dataclass(frozen=True)
class Extent:
    """Offsets of a partition: `first` is the log's start, `end` the next one that will be written."""

    first: int
    end: int


class Cluster:
    """A Kafka that somebody else runs. `bootstrap`: host:port, without encryption and password."""

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    @property
    def settings(self) -> dict[str, Any]:
        """What any client of librdkafka needs to connect, silent about brokers that a test has stopped."""
        return {"bootstrap.servers": self.bootstrap, "log_level": 0, "reconnect.backoff.max.ms": 200}

    @cached_property
    def admin(self) -> AdminClient:
        """A client for what is not here. One that is let go before it answered takes the answer with it."""
        return AdminClient(self.settings)

    # -------------------------------------------------------------------------- topics

    def fresh_topic(self, stem: str = "t", *, partitions: int = 3, config: Mapping[str, str] | None = None) -> str:
        """Create a topic whose name no other test has, and return its name."""
        name = f"{stem}-{uuid.uuid4().hex[:12]}"
        self.create_topic(name, partitions=partitions, config=config)
        return name

    def create_topic(self, name: str, *, partitions: int = 3, config: Mapping[str, str] | None = None) -> None:
        """Create a topic and wait until each partition has a leader that answers."""
        topic = NewTopic(name, partitions, 1, config=dict(config or {}))
        _only(self.admin.create_topics([topic]))
        self._wait_for_partitions(name, partitions)

    def delete_topic(self, name: str) -> None:
        """Delete a topic and wait until the broker no longer names it."""
        admin = self.admin
        _only(admin.delete_topics([name]))
        eventually(lambda: name not in admin.list_topics(timeout=ANSWER_SECONDS_MAX).topics, f"{name} is still there")

    def add_partitions(self, name: str, partitions: int) -> None:
        """Let a topic have `partitions` in all, and wait until each has a leader that answers."""
        _only(self.admin.create_partitions([NewPartitions(name, partitions)]))
        self._wait_for_partitions(name, partitions)

    def configure_topic(self, name: str, config: Mapping[str, str]) -> None:
        """Set these entries of a topic's configuration; the others stay."""
        entries = [
            ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET) for key, value in config.items()
        ]
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=entries)
        _only(self.admin.incremental_alter_configs([resource]))

    def topic_id(self, name: str) -> str:
        """What tells a topic from another of the same name that was deleted before."""
        return str(_only(self.admin.describe_topics(TopicCollection([name]))).topic_id)

    def delete_records(self, name: str, partition: int, *, before: int) -> None:
        """Let the log of a partition begin at the offset `before`, as retention does."""
        _only(self.admin.delete_records([TopicPartition(name, partition, before)]))

    def _wait_for_partitions(self, name: str, count: int) -> None:
        def ready() -> bool:
            try:
                partitions = self._partitions(name)
            except KafkaException as error:
                if error.args[0].code() not in SETTLING:
                    raise
                return False
            return len(partitions) == count and all(found.leader >= 0 for found in partitions.values())

        eventually(ready, f"{name} has not got its {count} partitions")
        self.extents(name)

    def _partitions(self, name: str) -> dict[int, PartitionMetadata]:
        topic = self.admin.list_topics(name, timeout=ANSWER_SECONDS_MAX).topics[name]
        if topic.error is not None:
            raise KafkaException(topic.error)
        return topic.partitions

    # -------------------------------------------------------------------------- offsets

    def extents(self, name: str, *, stable: bool = False) -> dict[int, Extent]:
        """The offsets of each partition. stable: `end` is the last stable offset, where read_committed stops.

        Raises: KafkaException if there is no such topic.
        """
        partitions = sorted(self._partitions(name))
        firsts = self._offsets(name, partitions, OffsetSpec.earliest(), stable=stable)
        ends = self._offsets(name, partitions, OffsetSpec.latest(), stable=stable)
        return {number: Extent(firsts[number], ends[number]) for number in partitions}

    def _offsets(self, name: str, partitions: Iterable[int], spec: OffsetSpec, *, stable: bool) -> dict[int, int]:
        level = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        asked = {TopicPartition(name, number): spec for number in partitions}
        found: dict[int, int] = {}

        def answered() -> bool:
            answers = self.admin.list_offsets(asked, isolation_level=level, request_timeout=ANSWER_SECONDS_MAX)
            try:
                found.update({place.partition: answer.result().offset for place, answer in answers.items()})
            except KafkaException as error:
                if error.args[0].code() not in SETTLING:
                    raise
            return len(found) == len(asked)

        eventually(answered, f"the partitions of {name} are not ready")
        return found

    def group_offsets(self, group: str, name: str) -> dict[int, int]:
        """The offsets that a group has committed for a topic: by partition, those without one left out."""
        # Not by the admin client: asked of a coordinator that is still loading, librdkafka ends the process.
        consumer = Consumer({**self.settings, "group.id": group, "enable.auto.commit": False})
        asked = [TopicPartition(name, number) for number in self._partitions(name)]
        found: dict[int, int] = {}

        def answered() -> bool:
            try:
                places = consumer.committed(asked, timeout=ANSWER_SECONDS_MAX)
            except KafkaException as error:
                if error.args[0].code() not in SETTLING:
                    raise
                return False
            found.update({place.partition: place.offset for place in places if place.offset >= 0})
            return True

        try:
            eventually(answered, f"nobody knows the offsets of {group}")
        finally:
            consumer.close()
        return found

    def group_members(self, group: str) -> int:
        """How many consumers a group has; 0 also if there is no such group."""
        try:
            return len(_only(self.admin.describe_consumer_groups([group])).members)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                raise
            return 0

    # -------------------------------------------------------------------------- records

    def producer(self, **settings: Any) -> Producer:
        """A producer; `settings` with underscores for dots (`transactional_id="a"`)."""
        # librdkafka waits half a minute for a topic that is not there, in case someone just made it.
        limits = {"message.timeout.ms": ANSWER_SECONDS_MAX * 1000, "topic.metadata.propagation.max.ms": 1000}
        return Producer({**self.settings, **limits, **_dotted(settings)})

    def produce(self, name: str, records: Iterable[Record | bytes], **settings: Any) -> list[Record]:
        """Write records and wait until the broker has each; returns them in the order of partition and offset.

        A record that is only bytes is a value without a key, for partition 0. settings: of the producer, such as
        `enable_idempotence=True`.
        Raises: KafkaException as soon as one was refused.
        """
        return _write(self.producer(**settings), name, records)

    def begin(self, name: str, records: Iterable[Record | bytes], *, transaction: str | None = None) -> Producer:
        """Write records in a transaction that stays open: the caller ends it with the producer that is returned.

        transaction: its transactional id. A second producer with the same fences the first.
        """
        producer = self.producer(transactional_id=transaction or uuid.uuid4().hex)
        producer.init_transactions(ANSWER_SECONDS_MAX)
        producer.begin_transaction()
        _write(producer, name, records)
        return producer

    def produce_committed(self, name: str, records: Iterable[Record | bytes]) -> None:
        """Write records in a transaction. In each partition a marker follows, which takes an offset as well."""
        self.begin(name, records).commit_transaction(ANSWER_SECONDS_MAX)

    def produce_aborted(self, name: str, records: Iterable[Record | bytes]) -> None:
        """Write records in a transaction that is taken back: they and a marker per partition are holes in what
        read_committed sees."""
        self.begin(name, records).abort_transaction(ANSWER_SECONDS_MAX)

    def read(self, name: str, *, committed: bool = True, **settings: Any) -> list[Record]:
        """All records of a topic up to where it ended when this was called, by partition and offset.

        committed: leave out records of transactions that were aborted, stop at the last stable offset.
        """
        level = "read_committed" if committed else "read_uncommitted"
        reading = {"enable_partition_eof": True, "enable_auto_commit": False, "auto_offset_reset": "error"}
        # By default a consumer whose queue was full for a moment does not fetch for a second.
        reading["fetch_queue_backoff_ms"] = 10
        consumer = Consumer(
            {**self.settings, "group.id": "none", "isolation.level": level, **_dotted({**reading, **settings})}
        )
        try:
            return _read_to_the_end(consumer, name, self.extents(name, stable=committed))
        finally:
            consumer.close()

    def compact(self, name: str, partition: int = 0) -> None:
        """Wait until what a topic with COMPACTED held before has one record per key; writes a few more records.

        Those have keys of their own, `roll-…`: without a write Kafka begins no new segment.
        """
        end = self.extents(name)[partition].end

        def compacted() -> bool:
            self.produce(name, [Record(key=f"roll-{uuid.uuid4().hex}".encode(), value=b"", partition=partition)])
            read = self.read(name, committed=False)
            keys = [found.key for found in read if found.partition == partition and (found.offset or 0) < end]
            return len(keys) == len(set(keys))

        eventually(compacted, f"{name} is not compacted", pause_seconds=0.2)


def eventually(holds: Callable[[], bool], otherwise: str, *, pause_seconds: float = 0.02) -> None:
    """Wait until something holds that a broker does by itself; fails with `otherwise` after ANSWER_SECONDS_MAX."""
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    while not holds():
        assert time.monotonic() < deadline, f"{otherwise} after {ANSWER_SECONDS_MAX} s"
        time.sleep(pause_seconds)


def _only(answers: Mapping[Any, Future[Any]]) -> Any:
    """The answer to a request about one thing; raises KafkaException if it was refused."""
    (answer,) = answers.values()
    return answer.result(ANSWER_SECONDS_MAX)


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in settings.items()}


def _write(producer: Producer, name: str, records: Iterable[Record | bytes]) -> list[Record]:
    written: list[Record] = []
    refused: list[KafkaError] = []

    def delivered(record: Record, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            refused.append(error)
            return
        # A delivery report has no headers, and the mock's no true time.
        stamp = message.timestamp()[1] if record.timestamp_ms is None else record.timestamp_ms
        place = {"partition": message.partition(), "offset": message.offset()}
        written.append(replace(record, timestamp_ms=stamp, **place))

    for record in records:
        if isinstance(record, bytes):
            record = Record(value=record, partition=0)
        optional = {"partition": record.partition, "timestamp": record.timestamp_ms}
        given = {key: value for key, value in optional.items() if value is not None}
        given |= {"headers": list(record.headers), "on_delivery": partial(delivered, record)}
        while True:
            try:
                producer.produce(name, record.value, record.key, **given)
                break
            except BufferError:  # the queue is full; it empties, at the latest by message.timeout.ms
                producer.poll(1)
        producer.poll(0)
    left = producer.flush(ANSWER_SECONDS_MAX)
    if refused:
        raise KafkaException(refused[0])
    assert not left, f"{left} records for {name} were not taken within {ANSWER_SECONDS_MAX} s"
    return _in_order(written)


def _read_to_the_end(consumer: Consumer, name: str, extents: Mapping[int, Extent]) -> list[Record]:
    left = {number for number, extent in extents.items() if extent.first < extent.end}
    consumer.assign([TopicPartition(name, number, extents[number].first) for number in left])
    read = []
    deadline = time.monotonic() + ANSWER_SECONDS_MAX
    while left:
        assert time.monotonic() < deadline, f"partitions {left} of {name} could not be read"
        for message in consumer.consume(READ_RECORDS_MAX, timeout=0.2):
            error = message.error()
            if error is not None and error.code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
            elif error is not None:
                raise KafkaException(error)
            elif message.offset() < extents[message.partition()].end:
                read.append(_record(message))
    return _in_order(read)


def _in_order(records: list[Record]) -> list[Record]:
    return sorted(records, key=lambda found: (found.partition or 0, found.offset or 0))


def _record(message: Message) -> Record:
    return Record(
        value=message.value(),
        key=message.key(),
        headers=tuple(message.headers() or ()),
        timestamp_ms=message.timestamp()[1],
        partition=message.partition(),
        offset=message.offset(),
    )
