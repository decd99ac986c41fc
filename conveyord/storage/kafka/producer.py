"""Writes records to topics, and tells which of them the brokers have.

librdkafka queues, batches and repeats. What is made of it here: records go in by the column, a chunk shares one
delivery report, the queue is bounded, and what failed is known by chunk. Who waits may be interrupted.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import TYPE_CHECKING, Any, Literal

from conveyord.core.errors import ConveyordError, Retryable
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.errors import as_conveyord_error, blames_record, is_fenced

if TYPE_CHECKING:
    from confluent_kafka import KafkaError, Producer

Compression = Literal["none", "gzip", "snappy", "lz4", "zstd"]
Headers = list[tuple[str, bytes]]

CHUNK_RECORDS = 256  # share a report: making one costs next to nothing then, and a search begins with so few
QUEUE_RECORDS = 200_000
QUEUE_BYTES = 32 * 1024 * 1024  # of what is queued or under way: a tenth of a second at what a broker takes
WAIT_SECONDS = 0.1  # between two looks at whether the one who waits is still wanted
FLUSH_SLACK_SECONDS = 30.0  # librdkafka looks for records whose time is over once a second; a stalled machine is slower
BATCH_BYTES = 1_000_000
BATCH_OVERHEAD_BYTES = 1024  # of a record and the batch around it, above its key, value and headers
RECORD_BYTES_DEFAULT = 1_000_000  # what fits a topic of a broker that nobody configured
RECORD_BYTES_MIN = 1000  # librdkafka takes no less
METADATA_SECONDS = 2.0  # for what only helps
TOLD_MAX = 20  # of what a client says beside its answers; the newest say why nothing comes through
ANY_PARTITION = -1


@dataclass(frozen=True, slots=True)
class ProducerOptions:
    """How records are sent. record_bytes_max: of key, value and headers of one.

    delivery_seconds: after which a record that no broker took has failed. transactional_id: sends in transactions.
    """

    compression: Compression = "lz4"
    linger_seconds: float = 0.005
    idempotent: bool = True
    delivery_seconds: float = 60.0
    record_bytes_max: int = RECORD_BYTES_DEFAULT
    transactional_id: str | None = None

    @property
    def transaction_seconds(self) -> float:
        """After which a broker aborts a transaction that nobody ends. A record's own time must fit in."""
        return 2 * self.delivery_seconds


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Records for one topic, by column; what is None is so for all of them.

    values: None is a tombstone. partitions: ANY_PARTITION leaves it to the key, or to chance. times_ms: since the
    epoch; 0 is when it is sent. numbers: what the caller calls each record, ascending; by default 0, 1, 2.
    """

    topic: str
    values: Sequence[bytes | None]
    keys: Sequence[bytes | None] | None = None
    partitions: Sequence[int] | None = None
    times_ms: Sequence[int] | None = None
    headers: Sequence[Headers] | None = None
    numbers: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.values)

    def number(self, index: int) -> int:
        """What the caller calls the record at `index`."""
        return index if self.numbers is None else self.numbers[index]

    def rarities(self, first: int, end: int) -> Iterable[dict[str, Any] | None]:
        """Time and headers of the records in `[first, end)`, as arguments of librdkafka's; None without any."""
        if self.times_ms is None and self.headers is None:
            return repeat(None, end - first)
        times = repeat(0) if self.times_ms is None else self.times_ms[first:end]
        headers = repeat(None) if self.headers is None else self.headers[first:end]
        return ({"timestamp": time_ms, "headers": some} for time_ms, some in zip(times, headers, strict=False))

    def numbered(self, numbers: Sequence[int]) -> Outgoing:
        """The same records under other numbers, ascending."""
        return replace(self, numbers=numbers)

    def without(self, numbers: Collection[int], *, first: int = 0) -> Outgoing:
        """These records from number `first` on, but those of `numbers`."""
        if not numbers and (not len(self) or first <= self.number(0)):
            return self
        return self.taken(
            [at for at in range(len(self)) if first <= self.number(at) and self.number(at) not in numbers]
        )

    def chosen(self, numbers: Collection[int]) -> Outgoing:
        """Those of `numbers`."""
        wanted = frozenset(numbers)
        return self.taken([at for at in range(len(self)) if self.number(at) in wanted])

    def taken(self, indexes: Sequence[int]) -> Outgoing:
        """The records at `indexes`, in this order."""

        def some(column: Sequence[Any] | None) -> Sequence[Any] | None:
            return None if column is None else [column[index] for index in indexes]

        return replace(
            self,
            values=[self.values[index] for index in indexes],
            keys=some(self.keys),
            partitions=some(self.partitions),
            times_ms=some(self.times_ms),
            headers=some(self.headers),
            numbers=[self.number(index) for index in indexes],
        )


