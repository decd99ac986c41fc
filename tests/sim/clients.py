"""Clients that do not give up: they retry in one session, at other nodes, and write down what they were told."""

from __future__ import annotations

from collections import defaultdict
from random import Random
from typing import Any

import msgpack

from tests.sim.linear import NEVER, Op
from tests.sim.machine import command, register
from tests.sim.server import Server
from tests.sim.world import World

KEYS = 3
VALUES = 5
PATIENCE_SECONDS_MAX = 2.0  # else retries could come faster than a slow cluster takes them


class Client:
    """One thread of calls. history: by key, of this client and of all others."""

    def __init__(self, world: World, history: dict[int, list[Op]], number: int) -> None:
        self.world, self.history = world, history
        self.random = Random(f"{world.seed}/client {number}")
        self.think_seconds = self.random.choice([0.05, 0.2, 0.5])
        self.retry_seconds = self.patience_seconds = self.random.choice([0.05, 0.3, 2.0])
        self.session: int | None = None
        self.number = 0
        self.attempt = 0
        self.hint: str | None = None
        self.is_stopping = False
        self.call: tuple[str, int, int | None, int | None, float] | None = None
        world.at(self.random.random(), self._next)

    def _next(self) -> None:
        if self.is_stopping:
            return
        random = self.random
        kind = random.choice(["read", "write", "cas"])
        key, value = random.randrange(KEYS), random.randrange(VALUES)
        expected = random.randrange(VALUES) if kind == "cas" else None
        self.call = (kind, key, None if kind == "read" else value, expected, self.world.now)
        self.number += 1
        self.patience_seconds = self.retry_seconds
        self._try()

    def _try(self) -> None:
        """One attempt at the call, or at a session for it, with whoever may know."""
        world = self.world
        self.attempt += 1
        world.at(self.patience_seconds, self._timed_out, self.attempt)
        names = sorted(name for name, server in world.servers.items() if server.is_up)
        if not names or self.call is None:
            return
        server = world.servers[self.hint if self.hint in names else self.random.choice(names)]
        self.hint = None
        kind, key, value, expected, _ = self.call
        attempt, delay = self.attempt, self.random.expovariate(1 / world.faults.latency)
        if kind == "read":
            server.later(delay, server.read, lambda found, at: self._read(attempt, found, at))
        elif self.session is None:
            server.later(
                delay, server.propose, register(), lambda found, reply: self._registered(attempt, found, reply)
            )
        else:
            operation = ("write", key, value) if kind == "write" else ("cas", key, expected, value)
            data = command(self.session, self.number, self.number, operation)
            server.later(delay, server.propose, data, lambda found, reply: self._done(attempt, found, reply))

    def _timed_out(self, attempt: int) -> None:
        if attempt == self.attempt and self.call is not None:
            self.world.counts["retries"] += 1
            self.patience_seconds = min(PATIENCE_SECONDS_MAX, 1.5 * self.patience_seconds)
            self._try()

    def _again(self, hint: Any) -> None:
        self.hint = hint
        self.attempt += 1
        self.world.at(0.05, self._resume, self.attempt)

    def _resume(self, attempt: int) -> None:
        if attempt == self.attempt:
            self._try()

    def _is_lost(self) -> bool:
        """Whether an answer gets lost on its way; what was done is done."""
        lost_answers = self.world.faults.lost_answers
        is_lost = bool(lost_answers) and self.random.random() < lost_answers
        self.world.counts["lost answers"] += is_lost
        return is_lost

    def _read(self, attempt: int, found: str, server: Server) -> None:
        if attempt != self.attempt or self.call is None or self._is_lost():
            return
        if found != "ok":
            self._again(None)
            return
        self._ended(value=server.machine.values.get(self.call[1]))

    def _registered(self, attempt: int, found: str, reply: Any) -> None:
        if attempt != self.attempt or self._is_lost():
            return
        if found == "ok":
            self.session = int(msgpack.unpackb(reply))
            self._try()
        elif found == "dropped":
            self._again(reply)

    def _done(self, attempt: int, found: str, reply: Any) -> None:
        if attempt != self.attempt or self.call is None or self._is_lost():
            return
        if found == "dropped":
            self._again(reply)
        elif found == "ok":
            answer = msgpack.unpackb(reply)
            if answer == "expired":
                self.world.counts["expired"] += 1
                self.session = None
                self.give_up()
                self.world.at(self.think_seconds, self._next)
            else:
                self._ended(ok=answer)

    def _ended(self, *, value: int | None = None, ok: bool = True) -> None:
        assert self.call is not None
        kind, key, wrote, expected, called = self.call
        self.history[key].append(Op(kind, called, self.world.now, value if kind == "read" else wrote, expected, ok))
        self.call = None
        self.attempt += 1
        self.world.counts["calls"] += 1
        self.world.at(self.random.expovariate(1 / self.think_seconds), self._next)

    def give_up(self) -> None:
        """The outcome of the present call stays unknown."""
        if self.call is not None:
            kind, key, wrote, expected, called = self.call
            self.history[key].append(Op(kind, called, NEVER, wrote, expected))
            self.call = None
            self.attempt += 1


def new_history() -> dict[int, list[Op]]:
    """Calls by key."""
    return defaultdict(list)
