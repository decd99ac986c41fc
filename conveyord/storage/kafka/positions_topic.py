"""How far a transactional writer has got, in a topic of the same cluster: written by the transaction that it is about.

A compacted topic with one partition; by default each writer has one to itself. A record's key is a JSON list: the
writer's, for its fence (see `core/planning/fence.py`); with the number of a piece and a digest, for positions that no
longer move, once they are many.

It is read as far as transactions have ended. Undecided ones are waited for, because what they hold back may be ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conveyord.core.errors import Corrupt, Retryable
from conveyord.core.planning.fence import ArchiveRef, Fence, decode, encode, encode_archive
from conveyord.storage.kafka.connection import Connection, Contact
from conveyord.storage.kafka.errors import as_conveyord_error
from conveyord.storage.kafka.topics import TopicPlan

PARTITION = 0
PLAN = TopicPlan(
    partitions=1,
    config={
        "cleanup.policy": "compact",
        # A record a second must not become a long read: what is written now is never compacted.
        "segment.bytes": str(16 * 1024 * 1024),
        "segment.ms": str(3600 * 1000),
        "min.cleanable.dirty.ratio": "0.1",
    },
)
PIECE_BYTES = 512 * 1024  # of an archive; a record takes less than a megabyte on a broker that nobody configured
TAIL_OFFSETS = 256  # looked at first, from the end: the fence is one of the last
PEEK_SECONDS = 1.0  # for a commit that is under way; what a killed run left open ends only when the next one begins
READ_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
READ_RECORDS = 1_000

Written = list[tuple[bytes, bytes | None]]
"""Keys and values; None takes back."""


@dataclass(frozen=True, slots=True)
class WriterKey:
    """Whose fence it is. topic: the one that it writes to."""

    pipeline: str
    stage: str
    topic: str

    def encoded(self, *more: str | int) -> bytes:
        """The key of a record."""
        return json.dumps([self.pipeline, self.stage, self.topic, *more], separators=(",", ":")).encode()


class PositionsTopic:
    """The fence of one writer. Blocking."""

    def __init__(self, connection: Connection, topic: str, *, check: Callable[[], None]) -> None:
        """check: called while this waits; what it raises ends the wait. Connects to nothing yet."""
        self.topic = topic
        self._connection = connection
        self._contact = Contact(connection)
        self._check = check

    def read(self, key: WriterKey, *, wait_seconds: float, is_final: bool = True) -> Fence | None:
        """The newest fence of `key`, with its archive; None if there is none. The topic must be there.

        wait_seconds: for transactions that are undecided. is_final: it is an error if some still are then; else what
        can be seen is returned. Raises Retryable for that, or if the cluster does not answer; Corrupt if what is found
        cannot be read.
        """
        written = self._end(stable=False)
        deadline = time.monotonic() + wait_seconds
        while (end := self._end(stable=True)) < written:
            if time.monotonic() > deadline:
                if not is_final:
                    break
                raise Retryable(
                    f"topic {self.topic}: a transaction has been open for {wait_seconds:.0f} s, and nobody can tell "
                    "what it will have written; it ends by itself after its transaction.timeout.ms, so run again then"
                )
            self._check()
            time.sleep(POLL_SECONDS)
        return self._newest(key, end)

    def peek(self, key: WriterKey) -> Fence | None:
        """The newest fence of `key` as it can be read now, which disturbs nobody who writes."""
        return self.read(key, wait_seconds=PEEK_SECONDS, is_final=False)

    def written(self, key: WriterKey, fence: Fence, before: Fence | None) -> tuple[Fence, Written]:
        """The records that store `fence` in the place of `before`, and the fence as it is stored."""
        records: Written = []
        if (outgrown := fence.outgrown()) is not None:
            body, digest = encode_archive(outgrown)
            pieces = [body[first : first + PIECE_BYTES] for first in range(0, len(body), PIECE_BYTES)]
            records += [(key.encoded(digest, number), piece) for number, piece in enumerate(pieces)]
            fence = fence.with_archive(ArchiveRef(f"{len(pieces)} pieces", digest, len(outgrown)), outgrown)
        former = None if before is None else before.archive
        if former is not None and former != fence.archive:
            records += [(name, None) for name in _pieces_of(key, former, self.topic)]
        records.append((key.encoded(), encode(fence).encode()))
        return fence, records

    def _newest(self, key: WriterKey, end: int) -> Fence | None:
        """Read backwards from the end, in ever longer stretches, until everything is found."""
        wanted = [key.encoded()]
        latest: dict[bytes, bytes | None] = {}
        first, stretch, lowest = end, TAIL_OFFSETS, self._first()
        while True:
            if all(name in latest for name in wanted):
                value = latest[wanted[0]]
                if value is None:
                    return None
                fence = decode(value.decode(), where=f"topic {self.topic}, key {wanted[0].decode()}")
                if fence.archive is None:
                    return fence
                pieces = _pieces_of(key, fence.archive, self.topic)
                if all(latest.get(name) is not None for name in pieces):
                    return fence.loaded(b"".join(latest[name] or b"" for name in pieces))
                wanted = [wanted[0], *pieces]
            if first <= lowest:
                if wanted[0] in latest:
                    raise Corrupt(
                        f"topic {self.topic}: holds a fence without all of its archive; was some of it deleted?"
                    )
                return None
            start = max(lowest, first - stretch)
            for name, value in self._records(start, first):
                latest.setdefault(name, value)
            first, stretch = start, stretch * 4

    def _records(self, start: int, end: int) -> list[tuple[bytes, bytes | None]]:
        """Committed records of `[start, end)` by key, the newest first."""
        from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

        own = {
            "group.id": "none",  # librdkafka wants one; nothing is stored under it
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "auto.offset.reset": "earliest",
            "fetch.wait.max.ms": 10,  # brokers say so late that nothing follows
        }
        consumer = Consumer(self._connection.client(own))
        found: list[tuple[bytes, bytes | None]] = []
        deadline = time.monotonic() + READ_SECONDS_MAX
        try:
            consumer.assign([TopicPartition(self.topic, PARTITION, start)])
            while True:
                self._check()
                for message in consumer.consume(READ_RECORDS, timeout=POLL_SECONDS):
                    error = message.error()
                    if error is not None and error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - its public name
                        return found[::-1]
                    if error is not None:
                        raise as_conveyord_error(error, self._connection.brokers)
                    if message.offset() >= end:
                        return found[::-1]
                    found.append((message.key() or b"", message.value()))
                if time.monotonic() > deadline:
                    raise Retryable(f"topic {self.topic}: not read within {READ_SECONDS_MAX:.0f} s; is the broker up?")
        except KafkaException as error:
            raise as_conveyord_error(error.args[0], self._connection.brokers) from error
        finally:
            consumer.close()

    def _first(self) -> int:
        from confluent_kafka.admin import OffsetSpec

        return self._offset(OffsetSpec.earliest(), stable=False)

    def _end(self, *, stable: bool) -> int:
        from confluent_kafka.admin import OffsetSpec

        return self._offset(OffsetSpec.latest(), stable=stable)

    def _offset(self, spec: object, *, stable: bool) -> int:
        from confluent_kafka import IsolationLevel, KafkaException, TopicPartition

        contact = self._contact
        level = IsolationLevel.READ_COMMITTED if stable else IsolationLevel.READ_UNCOMMITTED
        asked = {TopicPartition(self.topic, PARTITION): spec}
        (answer,) = contact.admin.list_offsets(
            asked, isolation_level=level, request_timeout=contact.connect_seconds
        ).values()
        try:
            return int(answer.result().offset)
        except KafkaException as error:
            raise contact.failure(error.args[0]) from error


def _pieces_of(key: WriterKey, archive: ArchiveRef, topic: str) -> Sequence[bytes]:
    count, _, word = archive.location.partition(" ")
    if word != "pieces" or not count.isdecimal():
        raise Corrupt(f"topic {topic}: a fence names {archive.location!r} as its archive; who wrote it?")
    return [key.encoded(archive.sha256, number) for number in range(int(count))]
