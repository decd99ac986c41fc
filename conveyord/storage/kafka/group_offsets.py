"""What a group is told of how far its member is, and what it has taken of that.

Commits are never waited for within a callback, where nobody can poll for an answer: librdkafka sends a commit again for
ever if nobody gives one. It joins a group again only once commits are answered, so what is sent while partitions are
given up is known before another member has them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import TopicPartition
from conveyord.storage.kafka.connection import Connection, Contact
from conveyord.storage.kafka.errors import as_conveyord_error

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError
    from confluent_kafka import TopicPartition as Place

COMMIT_SECONDS = 10.0  # for a commit that others wait for: another member reads on from it
LAST_COMMIT_SECONDS = 30.0  # for the last one, where somebody answers: the group's coordinator may have to come up
COMMIT_PAUSE_SECONDS = 0.1
ASK_SECONDS = 5.0  # between two looks whether a cluster that is away has come back
_PASSING = {
    "COORDINATOR_LOAD_IN_PROGRESS",
    "COORDINATOR_NOT_AVAILABLE",
    "ILLEGAL_GENERATION",
    "NOT_COORDINATOR",
    "REBALANCE_IN_PROGRESS",
    "REQUEST_TIMED_OUT",
    "_TIMED_OUT",
    "_TRANSPORT",
    "_WAIT_COORD",
}
"""What a commit may fail with that passes for who polls meanwhile, and so hears of the generation that has begun."""
NO_ANSWER = "no answer within seconds"
OVERTAKEN = "a commit before it was sent again, and arrived behind it"


class GroupOffsets:
    """The commits of one consumer. For the thread that polls; `on_commit` is for the consumer to call."""

    def __init__(self, connection: Connection, group: str | None, tell: Callable[[ConveyordError], None]) -> None:
        """tell: is given what went wrong."""
        self._connection = connection
        self._group = group
        self._tell = tell
        self.is_down = False
        """Whether the cluster is away, as far as was told."""
        self._taken: dict[TopicPartition, int] = {}  # since a partition is ours
        self._given_up: Mapping[TopicPartition, Position] = {}  # and not known to be taken
        self._given_up_by = 0.0
        self._asked_at = -ASK_SECONDS
        self._last_by: float | None = None  # until when the last commits are tried
        self._parted: set[TopicPartition] = set()  # since the last commit was begun
        self._under_way = 0
        self._refusals: list[KafkaError] = []
        self._lock = threading.Lock()  # of _under_way: a consumer that is left to itself closes in another thread

    @property
    def are_under_way(self) -> bool:
        """Whether an answer is missing."""
        return self._under_way > 0

    def forget(self, places: Collection[TopicPartition]) -> None:
        """These came to us, and others may have moved the group's offsets since they were ours."""
        # While that is known. They are dealt out once every commit is answered, so nothing overtakes it any more.
        self._given_up = {
            place: at
            for place, at in self._given_up.items()
            if place not in places or self._taken.get(place) != at.offset
        }
        for place in places:
            self._taken.pop(place, None)

    def taken(self, places: Collection[TopicPartition]) -> Mapping[TopicPartition, int | None]:
        """What the group has taken of these, if anything, since they are ours."""
        return {place: self._taken.get(place) for place in places}

    def untaken(self, offsets: Mapping[TopicPartition, Position]) -> Mapping[TopicPartition, Position]:
        """What the group is not known to have taken; nothing if there is no group."""
        if self._group is None:
            return {}
        return {place: at for place, at in offsets.items() if self._taken.get(place) != at.offset}

    # -------------------------------------------------------------------------- telling

    def tell(self, consumer: Consumer, offsets: Mapping[TopicPartition, Position]) -> None:
        """Commit, and do not wait. Nothing is sent while an answer is missing, or where nobody answers."""
        news = self.untaken(offsets)
        if news and not self.are_under_way and not self._is_away(_topic(news)):
            self._refusals.clear()
            self._send(consumer, news)

    def _is_away(self, topic: str) -> bool:
        if self.is_down and time.monotonic() - self._asked_at >= ASK_SECONDS:
            self._silence(topic, time.monotonic())
            self._asked_at = time.monotonic()
        return self.is_down

    def tell_last(self, consumer: Consumer, offsets: Mapping[TopicPartition, Position]) -> str:
        """Commit, and poll until that is answered, for 10 s at most where nobody answers and 30 s else, however often
        it is called; what comes meanwhile is dropped. Returns why the group has not taken all.
        """
        news = self.untaken(offsets)
        if not news:
            return ""
        if self._last_by is None:
            self._last_by = time.monotonic() + LAST_COMMIT_SECONDS
            self._refusals.clear()
        deadline = self._last_by
        silence = self._silence(_topic(news), min(deadline, time.monotonic() + COMMIT_SECONDS))
        if silence is not None:
            return str(silence)
        self._parted.clear()
        while time.monotonic() < deadline:
            self.await_answers(consumer, deadline)  # one that was sent before, and again, could arrive after this one
            # In that time some may have become another member's, who must not be told of where we were.
            ours = {place: at for place, at in news.items() if place not in self._parted}
            refused = len(self._refusals)
            if ours and not self.are_under_way:
                self._send(consumer, ours)
            self.await_answers(consumer, deadline)
            if len(self._refusals) == refused or self._refusals[-1].name() not in _PASSING:
                break
            time.sleep(COMMIT_PAUSE_SECONDS)
        return self._why if self.untaken(news) else ""

    def parted(self, places: Collection[TopicPartition]) -> None:
        """These are not ours any more."""
        self._parted.update(places)

    def give_up(self, consumer: Consumer, offsets: Mapping[TopicPartition, Position]) -> None:
        """Commit what another member reads on from; `overdue` tells whether that arrived. Within a callback."""
        news = self.untaken(offsets)
        if news:
            self._given_up = {**self._given_up, **news}
            self._given_up_by = time.monotonic() + COMMIT_SECONDS
            self._refusals.clear()
            self._send(consumer, news)

    def overdue(self, *, at_once: bool = False) -> tuple[Mapping[TopicPartition, int | None], str]:
        """What was given up and is not known to have arrived: how far the group knows it, and why; once it is refused,
        or after 10 s, or `at_once`. It is not sent again: this member joins again with the answer, and who is given the
        partitions then may have begun to read.
        """
        # Also what has arrived is not taken for it before: an earlier commit may be sent again, and arrive behind it.
        if not self._given_up or not (at_once or not self.are_under_way or time.monotonic() >= self._given_up_by):
            return {}, ""
        left, self._given_up = self._given_up, {}
        if self.are_under_way:
            return dict.fromkeys(left), self._why
        left = self.untaken(left)
        return (self.taken(left), self._why) if left else ({}, "")

    def await_answers(self, consumer: Consumer, deadline: float) -> None:
        """Poll until every commit is answered: reading has ended, so what comes beside that is dropped."""
        if self.are_under_way:
            consumer.pause(consumer.assignment())
        while self.are_under_way and time.monotonic() < deadline:
            consumer.poll(COMMIT_PAUSE_SECONDS)

    @property
    def _why(self) -> str:
        said = {str(as_conveyord_error(error, self._connection.brokers)) for error in self._refusals}
        silence = NO_ANSWER if self.are_under_way else OVERTAKEN
        return "; ".join(sorted(said)) or f"Kafka at {self._connection.brokers}: {silence}"

    def _silence(self, topic: str, deadline: float) -> ConveyordError | None:
        """The error if nobody answers by then, asked once at least. Where nobody does, a commit would stay under way,
        and a consumer cannot be closed meanwhile.
        """
        contact = Contact(self._connection)  # a client of its own: what the consumer itself is asked may wait for long
        while True:
            try:
                contact.metadata(topic)
            except ConveyordError as error:
                if time.monotonic() >= deadline:
                    self._tell(error)
                    return error
                time.sleep(COMMIT_PAUSE_SECONDS)
            else:
                self.is_down = False
                return None

    # -------------------------------------------------------------------------- what is answered

    def _send(self, consumer: Consumer, offsets: Mapping[TopicPartition, Position]) -> None:
        from confluent_kafka import KafkaException
        from confluent_kafka import TopicPartition as Place

        places = [Place(*place, position.offset, position.mark) for place, position in offsets.items()]
        with self._lock:
            self._under_way += 1
        try:
            consumer.commit(offsets=places, asynchronous=True)
        except KafkaException as error:
            self.on_commit(error.args[0], [])

    def on_commit(self, error: KafkaError | None, places: list[Place]) -> None:
        """A commit was answered."""
        with self._lock:
            self._under_way -= 1
        if error is None:
            self._taken |= {TopicPartition(one.topic, one.partition): one.offset for one in places if one.error is None}
        refused = [error] if error is not None else [one.error for one in places if one.error is not None]
        for one in refused[:1]:  # the others say the same
            self._refusals.append(one)
            self._tell(as_conveyord_error(one, self._connection.brokers))


def _topic(offsets: Mapping[TopicPartition, Position]) -> str:
    return next(iter(offsets)).topic
