"""Sink `kafka`: rows as records of a topic, at least once, or exactly once in transactions.

A commit makes sure that the brokers have every record, puts those that can never be taken into the dead letters, and
stores how far that is: in `positions.db`, or in the transaction itself. Then it settles what it covers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pyarrow as pa
import structlog
import trio

from conveyord.core.errors import BatchError, ConveyordError
from conveyord.core.flow.positions import Positions
from conveyord.core.flow.tally import Tally
from conveyord.engine.batch_transform import place_of, rejections
from conveyord.engine.committing import CLEANUP_SECONDS, EMPTY_COMMIT_SECONDS, placed
from conveyord.engine.contracts import Delivery, Inbound, OperatorConfig, OperatorContext, Sink, SinkReport
from conveyord.engine.copies import COPIED
from conveyord.engine.failures import storage_errors
from conveyord.engine.kafka.sink_options import KafkaCommitPolicy, KafkaSinkConfig, sink_mistakes
from conveyord.engine.kafka.sink_rows import RecordEncoder, together
from conveyord.engine.kafka.sink_writers import AtLeastOnce, ExactlyOnce, SinkWriter, WriterOf
from conveyord.engine.messages import Batch, Eos
from conveyord.engine.poison import SUSPECT, Poison, Salvaged, salvage
from conveyord.storage.kafka.producer import Outgoing

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(slots=True)
class _Taken:
    """A batch that is not committed. refused: rows that are dead letters, or about to be. bytes: of its records."""

    batch: Batch
    refused: dict[int, ConveyordError] = field(default_factory=dict)
    bytes: int = 0

    @property
    def tally(self) -> Tally:
        return self.batch.tally + Tally(dead=len(self.refused))


class KafkaSink(Sink):
    """See docs/operators.md."""

    Config = KafkaSinkConfig
    delivery = "at-least-once"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._writer: SinkWriter | None = None
        # It waits for brokers most of the time: that must take no thread from those who compute.
        self._thread = trio.CapacityLimiter(1)
        self._encoder: RecordEncoder | None = None
        self._waiting: list[_Taken] = []
        self._oldest_at: float | None = None
        self._wanted_at = float("inf")  # when somebody who waits for one of the batches wants them committed
        self._rows = 0
        self._commits = 0

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[Any, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, KafkaSinkConfig)
        return sink_mistakes(config)

    @classmethod
    def delivery_of(cls, config: OperatorConfig) -> Delivery:
        """Exactly once, for who reads committed records, with `transactional_id`."""
        assert isinstance(config, KafkaSinkConfig)
        return "at-least-once" if config.transactional_id is None else "exactly-once"

    @property
    def destination(self) -> str:
        """See `Sink.destination`."""
        return f"topic {self.config.topic} at {self.config.brokers}"

    async def open(self) -> Positions:
        """See `Sink.open`. Nothing is made and nobody disturbed before `run`."""
        with storage_errors(self.destination):
            held = await self._waited(self._open)
        self.took_over = self._ready.took_over
        return held

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        await self.context.retries.run(lambda: self._waited(self._ready.start))
        while True:
            with trio.move_on_at(self._due_at) as wait:
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

    async def close(self) -> None:
        """See `Operator.close`."""
        if self._writer is not None:
            with trio.move_on_after(CLEANUP_SECONDS, shield=True), suppress(ConveyordError, OSError):
                await trio.to_thread.run_sync(self._writer.close, abandon_on_cancel=True)

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows count once they are committed."""
        return SinkReport(name=self.context.stage, rows=self._rows, files=0, commits=self._commits)

    def _open(self) -> Positions:
        context = self.context
        owner = WriterOf(
            pipeline=context.pipeline,
            stage=context.stage,
            data_dir=context.data_dir,
            adopt_from=context.adopt_from,
            token=uuid.uuid4().hex,
            check=trio.from_thread.check_cancelled,
        )
        self._encoder = RecordEncoder(self.config)
        self._writer = (AtLeastOnce if self.config.transactional_id is None else ExactlyOnce)(self.config, owner)
        return self._writer.open()

    @property
    def _ready(self) -> SinkWriter:
        assert self._writer is not None, "the engine opens a sink before it runs it"
        return self._writer

    @property
    def _due_at(self) -> float:
        """When the waiting batches must be committed, on trio's clock."""
        if self._oldest_at is None:
            return float("inf")
        patience = self.config.commit.every
        if not any(taken.batch.data.num_rows for taken in self._waiting):
            patience = max(patience, EMPTY_COMMIT_SECONDS)
        return min(self._wanted_at, float(self._oldest_at + patience))

    async def _take(self, batch: Batch) -> None:
        taken, records = await self.context.in_thread(self._encoded, batch)
        await self._waited(self._ready.add, records)
        self._waiting.append(taken)
        self.taken += batch.tally
        await self._bury(taken, taken.refused)
        now = trio.current_time()
        if self._oldest_at is None:
            self._oldest_at = now
        if batch.within_seconds is not None:
            self._wanted_at = min(self._wanted_at, now + batch.within_seconds)
        policy: KafkaCommitPolicy = self.config.commit
        if sum(taken.batch.data.num_rows for taken in self._waiting) >= policy.rows:
            await self._commit("rows")
        elif sum(taken.bytes for taken in self._waiting) >= policy.bytes:
            await self._commit("bytes")

    async def _waited(self, work: Callable[..., T], *args: Any) -> T:
        """Run what waits for brokers. Cancelled, it stops soon."""
        return await trio.to_thread.run_sync(work, *args, limiter=self._thread)

    def _encoded(self, batch: Batch) -> tuple[_Taken, Outgoing]:
        """The rows of a batch as records. Blocking."""
        assert self._encoder is not None
        taken = _Taken(batch)
        with placed(batch):
            try:
                records = self._encoder.records(batch.data)
            except SUSPECT as error:
                if not self._may_set_aside(batch):
                    raise
                found = salvage(self._probed, batch.data, error)
                taken.refused = {poison.row: poison.error for poison in found.poison}
                kept = [row for row in range(batch.data.num_rows) if row not in taken.refused]
                # Not encoded once more: together they might fail again, on account of no row. See `Search`.
                nothing = self._encoder.records(batch.data.slice(0, 0))
                records = together(found.pieces or [nothing]).numbered(kept)
        taken.bytes = sum(len(value) for value in records.values if value is not None)
        return taken, records

    def _probed(self, rows: pa.RecordBatch) -> Outgoing:
        trio.from_thread.check_cancelled()  # a search for poison may take a run for each row
        assert self._encoder is not None
        return self._encoder.records(rows)

    def _may_set_aside(self, batch: Batch) -> bool:
        # The copy of a letter that is refused stays no letter: that one would be copied, and refused, for ever.
        return self.context.dead_letters is not None and all(span.partition != COPIED for span in batch.spans)

    async def _bury(self, taken: _Taken, refused: Mapping[int, ConveyordError]) -> None:
        """Put rows into the dead letters, before anything covers them."""
        if not refused:
            return
        batch = taken.batch
        if not self._may_set_aside(batch):
            row, error = min(refused.items(), key=lambda item: item[0])
            raise BatchError(f"{place_of(batch)}, row {row}: {error}") from error
        assert self.context.dead_letters is not None
        poison = [Poison(row, error) for row, error in sorted(refused.items())]
        # At once: where rows cannot be told apart, their letters are kept apart only if they come together.
        await self.context.dead_letters.put(await rejections(self.context, batch, Salvaged[None](poison=poison)))
        self.taken += Tally(dead=len(poison))

    async def _commit(self, reason: str) -> None:
        """Have everything taken so far with the brokers and its positions stored, and settle it."""
        if not self._waiting:
            return
        with storage_errors(self.destination):
            await self.context.retries.run(self._attempt)
        rows = sum(taken.batch.data.num_rows - len(taken.refused) for taken in self._waiting)
        for taken in self._waiting:
            taken.batch.ack.settle()
        log.debug("committed", topic=self.config.topic, rows=rows, reason=reason)
        self._rows += rows
        self._commits += 1
        self._waiting, self._oldest_at, self._wanted_at = [], None, float("inf")

    async def _attempt(self) -> None:
        refused = await self._waited(self._ready.deliver)
        for taken, bad in zip(self._waiting, refused, strict=True):
            new = {row: error for row, error in bad.items() if row not in taken.refused}
            await self._bury(taken, new)
            taken.refused |= new
        spans = [span for taken in self._waiting for span in taken.batch.spans]
        tally = sum((taken.tally for taken in self._waiting), Tally())
        states: dict[str, str] = {}
        for taken in self._waiting:
            states |= taken.batch.states
        await self._waited(self._ready.commit, spans, tally, states)
