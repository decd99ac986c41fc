"""Follows Kafka partitions: `core/flow/record_log.py: Tail` by librdkafka's consumer.

The consumer is created with `auto.offset.reset=error`: where to begin is always said, and an offset that is gone is an
event, never a silent jump. Offsets of groups are committed only when the caller says so.
"""

from __future__ import annotations

import re
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from conveyord.core.errors import ConfigError, ConveyordError, Retryable, Superseded
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import (
    Event,
    Listener,
    Meta,
    OutOfRange,
    Records,
    TopicPartition,
    Vanished,
    total_bytes,
)
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.errors import as_conveyord_error
from conveyord.storage.kafka.group_offsets import GroupOffsets

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message
    from confluent_kafka import TopicPartition as Place

CONSUME_MAX = 1_000
"""Messages taken at once. More make Python's garbage collector slow, fewer cost more calls."""
CONSUME_BYTES = 8 * 1024 * 1024  # about as much is taken at once, so that large messages do not come by the thousand
ERRORS_KEPT = 100  # of those that nobody has asked for yet
CLOSE_SECONDS = 5.0  # for the answer to a commit that is under way
SETTINGS = {
    "auto.offset.reset": "error",
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "partition.assignment.strategy": "cooperative-sticky",
}
DEFAULTS = {
    # By default a reader whose queue was full for a moment fetches nothing for a second.
    "fetch.queue.backoff.ms": 10,
    "queued.max.messages.kbytes": 32 * 1024,
}
_BEFELL: dict[str, type[OutOfRange | Vanished]] = {
    "_AUTO_OFFSET_RESET": OutOfRange,
    "OFFSET_OUT_OF_RANGE": OutOfRange,
    "_UNKNOWN_PARTITION": Vanished,
    "_UNKNOWN_TOPIC": Vanished,
    "UNKNOWN_TOPIC_OR_PART": Vanished,
}
_NAMED_PARTITION = re.compile(r"(\S+) \[(\d+)\]: ")
NO_GROUP = "conveyord"
"""librdkafka wants a name even of those who are in no group."""


