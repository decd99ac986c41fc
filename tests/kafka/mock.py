"""librdkafka's mock cluster as a Kafka for tests: the real protocol over TCP, everything else in the memory of a child.

It is up at once, and needs neither Java nor a download. Where it does what it says it is as good as a broker; BEYOND
lists where it answers wrongly without an error. It has no admin requests (topics are made through the child), no TLS,
no SASL and no restart, and keeps at most 5 MiB or 100,000 batches per partition: the oldest go silently. A delivery
report's timestamp is always 1234. After a member of a group has left, the next to join waits until the session timeout
of the one that left is over (45 s by default): let tests set 6 s, or `group.protocol=consumer`, which does not wait.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

from confluent_kafka import KafkaError, KafkaException

from tests.kafka.cluster import Cluster

STOP_SECONDS_MAX = 10


class Beyond(StrEnum):
    """What the mock is silently wrong at: a test that is marked `beyond_mock(...)` with one gets a real broker only."""

    TIMES = "offsets_for_times finds no offset, whatever the time"
    ABORTED = "read_committed sees records of aborted and of open transactions"
    SENT_OFFSETS = "send_offsets_to_transaction stores nothing"
    MISSING = "a topic that nobody made is made, with four partitions, when somebody names it"
    ADMIN = "topics cannot be configured, grown or described, nor groups"
    HANDOVER = "a commit is refused while a group is in a rebalance, where a broker takes it"
    SECURITY = "there is no TLS and no SASL"
    DURABLE = "nothing outlives the process"


class MockBroker(Cluster):
    """A mock cluster in a process of its own, which also ends when this one does."""

    def __init__(self) -> None:
        command = [sys.executable, "-P", str(Path(__file__).with_name("mock_child.py"))]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        super().__init__(self._answer())

    def create_topic(self, name: str, *, partitions: int = 3, config: Mapping[str, str] | None = None) -> None:
        assert not config, "the mock's topics cannot be configured: mark the test beyond_mock(Beyond.ADMIN)"
        self.call("topic_create", name, partitions, 1)

    def delete_topic(self, name: str) -> None:
        self.call("topic_delete", name)

    def delete_records(self, name: str, partition: int, *, before: int) -> None:
        self.call("partition_delete_records", name, partition, before)

    def call(self, name: str, *given: str | int) -> None:
        """Have the child call a function of the mock, see mock_child.py.

        Raises: KafkaException with what it refused.
        """
        assert self._child.stdin is not None
        self._child.stdin.write(json.dumps([name, *given]) + "\n")
        self._child.stdin.flush()
        code = int(self._answer())
        if code:
            raise KafkaException(KafkaError(code))

    def close(self) -> None:
        """End the child."""
        assert self._child.stdin is not None and self._child.stdout is not None
        self._child.stdin.close()
        self._child.stdout.close()
        self._child.kill()
        self._child.wait(STOP_SECONDS_MAX)

    def _answer(self) -> str:
        assert self._child.stdout is not None
        answer = self._child.stdout.readline().strip()
        assert answer, f"the mock's child ended with status {self._child.wait(STOP_SECONDS_MAX)}"
        return answer
