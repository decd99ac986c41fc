"""What `KafkaTail` makes of what librdkafka hands over at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka import TopicPartition as Place

from conveyord.core.errors import Retryable
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import OutOfRange, Records, TopicPartition, Vanished
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.reader import KafkaReader
from conveyord.storage.kafka.tail import KafkaTail
from tests.kafka.log_rig import Member, records_in
from tests.kafka.mock import MockBroker

PLACES = [TopicPartition("t", number) for number in range(2)]


@dataclass
class Said:
    """A message of librdkafka's, or an error in place of one."""

    place: TopicPartition
    at: int
    code: int | None = None

    def error(self) -> KafkaError | None:
        return None if self.code is None else KafkaError(self.code)

    def topic(self) -> str:
        return self.place.topic

    def partition(self) -> int:
        return self.place.number

    def offset(self) -> int:
        return self.at

    def value(self) -> bytes:
        return b"%d" % self.at

    def timestamp(self) -> tuple[int, int]:
        return 1, self.at


class Consumer:
    """Hands over what it was given. Commits fail with `refusals`, one for each; each is answered by the next poll."""

    def __init__(self, said: Sequence[Said] = (), *, refusals: Sequence[int] = (), is_mute: bool = False) -> None:
        self._said = list(said)
        self._refusals = list(refusals)
        self._is_mute = is_mute
        self._asked: list[Sequence[Any]] = []
        self.commits = 0
        self.is_closed = threading.Event()
        self.answer: Callable[[KafkaError | None, list[Any]], None] | None = None

    def commit(self, *, offsets: Sequence[Any], asynchronous: bool) -> None:
        assert asynchronous
        self.commits += 1
        self._asked.append(offsets)

    def assignment(self) -> list[Any]:
        return []

    def pause(self, places: Sequence[Any]) -> None:
        pass

    def subscribe(self, _topics: list[str], **callbacks: Callable[[Any, list[Any]], None]) -> None:
        self._callbacks = callbacks

    def revoke(self) -> None:
        self._callbacks["on_revoke"](self, [Place(*place) for place in PLACES])

    def lose(self) -> None:
        self._callbacks["on_lost"](self, [Place(*place) for place in PLACES])

    def incremental_unassign(self, places: Sequence[Any]) -> None:
        pass

    def poll(self, _seconds: float) -> None:
        assert self.answer is not None
        asked, self._asked = self._asked, self._asked if self._is_mute else []
        for offsets in () if self._is_mute else asked:
            self.answer(KafkaError(self._refusals.pop(0)) if self._refusals else None, list(offsets))

    def consume(self, _count: int, _seconds: float) -> list[Any]:
        self.poll(0.0)
        said, self._said = self._said, []
        return said

    def close(self) -> None:
        self.is_closed.set()


def with_consumer(tail: KafkaTail, consumer: Consumer) -> Consumer:
    tail._consumer = consumer  # type: ignore[assignment]
    consumer.answer = tail._offsets.on_commit
    return consumer


def in_group(tail: KafkaTail, bootstrap: str | None) -> None:
    """Have it be in a group; without `bootstrap` nobody answers it."""
    tail._offsets._group = "g"
    if bootstrap is not None:
        tail._offsets._connection = Connection(bootstrap, {}, 5.0)


@pytest.fixture
def tail() -> Iterator[KafkaTail]:
    """One that is connected to nothing."""
    found = KafkaTail(Connection("127.0.0.1:9", {}, 1.0), group=None)
    consumer = found._consumer
    yield found
    consumer.close()


def polled(tail: KafkaTail, *said: Said) -> list[Any]:
    with_consumer(tail, Consumer(said))
    return list(tail.poll(0.0))


def test_the_end_that_is_told_between_two_records_parts_them(tail: KafkaTail) -> None:
    place = PLACES[0]
    events = polled(tail, Said(place, 0), Said(place, 2, KafkaError._PARTITION_EOF), Said(place, 2))
    assert [(list(event.offsets), event.end) for event in events] == [([0], 2), ([2], 3)]


def test_what_befalls_a_partition_comes_behind_its_records(tail: KafkaTail) -> None:
    said = [Said(PLACES[0], 0), Said(PLACES[1], 5), Said(PLACES[0], 1, KafkaError._AUTO_OFFSET_RESET)]
    events = polled(tail, *said, Said(PLACES[1], 6), Said(PLACES[1], 7, KafkaError._UNKNOWN_PARTITION))
    assert records_in(events, PLACES[0]) == [(0, b"0")]
    assert records_in(events, PLACES[1]) == [(5, b"5"), (6, b"6")]
    of_places = {place: [type(event) for event in events if event.partition == place] for place in PLACES}
    assert of_places == {PLACES[0]: [Records, OutOfRange], PLACES[1]: [Records, Vanished]}


