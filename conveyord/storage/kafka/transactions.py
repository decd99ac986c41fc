"""Exactly-once delivery to topics, for those who read committed records: each commit is one transaction.

What is sent and how far the records of the sources have been sent (the fence) are in one transaction, so a run that
goes on from the fence repeats nothing and leaves nothing out. A transaction is begun, filled and committed in one go:
while it is open nobody can read on behind it.

    begin, records, fence, commit     a failure anywhere: the producer is dropped; a new one with the same transactional
                                      id ends what the former left open, then the fence says whether the commit landed

Who else has started with the same id meanwhile is told by the fence too: a run's first transaction puts its own token
there. A broker also shuts a producer out that was silent for longer than its transaction may take; then the token is
still ours, and we go on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from conveyord.core.errors import ConveyordError, RecordError, Retryable
from conveyord.core.errors import Refused as RunRefused
from conveyord.core.planning.fence import Fence
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.delivery import Refused, set_aside, suspects, too_much_together
from conveyord.storage.kafka.positions_topic import PARTITION, PositionsTopic, WriterKey, Written
from conveyord.storage.kafka.producer import Failed, Outgoing, ProducerOptions, RecordProducer

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

INIT_SLICE_SECONDS = 1.0  # between two looks at whether the one who waits is still wanted
CLOSE_SECONDS = 5.0


class Transactions:
    """One writer. Blocking; one thread at a time.

    open, start, then deliver and commit in turn. After an error that may pass (Retryable) the same pair again: what
    had landed is not sent again.
    """

    def __init__(
        self,
        connection: Connection,
        options: ProducerOptions,
        *,
        positions: PositionsTopic,
        key: WriterKey,
        token: str,
        check: Callable[[], None],
    ) -> None:
        """token: no other run has it. check: see `RecordProducer`. Connects to nothing yet."""
        self._connection, self._options, self._check = connection, options, check
        self._positions, self._key, self._token = positions, key, token
        self._producer: RecordProducer | None = None
        self._fence: Fence | None = None
        self._pending: Fence | None = None
        self.has_landed = False
        """What the last `deliver` was asked for had been committed before, it turned out: nothing is left to do."""

    @property
    def fence(self) -> Fence:
        """How far this writer has committed."""
        return self._fence or Fence(0)

    def start(self, seen: Fence | None, *, former: WriterKey | None = None) -> None:
        """Shut out whoever writes under the same transactional id, and become the writer.

        seen: what the run goes on from. former: whose fence that is, if it is to be taken over. Raises Retryable if
        another has committed since `seen` was read; asked again, this begins anew.
        """
        producer = self._init()
        found = self._settled(self._key)
        if found is None and former is not None:
            found = self._settled(former)
        if not _same_place(found, seen):
            self._drop()
            raise Retryable(
                f"topic {self._key.topic}: another run of {self._key.pipeline} committed while this one was starting; "
                "it is shut out now, so run again"
            )
        claimed = replace(seen or Fence(0), writer=self._token)
        stored, records = self._positions.written(self._key, claimed, seen)
        if former is not None:
            records.append((former.encoded(), None))
        with self._failing(producer):
            producer.client.begin_transaction()
            self._store(producer, records)
        self._fence = stored

    def deliver(self, parts: Sequence[Outgoing]) -> list[Refused]:
        """Send records in a transaction that is left open. Returns those that can never be delivered, by part.

        Raises Retryable, ConfigError, or `conveyord.core.errors.Refused` if another writer has taken over.
        """
        refused: list[dict[int, RecordError]] = [{} for _ in parts]
        self.has_landed = False
        while self._recovered():
            left = [part.without(bad) for part, bad in zip(parts, refused, strict=True)]
            failures = self._sent(list(enumerate(left)))
            set_aside([failed for failed in failures if failed.is_certain], parts, refused)
            together = [failed for failed in failures if not failed.is_certain]
            if not together:
                break
            self._abort()
            found = self._failing_alone(suspects(together, parts))
            if not found:
                raise too_much_together(together, parts)
            set_aside(found, parts, refused)
        return [*refused]

    def commit(self, fence: Fence) -> None:
        """Commit what was delivered, with `fence`, which follows on `self.fence`. Raises as `deliver` does: then what
        became of it is found out by the next `deliver`.
        """
        producer = self._producer
        assert producer is not None, "committed without a delivery"
        stored, records = self._positions.written(self._key, fence, self.fence)
        self._pending = stored
        self._store(producer, records)
        self._fence, self._pending = stored, None

    def close(self) -> None:
        """End what is open, if the brokers can be asked: else they abort it after `transaction_seconds`."""
        from confluent_kafka import KafkaException

        if self._producer is not None:
            with suppress(KafkaException):
                self._producer.client.abort_transaction(CLOSE_SECONDS)
            self._drop()

    def _recovered(self, *, is_single: bool = False) -> bool:
        """See to it that there is a producer. False if a commit whose outcome was unknown turns out to have landed."""
        if self._producer is not None:
            return True
        self._init(is_single=is_single)
        found = self._settled(self._key)
        if self._pending is not None and found is not None and found.same_batch(self._pending):
            self._fence, self._pending, self.has_landed = found, None, True
            return False
        if found is None or not found.same_batch(self.fence):
            self._drop()
            raise self._taken_over(found)
        self._pending = None
        return True

    def _settled(self, key: WriterKey) -> Fence | None:
        return self._positions.read(key, wait_seconds=self._options.transaction_seconds)

    def _init(self, *, is_single: bool = False) -> RecordProducer:
        """A new producer, after whatever was open under its transactional id has ended."""
        from confluent_kafka import KafkaException

        if self._producer is not None:
            self._drop()
        producer = RecordProducer(self._connection, self._options, check=self._check, is_single=is_single)
        deadline = time.monotonic() + self._options.transaction_seconds
        while True:
            self._check()
            try:
                producer.client.init_transactions(INIT_SLICE_SECONDS)
                break
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > deadline:
                    raise producer.failure(error.args[0]) from error
        self._producer = producer
        return producer

    def _sent(self, parts: Sequence[tuple[int, Outgoing]]) -> list[Failed]:
        """Begin a transaction with these records. Returns what failed, if they are to blame."""
        producer = self._producer
        assert producer is not None
        with self._failing(producer):
            producer.client.begin_transaction()
        for number, part in parts:
            if producer.queue(part, part=number) < len(part):
                break
        producer.flush(stops_early=True)
        failures = producer.failures()
        # A transaction with a record that is refused takes no more: what failed besides only followed from that.
        blamed = [failed for failed in failures if failed.is_their_fault]
        if failures and all(failed.is_certain for failed in blamed) and len(blamed) < len(failures):
            raise self._failed(producer, next(one.error for one in failures if not one.is_their_fault))
        return blamed

    def _failing_alone(self, records: Sequence[tuple[int, Outgoing]]) -> list[Failed]:
        """What of some records fails by itself, in a transaction of their own: the first of them, or a few."""
        if not self._recovered(is_single=True):
            return []
        failures = self._sent(records)
        self._abort()
        return failures

    def _abort(self) -> None:
        """End a transaction with records that were refused."""
        from confluent_kafka import KafkaException

        assert self._producer is not None
        # If that fails the next producer ends it, but a broker takes half a second to let that one in.
        with suppress(KafkaException):
            self._producer.client.abort_transaction(self._options.delivery_seconds)
        # They leave a gap in the sequence, over which brokers refuse all that comes later.
        self._drop()

    def _store(self, producer: RecordProducer, records: Written) -> None:
        keys, values = [key for key, _ in records], [value for _, value in records]
        partitions = [PARTITION] * len(records)
        producer.queue(Outgoing(self._positions.topic, values, keys, partitions))
        producer.flush()
        for failed in producer.failures():
            raise self._failed(producer, failed.error)
        with self._failing(producer):
            producer.client.commit_transaction(-1)

    @contextmanager
    def _failing(self, producer: RecordProducer) -> Iterator[None]:
        from confluent_kafka import KafkaException

        try:
            yield
        except KafkaException as error:
            raise self._failed(producer, error.args[0]) from error

    def _failed(self, producer: RecordProducer, error: KafkaError) -> ConveyordError:
        """Drop the producer, and say why."""
        was_fenced, failure = producer.is_fenced(error), producer.failure(error)
        self._drop()
        if not was_fenced:
            return failure
        found = self._settled(self._key)
        if found is None or found.writer != self._token:
            return self._taken_over(found)
        return Retryable(f"{failure}; nobody has taken over, so it was silent for too long")

    def _taken_over(self, found: Fence | None) -> RunRefused:
        return RunRefused(
            f"topic {self._key.topic}: another run of {self._key.pipeline} has taken over the transactional id "
            f"{self._options.transactional_id!r} (its commit {found.n if found else 0} is in {self._positions.topic}); "
            "nothing that this one had not committed is in the topic. Let one of them run"
        )

    def _drop(self) -> None:
        if self._producer is not None:
            self._producer.discard()
            self._producer = None


def _same_place(one: Fence | None, other: Fence | None) -> bool:
    """Whether a run goes on from both alike, whoever wrote them."""
    if one is None or other is None:
        return one is other or (one or other or Fence(0)).n == 0
    return (one.n, one.positions, one.positions.states) == (other.n, other.positions, other.positions.states)
