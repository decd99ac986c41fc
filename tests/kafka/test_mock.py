"""Where librdkafka's mock is wrong. A test that fails here is good news: take its name off the list in mock.py."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.kafka.cluster import Record
from tests.kafka.mock import MockBroker

ANSWER_SECONDS_MAX = 30
PRODUCE = 0  # a request's number in Kafka's protocol
TOPIC_AUTHORIZATION_FAILED = 29  # an error of that protocol


def test_it_finds_no_offset_for_any_time(mock: MockBroker) -> None:
    topic = mock.fresh_topic(partitions=1)
    mock.produce(topic, [Record(value=b"", timestamp_ms=1000, partition=0)])
    consumer = Consumer({**mock.settings, "group.id": "none"})
    (found,) = consumer.offsets_for_times([TopicPartition(topic, 0, 500)], ANSWER_SECONDS_MAX)
    consumer.close()
    assert (found.offset, found.error) == (-1, None)


def test_it_shows_what_was_taken_back(mock: MockBroker) -> None:
    topic = mock.fresh_topic(partitions=1)
    mock.produce_aborted(topic, [b"taken back"])
    assert [found.value for found in mock.read(topic, committed=True)] == [b"taken back"]


def test_it_forgets_offsets_sent_in_a_transaction(mock: MockBroker) -> None:
    topic = mock.fresh_topic(partitions=1)
    consumer = Consumer({**mock.settings, "group.id": topic})
    producer = mock.begin(topic, [b"0"])
    place = [TopicPartition(topic, 0, 7)]
    producer.send_offsets_to_transaction(place, consumer.consumer_group_metadata(), ANSWER_SECONDS_MAX)
    producer.commit_transaction(ANSWER_SECONDS_MAX)
    (found,) = consumer.committed([TopicPartition(topic, 0)], ANSWER_SECONDS_MAX)
    consumer.close()
    assert found.offset < 0


def test_it_makes_a_topic_that_is_named(mock: MockBroker) -> None:
    assert len(mock.extents("nobody-made-it")) == 4


def test_it_answers_with_the_errors_it_was_given(mock: MockBroker) -> None:
    """Not wrong, but what it is best at."""
    topic = mock.fresh_topic(partitions=1)
    mock.call("push_request_errors", PRODUCE, TOPIC_AUTHORIZATION_FAILED)
    with pytest.raises(KafkaException, match="authorization failed"):
        mock.produce(topic, [b"x"])
    mock.produce(topic, [b"x"])


def test_a_function_that_refuses_is_an_error(mock: MockBroker) -> None:
    with pytest.raises(KafkaException, match="Unknown"):
        mock.delete_records("nobody-named-it", 0, before=1)
