"""Sink `iceberg`: rows into an Apache Iceberg table, exactly once.

Rows and the fence that names their records land in one commit, so a restart goes on from the table
alone. Batches are acknowledged after the commit that holds them, never before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import pyarrow as pa
import structlog
import trio
from pydantic import AliasChoices, Field, StringConstraints

from conveyord.core.errors import BatchError, ConfigError
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes, Seconds, counted
from conveyord.engine.batch_transform import rejections
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink, SinkReport
from conveyord.engine.copies import SOURCE as COPIES
from conveyord.engine.failures import storage_errors
from conveyord.engine.messages import Ack, Batch, Eos
from conveyord.engine.poison import Salvaged, salvage
from conveyord.engine.provenance import COLUMNS
from conveyord.engine.schema import fit, grow
from conveyord.engine.secrets import HIDDEN, resolved
from conveyord.storage.lake.catalog import EMBEDDED, open_named
from conveyord.storage.lake.ledger import Ledger
from conveyord.storage.lake.outcomes import within
from conveyord.storage.lake.table import DEADLINE_SECONDS
from conveyord.storage.lake.table_writer import TableWriter, TableWriterOptions, catalog_errors

log = structlog.get_logger(__name__)

CLEANUP_SECONDS = 10.0  # to delete files that no commit names: local ones take milliseconds, a store may hang
PLACES_MAX = 3  # files that a message about one batch names
EMPTY_COMMIT_SECONDS = 300.0  # a run that filters everything still moves its fence, but need not do so often


class CommitPolicy(OperatorConfig):
    """When rows become visible: at whichever comes first, and at the end of the run."""

    rows: int = Field(default=5_000_000, ge=1, description="Commit when this many rows are waiting.")
    bytes: Bytes = Field(default=512 * 1024 * 1024, ge=1024, description="Commit when about this much is written.")
    every: Seconds = Field(default=60.0, ge=0.1, description="Commit when the oldest waiting row is this old.")


class IcebergConfig(OperatorConfig):
    """Writes rows into an Iceberg table, exactly once. The table is created, and grows, as rows need it."""

    table: Annotated[str, StringConstraints(pattern=r"^[^.\s]+(\.[^.\s]+)+$")] = Field(
        validation_alias=AliasChoices("table", "table_name"),
        description="`namespace.table`; both are created if missing.",
        examples=["demo.records"],
    )
    catalog: Annotated[str | dict[str, str], HIDDEN] = Field(
        default=EMBEDDED,
        description="A catalog of conveyord.toml by name, or pyiceberg's properties of one. "
        "`lake` is the embedded one.",
    )
    partition_by: tuple[str, ...] = Field(
        default=(), description="`column`, `year|month|day|hour(column)`, `bucket(n, column)`, `truncate(n, column)`."
    )
    commit: CommitPolicy = Field(default_factory=CommitPolicy)
    target_file_bytes: Bytes = Field(
        default=128 * 1024 * 1024, ge=1024 * 1024, description="A data file is closed when this much is written to it."
    )
    columns_max: int = Field(
        default=2_000, ge=1, le=100_000, description="Refuse to grow the table beyond this many columns."
    )
    adopt: bool = Field(default=False, description="Write to a table that holds rows this pipeline did not write.")
    provenance: bool = Field(
        default=False, description="Add `_source`, `_partition` and `_offset`, so that `audit` can check every row."
    )


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows that a table takes: as they came, and under the schema that it had or was to get then."""

    rows: pa.RecordBatch
    fitted: pa.RecordBatch


