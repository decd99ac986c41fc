"""An Iceberg table as a destination of rows: what every sink that writes to one shares.

Rows and the fence that names their records land in one commit, so a restart goes on from the table alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes
from conveyord.engine.committing import CommitPolicy
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.growing import Piece, Room
from conveyord.engine.messages import Batch
from conveyord.engine.poison import Salvaged
from conveyord.engine.provenance import COLUMNS
from conveyord.engine.secrets import HIDDEN, resolved
from conveyord.storage.lake.catalog import EMBEDDED, digest_of, open_named
from conveyord.storage.lake.fenced import fenced_tables
from conveyord.storage.lake.ledger import Ledger
from conveyord.storage.lake.outcomes import within
from conveyord.storage.lake.table import DEADLINE_SECONDS
from conveyord.storage.lake.table_writer import TableWriter, TableWriterOptions, catalog_errors

if TYPE_CHECKING:
    import re

SHAPES_MAX = 10  # another writer that changes columns more often while one batch waits is a bug


class IcebergOptions(OperatorConfig):
    """What every sink that writes Iceberg tables can be told. `table` is the sink's own matter."""

    table: str
    catalog: Annotated[str | dict[str, str], HIDDEN] = Field(
        default=EMBEDDED,
        description="A catalog of conveyord.toml by name, or pyiceberg's properties of one. "
        "`lake` is the embedded one.",
    )
    partition_by: tuple[str, ...] = Field(
        default=(),
        description="`column`, `year|month|day|hour(column)`, `bucket(n, column)`, `truncate(n, column)`. A row with a "
        "date or time that only a bucket can tell, of no year from 0001 to 9999, is bad.",
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


def catalog_named(options: IcebergOptions, context: OperatorContext) -> str:
    """What tells the catalog of `options` from others, without its secrets."""
    if isinstance(options.catalog, str):
        name, properties = f"the catalog {options.catalog!r}", context.catalogs.get(options.catalog)
    else:
        name, properties = "an inline catalog", options.catalog
    return name if properties is None else f"{name} ({digest_of(properties)})"


class Lake:
    """A catalog that is open for writing, and what remembers the files of its tables. Blocking.

    Opening raises ConfigError for a catalog that is not configured, Refused or Retryable as the catalog does.
    """

    def __init__(self, options: IcebergOptions, context: OperatorContext) -> None:
        chosen = options.catalog
        if not isinstance(chosen, str):
            chosen = resolved(chosen, f"sink {context.stage!r}: catalog")
        with catalog_errors(f"catalog {chosen!r}" if isinstance(chosen, str) else "catalog"):
            opened = partial(open_named, chosen, context.data_dir, context.catalogs)
            self._catalog = within(DEADLINE_SECONDS, opened)
        self._ledger = Ledger(context.data_dir)
        self._options = options
        self._context = context

    def table(self, identifier: str, *, adopt_from: str | None) -> IcebergTable:
        """The table of that name; `open` it. adopt_from: see `OperatorContext.adopt_from`."""
        options = TableWriterOptions(
            identifier=identifier,
            pipeline=self._context.pipeline,
            partition_by=self._options.partition_by,
            adopt=self._options.adopt,
            adopt_from=adopt_from,
            target_file_bytes=self._options.target_file_bytes,
        )
        return IcebergTable(TableWriter(self._catalog, self._ledger, options), identifier, self._options, self._context)

    def fenced(self, parts: Sequence[str | re.Pattern[str]], *, by: Sequence[str]) -> dict[str, frozenset[str]]:
        """The tables that fit and hold a fence of one of the pipelines `by`, and of which. See `fenced_tables`."""
        return fenced_tables(self._catalog, parts, pipelines=by)

    def close(self) -> None:
        """Let go of the catalog's and the ledger's files. Its tables are of no more use."""
        self._catalog.close()
        self._ledger.close()


class IcebergTable:
    """One table, written by one sink. A `Destination`; every method is blocking, and calls must not overlap."""

    def __init__(self, writer: TableWriter, identifier: str, options: IcebergOptions, context: OperatorContext) -> None:
        self._writer = writer
        self._options = options
        self._context = context
        self.what = f"table {identifier}"
        self.discarded: Counter[str] = Counter()
        """See `Destination`."""
        self.held = Positions()
        """How far the table has been written."""

    def open(self) -> Positions:
        """Look at the table and return how far it has been written; nothing is created.

        Raises Refused if the table must not be written by this pipeline.
        """
        self.held = self._writer.open()
        if self._writer.schema is None and self._context.contract.tables == "freeze":
            raise Refused(
                f"{self.what}: it does not exist, and the pipeline's schema.tables is freeze; create it, or let tables "
                "evolve"
            )
        return self.held

    @property
    def took_over(self) -> bool:
        """See `Sink.took_over`."""
        return self._writer.took_over

    @property
    def exists(self) -> bool:
        """Whether there is a table: one is created for the first row that has a field."""
        return self._writer.schema is not None

    def write(self, batch: Batch) -> Salvaged[Piece]:
        """Shape the table if this batch needs it, then write the rows that it takes. See `Destination.write`.

        Which rows it cannot take is decided before anything is done to the table, and by the rows alone: a
        catalog that fails is no poison.
        """
        writer = self._writer
        if self._options.provenance:
            self._check_provenance(batch)
        accepted = self._shaped_for(batch)
        assert writer.schema is not None or not accepted.pieces
        for piece in accepted.pieces:
            data = piece.under(writer.schema)
            if data.num_rows:
                writer.write(data)
        return accepted

    def _shaped_for(self, batch: Batch) -> Salvaged[Piece]:
        """What the table takes of a batch, once it has the columns for that.

        Somebody else may change its columns at the same time, so after every change it is looked at again.
        """
        writer, columns_max = self._writer, self._options.columns_max
        for _ in range(SHAPES_MAX):
            room = Room(writer.schema, what=self.what, columns_max=columns_max, check=writer.check)
            accepted = room.accept(batch, self._context)
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
        stage = self._context.stage
        missing = [name for name in COLUMNS if name not in batch.data.schema.names]
        if missing and batch.data.schema.names:  # without any, no record has told yet what there is
            raise ConfigError(
                f"sink {stage!r}: provenance is on, but a stage dropped {', '.join(missing)}; "
                f"keep {', '.join(COLUMNS)} (a SQL stage must select them), or turn provenance off"
            )
        if batch.tally.added:
            raise ConfigError(
                f"sink {stage!r}: provenance is on, but a stage made several rows of one record; "
                "provenance identifies a row by its record, so turn it off for this pipeline"
            )

    @property
    def bytes_staged(self) -> int:
        """See `Destination`."""
        return self._writer.bytes_staged

    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> bool:
        """See `Destination.commit`."""
        if not self.exists:  # no record had a field yet: there is no table, and nothing to write
            return False
        self._writer.commit(spans, tally, states)
        self.held = self.held.advanced(spans)
        return True

    @property
    def committed(self) -> tuple[int, int, int]:
        """Rows, files and commits that are in the table since it was opened."""
        return self._writer.rows_committed, self._writer.files_committed, self._writer.commits

    def abort(self) -> None:
        """Delete the files that no commit has named or may still name. The table is of no more use here."""
        self._writer.abort()

    def close(self) -> None:
        """Let go of the catalog's and the ledger's files, which the tables of one `Lake` share."""
        self._writer.close()
