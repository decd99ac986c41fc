"""Sink `iceberg`: rows into an Apache Iceberg table, exactly once.

Rows and the fence that names their records land in one commit, so a restart goes on from the table
alone. Batches are acknowledged after the commit that holds them, never before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated

from pydantic import AliasChoices, Field, StringConstraints

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes
from conveyord.engine.committing import CommitPolicy, CommittingSink, finish
from conveyord.engine.contracts import OperatorConfig, OperatorContext, SinkReport
from conveyord.engine.growing import Piece, Room
from conveyord.engine.messages import Batch
from conveyord.engine.poison import Salvaged
from conveyord.engine.provenance import COLUMNS
from conveyord.engine.secrets import HIDDEN, resolved
from conveyord.storage.lake.catalog import EMBEDDED, open_named
from conveyord.storage.lake.ledger import Ledger
from conveyord.storage.lake.outcomes import within
from conveyord.storage.lake.table import DEADLINE_SECONDS
from conveyord.storage.lake.table_writer import TableWriter, TableWriterOptions, catalog_errors

SHAPES_MAX = 10  # another writer that changes columns more often while one batch waits is a bug


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


class IcebergSink(CommittingSink):
    """See docs/operators.md."""

    Config = IcebergConfig
    delivery = "exactly-once"
    keeps_contract = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._writer: TableWriter | None = None

    async def open(self) -> Positions:
        """See `Sink.open`. Raises Refused if the table must not be written by this pipeline."""
        self._writer = await self.context.in_thread(self._connect)
        held = await self.context.in_thread(self._writer.open)
        if self._writer.schema is None and self.context.contract.tables == "freeze":
            raise Refused(
                f"{self.what}: it does not exist, and the pipeline's schema.tables is freeze; create it, or let tables "
                "evolve"
            )
        return held

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

    async def close(self) -> None:
        """See `Operator.close`. What was not committed is deleted."""
        if self._writer is None:
            return
        # What cannot be deleted now stays in the ledger, and a later run deletes it.
        await finish(self._writer.abort, self._writer.close)

    @property
    def what(self) -> str:
        """See `CommittingSink.what`."""
        return f"table {self.config.table}"

    @property
    def destination(self) -> str:
        """See `Sink.destination`."""
        config: IcebergConfig = self.config
        if isinstance(config.catalog, str):
            return f"table {config.table} of the catalog {config.catalog!r}"
        digest = hashlib.sha256(json.dumps(config.catalog, sort_keys=True).encode()).hexdigest()  # it holds secrets
        return f"table {config.table} of an inline catalog ({digest[:8]})"

    def write(self, batch: Batch) -> Salvaged[Piece]:
        """Shape the table if this batch needs it, then write the rows that it takes. Blocking.

        Which rows it cannot take is decided before anything is done to the table, and by the rows alone: a
        catalog that fails is no poison.
        """
        assert self._writer is not None, "the engine opens a sink before it runs it"
        if self.config.provenance:
            self._check_provenance(batch)
        accepted = self._shaped_for(batch, self._writer)
        assert self._writer.schema is not None or not accepted.pieces
        for piece in accepted.pieces:
            data = piece.under(self._writer.schema)
            if data.num_rows:
                self._writer.write(data)
        return accepted

    def _shaped_for(self, batch: Batch, writer: TableWriter) -> Salvaged[Piece]:
        """What the table takes of a batch, once it has the columns for that.

        Somebody else may change its columns at the same time, so after every change it is looked at again.
        """
        config: IcebergConfig = self.config
        for _ in range(SHAPES_MAX):
            room = Room(writer.schema, what=self.what, columns_max=config.columns_max)
            accepted = room.accept(batch, self.context)
            if writer.schema is None and len(room.schema) == 0:
                return Salvaged([], accepted.poison)
            if writer.schema is not None and room.schema.equals(writer.schema):
                self.discarded += room.discarded
                return accepted
            writer.shape(room.schema)
        raise Refused(
            f"{self.what}: its columns changed {SHAPES_MAX} times while one batch waited to be written; find out who "
            "changes them, then run again"
        )

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

    @property
    def bytes_staged(self) -> int:
        """See `CommittingSink.bytes_staged`."""
        return 0 if self._writer is None else self._writer.bytes_staged

    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> bool:
        """See `CommittingSink.commit`."""
        assert self._writer is not None
        if self._writer.schema is None:  # no record had a field yet: there is no table, and nothing to write
            return False
        self._writer.commit(spans, tally, states)
        return True

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows count once they are committed."""
        writer = self._writer
        if writer is None:
            return SinkReport(self.context.stage, 0, 0, 0)
        committed = writer.rows_committed, writer.files_committed, writer.commits
        return SinkReport(self.context.stage, *committed, discarded_values=self.discarded_values)