class _Room:
    """What a table must become to take a batch, found out without touching it. Blocking.

    schema: grows with every piece taken; a piece that is refused leaves it as it was.
    """

    def __init__(self, held: pa.Schema | None, *, table: str, columns_max: int) -> None:
        self._held = pa.schema([]) if held is None else held
        self._table = table
        self._columns_max = columns_max
        self.schema = self._held

    def take(self, data: pa.RecordBatch) -> _Piece:
        """Make room for all of `data`. Raises BatchError or ConfigError if the table cannot take it."""
        piece = self._take(data)
        if len(self.schema) == 0 and data.num_rows:
            raise self._fieldless(data)
        return piece

    def take_most(self, data: pa.RecordBatch, error: BatchError) -> Salvaged[_Piece]:
        """Make room for all rows of `data` but those that the table cannot take. `take` failed with `error`."""
        if data.num_rows == 0:  # its columns are too many, but no value needs them
            return Salvaged()
        found = salvage(lambda rows: self._take(self._with_values(rows)), data, error)
        if len(self.schema) == 0:  # no row has brought a column for those without any
            found = salvage(lambda rows: self.take(self._with_values(rows)), data, error)
        return found

    def _take(self, data: pa.RecordBatch) -> _Piece:
        trio.from_thread.check_cancelled()  # a search for rows may ask for thousands of pieces
        schema, fitted = grow(self.schema, data)
        if len(schema) > self._columns_max and not schema.equals(self._held):
            raise BatchError(
                f"table {self._table}: the rows have {len(schema)} columns ({schema.names[-1]!r} is the newest), "
                f"columns_max is {self._columns_max}; if keys of the records are data, such as ids, keep that object "
                "as text or a list, otherwise raise columns_max"
            )
        self.schema = schema
        return _Piece(data, fitted)

    def _with_values(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """`data` without columns that only other rows of its batch brought, which would be refused with those."""
        held, columns = set(self.schema.names), enumerate(zip(data.schema.names, data.columns, strict=True))
        return data.select([i for i, (name, values) in columns if name in held or values.null_count < len(values)])

    def _fieldless(self, data: pa.RecordBatch) -> BatchError:
        return BatchError(
            f"table {self._table}: no field has a value in {counted(data.num_rows, 'row')}, so there "
            "is no column to create the table with; filter such rows, or create the table first"
        )


class IcebergSink(Sink):
    """See docs/operators.md."""

    Config = IcebergConfig
    delivery = "exactly-once"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._writer: TableWriter | None = None
        self._waiting: list[Ack] = []
        self._spans: list[Span] = []
        self._tally = Tally()
        self._states: dict[str, str] = {}
        self._oldest_at: float | None = None

    async def open(self) -> Positions:
        """See `Sink.open`. Raises Refused if the table must not be written by this pipeline."""
        self._writer = await self.context.in_thread(self._connect)
        return await self.context.in_thread(self._writer.open)

    def _connect(self) -> TableWriter:
        config: IcebergConfig = self.config
        catalogs = self.context.catalogs
        chosen = config.catalog
        if not isinstance(chosen, str):
            chosen = resolved(chosen, f"sink {self.context.stage!r}: catalog")
        with catalog_errors(f"catalog {chosen!r}" if isinstance(chosen, str) else "catalog"):
            catalog = within(DEADLINE_SECONDS, partial(open_named, chosen, self.context.data_dir, catalogs))
        options = TableWriterOptions(
            identifier=config.table,
            pipeline=self.context.pipeline,
            partition_by=config.partition_by,
            adopt=config.adopt,
            adopt_from=self.context.adopt_from,
            target_file_bytes=config.target_file_bytes,
        )
        return TableWriter(catalog, Ledger(self.context.data_dir), options)

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        assert self._writer is not None, "the engine opens a sink before it runs it"
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

    async def close(self) -> None:
        """See `Operator.close`. What was not committed is deleted."""
        if self._writer is None:
            return
        # What cannot be deleted now stays in the ledger, and a later run deletes it.
        with trio.move_on_after(CLEANUP_SECONDS, shield=True):
            await _finish(self._writer.abort)
            await _finish(self._writer.close)

    @property
    def destination(self) -> str:
        """See `Sink.destination`."""
        config: IcebergConfig = self.config
        if isinstance(config.catalog, str):
            return f"table {config.table} of the catalog {config.catalog!r}"
        digest = hashlib.sha256(json.dumps(config.catalog, sort_keys=True).encode()).hexdigest()  # it holds secrets
        return f"table {config.table} of an inline catalog ({digest[:8]})"

    async def _take(self, batch: Batch) -> None:
        with storage_errors(f"table {self.config.table}"):
            accepted = await self.context.in_thread(self._write, batch)
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
        assert self._writer is not None
        if self._tally.rows >= policy.rows:
            await self._commit("rows")
        elif self._writer.bytes_staged >= policy.bytes:
            await self._commit("bytes")

    def _write(self, batch: Batch) -> Salvaged[_Piece]:
        """Shape the table if this batch needs it, then write the rows that it takes. Blocking.

        Returns the others as poison if they can become dead letters, else raises BatchError. Which they are is
        decided before anything is done to the table, and by the rows alone: a catalog that fails is no poison.
        """
        assert self._writer is not None
        if self.config.provenance:
            self._check_provenance(batch)
        try:
            room = _Room(self._writer.schema, table=self.config.table, columns_max=self.config.columns_max)
            accepted = self._accepted(batch, room)
            self._write_pieces(accepted.pieces, room, self._writer)
        except ConfigError as error:
            raise ConfigError(f"{place_of(batch)}: {error}") from error
        except BatchError as error:
            raise BatchError(f"{place_of(batch)}: {error}") from error
        return accepted

    def _accepted(self, batch: Batch, room: _Room) -> Salvaged[_Piece]:
        try:
            return Salvaged([room.take(batch.data)])
        except BatchError as error:
            # The copy of a letter that is refused stays no letter: that one would be copied, and refused, for ever.
            copied = Partition(COPIES, self.context.pipeline)
            if self.context.dead_letters is None or any(span.partition == copied for span in batch.spans):
                raise
            return room.take_most(batch.data, error)

    def _write_pieces(self, pieces: list[_Piece], room: _Room, writer: TableWriter) -> None:
        if writer.schema is None or not room.schema.equals(writer.schema):
            if len(room.schema) == 0:
                return
            writer.shape(room.schema)
        for piece in pieces:
            data = piece.fitted
            if not data.schema.equals(writer.schema, check_metadata=True):
                data = fit(piece.rows, writer.schema)
            if data.num_rows:
                writer.write(data)

    def _check_provenance(self, batch: Batch) -> None:
        missing = [name for name in COLUMNS if name not in batch.data.schema.names]
        if missing:
            raise ConfigError(
                f"sink {self.context.stage!r}: provenance is on, but a stage dropped {', '.join(missing)}; "
                f"keep {', '.join(COLUMNS)} (a SQL stage must select them), or turn provenance off"
            )
        if batch.tally.added:
            raise ConfigError(
                f"sink {self.context.stage!r}: provenance is on, but a stage made several rows of one record; "
                "provenance identifies a row by its record, so turn it off for this pipeline"
            )

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
        assert self._writer is not None
        rows = self._tally.rows
        if self._writer.schema is None:  # no record had a field yet: there is no table, and nothing to write
            self._oldest_at = None
            return
        with storage_errors(f"table {self.config.table}"):
            await self.context.in_thread(self._writer.commit, self._spans, self._tally, self._states)
        for ack in self._waiting:
            ack.settle()
        log.debug("committed", table=self.config.table, rows=rows, reason=reason)
        self._waiting, self._spans, self._tally, self._states, self._oldest_at = [], [], Tally(), {}, None

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows count once they are committed."""
        writer = self._writer
        if writer is None:
            return SinkReport(self.context.stage, 0, 0, 0)
        return SinkReport(self.context.stage, writer.rows_committed, writer.files_committed, writer.commits)


async def _finish(step: Callable[[], None]) -> None:
    """Run one blocking step of the end, which a deadline may leave behind."""
    with suppress(OSError):
        await trio.to_thread.run_sync(step, abandon_on_cancel=True)


def place_of(batch: Batch) -> str:
    """Where the records of `batch` stand in their files, for a message."""
    spans = [f"{span.partition.name} bytes {span.first} to {span.end}" for span in batch.spans[:PLACES_MAX]]
    return ", ".join(spans) + (", ..." if len(batch.spans) > PLACES_MAX else "")
