"""The broker of the tests: what it does that a mock does not, and what a test may do to it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from tests.kafka.broker import CLUSTER_ID, LISTENERS, ROOT, Broker, Listener, Mechanism
from tests.kafka.certificates import Authority
from tests.kafka.cluster import Cluster, Extent, eventually

ANSWER_SECONDS = 10


def cluster_seen(settings: dict[str, Any]) -> str:
    return AdminClient(settings).list_topics(timeout=ANSWER_SECONDS).cluster_id


def is_refused(settings: dict[str, Any], *, because: Callable[[KafkaError], bool]) -> None:
    """Wait until a client that asks for nothing but to be connected is told of such an error."""
    told: list[KafkaError] = []
    client = AdminClient({**settings, "error_cb": told.append})
    eventually(lambda: client.poll(0.1) >= 0 and any(because(error) for error in told), "no such error was told")


def test_it_is_the_cluster_that_was_formatted(broker: Broker) -> None:
    assert cluster_seen(broker.settings) == CLUSTER_ID


def test_a_topic_that_nobody_made_is_an_error(broker: Broker) -> None:
    with pytest.raises(KafkaException, match="Unknown topic"):
        broker.produce("nobody-made-it", [b"x"])
    with pytest.raises(KafkaException, match="Unknown topic"):
        broker.extents("nobody-made-it")


@pytest.mark.parametrize("listener", LISTENERS)
def test_each_listener_lets_its_clients_in(broker: Broker, listener: Listener) -> None:
    assert cluster_seen(broker.secured(listener)) == CLUSTER_ID


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_wrong_password_is_told(broker: Broker, mechanism: Mechanism) -> None:
    assert cluster_seen(broker.secured("SASL_PLAINTEXT", mechanism=mechanism)) == CLUSTER_ID
    guessing = broker.secured("SASL_PLAINTEXT", mechanism=mechanism, password="guessed")
    is_refused(guessing, because=lambda error: error.code() == KafkaError._AUTHENTICATION)


def test_an_authority_that_is_not_trusted_is_told(broker: Broker, tmp_path: Path) -> None:
    another = Authority(tmp_path, "another")
    trusting = {**broker.secured("SSL"), "ssl.ca.location": str(another.path)}
    is_refused(trusting, because=lambda error: "certificate verify failed" in error.str())


@pytest.mark.check
@pytest.mark.parametrize("end", [Broker.kill, Broker.stop])
def test_records_and_offsets_of_groups_outlive_the_process(broker: Broker, end: Any) -> None:
    topic = broker.fresh_topic(partitions=1)
    written = broker.produce(topic, [str(number).encode() for number in range(100)])
    commit(broker, topic, 42)
    before = broker.topic_id(topic)
    end(broker)
    assert not broker.running
    print(f"started again in {broker.start():.1f} s")
    assert broker.read(topic) == written
    assert broker.group_offsets(topic, topic) == {0: 42}
    assert broker.topic_id(topic) == before


@pytest.mark.check
def test_an_open_transaction_outlives_the_process(broker: Broker) -> None:
    topic = broker.fresh_topic(partitions=1)
    producer = broker.begin(topic, [b"undecided"])
    broker.kill()
    broker.start()
    assert broker.extents(topic, stable=True)[0] == Extent(0, 0)
    producer.commit_transaction(ANSWER_SECONDS)
    eventually(lambda: len(broker.read(topic)) == 1, "the transaction is not committed")


def test_a_paused_broker_answers_nothing_until_it_goes_on(broker: Broker) -> None:
    topic = broker.fresh_topic(partitions=1)
    broker.pause()
    with pytest.raises(KafkaException):
        AdminClient(broker.settings).list_topics(timeout=0.5)
    broker.resume()
    broker.produce(topic, [b"x"])
    assert len(broker.read(topic)) == 1


def test_a_setting_that_kafka_refuses_is_shown(broker: Broker, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"Invalid value many for configuration log\.retention\.bytes"):
        Broker(tmp_path, settings={"log.retention.bytes": "many"})


def test_a_broker_that_cannot_start_says_why(broker: Broker, tmp_path: Path) -> None:
    empty = Broker(tmp_path)
    (tmp_path / "data" / "meta.properties").unlink()
    try:
        with pytest.raises(AssertionError, match=r"No readable meta\.properties files found"):
            empty.start()
    finally:
        empty.kill()


@pytest.mark.check
def test_the_broker_ends_with_the_tests_that_were_killed(broker: Broker, tmp_path: Path) -> None:
    """A child starts a broker and is killed before it can stop it."""
    code = (
        "import sys; from pathlib import Path; from tests.kafka.broker import Broker\n"
        f"broker = Broker(Path({str(tmp_path)!r})); broker.start(); print(broker.pid, flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        pid = int(child.stdout.readline())
        assert Path(f"/proc/{pid}").exists()
        child.kill()
    eventually(lambda: not alive(pid), f"the broker {pid} is still there")


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def commit(cluster: Cluster, topic: str, offset: int) -> None:
    consumer = Consumer({**cluster.settings, "group.id": topic})
    consumer.commit(offsets=[TopicPartition(topic, 0, offset)], asynchronous=False)
    consumer.close()
