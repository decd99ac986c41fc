"""A thread that does one thing after the other: a driver's, which must not be called by two at a time.

One thread for the life of its owner, and not a hop per call: `trio.to_thread` costs as much as a commit does on a fast
disk (notes/performance.md, 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import trio

JobT = TypeVar("JobT")


Report = Callable[[Callable[[], None]], None]
"""Has something called in the trio thread, soon, in the order of the calls."""


class Worker(Generic[JobT]):
    """Takes what is queued, all of it at once, and has it done."""

    def __init__(self, name: str, work: Callable[[Sequence[JobT], Report], None]) -> None:
        """work: blocking, in the thread of this worker. What it raises comes out of `run`, and nothing more is done."""
        self._name = name
        self._work = work
        self._jobs: SimpleQueue[JobT | None] = SimpleQueue()
        self.is_stopping = False
        """Whether work that waits for something should give up. By any thread."""

    def put(self, job: JobT) -> None:
        """Have it done, soon. For the trio thread."""
        self._jobs.put(job)

    async def run(self) -> None:
        """Work until cancelled. What is under way then is completed; what is queued is not begun."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._stop_when_cancelled)
            token = trio.lowlevel.current_trio_token()
            # Not abandoned: nobody else may use what it uses before it has ended.
            await trio.to_thread.run_sync(self._loop, token, limiter=trio.CapacityLimiter(1), thread_name=self._name)
            nursery.cancel_scope.cancel()

    async def _stop_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self.is_stopping = True
            self._jobs.put(None)

    def _loop(self, token: trio.lowlevel.TrioToken) -> None:
        while (jobs := self._take()) and not self.is_stopping:
            self._work(jobs, token.run_sync_soon)

    def _take(self) -> list[JobT]:
        """All that is queued, at least one; nothing once it is to stop."""
        found = [self._jobs.get()]
        try:
            while True:
                found.append(self._jobs.get_nowait())
        except Empty:
            return [job for job in found if job is not None]
