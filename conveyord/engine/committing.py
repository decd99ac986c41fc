"""Sinks that take many batches and then make all of them durable in one commit.

A batch is acknowledged after the commit that covers it, never before. When a commit is due is decided here;
what it does is the sink's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import structlog
import trio
from pydantic import Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.core.flow.positions import Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes, Seconds
from conveyord.engine.batch_transform import place_of, rejections
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink
from conveyord.engine.failures import storage_errors
from conveyord.engine.messages import Ack, Batch, Eos
from conveyord.engine.poison import Salvaged

log = structlog.get_logger(__name__)

CLEANUP_SECONDS = 10.0  # to delete files that no commit names: local ones take milliseconds, a store may hang
FIELDS_NAMED_MAX = 20  # in one line of the log, of those that values were left out of
EMPTY_COMMIT_SECONDS = 300.0  # a run that filters everything still moves its fence, but need not do so often


class CommitPolicy(OperatorConfig):
    """When rows become visible: at whichever comes first, and at the end of the run."""

    rows: int = Field(default=5_000_000, ge=1, description="Commit when this many rows are waiting.")
    bytes: Bytes = Field(default=512 * 1024 * 1024, ge=1024, description="Commit when about this much is written.")
    every: Seconds = Field(default=60.0, ge=0.1, description="Commit when the oldest waiting row is this old.")


class Destination(Protocol):
    """What rows are put into and made durable in one commit: a table, a directory. Its methods are blocking.

    what: where rows go, for messages: `table ns.t`, `directory out`. discarded: values that `write` left out of
    rows since the last commit, as the schema contract says, by field. bytes_staged: about how many bytes the next
    commit would add.
    """

    discarded: Counter[str]

    @property
    def what(self) -> str: ...

    @property
    def bytes_staged(self) -> int: ...

    def write(self, batch: Batch) -> Salvaged[Any]:
        """Take the rows of a batch, to be committed later.

        Returns those that cannot be taken as poison, if they can become dead letters; else raises BatchError.
        """

    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> bool:
        """Make what was written since the last commit durable, with the positions of its records.

        False if there is no place for positions yet, because no row had a field: nothing is committed then.
        """


class Committing:
    """The batches that one destination of a sink has taken and not committed. Used by one task."""

    def __init__(self, sink: Sink, into: Destination, policy: CommitPolicy) -> None:
        self._sink = sink
        self._context = sink.context
        self._into = into
        self._policy = policy
        self._waiting: list[Ack] = []
        self._spans: list[Span] = []
        self._tally = Tally()
        self._states: dict[str, str] = {}
        self._oldest_at: float | None = None
        self._wanted_at = float("inf")  # when somebody who waits for one of the batches wants them committed
        self.discarded_values = 0
        """How many values were left out of rows that are committed."""

    @property
    def is_waiting(self) -> bool:
        """Whether it has batches that are not committed."""
        return bool(self._waiting)

    @property
    def due_at(self) -> float:
        """When the waiting batches must be committed, on trio's clock."""
        if self._oldest_at is None:
            return float("inf")
        patience = self._policy.every
        if self._tally.rows == 0:
            patience = max(patience, EMPTY_COMMIT_SECONDS)
        return min(self._wanted_at, self._oldest_at + patience)

    async def run(self, inbound: Inbound) -> None:
        """Take every batch of `inbound`, commit when that is due, and at the end."""
        while True:
            with trio.move_on_at(self.due_at) as wait:
                message = await inbound.receive()
            if wait.cancelled_caught:
                await self.commit("age")
                continue
            match message:
                case Batch():
                    await self.take(message)
                case Eos():
                    await self.commit("end")
                    return

    async def take(self, batch: Batch) -> None:
        """Write a batch, and commit if that is due by rows or bytes."""
        with storage_errors(self._into.what):
            accepted = await self._context.in_thread(self._written, batch)
        tally = batch.tally
        if accepted.poison:
            assert self._context.dead_letters is not None
            # Durable before the commit that covers the batch: a record is a row or a letter, never neither.
            await self._context.dead_letters.put(await rejections(self._context, batch, accepted))
            tally += Tally(dead=len(accepted.poison))
        self._sink.taken += tally
        self._waiting.append(batch.ack)
        self._spans += batch.spans
        self._tally += tally
        self._states.update(batch.states)
        now = trio.current_time()
        if self._oldest_at is None:
            self._oldest_at = now
        if batch.within_seconds is not None:
            self._wanted_at = min(self._wanted_at, now + batch.within_seconds)
        if self._tally.rows >= self._policy.rows:
            await self.commit("rows")
        elif self._into.bytes_staged >= self._policy.bytes:
            await self.commit("bytes")

    def _written(self, batch: Batch) -> Salvaged[Any]:
        with placed(batch):
            return self._into.write(batch)

    async def commit(self, reason: str) -> None:
        """Make everything taken so far durable and settle it. reason: for the log."""
        if not self._waiting:
            return
        rows, into = self._tally.rows, self._into
        with storage_errors(into.what):
            done = await self._context.in_thread(into.commit, self._spans, self._tally, self._states)
        self._wanted_at = float("inf")
        if not done:
            self._oldest_at = None
            return
        for ack in self._waiting:
            ack.settle()
        kind, _, name = into.what.partition(" ")
        log.debug("committed", **{kind: name}, rows=rows, reason=reason)
        if into.discarded:
            fields = dict(into.discarded.most_common(FIELDS_NAMED_MAX))
            log.warning("values left out as the schema contract says", **{kind: name}, fields=fields)
        self.discarded_values += into.discarded.total()
        into.discarded = Counter()
        self._waiting, self._spans, self._tally, self._states, self._oldest_at = [], [], Tally(), {}, None


class CommittingSink(Sink):
    """A sink that is its own and only destination. Its configuration has a `CommitPolicy` as `commit`."""

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._committing = Committing(self, self, self.config.commit)
        self.discarded: Counter[str] = Counter()
        """See `Destination`."""

    @property
    @abstractmethod
    def what(self) -> str:
        """See `Destination`."""

    @abstractmethod
    def write(self, batch: Batch) -> Salvaged[Any]:
        """See `Destination.write`."""

    @property
    @abstractmethod
    def bytes_staged(self) -> int:
        """See `Destination`."""

    @abstractmethod
    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> bool:
        """See `Destination.commit`."""

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        await self._committing.run(inbound)

    @property
    def discarded_values(self) -> int:
        """How many values were left out of rows that are committed."""
        return self._committing.discarded_values


async def finish(*steps: Callable[[], None]) -> None:
    """Run the blocking steps of a sink's end, each of which a deadline may leave behind."""
    with trio.move_on_after(CLEANUP_SECONDS, shield=True):
        for step in steps:
            with suppress(OSError):
                await trio.to_thread.run_sync(step, abandon_on_cancel=True)


@contextmanager
def placed(batch: Batch) -> Iterator[None]:
    """Say in an error about `batch` where its records stand."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place_of(batch)}: {error}") from error
    except BatchError as error:
        raise BatchError(f"{place_of(batch)}: {error}") from error
