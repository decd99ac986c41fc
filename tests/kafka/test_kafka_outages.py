"""Whole runs from Kafka while its broker ends, freezes or does not let them in, and behind a sink that is slow."""

from __future__ import annotations

import json
import re
import signal
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.harness import Ended
from tests.e2e.test_metrics import PIPELINE, port_of, scrape
from tests.engine.http_rig import Answer, Asked, serving
from tests.kafka.broker import PASSWORD, USER, Broker
from tests.kafka.certificates import Authority
from tests.kafka.cluster import Cluster, Record
from tests.kafka.run_rig import KafkaJob, values
from tests.storage.schema_registry_rig import running_registry

pytestmark = [pytest.mark.check, pytest.mark.timeout(300)]

ERROR_SECONDS_MAX = 45.0
"""For a whole process to fail in: 3 to 13 s on an idle machine, as docs/kafka.md says."""
EVICTION_MS = 6_000
"""After which a member that does not poll is taken for dead: the least that librdkafka allows."""


def spread(numbers: range, partitions: int = 3) -> list[Record]:
    return [Record(value=value, partition=at % partitions) for at, value in enumerate(values(numbers))]


def test_a_run_outlives_its_broker_and_reads_each_record_once(tmp_path: Path, broker: Broker) -> None:
    topic = broker.fresh_topic("outage")
    job = KafkaJob(tmp_path, kafka=broker, topic=topic, source={"group_id": topic, "discover_every": "0.5s"})
    ends: list[Callable[[], None]] = [broker.stop, broker.kill]
    with job.following() as running:
        for number, end in enumerate(ends):
            broker.produce(topic, spread(range(number * 300, number * 300 + 300)))
            if number:  # whatever it is about just then
                assert running.until(lambda: job.count() > 300), running.wait().err
            else:
                assert running.until(lambda: job.count() == 300), running.wait().err
            end()
            broker.start()
        broker.produce(topic, spread(range(600, 900)))
        assert running.until(lambda: job.count() >= 900), running.wait().err
        broker.pause()
        time.sleep(3)
        broker.resume()
        broker.produce(topic, spread(range(900, 1200)))
        assert running.until(lambda: job.count() >= 1200), running.wait().err
        running.send(signal.SIGTERM)
        ended = running.wait()
    ended.orderly(0)
    job.holds(range(1200))
    assert ended.summary["rows_in"] == ended.summary["rows_out"] == 1200
    told = {f"{topic}[{number}]": at for number, at in broker.group_offsets(topic, topic).items()}
    assert told == job.fence(), ended.err
    job.audit()


def test_a_cluster_that_was_never_asked_for_a_group_tells_that_there_is_none(tmp_path: Path, broker: Broker) -> None:
    """Its coordinator is only just being made: librdkafka's admin client would end the process by SIGSEGV."""
    (tmp_path / "fresh").mkdir()
    fresh = Broker(tmp_path / "fresh")  # and not `broker`, which others have asked
    fresh.start()
    try:
        topic = fresh.fresh_topic("first", partitions=2)
        fresh.produce(topic, spread(range(20), 2))
        source = {"group_id": "first", "start": "committed", "follow": False, "connect_timeout": "30s"}
        job = KafkaJob(tmp_path, kafka=fresh, topic=topic, source=source)
        job.run().succeeded()
        job.holds(range(20))
        assert sum(fresh.group_offsets("first", topic).values()) == 20
    finally:
        fresh.kill()


def test_a_run_gives_up_an_outage_that_is_longer_than_allowed_and_goes_on_the_next_time(
    tmp_path: Path, broker: Broker
) -> None:
    topic = broker.fresh_topic("outage")
    broker.produce(topic, spread(range(30)))
    source = {"outage_timeout": "3s", "discover_every": "0.5s", "connect_timeout": "1s", "group_id": topic}
    job = KafkaJob(tmp_path, kafka=broker, topic=topic, source=source)
    with job.following() as running:
        assert running.until(lambda: job.count() == 30), running.wait().err
        broker.kill()
        ended = running.wait()
        ended.failed(broker.address("PLAINTEXT"), "is it up, and can it be reached from here", code=1)
        assert "nobody has answered for longer than outage_timeout" in ended.err
    broker.start()
    broker.produce(topic, spread(range(30, 60)))
    job.source = {"follow": False}
    job.run().succeeded()
    job.holds(range(60))