class KafkaTail:
    """`Tail` on a real cluster. One thread at a time, but for `errors`."""

    def __init__(self, connection: Connection, *, group: str | None, wants: Collection[Meta] = ()) -> None:
        """wants: what records are to have beside values. Raises ConfigError if librdkafka refuses a setting."""
        from confluent_kafka import Consumer, KafkaException

        self._connection = connection
        self._brokers = connection.brokers
        self._wants = frozenset(wants)
        self._group = group
        self._errors: deque[ConveyordError] = deque(maxlen=ERRORS_KEPT)
        self._fatal: Exception | None = None
        self._followed: dict[TopicPartition, int] = {}
        self._vanished: deque[TopicPartition] = deque()
        self._known_gone: set[TopicPartition] = set()
        self._paused = False
        self._listener: Listener | None = None  # until it has given up everything
        self._count = CONSUME_MAX
        self._lock = threading.Lock()  # of _errors: callbacks come in whatever thread polls
        self._offsets = GroupOffsets(connection, group, self._note)
        own = {**SETTINGS, "group.id": group or NO_GROUP, "on_commit": self._offsets.on_commit}
        defaults = Connection(
            connection.brokers, {**_texts(DEFAULTS), **connection.settings}, connection.connect_seconds
        )
        try:
            self._consumer: Consumer = Consumer(defaults.client(own, on_error=self._on_error))
        except KafkaException as error:
            raise as_conveyord_error(error.args[0], self._brokers) from error
        except (TypeError, ValueError) as error:  # what the binding itself checks
            raise ConfigError(f"client: {error}; mend the setting") from error

    # -------------------------------------------------------------------------- what to follow

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        """See `Tail.assign`."""
        if not starts:
            return
        self._consumer.incremental_assign(self._places(starts))
        self._follow(starts)

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        """See `Tail.unassign`."""
        known = [partition for partition in partitions if self._followed.pop(partition, None) is not None]
        if known:
            self._consumer.incremental_unassign(self._places(dict.fromkeys(known, 0)))

    def follows(self, partition: TopicPartition) -> bool:
        """See `Tail.follows`."""
        return partition in self._followed

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        """See `Tail.subscribe`."""

        def on_assign(consumer: Consumer, places: list[Place]) -> None:
            partitions = [_partition(place) for place in places]
            starts: Mapping[TopicPartition, int] = {}
            with self._later():
                starts = listener.assigned(partitions)
            with self._later():
                # All that was given must be taken, or it cannot be given back; what nobody wants is never fetched.
                unwanted = self._places({one: 0 for one in partitions if one not in starts})
                consumer.incremental_assign([*self._places(starts), *unwanted])
                if unwanted:
                    consumer.pause(unwanted)
                self._follow(starts)

        def on_revoke(consumer: Consumer, places: list[Place]) -> None:
            partitions = [_partition(place) for place in places]
            with self._later():
                if self._listener is not None:
                    self._offsets.give_up(consumer, listener.revoked(partitions))
            with self._later():
                self._drop(consumer, partitions)

        def on_lost(consumer: Consumer, places: list[Place]) -> None:
            partitions = [_partition(place) for place in places]
            with self._later():
                if self._listener is not None:
                    listener.lost(self._offsets.taken(partitions))
            with self._later():
                self._drop(consumer, partitions)

        self._listener = listener
        self._consumer.subscribe(list(topics), on_assign=on_assign, on_revoke=on_revoke, on_lost=on_lost)

    def _demand(self, listener: Listener, untold: Mapping[TopicPartition, int | None], why: str) -> None:
        if untold:
            listener.untold(untold, why)

    @contextmanager
    def _later(self) -> Iterator[None]:
        """Keep the first error for the end of `poll`: librdkafka's stack, where callbacks run, is no place for it."""
        from confluent_kafka import KafkaException

        try:
            yield
        except KafkaException as error:
            # Whatever it is called, no setting is to blame: this member and the group are not of one mind.
            again = Retryable(f"Kafka at {self._brokers}: {error.args[0].str()}; joining the group again")
            self._fatal = self._fatal or again
        except Exception as error:  # noqa: BLE001 - some would leave the binding as what is no exception at all
            if self._fatal is None or isinstance(error, Superseded):  # which says all that others said of it before
                self._fatal = error

    def _drop(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        for partition in partitions:
            self._followed.pop(partition, None)
        self._offsets.parted(partitions)
        if partitions:
            consumer.incremental_unassign(self._places(dict.fromkeys(partitions, 0)))

    def _follow(self, starts: Mapping[TopicPartition, int]) -> None:
        self._followed.update(starts)
        self._offsets.forget(starts)
        self._known_gone -= starts.keys()
        if self._paused:
            self._consumer.pause(self._places(starts))

    def pause(self) -> None:
        """See `Tail.pause`."""
        self._paused = True
        self._consumer.pause(self._places(self._followed))

    def resume(self) -> None:
        """See `Tail.resume`."""
        self._paused = False
        self._consumer.resume(self._places(self._followed))

    # -------------------------------------------------------------------------- what comes

    def poll(self, seconds: float) -> Sequence[Event]:
        """See `Tail.poll`."""
        messages = self._consumer.consume(self._count, seconds)
        if self._fatal is not None:
            raise self._fatal
        if self._listener is not None:
            self._demand(self._listener, *self._offsets.overdue())
        if not messages and not self._vanished:
            return ()
        runs: dict[tuple[str, int], list[Message]] = {}
        events: list[Event] = []
        for message in messages:
            error = message.error()
            if error is not None:
                events += self._said(message, error, runs)
                continue
            place = message.topic(), message.partition()
            run = runs.get(place)
            if run is None:
                runs[place] = [message]
            else:
                run.append(message)
        # What was said in between took the records before it along, so these come behind it.
        events += [self._records(TopicPartition(*place), run) for place, run in runs.items()]
        self._pace(events)
        while self._vanished:
            events.append(Vanished(self._vanished.popleft()))
        return events

    def _said(self, message: Message, error: KafkaError, runs: dict[tuple[str, int], list[Message]]) -> list[Event]:
        """What an error stands for which came in place of a message, behind the records of its partition so far."""
        name = error.name()
        topic, number = message.topic(), message.partition()
        if topic is not None and number is not None:
            partition = TopicPartition(topic, number)
            if name == "_PARTITION_EOF":
                end = message.offset()
                assert end is not None
                return [self._records(partition, runs.pop((topic, number), []), end=end)]
            befell = _BEFELL.get(name)
            if befell is not None:
                run = runs.pop((topic, number), [])
                return [*([self._records(partition, run)] if run else []), befell(partition)]
        self._on_error(error)
        if self._fatal is not None:
            raise self._fatal
        return []

    def _records(self, partition: TopicPartition, run: list[Message], *, end: int | None = None) -> Records:
        if not run:
            assert end is not None
            return Records(partition, (), (), end)
        first, last = run[0].offset(), run[-1].offset()
        assert first is not None
        assert last is not None
        offsets: Sequence[int] = range(first, last + 1)
        if len(offsets) != len(run):
            offsets = [offset for message in run if (offset := message.offset()) is not None]
        values = [message.value() for message in run]
        return Records(
            partition,
            offsets,
            values,
            last + 1 if end is None else max(end, last + 1),
            total_bytes(values),
            run[-1].timestamp()[1],
            [message.key() for message in run] if "key" in self._wants else None,
            [message.headers() or () for message in run] if "headers" in self._wants else None,
            [message.timestamp()[1] for message in run] if "timestamp" in self._wants else None,
        )

    def _pace(self, events: Sequence[Event]) -> None:
        """Take fewer messages at once if they are large."""
        found = [event for event in events if isinstance(event, Records) and event.offsets]
        if found:
            mean = sum(records.value_bytes for records in found) // sum(len(records.offsets) for records in found)
            self._count = max(1, min(CONSUME_MAX, CONSUME_BYTES // max(1, mean)))

    def ends(self) -> Mapping[TopicPartition, int]:
        """See `Tail.ends`."""
        found = {}
        for partition in self._followed:
            extent = self._consumer.get_watermark_offsets(self._places({partition: 0})[0], cached=True)
            if extent is not None and extent[1] >= 0:
                found[partition] = extent[1]
        return found

    # -------------------------------------------------------------------------- the group

    def commit(self, offsets: Mapping[TopicPartition, Position], *, wait: bool) -> None:
        """See `Tail.commit`."""
        if wait:
            why = self._offsets.tell_last(self._consumer, offsets)
            if why and self._listener is None:  # else `close` says it, as it may matter then
                self._note(Retryable(f"the group {self._group!r} was not told how far this run is: {why}"))
        else:
            self._offsets.tell(self._consumer, offsets)

    # -------------------------------------------------------------------------- what goes wrong

    def errors(self) -> Sequence[ConveyordError]:
        """See `Tail.errors`."""
        with self._lock:
            found = list(self._errors)
            self._errors.clear()
        return found

    def _on_error(self, error: KafkaError) -> None:
        if _BEFELL.get(error.name()) is Vanished:
            # Nobody must mend that here, and librdkafka says it with every look at its metadata.
            self._note_vanished(error.str())
            return
        self._offsets.is_down |= error.name() == "_ALL_BROKERS_DOWN"
        found = as_conveyord_error(error, self._brokers)
        if isinstance(found, ConfigError) or error.fatal():
            self._fatal = found
        self._tell(error)

    def _note_vanished(self, text: str) -> None:
        """Take from a sentence of librdkafka's, `topic [3]: ...`, which partition is gone: it says so nowhere else."""
        found = _NAMED_PARTITION.match(text)
        if found is None:
            return
        partition = TopicPartition(found[1], int(found[2]))
        if partition in self._followed and partition not in self._known_gone:
            self._known_gone.add(partition)
            self._vanished.append(partition)

    def _tell(self, error: KafkaError) -> None:
        self._note(as_conveyord_error(error, self._brokers))

    def _note(self, error: ConveyordError) -> None:
        with self._lock:
            self._errors.append(error)

    def close(self) -> None:
        """See `Tail.close`."""
        known = self._fatal
        with self._later():
            if self._listener is not None:
                self._leave(self._listener)
        self._listener = None
        self._offsets.await_answers(self._consumer, time.monotonic() + CLOSE_SECONDS)
        if self._offsets.are_under_way:
            # It waits for the answer to a commit for ever; so let it, until a broker answers or the process ends.
            threading.Thread(target=self._consumer.close, daemon=True).start()
        else:
            # In this thread: in another one the binding's callbacks and librdkafka can wait for each other for ever.
            self._consumer.close()
        if self._fatal is not None and self._fatal is not known:
            raise self._fatal

    def _leave(self, listener: Listener) -> None:
        """Give up what is ours while it is: others get it once the consumer is closed."""
        offsets = listener.revoked(list(self._followed))
        why = self._offsets.tell_last(self._consumer, offsets)
        self._offsets.await_answers(self._consumer, time.monotonic() + CLOSE_SECONDS)
        earlier, said = self._offsets.overdue(at_once=True)
        self._demand(listener, {**self._offsets.taken(self._offsets.untaken(offsets)), **earlier}, why or said)

    def _places(self, offsets: Mapping[TopicPartition, int]) -> list[Any]:
        from confluent_kafka import TopicPartition as Place

        return [Place(topic, number, offset) for (topic, number), offset in offsets.items()]


def _partition(place: Place) -> TopicPartition:
    return TopicPartition(place.topic, place.partition)


def _texts(settings: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in settings.items()}
