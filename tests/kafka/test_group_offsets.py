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
PLACE = TopicPartition("t", 0)


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
