"""Sinks that take many batches and then make all of them durable in one commit.

A batch is acknowledged after the commit that covers it, never before. When a commit is due is decided here;
what it does is the sink's.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import structlog
import trio
from pydantic import Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.core.flow.positions import Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes, Seconds
from conveyord.engine.batch_transform import rejections
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink
from conveyord.engine.failures import storage_errors
from conveyord.engine.messages import Ack, Batch, Eos
from conveyord.engine.poison import Salvaged

log = structlog.get_logger(__name__)

CLEANUP_SECONDS = 10.0  # to delete files that no commit names: local ones take milliseconds, a store may hang
FIELDS_NAMED_MAX = 20  # in one line of the log, of those that values were left out of
PLACES_MAX = 3  # files that a message about one batch names
EMPTY_COMMIT_SECONDS = 300.0  # a run that filters everything still moves its fence, but need not do so often


class CommitPolicy(OperatorConfig):
    """When rows become visible: at whichever comes first, and at the end of the run."""

    rows: int = Field(default=5_000_000, ge=1, description="Commit when this many rows are waiting.")
    bytes: Bytes = Field(default=512 * 1024 * 1024, ge=1024, description="Commit when about this much is written.")
    every: Seconds = Field(default=60.0, ge=0.1, description="Commit when the oldest waiting row is this old.")


class CommittingSink(Sink):
    """Collects batches until a commit is due. Its configuration has a `CommitPolicy` as `commit`."""

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._waiting: list[Ack] = []
        self._spans: list[Span] = []
        self._tally = Tally()
        self._states: dict[str, str] = {}
        self._oldest_at: float | None = None
        self.discarded: Counter[str] = Counter()
        """Values that `write` left out of rows since the last commit, as the schema contract says, by field."""
        self.discarded_values = 0
        """How many were left out of rows that are committed."""

    @property
    @abstractmethod
    def what(self) -> str:
        """Where rows go, for messages: `table ns.t`, `directory out`."""

    @abstractmethod
    def write(self, batch: Batch) -> Salvaged[Any]:
        """Take the rows of a batch, to be committed later. Blocking.

        Returns those that cannot be taken as poison, if they can become dead letters; else raises BatchError.
        """

    @property
    @abstractmethod
    def bytes_staged(self) -> int:
        """About how many bytes the next commit would add."""

    @abstractmethod
    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> bool:
        """Make what was written since the last commit durable, with the positions of its records. Blocking.

        False if there is no place for positions yet, because no row had a field: nothing is committed then.
        """

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        while True:
            with trio.move_on_at(self._commit_at()) as wait:
                message = await inbound.receive()
            if wait.cancelled_caught:
                await self._commit("age")
                continue
            match message:
                case Batch():
                    await self._take(message)
                case Eos():
                    await self._commit("end")
                    return

    async def _take(self, batch: Batch) -> None:
        with storage_errors(self.what):
            accepted = await self.context.in_thread(self._written, batch)
        tally = batch.tally
        if accepted.poison:
            assert self.context.dead_letters is not None
            # Durable before the commit that covers the batch: a record is a row or a letter, never neither.
            await self.context.dead_letters.put(await rejections(self.context, batch, accepted))
            tally += Tally(dead=len(accepted.poison))
        self.taken += tally
        self._waiting.append(batch.ack)
        self._spans += batch.spans
        self._tally += tally
        self._states.update(batch.states)
        if self._oldest_at is None:
            self._oldest_at = trio.current_time()
        policy: CommitPolicy = self.config.commit
        if self._tally.rows >= policy.rows:
            await self._commit("rows")
        elif self.bytes_staged >= policy.bytes:
            await self._commit("bytes")

    def _written(self, batch: Batch) -> Salvaged[Any]:
        with placed(batch):
            return self.write(batch)

    def _commit_at(self) -> float:
        """When the waiting batches must be committed, on trio's clock."""
        if self._oldest_at is None:
            return float("inf")
        patience = self.config.commit.every
        if self._tally.rows == 0:
            patience = max(patience, EMPTY_COMMIT_SECONDS)
        return float(self._oldest_at + patience)

    async def _commit(self, reason: str) -> None:
        """Make everything taken so far durable and settle it."""
        if not self._waiting:
            return
        rows = self._tally.rows
        with storage_errors(self.what):
            done = await self.context.in_thread(self.commit, self._spans, self._tally, self._states)
        if not done:
            self._oldest_at = None
            return
        for ack in self._waiting:
            ack.settle()
        kind, _, name = self.what.partition(" ")
        log.debug("committed", **{kind: name}, rows=rows, reason=reason)
        if self.discarded:
            fields = dict(self.discarded.most_common(FIELDS_NAMED_MAX))
            log.warning("values left out as the schema contract says", **{kind: name}, fields=fields)
        self.discarded_values += self.discarded.total()
        self.discarded = Counter()
        self._waiting, self._spans, self._tally, self._states, self._oldest_at = [], [], Tally(), {}, None


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


def place_of(batch: Batch) -> str:
    """Where the records of `batch` stand in their files, for a message."""
    spans = [f"{span.partition.name} bytes {span.first} to {span.end}" for span in batch.spans[:PLACES_MAX]]
    return ", ".join(spans) + (", ..." if len(batch.spans) > PLACES_MAX else "")
