"""Two producers that write to one topic as long as a test lasts: one idempotent, one in transactions of which it takes
some back."""

from __future__ import annotations

import itertools
import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from confluent_kafka import Producer

from tests.kafka.cluster import ANSWER_SECONDS_MAX, Cluster
from tests.kafka.run_rig import values

ABORTED_FROM = 1_000_000_000
"""Ids from here on are of transactions that were taken back: no table may have one."""


class Producing:
    """What is written: consecutive ids, in portions of random size, over all partitions, as far as was allowed.

    Every other portion goes out in a transaction; every third of these follows one that is taken back.
    """

    def __init__(self, kafka: Cluster, topic: str, *, partitions: int, portion: int, seed: int) -> None:
        self._kafka, self._topic, self._partitions, self._portion = kafka, topic, partitions, portion
        self.written = 0
        """Ids below this are in the topic, once each."""
        self.aborted = 0
        self._allowed = 0
        self._is_over = False
        self._random = random.Random(seed)
        self._news = threading.Condition()
        self._failure: Exception | None = None

    def allow(self, count: int) -> None:
        """Have `count` ids more written, meanwhile."""
        with self._news:
            assert self._failure is None, self._failure
            self._allowed += count
            self._news.notify()

    @contextmanager
    def going_on(self) -> Iterator[Producing]:
        """Write in a thread during the block; at its end all that was allowed is written. Raises what went wrong."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield self
        finally:
            with self._news:
                self._is_over = True
                self._news.notify()
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            plain = self._kafka.producer(enable_idempotence=True, linger_ms=5)
            careful = self._kafka.producer(transactional_id=uuid.uuid4().hex, linger_ms=5)
            careful.init_transactions(ANSWER_SECONDS_MAX)
            for turn in itertools.count():
                with self._news:
                    self._news.wait_for(lambda: self.written < self._allowed or self._is_over)
                    left = self._allowed - self.written
                if not left:
                    return
                count = min(self._random.randint(1, 2 * self._portion), left)
                if turn % 2:
                    self._in_transactions(careful, count, after_another=turn % 3 == 0)
                else:
                    self._send(plain, range(self.written, self.written + count))
                self.written += count
        except Exception as error:  # noqa: BLE001 - told where the block ends
            self._failure = error

    def _in_transactions(self, producer: Producer, count: int, *, after_another: bool) -> None:
        if after_another:
            producer.begin_transaction()
            first = ABORTED_FROM + self.aborted
            self._send(producer, range(first, first + count))
            producer.abort_transaction(ANSWER_SECONDS_MAX)
            self.aborted += count
        producer.begin_transaction()
        self._send(producer, range(self.written, self.written + count))
        producer.commit_transaction(ANSWER_SECONDS_MAX)

    def _send(self, producer: Producer, numbers: range) -> None:
        """Blocking, until the broker has each. A refusal shows as an id that is missing in the end."""
        for number, value in zip(numbers, values(numbers), strict=True):
            while True:
                try:
                    producer.produce(self._topic, value, partition=number % self._partitions)
                    break
                except BufferError:
                    producer.poll(1)
        assert not producer.flush(ANSWER_SECONDS_MAX)
