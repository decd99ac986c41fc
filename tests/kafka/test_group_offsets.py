"""Commits that librdkafka sends again, and which then arrive behind later ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
from confluent_kafka import Consumer, KafkaError
from confluent_kafka import TopicPartition as Place

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.positions import Position
from conveyord.core.flow.record_log import TopicPartition
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.group_offsets import GroupOffsets
from conveyord.storage.kafka.reader import KafkaReader
from conveyord.storage.kafka.tail import KafkaTail
from tests.kafka.mock import MockBroker

OFFSET_COMMIT = 8  # in the protocol
PLACE, OTHER = (TopicPartition("t", number) for number in range(2))


@pytest.fixture
def tail(mock: MockBroker) -> Iterator[KafkaTail]:
    found = KafkaTail(Connection(mock.bootstrap, {}, 5.0), group="g")
    yield found
    found.close()


@pytest.mark.parametrize(
    "code",
    [KafkaError.COORDINATOR_LOAD_IN_PROGRESS, KafkaError.NOT_COORDINATOR, KafkaError.REQUEST_TIMED_OUT],
)
def test_the_last_commit_is_not_overtaken_by_one_that_is_sent_again(
    tail: KafkaTail, mock: MockBroker, code: int
) -> None:
    """Found in CI, after an outage: a group a hundred records behind its table, and nobody had said so."""
    place = TopicPartition(mock.fresh_topic(partitions=1), 0)
    mock.produce(place.topic, [b"x"] * 10)
    tail.assign({place: 0})
    while not tail.poll(0.05):
        pass
    mock.call("push_request_errors", OFFSET_COMMIT, code)
    tail.commit({place: Position(3)}, wait=False)
    tail.commit({place: Position(4)}, wait=True)
    for _ in range(30):  # for longer than librdkafka waits before it sends one again
        tail.poll(0.05)
    reader = KafkaReader(Connection(mock.bootstrap, {}, 5.0))
    assert reader.committed("g", [place]) == {place: Position(4)}
    reader.close()


class Unanswered:
    """A consumer whose commits the test answers."""

    def commit(self, *, offsets: Sequence[Any], asynchronous: bool) -> None:
        assert asynchronous
        assert offsets


def offsets() -> GroupOffsets:
    def told(error: ConveyordError) -> None:
        raise error

    return GroupOffsets(Connection("127.0.0.1:9", {}, 1.0), "g", told)


CONSUMER = cast(Consumer, Unanswered())


def test_what_was_given_up_is_not_taken_for_arrived_while_an_earlier_commit_may_overtake_it() -> None:
    telling = offsets()
    telling.tell(CONSUMER, {PLACE: Position(3)})
    telling.give_up(CONSUMER, {PLACE: Position(5)})
    telling.on_commit(None, [Place(*PLACE, 5)])
    assert telling.overdue() == ({}, "")
    telling.on_commit(None, [Place(*PLACE, 3)])
    untold, _ = telling.overdue()
    assert untold == {PLACE: 3}
    assert telling.overdue() == ({}, ""), "it is told once"


@pytest.mark.parametrize("at_once", [True, False])
def test_what_was_given_up_and_may_be_overtaken_yet_is_told_at_the_limit(
    monkeypatch: pytest.MonkeyPatch, *, at_once: bool
) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.group_offsets.COMMIT_SECONDS", 0.0)
    telling = offsets()
    telling.tell(CONSUMER, {PLACE: Position(3)})
    telling.give_up(CONSUMER, {PLACE: Position(5)})
    telling.on_commit(None, [Place(*PLACE, 5)])
    untold, _ = telling.overdue(at_once=at_once)
    assert untold == {PLACE: None}


def test_that_another_partition_came_says_nothing_of_what_was_given_up() -> None:
    telling = offsets()
    telling.tell(CONSUMER, {PLACE: Position(3)})
    telling.give_up(CONSUMER, {PLACE: Position(5)})
    telling.on_commit(None, [Place(*PLACE, 5)])
    telling.forget([OTHER])
    telling.on_commit(None, [Place(*PLACE, 3)])
    untold, _ = telling.overdue()
    assert untold == {PLACE: 3}


class Refusing(Unanswered):
    """Refuses so many commits, each with the next poll, and says what it was sent; parts with a place at the first."""

    def __init__(self, refusals: int) -> None:
        self.sent = list[dict[TopicPartition, int]]()
        self.telling = offsets()
        self._refusals = refusals

    def commit(self, *, offsets: Sequence[Any], asynchronous: bool) -> None:
        assert asynchronous
        self.sent.append({TopicPartition(one.topic, one.partition): one.offset for one in offsets})

    def assignment(self) -> list[Any]:
        return []

    def pause(self, places: Sequence[Any]) -> None:
        pass

    def poll(self, _seconds: float) -> None:
        refused = KafkaError(KafkaError.REBALANCE_IN_PROGRESS) if len(self.sent) <= self._refusals else None
        if refused is not None:
            self.telling.parted([OTHER])
        self.telling.on_commit(refused, [Place(*place, at) for place, at in self.sent[-1].items()])


def answering(telling: GroupOffsets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody answers at its address, and errors are told to nobody."""
    monkeypatch.setattr(telling, "_silence", lambda *_: None)
    monkeypatch.setattr(telling, "_tell", lambda _: None)


def test_what_went_to_another_member_meanwhile_is_not_committed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = Refusing(refusals=1)
    answering(consumer.telling, monkeypatch)
    why = consumer.telling.tell_last(cast(Consumer, consumer), {PLACE: Position(5), OTHER: Position(7)})
    assert consumer.sent == [{PLACE: 5, OTHER: 7}, {PLACE: 5}]
    assert "REBALANCE_IN_PROGRESS" in why, "of the other one it is not known"


def test_the_last_commits_have_one_deadline_together_and_say_what_was_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyord.storage.kafka.group_offsets.LAST_COMMIT_SECONDS", 0.3)
    consumer = Refusing(refusals=1_000)
    answering(consumer.telling, monkeypatch)
    why = consumer.telling.tell_last(cast(Consumer, consumer), {PLACE: Position(5)})
    assert "REBALANCE_IN_PROGRESS" in why
    before = len(consumer.sent)
    assert before > 1
    assert "REBALANCE_IN_PROGRESS" in consumer.telling.tell_last(cast(Consumer, consumer), {PLACE: Position(5)})
    assert len(consumer.sent) == before


def test_what_was_given_up_and_arrived_is_no_matter_when_the_partition_comes_back_at_once() -> None:
    telling = offsets()
    telling.give_up(CONSUMER, {PLACE: Position(5)})
    telling.on_commit(None, [Place(*PLACE, 5)])
    telling.forget([PLACE])
    assert telling.overdue(at_once=True) == ({}, "")
    telling.give_up(CONSUMER, {PLACE: Position(8)})
    telling.forget([PLACE])
    untold, _ = telling.overdue(at_once=True)
    assert untold == {PLACE: None}
