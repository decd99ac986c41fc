"""What the tools for tests promise, against the mock and a real Kafka: later tests stand on it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from confluent_kafka import Consumer, KafkaException, TopicPartition

from tests.kafka.cluster import COMPACTED, Cluster, Extent, Record, eventually
from tests.kafka.mock import Beyond

ANSWER_SECONDS_MAX = 30


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]


def test_a_record_comes_back_as_it_was_written(cluster: Cluster) -> None:
    topic = cluster.fresh_topic()
    headers = (("trace", b"\x00\xff"), ("trace", b"again"), ("none", None))
    full = Record(value=b"value", key=b"key", headers=headers, timestamp_ms=1_000_000_000_000, partition=2)
    tombstone = Record(value=None, key=b"gone", timestamp_ms=2, partition=0)
    written = cluster.produce(topic, [full, tombstone, replace(tombstone, value=b"")])
    assert written == [
        replace(tombstone, offset=0),
        replace(tombstone, value=b"", offset=1),
        replace(full, offset=0),
    ]
    assert cluster.read(topic) == written


def test_a_topic_has_the_partitions_asked_for(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=5)
    cluster.produce(topic, [Record(value=b"v", partition=4)] * 3)
    nothing = Extent(0, 0)
    assert cluster.extents(topic) == {0: nothing, 1: nothing, 2: nothing, 3: nothing, 4: Extent(0, 3)}


def test_deleted_records_are_gone(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    for number in range(4):  # the mock deletes whole batches only
        cluster.produce(topic, [str(number).encode()])
    cluster.delete_records(topic, 0, before=3)
    assert cluster.extents(topic)[0] == Extent(3, 4)
    assert values(cluster.read(topic)) == [b"3"]


def test_an_idempotent_producer_writes_each_record_once(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    records = [str(number).encode() for number in range(1000)]
    cluster.produce(topic, records, enable_idempotence=True)
    assert values(cluster.read(topic)) == records


def test_a_group_goes_on_where_it_committed(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    cluster.produce(topic, [b"0", b"1", b"2"])
    reading = {"auto.offset.reset": "earliest", "enable.auto.commit": False, "session.timeout.ms": 3000}
    group = {**cluster.settings, **reading, "group.id": topic}
    first = Consumer(group)
    first.subscribe([topic])
    assert [found.value() for found in first.consume(2, ANSWER_SECONDS_MAX)] == [b"0", b"1"]
    first.commit(offsets=[TopicPartition(topic, 0, 2)], asynchronous=False)
    first.close()
    second = Consumer(group)
    second.subscribe([topic])
    assert [found.value() for found in second.consume(1, ANSWER_SECONDS_MAX)] == [b"2"]
    second.close()


@pytest.mark.beyond_mock(Beyond.ABORTED)
def test_aborted_transactions_are_holes_at_both_ends(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    cluster.produce_aborted(topic, [b"taken back"] * 2)
    cluster.produce_committed(topic, [b"kept"])
    cluster.produce_aborted(topic, [b"taken back"])
    assert [(found.offset, found.value) for found in cluster.read(topic)] == [(3, b"kept")]
    assert cluster.extents(topic)[0] == Extent(0, 7)
    assert len(cluster.read(topic, committed=False)) == 4


@pytest.mark.beyond_mock(Beyond.ABORTED)
def test_an_open_transaction_holds_the_stable_offset(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    cluster.produce(topic, [b"before"])
    producer = cluster.begin(topic, [b"undecided"])
    cluster.produce(topic, [b"behind"])
    assert cluster.extents(topic, stable=True)[0] == Extent(0, 1)
    assert values(cluster.read(topic)) == [b"before"]
    producer.commit_transaction(ANSWER_SECONDS_MAX)
    eventually(lambda: cluster.extents(topic, stable=True)[0].end == 4, "the marker is not there")
    assert values(cluster.read(topic)) == [b"before", b"undecided", b"behind"]


@pytest.mark.beyond_mock(Beyond.ABORTED)
def test_a_second_producer_fences_the_first(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    first = cluster.begin(topic, [b"first"], transaction=topic)
    second = cluster.begin(topic, [b"second"], transaction=topic)
    with pytest.raises(KafkaException, match="fenced"):
        first.commit_transaction(ANSWER_SECONDS_MAX)
    second.commit_transaction(ANSWER_SECONDS_MAX)
    eventually(lambda: cluster.extents(topic, stable=True)[0].end == 4, "the second marker is not there")
    assert values(cluster.read(topic)) == [b"second"]


@pytest.mark.beyond_mock(Beyond.SENT_OFFSETS)
def test_offsets_sent_in_a_transaction_are_the_groups(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    consumer = Consumer({**cluster.settings, "group.id": topic})
    producer = cluster.begin(topic, [b"0"])
    place = [TopicPartition(topic, 0, 7)]
    producer.send_offsets_to_transaction(place, consumer.consumer_group_metadata(), ANSWER_SECONDS_MAX)
    producer.commit_transaction(ANSWER_SECONDS_MAX)
    consumer.close()
    eventually(lambda: cluster.group_offsets(topic, topic) == {0: 7}, "the offset is not there")


@pytest.mark.beyond_mock(Beyond.TIMES)
def test_a_time_is_answered_with_the_first_record_from_then_on(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    cluster.produce(topic, [Record(value=b"", timestamp_ms=stamp, partition=0) for stamp in (1000, 3000, 2000, 5000)])
    consumer = Consumer({**cluster.settings, "group.id": "none"})
    asked = {time_ms: [TopicPartition(topic, 0, time_ms)] for time_ms in (0, 1000, 1001, 3001, 5001)}
    found = {time_ms: consumer.offsets_for_times(place, ANSWER_SECONDS_MAX)[0] for time_ms, place in asked.items()}
    consumer.close()
    assert {time_ms: place.offset for time_ms, place in found.items()} == {0: 0, 1000: 0, 1001: 1, 3001: 3, 5001: -1}


@pytest.mark.beyond_mock(Beyond.ADMIN)
def test_compaction_leaves_holes(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1, config=COMPACTED)
    cluster.produce(topic, [Record(key=key, value=b"", partition=0) for key in (b"a", b"b", b"a", b"c", b"b", b"a")])
    cluster.compact(topic)
    kept = [found.offset for found in cluster.read(topic) if not (found.key or b"").startswith(b"roll-")]
    assert kept == [3, 4, 5]
    assert cluster.extents(topic)[0].first == 0


@pytest.mark.beyond_mock(Beyond.ADMIN)
def test_a_topic_grows_and_one_made_again_is_another(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=3)
    cluster.add_partitions(topic, 4)
    cluster.configure_topic(topic, {"retention.ms": "3600000"})
    assert list(cluster.extents(topic)) == [0, 1, 2, 3]
    before = cluster.topic_id(topic)
    cluster.delete_topic(topic)
    cluster.create_topic(topic)
    assert cluster.topic_id(topic) != before


@pytest.mark.beyond_mock(Beyond.ADMIN)
def test_a_group_has_as_many_members_as_read_in_it(cluster: Cluster) -> None:
    topic = cluster.fresh_topic()
    assert cluster.group_members(topic) == 0
    consumer = Consumer({**cluster.settings, "group.id": topic})
    consumer.subscribe([topic])
    eventually(lambda: consumer.poll(0.1) is None and bool(consumer.assignment()), "nothing was assigned")
    assert cluster.group_members(topic) == 1
    consumer.close()
    eventually(lambda: cluster.group_members(topic) == 0, "the member is still there")
