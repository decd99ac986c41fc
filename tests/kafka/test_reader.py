"""What `KafkaReader` asks a real broker, where the answers alone do not tell."""

from __future__ import annotations

import pytest
from confluent_kafka.admin import ClusterMetadata

from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.reader import KafkaReader
from tests.kafka.cluster import Cluster


@pytest.fixture
def reader(kafka: Cluster) -> KafkaReader:
    return KafkaReader(Connection(kafka.bootstrap, {}, 10.0))


def test_topics_that_are_named_are_asked_for_alone_and_none_is_made(
    kafka: Cluster, reader: KafkaReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    topics = [kafka.fresh_topic(partitions=count) for count in (1, 3)]
    absent = f"{topics[0]}-absent"

    def narrow(topic: str | None = None) -> ClusterMetadata:
        assert topic is not None, "asked for all topics"
        return metadata(topic)

    metadata = reader._contact.metadata
    with monkeypatch.context() as patch:
        patch.setattr(reader._contact, "metadata", narrow)
        before = reader.topics(topics)
        assert reader.topics([topics[1], absent]) == {topics[1]: before[topics[1]]}
        assert reader.topics([absent]) == {}
        kafka.delete_topic(topics[0])
        assert reader.topics(topics) == {topics[1]: before[topics[1]]}
        kafka.create_topic(topics[0], partitions=2)
        after = reader.topics(topics)
    assert after[topics[0]].incarnation != before[topics[0]].incarnation
    assert after[topics[0]].partitions == (0, 1)
    assert absent not in reader.topics()