def test_sigterm_ends_a_run_whose_broker_is_gone(tmp_path: Path, broker: Broker) -> None:
    topic = broker.fresh_topic("outage")
    broker.produce(topic, spread(range(30)))
    job = KafkaJob(tmp_path, kafka=broker, topic=topic, source={"group_id": topic}, sink={"commit": {"every": "600s"}})
    with job.following("--metrics-port", "0") as running:
        port = port_of(running)
        assert running.until(lambda: scrape(port).get(("conveyord_rows_in_total", PIPELINE)) == 30), running.wait().err
        broker.kill()
        running.send(signal.SIGTERM)
        began = time.monotonic()
        running.wait().orderly(0)
        assert time.monotonic() - began < ERROR_SECONDS_MAX
    job.source = {"follow": False}
    broker.start()
    job.run().succeeded()
    job.holds(range(30))


# ------------------------------------------------------------------ a sink that is slow


class Slow:
    """An address that takes its time over the first request, and what it was sent."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.ids: list[int] = []
        self.has_begun = threading.Event()

    def __call__(self, asked: Asked) -> Answer:
        if not self.has_begun.is_set():
            self.has_begun.set()
            time.sleep(self.seconds)
        self.ids += [row["id"] for row in json.loads(asked.body)]
        return Answer()


def test_a_member_that_is_paused_for_longer_than_max_poll_interval_stays_in_its_group(
    tmp_path: Path, kafka: Cluster
) -> None:
    topic = kafka.fresh_topic("slow", partitions=2)
    count, members = 4_000, list[int]()
    written = enumerate(values(range(count), text="x" * 1000))
    kafka.produce(topic, [Record(value=value, partition=at % 2) for at, value in written])
    client = {"max.poll.interval.ms": EVICTION_MS, "session.timeout.ms": EVICTION_MS, "heartbeat.interval.ms": 500}
    source = {"group_id": topic, "assignment": "group", "client": client, "prefetch": "1MiB", "batch_bytes": "64KiB"}
    slow = Slow(2.5 * EVICTION_MS / 1000)
    with serving(slow) as server:
        job = HttpJob(tmp_path, kafka=kafka, topic=topic, source=source, sink={"url": server.url(), "timeout": "60s"})
        with job.following() as running:
            assert running.until(slow.has_begun.is_set), running.wait().err

            def is_done() -> bool:
                members.append(kafka.group_members(topic))
                return len(slow.ids) >= count

            assert running.until(is_done), running.wait().err
            running.send(signal.SIGTERM)
            ended = running.wait()
    ended.orderly(0)
    assert sorted(slow.ids) == list(range(count))
    assert set(members) == {1}
    (source_report,) = ended.summary["sources"]
    assert (source_report["rebalances"], source_report["errors"]) == (0, {})
    assert source_report["pauses"] > 0
    assert sum(kafka.group_offsets(topic, topic).values()) == count


class HttpJob(KafkaJob):
    """The same into an address."""

    def destination(self) -> dict[str, Any]:
        return {"type": "http", **self.sink}


# ------------------------------------------------------------------ not let in


def refused(job: KafkaJob, *parts: str) -> None:
    """Assert that a run fails soon, in order, with a sentence that has `parts`, and that --dry-run does as well."""
    for flags in ((), ("--dry-run",)):
        ended, seconds = timed(job, *flags)
        ended.orderly(ended.code)
        assert ended.code in {1, 2}
        told = ended.err + ended.out
        assert not re.findall(r"^%\d\|", told, re.MULTILINE), f"librdkafka prints by itself: {told}"
        for part in parts:
            assert part in told, f"{part!r} is not in: {told}"
        assert "secret" not in told
        assert seconds < ERROR_SECONDS_MAX


def timed(job: KafkaJob, *flags: str) -> tuple[Ended, float]:
    """How a run ended, and after how many seconds."""
    began = time.monotonic()
    return job.run(*flags), time.monotonic() - began


def secured(broker: Broker, listener: Any, **security: Any) -> dict[str, Any]:
    """The options of a source that connects to a listener other than the plain one."""
    return {"brokers": broker.address(listener), "security": {"protocol": listener.lower(), **security}}


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-512"])
def test_a_wrong_password_is_a_sentence_within_seconds(tmp_path: Path, broker: Broker, mechanism: str) -> None:
    topic = broker.fresh_topic("closed", partitions=1)
    wrong = {"mechanism": mechanism, "username": "tester", "password": "wrong-secret"}
    source = secured(broker, "SASL_PLAINTEXT", **wrong)
    refused(
        KafkaJob(tmp_path, kafka=broker, topic=topic, source=source),
        broker.address("SASL_PLAINTEXT"),
        "check username, password and mechanism of `security`",
    )


def test_the_right_password_and_authority_let_a_run_in(tmp_path: Path, broker: Broker) -> None:
    topic = broker.fresh_topic("open", partitions=1)
    broker.produce(topic, values(range(10)))
    access = {"mechanism": "SCRAM-SHA-512", "username": USER, "password": "env:TOPIC_PASSWORD"}
    source = {**secured(broker, "SASL_SSL", ca_file=str(broker.authority.path), **access), "follow": False}
    job = KafkaJob(tmp_path, kafka=broker, topic=topic, source=source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOPIC_PASSWORD", PASSWORD)
        job.run().succeeded()
    job.holds(range(10))


def test_a_wrong_authority_is_a_sentence_within_seconds(tmp_path: Path, broker: Broker) -> None:
    topic = broker.fresh_topic("closed", partitions=1)
    (tmp_path / "other").mkdir()
    source = secured(broker, "SSL", ca_file=str(Authority(tmp_path / "other").path))
    refused(
        KafkaJob(tmp_path, kafka=broker, topic=topic, source=source),
        broker.address("SSL"),
        "check security.ca_file",
    )


@pytest.mark.parametrize("listener", ["SSL", "SASL_PLAINTEXT"])
def test_who_speaks_plainly_where_more_is_wanted_is_told_what_that_may_be(
    tmp_path: Path, broker: Broker, listener: Any
) -> None:
    refused(
        KafkaJob(tmp_path, kafka=broker, topic="t", source={"brokers": broker.address(listener)}),
        broker.address(listener),
        "does it want TLS or a password (`security`)?",
    )


def test_a_host_that_does_not_answer_is_a_sentence_within_seconds(tmp_path: Path, kafka: Cluster) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf:  # connects, and says nothing
        for port in (deaf.getsockname()[1], 1):  # nobody listens at the other
            refused(
                KafkaJob(tmp_path, kafka=kafka, topic="t", source={"brokers": f"127.0.0.1:{port}"}),
                f"127.0.0.1:{port}",
                "is it up, and can it be reached from here?",
            )


def test_a_broker_that_is_frozen_is_a_sentence_within_seconds(tmp_path: Path, broker: Broker) -> None:
    topic = broker.fresh_topic("frozen", partitions=1)
    broker.pause()
    refused(
        KafkaJob(tmp_path, kafka=broker, topic=topic, source={"connect_timeout": "2s"}),
        broker.address("PLAINTEXT"),
        "is it up, and can it be reached from here?",
    )


def test_a_registry_that_does_not_answer_or_let_us_in_is_a_sentence_within_seconds(
    tmp_path: Path, kafka: Cluster
) -> None:
    topic = kafka.fresh_topic("framed", partitions=1)
    kafka.produce(topic, [b"\0\0\0\0\1\x02a"])
    with closing(socket.create_server(("127.0.0.1", 0))) as deaf, running_registry() as closed:
        closed.authorization = "Basic others"
        silent = {"url": f"http://127.0.0.1:{deaf.getsockname()[1]}"}
        wrong = {"url": closed.url, "username": "tester", "password": "wrong-secret"}
        for registry, told in ((silent, "no whole answer within 10 s"), (wrong, "check username and password")):
            source = {"format": {"type": "avro", "registry": registry}, "follow": False}
            ended, seconds = timed(KafkaJob(tmp_path, kafka=kafka, topic=topic, source=source))
            ended.orderly(ended.code)
            assert ended.code in {1, 2}
            assert told in ended.err + ended.out
            assert "secret" not in ended.err + ended.out
            assert seconds < ERROR_SECONDS_MAX