def test_an_error_without_a_partition_is_counted(tail: KafkaTail) -> None:
    assert polled(tail, Said(PLACES[0], 0), Said(PLACES[0], 0, KafkaError._TRANSPORT)) != []
    assert [error.code for error in tail.errors()] == ["UNAVAILABLE"]


def test_a_topic_that_is_gone_is_told_once_for_each_partition_and_is_no_error(tail: KafkaTail) -> None:
    tail._followed |= dict.fromkeys(PLACES, 0)
    for _ in range(2):
        tail._on_error(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "t [1]: topic does not exist"))
    tail._on_error(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART, "t [7]: topic does not exist"))
    assert polled(tail) == [Vanished(PLACES[1])]
    assert polled(tail) == []
    assert list(tail.errors()) == []


@pytest.mark.parametrize(
    ("refusals", "wait", "commits", "errors"),
    [
        ([KafkaError.REBALANCE_IN_PROGRESS] * 2, True, 3, 2),
        ([KafkaError.ILLEGAL_GENERATION], True, 2, 1),
        ([KafkaError.REBALANCE_IN_PROGRESS] * 2, False, 1, 0),
        ([KafkaError.UNKNOWN_MEMBER_ID] * 2, True, 1, 2),  # what was refused, and that the group was not told
    ],
)
def test_a_commit_that_is_waited_for_is_tried_again_while_that_can_help(
    tail: KafkaTail, mock: MockBroker, refusals: list[int], commits: int, errors: int, *, wait: bool
) -> None:
    in_group(tail, mock.bootstrap)
    consumer = with_consumer(tail, Consumer(refusals=refusals))
    tail.commit({PLACES[0]: Position(1)}, wait=wait)
    assert consumer.commits == commits
    assert len(tail.errors()) == errors


@pytest.mark.parametrize(
    ("is_down", "wait", "is_there", "commits"),
    [
        (True, True, False, 0),
        (False, True, False, 0),
        (True, False, False, 0),
        (True, True, True, 1),
        (False, False, False, 1),
    ],
)
def test_nothing_is_committed_where_nobody_answers_as_closing_would_wait_for_it(
    tail: KafkaTail,
    mock: MockBroker,
    monkeypatch: pytest.MonkeyPatch,
    commits: int,
    *,
    is_down: bool,
    wait: bool,
    is_there: bool,
) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.group_offsets.COMMIT_SECONDS", 0.1)
    in_group(tail, mock.bootstrap if is_there else None)
    consumer = with_consumer(tail, Consumer())
    if is_down:
        tail._on_error(KafkaError(KafkaError._ALL_BROKERS_DOWN))
        tail.errors()
    tail.commit({PLACES[0]: Position(1)}, wait=wait)
    assert consumer.commits == commits
    assert len(tail.errors()) == (0 if commits else 1 + wait), "that the last commit was not taken is said as well"


@dataclass
class Leaving:
    """A listener that gives up what it has read, and keeps what it is told."""

    offsets: Mapping[TopicPartition, Position]
    told: list[tuple[Mapping[TopicPartition, int | None], str]] = field(default_factory=list)

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        raise NotImplementedError

    def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        return self.offsets

    def untold(self, told: Mapping[TopicPartition, int | None], why: str) -> None:
        self.told.append((told, why))

    def lost(self, told: Mapping[TopicPartition, int | None]) -> None:
        self.told.append((told, "lost"))


def polled_until(tail: KafkaTail, seconds: float = 0.6) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        tail.poll(0.0)
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("is_mute", "refusals", "why"),
    [
        (True, [], "no answer within seconds"),
        (False, [KafkaError.UNKNOWN_MEMBER_ID], "UNKNOWN_MEMBER_ID"),
        (False, [KafkaError._WAIT_COORD], "_WAIT_COORD"),
    ],
)
def test_a_listener_hears_what_the_group_does_not_take_of_what_it_gave_up(
    tail: KafkaTail, monkeypatch: pytest.MonkeyPatch, why: str, *, is_mute: bool, refusals: list[int]
) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.group_offsets.COMMIT_SECONDS", 0.3)
    in_group(tail, None)
    consumer = with_consumer(tail, Consumer(refusals=refusals, is_mute=is_mute))
    listener = Leaving({PLACES[0]: Position(5), PLACES[1]: Position(7)})
    tail.subscribe(["t"], listener)
    tail._offsets._under_way = 1
    tail._offsets.on_commit(None, [Place("t", 0, 5)])
    consumer.revoke()
    polled_until(tail)
    ((told, said),) = listener.told
    assert told == {PLACES[1]: None}
    assert why in said
    assert consumer.commits == 1, "who is given it with the next generation may have begun to read"


