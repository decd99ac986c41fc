"""Delivery of records in order, at least once, with those told that can never be delivered.

    delivery = Delivery(connection, options, check=lambda: None)
    delivery.add(Outgoing("t", values, keys))      # under way
    (refused,) = delivery.settle()                 # the brokers have every record but those
    delivery.clear()                               # nobody needs to ask again

When something fails that may pass, everything from there on is sent again, so that records of a partition keep their
order: a stretch of them may come twice, none overtakes another. A broker refuses a whole batch for one record of it;
which one is found by sending each by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from conveyord.core.errors import ConfigError, RecordError
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.errors import refusal
from conveyord.storage.kafka.producer import Failed, Outgoing, ProducerOptions, RecordProducer

Refused = Mapping[int, RecordError]
"""By what the caller calls a record, why it can never be delivered."""


class Delivery:
    """At least once, to any topics. Blocking; one thread at a time."""

    def __init__(self, connection: Connection, options: ProducerOptions, *, check: Callable[[], None]) -> None:
        """check: see `RecordProducer`. Raises ConfigError for a setting that is refused. Connects to nothing yet."""
        self._make = partial(RecordProducer, connection, options, check=check)
        self._producer: RecordProducer | None = self._make()
        self._parts: list[Outgoing] = []
        self._refused: list[dict[int, RecordError]] = []
        self._unsent: tuple[int, int] | None = None
        """The part, and the number of the record in it, from which on nothing is queued, if there is one."""

    def add(self, records: Outgoing) -> None:
        """Send records after all that were added before. Waits while the queue is full."""
        self._parts.append(records)
        self._refused.append({})
        if self._unsent is None:
            self._queue_from(len(self._parts) - 1, 0)

    def settle(self) -> list[Refused]:
        """Wait until the brokers have all that was added, but what is returned, by part.

        Raises Retryable if they cannot be reached, ConfigError if they do not let us: asked again, this sends again
        what may be missing.
        """
        while True:
            producer = self._ready()
            producer.flush()
            together = self._without_certain(producer.failures())
            if together:
                first = min((failed.part, failed.numbers[0]) for failed in together)
                self._unsent = first if self._unsent is None else min(first, self._unsent)
                self._raise_trouble(together, producer)
                self._search(together)
            if self._unsent is None:
                break
            place, self._unsent = self._unsent, None
            self._queue_from(*place)
        return [*self._refused]

    def clear(self) -> None:
        """Forget what is settled."""
        self._parts, self._refused = [], []

    def close(self) -> None:
        """Drop what was not settled; some of it may still arrive."""
        if self._producer is not None:
            self._give_up()

    def _ready(self) -> RecordProducer:
        if self._producer is None:
            self._producer = self._make()
        return self._producer

    def _give_up(self) -> None:
        producer, self._producer = self._ready(), None
        producer.discard()

    def _queue_from(self, number: int, first: int) -> None:
        for part in range(number, len(self._parts)):
            records = self._parts[part]
            left = records.without(self._refused[part], first=first if part == number else 0)
            reached = self._ready().queue(left, part=part)
            if reached < len(left):
                self._unsent = (part, left.number(reached))
                return

    def _raise_trouble(self, failures: Sequence[Failed], producer: RecordProducer) -> None:
        trouble = next((failed for failed in failures if not failed.is_their_fault), None)
        if trouble is not None:
            error = producer.failure(trouble.error)
            self._give_up()
            raise error

    def _without_certain(self, failures: Sequence[Failed]) -> list[Failed]:
        """Set aside what the client itself refuses, with which nothing else fails. Returns the rest of `failures`."""
        set_aside([failed for failed in failures if _is_alone(failed)], self._parts, self._refused)
        return [failed for failed in failures if not _is_alone(failed)]

    def _search(self, failures: Sequence[Failed]) -> None:
        """Set aside those of the records that failed together which fail by themselves too."""
        producer = self._make(is_single=True)
        for part, records in suspects(failures, self._parts):
            producer.queue(records, part=part)
        producer.flush()
        found = producer.failures()
        self._raise_trouble(found, producer)
        set_aside(found, self._parts, self._refused)
        if not found:
            raise too_much_together(failures, self._parts)


def suspects(failures: Sequence[Failed], parts: Sequence[Outgoing]) -> list[tuple[int, Outgoing]]:
    """The records that failed together, by part, in order."""
    numbers: dict[int, set[int]] = {}
    for failed in failures:
        numbers.setdefault(failed.part, set()).update(failed.numbers)
    return [(part, parts[part].chosen(numbers[part])) for part in sorted(numbers)]


def _is_alone(failed: Failed) -> bool:
    return failed.is_certain and failed.is_their_fault


def set_aside(failures: Sequence[Failed], parts: Sequence[Outgoing], refused: Sequence[dict[int, RecordError]]) -> None:
    """Add records that failed by themselves to what is refused, however many."""
    for failed in failures:
        (number,) = failed.numbers
        refused[failed.part][number] = refusal(failed.error, parts[failed.part].topic)


def too_much_together(failures: Sequence[Failed], parts: Sequence[Outgoing]) -> ConfigError:
    """The error for records that can all be delivered, but not in batches as large as ours."""
    failed = failures[0]
    return ConfigError(
        f"topic {parts[failed.part].topic}: the broker refuses records together that it takes one by one "
        f"({failed.error.str()}); set max_record_bytes to the topic's own max.message.bytes"
    )
