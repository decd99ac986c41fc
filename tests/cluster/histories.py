"""Clients of a cluster's API in threads: what they are told is kept, and looked at when all is over."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Sequence
from random import Random

from tests.cluster.processes import NodeProcess, Unanswered
from tests.sim.linear import NEVER, Op, is_linearizable

KEYS = 3
CALL_SECONDS = 8.0


class Clients:
    """One thread for each node that is asked. Registers are configuration entries, numbers are written as text."""

    def __init__(self, nodes: Sequence[NodeProcess], seed: int) -> None:
        self._nodes = nodes
        self._random = Random(seed)
        self._lock = threading.Lock()
        self._value = 0
        self._is_over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.told: list[tuple[int, Op]] = []
        self.answered = self.unknown = self.refused = 0
        self.wrong: list[str] = []

    def start(self) -> None:
        for number, node in enumerate(self._nodes):
            random = Random(self._random.random())
            thread = threading.Thread(target=self._run, args=(node, random), name=f"client-{number}", daemon=True)
            self._threads.append(thread)
            thread.start()

    def end(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def check(self) -> None:
        """Raise AssertionError unless some order explains all that was told."""
        assert not self.wrong, self.wrong[:5]
        for key in range(KEYS):
            history = [op for at, op in self.told if at == key]
            assert is_linearizable(history), f"key {key}: {len(history)} operations cannot be explained"

    def _run(self, node: NodeProcess, random: Random) -> None:
        while not self._is_over.wait(random.uniform(0, 0.05)):
            key = random.randrange(KEYS)
            if random.random() < 0.4:
                self._read(node, key)
            else:
                self._write(node, key)

    def _read(self, node: NodeProcess, key: int) -> None:
        called = time.monotonic()
        try:
            status, body = node.ask("GET", f"/config/r{key}", seconds=CALL_SECONDS)
        except Unanswered:
            return
        if status == 200:
            value = int(base64.b64decode(body["entry"]["value"]))
            self._tell(key, Op("read", called, time.monotonic(), value))
        elif status == 404:
            self._tell(key, Op("read", called, time.monotonic(), None))
        elif status not in (503, 504):
            self.wrong.append(f"read {status} {body}")

    def _write(self, node: NodeProcess, key: int) -> None:
        with self._lock:
            self._value += 1
            value = self._value
        body = {"value": base64.b64encode(str(value).encode()).decode()}
        called = time.monotonic()
        try:
            status, answer = node.ask("PUT", f"/config/r{key}", body, seconds=CALL_SECONDS)
        except Unanswered as error:
            if error.may_have_happened:
                self._unknown(key, Op("write", called, NEVER, value))
            return
        if status == 200:
            self._tell(key, Op("write", called, time.monotonic(), value))
        elif status == 504:
            self._unknown(key, Op("write", called, NEVER, value))
        elif status == 503:
            self.refused += 1  # it was not done, and will not be
        else:
            self.wrong.append(f"write {status} {answer}")

    def _tell(self, key: int, op: Op) -> None:
        with self._lock:
            self.answered += 1
            self.told.append((key, op))

    def _unknown(self, key: int, op: Op) -> None:
        with self._lock:
            self.unknown += 1
            self.told.append((key, op))
