"""What one run of a Kafka source is told, and whom it asks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from conveyord.core.flow.record_log import Extent, PartitionReader, Tail, TopicPartition
from conveyord.engine.kafka.choice import TopicChoice
from conveyord.engine.kafka.hopper import Batching
from conveyord.engine.kafka.starting import OnRecreated

T = TypeVar("T")


class Ports(Protocol):
    """Where a source gets its connections from. Blocking."""

    def open_reader(self) -> PartitionReader: ...

    def open_tail(self) -> Tail: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """The options of a source that a session needs.

    group: whose offsets are kept up to date. shares: the group deals the partitions out. begin_at: where to begin in a
    partition that a sink has nothing of, asked with its extent; blocking. follow: go on for ever.
    """

    stage: str
    choice: TopicChoice
    group: str | None
    shares: bool
    follow: bool
    batching: Batching
    on_recreated: OnRecreated
    discover_seconds: float
    outage_seconds: float
    release_seconds: float
    commit_seconds: float
    begin_at: Callable[
        [PartitionReader, Mapping[TopicPartition, Extent], Mapping[TopicPartition, int]], Mapping[TopicPartition, int]
    ]


class Inquiry:
    """A reader that is asked one question at a time, by tasks and by the thread that polls."""

    def __init__(self, open_reader: Callable[[], PartitionReader]) -> None:
        """open_reader: blocking."""
        self._open_reader = open_reader
        self._reader: PartitionReader | None = None
        self._one_thread = trio.CapacityLimiter(1)
        self._lock = threading.Lock()

    async def open(self) -> None:
        """Make the reader. Raises what that raises."""
        self._reader = await self._in_thread(self._open_reader)

    async def close(self) -> None:
        """Let go of the reader, once its last question is answered."""
        assert self._reader is not None
        await self._in_thread(self._reader.close)

    async def ask(self, question: Callable[[PartitionReader], T]) -> T:
        """What the reader says."""
        return await self._in_thread(lambda: self.ask_here(question))

    def ask_here(self, question: Callable[[PartitionReader], T]) -> T:
        """What the reader says. Blocking; by any thread."""
        assert self._reader is not None
        with self._lock:
            return question(self._reader)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await trio.to_thread.run_sync(work, limiter=self._one_thread)
