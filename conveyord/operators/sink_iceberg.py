"""Sink `iceberg`: rows into an Apache Iceberg table, exactly once.

Rows and the fence that names their records land in one commit, so a restart goes on from the table
alone. Batches are acknowledged after the commit that holds them, never before.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AliasChoices, Field, StringConstraints

from conveyord.core.flow.positions import Positions
from conveyord.engine.committing import Committing, finish
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink, SinkReport
from conveyord.engine.iceberg_table import IcebergOptions, IcebergTable, Lake, catalog_named


class IcebergConfig(IcebergOptions):
    """Writes rows into an Iceberg table, exactly once. The table is created, and grows, as rows need it."""

    table: Annotated[str, StringConstraints(pattern=r"^[^.\s]+(\.[^.\s]+)+$")] = Field(
        validation_alias=AliasChoices("table", "table_name"),
        description="`namespace.table`; both are created if missing.",
        examples=["demo.records"],
    )


class IcebergSink(Sink):
    """See docs/operators.md."""

    Config = IcebergConfig
    delivery = "exactly-once"
    keeps_contract = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._table: IcebergTable | None = None
        self._committing: Committing | None = None

    async def open(self) -> Positions:
        """See `Sink.open`. Raises Refused if the table must not be written by this pipeline."""
        self._table = await self.context.in_thread(self._connect)
        self._committing = Committing(self, self._table, self.config.commit)
        held = await self.context.in_thread(self._table.open)
        self.took_over = self._table.took_over
        return held

    def _connect(self) -> IcebergTable:
        return Lake(self.config, self.context).table(self.config.table, adopt_from=self.context.adopt_from)

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        assert self._committing is not None, "the engine opens a sink before it runs it"
        await self._committing.run(inbound)

    async def close(self) -> None:
        """See `Operator.close`. What was not committed is deleted."""
        if self._table is None:
            return
        # What cannot be deleted now stays in the ledger, and a later run deletes it.
        await finish(self._table.abort, self._table.close)

    @property
    def destination(self) -> str:
        """See `Sink.destination`."""
        return f"table {self.config.table} of {catalog_named(self.config, self.context)}"

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows count once they are committed."""
        if self._table is None or self._committing is None:
            return SinkReport(self.context.stage, 0, 0, 0)
        return SinkReport(
            self.context.stage, *self._table.committed, discarded_values=self._committing.discarded_values
        )
