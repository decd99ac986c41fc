"""Transform `schema_evolution`: batches whose columns come and go get one schema, which grows, or none other."""

from __future__ import annotations

import pyarrow as pa
from pydantic import Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.core.pipeline.graph import SchemaContract
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, bad_rows
from conveyord.engine.contracts import Mistakes, OperatorConfig, OperatorContext
from conveyord.engine.schema import Breach, fit, grow, held_to, merge
from conveyord.engine.sql import without_views
from conveyord.engine.type_words import type_named

LAW = SchemaContract(columns="freeze", types="freeze")


class SchemaEvolutionConfig(OperatorConfig):
    """Gives all batches one schema, for what follows: SQL that names columns, sinks that do not grow.

    With `auto_infer`, columns and nested fields that a batch brings are added behind those known and are null in rows
    without them; numbers widen, and a value that does not fit its column goes to one beside it, as in a table
    (`price__string`). A field without any value yet is no column; name it in `columns` if it must be there.

    With `strict_mode`, nothing is added: rows with another field, or with a value that its column cannot give back
    exactly, fail. They become dead letters, or stop a pipeline without `dlq`. The law is `columns`, or else the
    columns of the first batch with rows that this run sees.

    What was learned is not kept: a run that goes on after another begins with `columns`, or with nothing.
    """

    auto_infer: bool = Field(default=True, description="Learn columns and types from the rows.")
    strict_mode: bool = Field(default=False, description="Let rows fail that do not fit what is known.")
    columns: dict[str, str] = Field(
        default_factory=dict,
        examples=[{"id": "long", "at": "timestamptz"}],
        description="Columns that are there from the beginning, with their types as in `cast`.",
    )
    columns_max: int = Field(
        default=2_000, ge=1, le=100_000, description="A row fails that would bring the columns to more than this."
    )


class SchemaEvolutionTransform(BatchTransform):
    """See docs/operators.md. Not pure: what comes out depends on the batches before."""

    Config = SchemaEvolutionConfig
    same_count_same_rows = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError for a word that names no type."""
        super().__init__(config, context)
        declared = [pa.field(name, type_named(word)) for name, word in self.config.columns.items()]
        self._schema = pa.schema(declared)
        self._is_law = bool(declared) and self.config.strict_mode

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, SchemaEvolutionConfig)
        found = {}
        for name, word in config.columns.items():
            try:
                type_named(word)
            except ConfigError as error:
                found["columns", name] = f"column {name!r}: {error}"
        if found:
            return found
        if not config.auto_infer and not config.strict_mode:
            return {"auto_infer": "with auto_infer and strict_mode both off the stage does nothing; leave it out"}
        if not config.auto_infer and not config.columns:
            return {"auto_infer": "without auto_infer there are no columns to be strict about; give them in columns"}
        return {}

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: each row is judged by itself."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`.

        Raises: BadRows for rows that are not as the law says, BatchError for too many columns, ConfigError if two
            columns have one name.
        """
        if self.config.strict_mode:
            return self._held_to_law(data)
        schema, fitted = grow(self._schema, data)
        self._check_count(schema)
        self._schema = schema
        return fitted

    def _held_to_law(self, data: pa.RecordBatch) -> pa.RecordBatch:
        if not self._is_law:
            if data.num_rows == 0:  # says nothing
                return data
            first = merge(self._schema, data.schema)
            self._check_count(first)
            self._schema, self._is_law = first, True
        data = without_views(data)
        verdict = held_to(LAW, data, self._schema)
        good = fit(verdict.data, self._schema)
        if verdict.refused:
            bad = pa.array([row in verdict.refused for row in range(data.num_rows)], pa.bool_())
            raise bad_rows(
                data, bad, [self._error(breach) for breach in verdict.refused.values()], (good, NOTHING_ELSE)
            )
        return good

    def _check_count(self, schema: pa.Schema) -> None:
        if len(schema) > max(self.config.columns_max, len(self._schema)):
            raise BatchError(
                f"schema_evolution: the rows have {len(schema)} columns ({schema.names[-1]!r} is the newest), "
                f"columns_max is {self.config.columns_max}; if keys of the records are data, keep that object as text, "
                "otherwise raise columns_max"
            )

    def _error(self, breach: Breach) -> BatchError:
        whose = "declared" if self.config.columns else "of this run's first batch"
        if breach.held is None:
            return BatchError(
                f"schema_evolution: {breach.path!r} is none of the columns {whose}, and strict_mode is on; add it to "
                "columns, or leave it out before this stage"
            )
        return BatchError(
            f"schema_evolution: a {breach.word} value does not fit column {breach.path!r}, which is {breach.held}, and "
            "strict_mode is on; declare it otherwise in columns, or cast it before this stage"
        )
