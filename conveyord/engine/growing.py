"""What the schema of a sink must become to take a batch, found out before anything there is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.types as pt
import trio

from conveyord.core.errors import BatchError
from conveyord.core.pipeline.graph import SchemaContract
from conveyord.core.units import counted
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.copies import COPIED
from conveyord.engine.messages import Batch
from conveyord.engine.poison import Poison, Salvaged, salvage
from conveyord.engine.schema import Breach, fit, grow, held_to
from conveyord.engine.schema.types import plain_type
from conveyord.engine.sql import without_views


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows that a sink takes: as they may come, and under the schema that it had or was to get then."""

    rows: pa.RecordBatch
    fitted: pa.RecordBatch

    def under(self, schema: pa.Schema) -> pa.RecordBatch:
        """The rows under exactly `schema`, to which the sink has grown."""
        return self.fitted if self.fitted.schema.equals(schema, check_metadata=True) else fit(self.rows, schema)


def _any_row(rows: pa.RecordBatch) -> None:
    """No row is refused for anything but its columns."""


class Room:
    """Makes room for batches, one after the other. Blocking, within a thread of trio.

    schema: grows with every piece taken; a piece that is refused leaves it as it was. discarded: values that the
    schema contract left out of the rows that were taken, by the dotted name of their field.
    """

    def __init__(
        self,
        held: pa.Schema | None,
        *,
        what: str,
        columns_max: int,
        check: Callable[[pa.RecordBatch], None] = _any_row,
    ) -> None:
        """what: the sink's table or directory, for messages. check: raises BatchError for rows, under the
        schema that they are to have, that the sink cannot take all the same.
        """
        self._is_new = held is None  # then the first batch decides what there is, whatever the contract
        self._held = pa.schema([]) if held is None else held
        self._what = what
        self._columns_max = columns_max
        self._check = check
        self.schema = self._held
        self.discarded: Counter[str] = Counter()

    def accept(self, batch: Batch, context: OperatorContext) -> Salvaged[Piece]:
        """What of `batch` the sink can take; the rest is poison, if it can become dead letters.

        Raises BatchError if it cannot, ConfigError for a schema that nothing can be done about.
        """
        # The copy of a letter that is refused stays no letter: that one would be copied, and refused, for ever.
        may_refuse = context.dead_letters is not None and all(span.partition != COPIED for span in batch.spans)
        if self._is_new or context.contract == SchemaContract():
            return self._taken(batch.data, may_refuse=may_refuse)
        data = without_views(batch.data)
        verdict = held_to(context.contract, data, self._held)
        breaches = [Poison(row, self._refusal(breach, context.contract)) for row, breach in verdict.refused.items()]
        if breaches and not may_refuse:
            raise breaches[0].error
        allowed = self._with_values(verdict.data) if breaches else verdict.data
        found = self._taken(allowed, may_refuse=may_refuse)
        bad = {verdict.row(one.row): one.error for one in found.poison}
        if bad and verdict.discarded:  # what was discarded from rows that are refused all the same does not count
            kept = [row for row in range(data.num_rows) if row not in bad and row not in verdict.refused]
            verdict = held_to(context.contract, data.take(pa.array(kept, pa.int64())), self._held)
        self.discarded += verdict.discarded
        poison = [*breaches, *(Poison(row, error) for row, error in bad.items())]
        return Salvaged(found.pieces, sorted(poison, key=lambda one: one.row))

    def _refusal(self, breach: Breach, contract: SchemaContract) -> BatchError:
        if breach.held is None:
            return BatchError(
                f"{self._what}: there is no column {breach.path!r}, and the pipeline's schema.columns is "
                f"{contract.columns}; add the column, leave the field out in a transform, or let columns evolve"
            )
        return BatchError(
            f"{self._what}: a {breach.word} value does not fit column {breach.path!r}, which is {breach.held}, and the "
            f"pipeline's schema.types is {contract.types}; cast it in a transform, or let types evolve"
        )

    def _taken(self, data: pa.RecordBatch, *, may_refuse: bool) -> Salvaged[Piece]:
        # A source remembers the columns of rows that were refused, so that all later ones come under those.
        needed = self._with_values(data)
        if needed.num_columns < data.num_columns and not self._is_too_wide(data):
            with suppress(BatchError):
                return Salvaged([self.take(data)])
        try:
            return Salvaged([self.take(needed)])
        except BatchError as error:
            if not may_refuse:
                raise
            failed = error
        found = salvage(lambda rows: self._take(self._with_values(rows)), data, failed)
        if len(self.schema) == 0:  # no row has brought a column for those without any
            found = salvage(lambda rows: self.take(self._with_values(rows)), data, failed)
        return found

    def take(self, data: pa.RecordBatch) -> Piece:
        """Make room for all of `data`. Raises BatchError or ConfigError if the sink cannot take it."""
        piece = self._take(data)
        if len(self.schema) == 0 and data.num_rows:
            raise self._fieldless(data)
        return piece

    def _take(self, data: pa.RecordBatch) -> Piece:
        trio.from_thread.check_cancelled()  # a search for rows may ask for thousands of pieces
        schema, fitted = grow(self.schema, data)
        if len(schema) > self._columns_max and not schema.equals(self._held):
            raise BatchError(
                f"{self._what}: the rows have {len(schema)} columns ({schema.names[-1]!r} is the newest), "
                f"columns_max is {self._columns_max}; if keys of the records are data, such as ids, keep that object "
                "as text or a list, otherwise raise columns_max"
            )
        self._check(fitted)
        self.schema = schema
        return Piece(data, fitted)

    def _is_too_wide(self, data: pa.RecordBatch) -> bool:
        """Whether `_take` fails for the number of columns alone, known without growing a schema of thousands."""
        if len(self.schema) + data.num_columns <= self._columns_max:
            return False
        brought = (field.name for field in data.schema if not pt.is_null(plain_type(field.type)))
        return len(set(self.schema.names).union(brought)) > max(self._columns_max, len(self._held))

    def _with_values(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """`data` without columns that only other rows of its batch brought, which would be refused with those."""
        held, columns = set(self.schema.names), enumerate(zip(data.schema.names, data.columns, strict=True))
        return data.select([i for i, (name, values) in columns if name in held or values.null_count < len(values)])

    def _fieldless(self, data: pa.RecordBatch) -> BatchError:
        kind = self._what.partition(" ")[0]
        return BatchError(
            f"{self._what}: no field has a value in {counted(data.num_rows, 'row')}, so there "
            f"is no column to create the {kind} with; filter such rows, or create the {kind} first"
        )
