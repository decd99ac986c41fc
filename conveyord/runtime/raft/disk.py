"""The thread of a node's log: writes in groups, reads, compactions; and how long the oldest write has waited."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby

import trio

from conveyord.core.raft.group_commit import grouped
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Compacted, Event, Fetch, Fetched, Persisted, Write
from conveyord.core.raft.types import Mark
from conveyord.runtime.raft.ports import LogPort
from conveyord.runtime.raft.worker import Report, Worker

Other = Callable[[Report], None]


class Disk:
    """Methods are for the trio thread; what comes of them is told as events of the node."""

    def __init__(
        self,
        log: LogPort,
        tell: Callable[[Event], None],
        on_install: Callable[[Mark], None],
        on_written: Callable[[Persisted], None],
    ) -> None:
        """on_install: called when a snapshot has taken the place of the log, before the node is told. on_written: told
        that writes are on disk; `tell` is for all else.
        """
        self._log = log
        self._tell = tell
        self._on_install = on_install
        self._on_written = on_written
        self._worker = Worker[Write | Other]("raft-log", self._work)
        self._waiting: deque[tuple[int, float]] = deque()  # tokens, and since when
        self.writes = 0
        """How many transactions there were."""

    async def run(self) -> None:
        """Work until cancelled. Raises what the log raises: the process must end then, and read what is there."""
        await self._worker.run()

    def write(self, write: Write) -> None:
        """Have it on disk; `Persisted` says when."""
        self._waiting.append((write.token, trio.current_time()))
        self._worker.put(write)

    @property
    def waiting_seconds(self) -> float:
        """For how long the oldest write has waited; 0 if none does."""
        return trio.current_time() - self._waiting[0][1] if self._waiting else 0.0

    def fetch(self, fetch: Fetch) -> None:
        """Read entries; `Fetched` has them."""

        def read(report: Report) -> None:
            found = Fetched(fetch.peer, fetch.first, self._log.read(fetch.first, fetch.end, fetch.bytes_max))
            report(lambda: self._tell(found))

        self._worker.put(read)

    def compact(self, behind: Mark, index: int, membership: Membership) -> None:
        """Let the log begin after `index`, which is not after `behind`, the mark of a snapshot; `Compacted` says when.

        membership: in force at `index`. Nothing happens if the log begins later by now.
        """

        def drop(report: Report) -> None:
            base = behind
            if index < behind.index:
                found = self._log.read(index, index + 1, 1)
                if not found:
                    return
                base = Mark(index, found[0].term, found[0].chain)
            self._log.compact(base, membership)
            report(lambda: self._tell(Compacted(base)))

        self._worker.put(drop)

    def renew_reserve(self) -> None:
        """Set space aside again, if there is room."""
        self._worker.put(lambda _: self._renewed())

    def _renewed(self) -> None:
        self._log.renew_reserve()

    def _work(self, jobs: Sequence[Write | Other], report: Report) -> None:
        for are_writes, some in groupby(jobs, lambda job: isinstance(job, Write)):
            if not are_writes:
                for job in some:
                    assert not isinstance(job, Write)
                    job(report)
                continue
            for write in grouped(one for one in some if isinstance(one, Write)):
                self._log.write(write)
                self._say_written(write, report)

    def _say_written(self, write: Write, report: Report) -> None:
        def say() -> None:
            self.writes += 1
            while self._waiting and self._waiting[0][0] <= write.token:
                self._waiting.popleft()
            if write.install is not None:
                self._on_install(write.install.mark)
            self._on_written(Persisted(write.token))

        report(say)
