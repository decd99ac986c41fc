"""The deadlines of one connection, kept by one task: a cancel scope for each request would cost more than that does."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Protocol

import trio

PRUNED_MIN = 1024  # entries, below which it does not matter that most are done with


class Due(Protocol):
    """What has a deadline."""

    is_open: bool

    def expire(self) -> None:
        """The deadline has come. Only called while open."""
        ...


class Deadlines:
    """Calls `expire` of what is still open at its deadline."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Due]] = []
        self._numbers = itertools.count()
        self._prune_at = PRUNED_MIN
        self._armed = -math.inf  # the deadline that `run` sleeps for
        self._sooner = trio.Event()

    def __len__(self) -> int:
        return len(self._heap)

    def add(self, deadline: float, due: Due) -> None:
        """Watch over something. deadline: in trio's time; infinite ones are not watched."""
        if deadline == math.inf:
            return
        heapq.heappush(self._heap, (deadline, next(self._numbers), due))
        if deadline < self._armed:
            self._sooner.set()
        if len(self._heap) >= self._prune_at:
            self._heap = [entry for entry in self._heap if entry[2].is_open]
            heapq.heapify(self._heap)
            self._prune_at = max(PRUNED_MIN, 2 * len(self._heap))

    async def run(self) -> None:
        """Watch, until cancelled."""
        while True:
            now = trio.current_time()
            while self._heap and self._heap[0][0] <= now:
                due = heapq.heappop(self._heap)[2]
                if due.is_open:
                    due.expire()
            self._armed = self._heap[0][0] if self._heap else math.inf
            self._sooner = trio.Event()
            with trio.move_on_at(self._armed):
                await self._sooner.wait()