def test_a_listener_hears_nothing_of_what_the_group_takes(tail: KafkaTail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.group_offsets.COMMIT_SECONDS", 0.3)
    in_group(tail, None)
    consumer = with_consumer(tail, Consumer())
    listener = Leaving({PLACES[0]: Position(5)})
    tail.subscribe(["t"], listener)
    consumer.revoke()
    polled_until(tail)
    assert listener.told == []
    consumer.lose()
    assert listener.told == [({PLACES[0]: 5, PLACES[1]: None}, "lost")]


@pytest.mark.parametrize("is_there", [True, False])
def test_who_leaves_gives_up_what_is_ours_before_the_consumer_closes(
    tail: KafkaTail, mock: MockBroker, monkeypatch: pytest.MonkeyPatch, *, is_there: bool
) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.group_offsets.COMMIT_SECONDS", 0.1)
    in_group(tail, mock.bootstrap if is_there else None)
    consumer = with_consumer(tail, Consumer())
    listener = Leaving({PLACES[0]: Position(5)})
    tail.subscribe(["t"], listener)
    tail.close()
    assert consumer.is_closed.is_set()
    assert consumer.commits == is_there
    assert [told for told, _ in listener.told] == [] if is_there else [{PLACES[0]: None}]
    consumer.revoke()
    assert len(listener.told) == 1 - is_there, "it has given up everything"


def test_who_leaves_before_the_group_has_answered_says_so(tail: KafkaTail, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.tail.CLOSE_SECONDS", 0.1)
    in_group(tail, None)
    consumer = with_consumer(tail, Consumer(is_mute=True))
    listener = Leaving({PLACES[0]: Position(5)})
    tail.subscribe(["t"], listener)
    consumer.revoke()
    tail.poll(0.0)
    assert listener.told == []
    listener.offsets = {}  # nothing else is ours
    tail.close()
    assert [told for told, _ in listener.told] == [{PLACES[0]: None}]


def test_a_commit_that_is_never_answered_keeps_nobody_from_closing(
    tail: KafkaTail, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.tail.CLOSE_SECONDS", 0.1)
    in_group(tail, None)
    consumer, may_close = with_consumer(tail, Consumer(is_mute=True)), threading.Event()
    monkeypatch.setattr(consumer, "close", lambda: may_close.wait() and consumer.is_closed.set())
    tail.commit({PLACES[0]: Position(1)}, wait=False)
    tail.close()
    assert not consumer.is_closed.is_set()
    may_close.set()
    assert consumer.is_closed.wait(5.0), "once it can"


def test_no_commit_is_sent_while_one_is_not_answered(tail: KafkaTail) -> None:
    """Where nobody answers they would pile up, and each keeps the consumer from closing."""
    in_group(tail, None)
    consumer = with_consumer(tail, Consumer())
    for offset in (1, 2, 3):
        tail.commit({PLACES[0]: Position(offset)}, wait=False)
    assert consumer.commits == 1
    tail.poll(0.0)
    tail.commit({PLACES[0]: Position(3)}, wait=False)
    assert consumer.commits == 2


class Contradicting(Consumer):
    """Says that what the group takes away is none of ours, as librdkafka does if it was given up just before."""

    def subscribe(self, _topics: Sequence[str], *, on_revoke: Callable[[Any, list[Any]], None], **_others: Any) -> None:
        self._on_revoke = on_revoke

    def consume(self, _count: int, _seconds: float) -> list[Any]:
        self._on_revoke(self, [Place("t", 0)])
        return []

    def incremental_unassign(self, _places: Sequence[Any]) -> None:
        raise KafkaException(KafkaError(KafkaError._INVALID_ARG, "t [0] can't be unassigned"))


class Yielding(Member):
    def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        return {}


def test_what_the_binding_raises_within_a_callback_comes_out_of_the_poll(tail: KafkaTail, mock: MockBroker) -> None:
    """It would make of it what is no exception, and the thread would be gone without a word."""
    reader = KafkaReader(Connection(mock.bootstrap, {}, 5.0))
    tail._consumer = Contradicting()  # type: ignore[assignment]
    tail.subscribe(["t"], Yielding(reader, "g"))
    with pytest.raises(Retryable, match=r"t \[0\] can't be unassigned; joining the group again"):
        tail.poll(0.0)
    reader.close()
