"""The way of pushed requests into their journal, many in one transaction, and the news of how far sinks are."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import structlog
import trio

from conveyord.core.errors import ConveyordError, Retryable, StorageFull
from conveyord.core.flow.positions import Partition, Position
from conveyord.storage.push_journal import Push, PushJournal, Retention, Stored, Taken

T = TypeVar("T")

log = structlog.get_logger(__name__)

GROUP_MAX = 1_000  # requests in one transaction
READ_BYTES = (
    8 * 1024 * 1024
)  # of one batch, unless a single request is larger; as much as file sources decode at a time
CLEANUP_SECONDS = 5.0  # to say in the journal how far the sinks were


@dataclass(slots=True, eq=False)
class _Asking:
    """A request that waits for its place. result: what became of it, once `done` is set."""

    push: Push
    done: trio.Event = field(default_factory=trio.Event)
    result: Taken | ConveyordError | None = None


class Intake:
    """One journal, shared by requests, which put records in, and a source, which reads them. For one event loop.

    `work` must run beside both. floor: below it, every sink has everything.
    """

    def __init__(
        self,
        journal: PushJournal,
        partition: Partition,
        retention: Retention,
        *,
        bytes_max: int,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.journal = journal
        self.partition = partition
        self.floor = journal.floor
        self._retention = retention
        self._bytes_max = bytes_max
        self._clock = clock
        self._asking: list[_Asking] = []
        self._work = trio.Event()
        self._appended = trio.Event()
        self._moved = trio.Event()
        # A journal is one connection, so more threads would wait for each other; and one of its own, because those of
        # the run may all be decoding while a sender waits.
        self._thread = trio.CapacityLimiter(1)

    async def put(self, push: Push) -> Taken:
        """Put a request into the journal, on disk on return. Raises StorageFull or Retryable if that failed."""
        asking = _Asking(push)
        self._asking.append(asking)
        self._work.set()
        await asking.done.wait()
        if isinstance(asking.result, ConveyordError):
            raise asking.result
        assert asking.result is not None
        return asking.result

    def settled(self, moved: Mapping[Partition, Position]) -> None:
        """Take the news of `Outlet.on_settled`."""
        position = moved.get(self.partition)
        if position is not None and position.offset > self.floor:
            self.floor = position.offset
            self._work.set()
            self._moved.set()
            self._moved = trio.Event()

    async def wait_settled(self, end: int) -> None:
        """Wait until every sink has the records before offset `end`."""
        while self.floor < end:
            await self._moved.wait()

    async def wait_beyond(self, first: int, stop: trio.Event) -> None:
        """Wait until there is a record at offset `first`, or until `stop` is set and somebody calls `nudge`."""
        while self.journal.next <= first and not stop.is_set():
            await self._appended.wait()

    def nudge(self) -> None:
        """Have whoever waits for records look again."""
        self._appended.set()
        self._appended = trio.Event()

    async def read(self, first: int) -> list[Stored]:
        """The requests from offset `first` on that make one batch; none if there are none yet."""
        if self.journal.next <= first:
            return []
        return await self._in_thread(lambda: self.journal.read(first, bytes_max=READ_BYTES))

    async def work(self) -> None:
        """Write what is put, all that waits in one transaction, and delete what is settled. Until cancelled."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._asking:
                group, self._asking = self._asking[:GROUP_MAX], self._asking[GROUP_MAX:]
                await self._append(group)
            await self._settle()

    async def _append(self, group: list[_Asking]) -> None:
        pushes = [asking.push for asking in group]
        results: Sequence[Taken | ConveyordError]
        try:
            results = await self._in_thread(
                lambda: self.journal.append(pushes, now=self._clock(), bytes_max=self._bytes_max)
            )
        except (StorageFull, Retryable) as error:
            # Those who sent them are told to come again; what was taken before goes on, and may free the disk.
            log.warning("requests cannot be taken", source=self.partition.source, reason=str(error))
            results = [error] * len(group)
        for asking, result in zip(group, results, strict=True):
            asking.result = result
            asking.done.set()
        self.nudge()

    async def _settle(self) -> None:
        if self.floor <= self.journal.floor:
            return
        floor = self.floor
        try:
            await self._in_thread(lambda: self.journal.settle(floor, self._retention, now=self._clock()))
        except (StorageFull, Retryable) as error:  # it is done with the next, or by the next run
            log.warning("what every sink has cannot be deleted yet", source=self.partition.source, reason=str(error))

    async def close(self) -> None:
        """Delete what is settled, and let go of the journal."""

        def work() -> None:
            try:
                if self.floor > self.journal.floor:
                    self.journal.settle(self.floor, self._retention, now=self._clock())
            except ConveyordError as error:
                log.warning("what every sink has stays in the journal", reason=str(error))
            finally:
                self.journal.close()

        with trio.move_on_after(CLEANUP_SECONDS, shield=True):
            await trio.to_thread.run_sync(work, abandon_on_cancel=True)

    async def _in_thread(self, work: Callable[..., T], *args: Any) -> T:
        return await trio.to_thread.run_sync(work, *args, limiter=self._thread)