@dataclass(frozen=True, slots=True)
class Failed:
    """Records of one part of which one at least did not arrive. numbers: what the caller calls them, ascending.

    is_certain: the client itself has refused it, so it is this one, and nothing else failed with it.
    """

    part: int
    numbers: Sequence[int]
    error: KafkaError
    is_certain: bool = False

    @property
    def is_their_fault(self) -> bool:
        """Whether one of them, or all together, can never be taken."""
        return blames_record(self.error)


@dataclass(slots=True)
class _Chunk:
    """Neighbouring records that share a report. Knows each way in which some of them have failed once."""

    failed: list[Failed]
    records: Outgoing
    part: int
    first: int
    end: int
    codes: set[int] = field(default_factory=set)

    def report(self, error: KafkaError | None, _message: object) -> None:
        if error is not None and error.code() not in self.codes:
            self.codes.add(error.code())
            numbers = [self.records.number(index) for index in range(self.first, self.end)]
            self.failed.append(Failed(self.part, numbers, error))


class RecordProducer:
    """A producer of librdkafka. Blocking; one thread at a time. Raises ConfigError for settings it refuses."""

    def __init__(
        self, connection: Connection, options: ProducerOptions, *, check: Callable[[], None], is_single: bool = False
    ) -> None:
        """Connects to nothing yet.

        check: called every WAIT_SECONDS while this waits; what it raises ends the wait. is_single: each record is sent
        by itself, so that what fails is known exactly.
        """
        from confluent_kafka import Producer

        self.options = options
        self._connection = connection
        self._check = check
        self._chunk_records = 1 if is_single else CHUNK_RECORDS
        self._failed: list[Failed] = []
        self._known: set[str] = set()
        self._told: deque[KafkaError] = deque(maxlen=TOLD_MAX)
        self.client: Producer = connection.made(Producer, self._settings(), on_error=self._told.append)

    def _settings(self) -> dict[str, Any]:
        options = self.options
        milliseconds = int(options.delivery_seconds * 1000)
        tuning = {
            "queue.buffering.max.messages": QUEUE_RECORDS,
            # A record that is larger than the queue would wait for ever.
            "queue.buffering.max.kbytes": max(QUEUE_BYTES, 2 * options.record_bytes_max) // 1024,
            "batch.size": min(BATCH_BYTES, options.record_bytes_max),
            "partitioner": "murmur2_random",  # the one of Java's clients, so that all agree where a key is
        }
        fixed = {
            "acks": "all",
            "enable.idempotence": options.idempotent,
            "compression.type": options.compression,
            "linger.ms": options.linger_seconds * 1000,
            "message.max.bytes": max(RECORD_BYTES_MIN, options.record_bytes_max),
            "message.timeout.ms": milliseconds,
            "delivery.report.only.error": True,
        }
        if self._chunk_records == 1:
            fixed["batch.num.messages"] = 1
        if options.transactional_id is not None:
            fixed["transactional.id"] = options.transactional_id
            fixed["transaction.timeout.ms"] = int(options.transaction_seconds * 1000)
        return {key: value for key, value in tuning.items() if key not in self._connection.settings} | fixed

    def queue(self, records: Outgoing, *, part: int = 0) -> int:
        """Put records into the queue, and wait while it is full. Returns how many went in.

        What the client refuses at once is among `failures`. Stops early where something failed that is no fault of
        the records: what follows would overtake it.
        """
        if records.topic not in self._known:
            self._learn(records.topic)
        for first in range(0, len(records), self._chunk_records):
            end = min(first + self._chunk_records, len(records))
            reached = self._queue_chunk(records, part, first, end)
            self._served(self.client.poll, 0)
            if reached < end or any(not failed.is_their_fault for failed in self._failed):
                return reached
        return len(records)

    def _queue_chunk(self, records: Outgoing, part: int, first: int, end: int) -> int:
        from confluent_kafka import KafkaException

        produce, topic = self.client.produce, records.topic
        report = _Chunk(self._failed, records, part, first, end).report
        count = end - first
        values = records.values[first:end]
        keys = [None] * count if records.keys is None else records.keys[first:end]
        partitions = [ANY_PARTITION] * count if records.partitions is None else records.partitions[first:end]
        at, has_learnt = first, False
        for value, key, partition, more in zip(values, keys, partitions, records.rarities(first, end), strict=True):
            while True:
                try:
                    # By position, which costs a third less than by name.
                    if more is None:
                        produce(topic, value, key, partition, report)
                    else:
                        produce(topic, value, key, partition, report, **more)
                    break
                except BufferError:
                    self._wait()
                except KafkaException as error:
                    if error.args[0].name() == "_UNKNOWN_PARTITION" and not has_learnt:
                        has_learnt = True  # the topic may have got it since
                        self._learn(topic)
                        continue
                    failed = Failed(part, [records.number(at)], error.args[0], is_certain=True)
                    self._failed.append(failed)
                    if not failed.is_their_fault:
                        return at
                    break
            at += 1
        return end

    def _learn(self, topic: str) -> None:
        """Have the client know the partitions now: else what is for one that there is not fails later, with others."""
        from confluent_kafka import KafkaException

        with suppress(KafkaException):  # sending finds out by itself why nobody answers
            self.client.list_topics(topic, timeout=METADATA_SECONDS)
            self._known.add(topic)

    def _wait(self) -> None:
        """Until there may be room in the queue: at the latest when records have been in it for too long."""
        self._check()
        self._served(self.client.poll, WAIT_SECONDS)

    def _served(self, call: Callable[[float], int], seconds: float) -> int:
        """What `call` returns, which serves reports; 0 if the producer is broken for ever, which is a failure then."""
        from confluent_kafka import KafkaException

        try:
            return call(seconds)
        except KafkaException as error:
            self._told.append(error.args[0])
            self._failed.append(Failed(0, [0], error.args[0]))
            return 0

    def flush(self, *, stops_early: bool = False) -> None:
        """Wait until every record is with its broker or has failed: at most about `delivery_seconds`.

        stops_early: or until one has failed that brokers have seen: a transaction is lost then, and what is left of it
        would only wait for its time. Raises Retryable if librdkafka does not say so in time.
        """
        deadline = time.monotonic() + self.options.delivery_seconds + FLUSH_SLACK_SECONDS
        while left := self._served(self.client.flush, WAIT_SECONDS):
            self._check()
            if stops_early and any(not failed.is_certain for failed in self._failed):
                return
            if time.monotonic() > deadline:
                raise Retryable(f"Kafka at {self._connection.brokers}: {left} records are neither taken nor refused")
        if not self._failed:
            self._told.clear()  # whatever it was, it has passed

    def failures(self) -> list[Failed]:
        """What has failed since this was asked last."""
        failed = [*self._failed]
        self._failed.clear()
        return failed

    def failure(self, error: KafkaError) -> ConveyordError:
        """What stands behind `error`: that someone must mend something, else that, or what was said before."""
        told = [as_conveyord_error(one, self._connection.brokers) for one in (*self._told, error)]
        rank: Mapping[str, int] = {"CONFIG": 0, "REFUSED": 1}
        return min(reversed(told), key=lambda one: rank.get(one.code, 2))

    def is_fenced(self, error: KafkaError) -> bool:
        """Whether another goes by the same transactional id: `error` itself may only say that all is over."""
        return any(is_fenced(one) for one in (*self._told, error))

    def discard(self) -> None:
        """Forget whatever is queued or under way; some of it may still arrive. The producer is of no use after that."""
        self._failed = []  # what comes for the former goes nowhere
        self.client.purge(in_queue=True, in_flight=True, blocking=False)
        self._served(self.client.poll, 0)
