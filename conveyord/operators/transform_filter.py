"""Transform `filter`: rows stay where a condition is true."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, Mapped
from conveyord.engine.conditions import RowCondition, condition_problem
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.sql import is_immutable, without_views

DROPPED = "dropped"


class FilterConfig(OperatorConfig):
    """Keeps the rows for which a condition is true. A null counts as not true.

    The other rows leave by the output `dropped`, if an edge leads from there. A condition has at most 100,000
    characters and 500 operators (docs/sql.md).
    """

    when: str = Field(
        min_length=1,
        examples=["id IS NOT NULL"],
        description="A SQL condition on the columns of one row, such as `mag >= 2.5 AND place IS NOT NULL`. "
        "No subqueries, aggregates or windows: use sql_transform for those.",
    )


class FilterTransform(BatchTransform):
    """See docs/operators.md. Pure, unless the condition calls now() or random()."""

    Config = FilterConfig
    same_count_same_rows = True
    outputs = (DROPPED,)

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if the condition is none."""
        super().__init__(config, context)
        self._condition = RowCondition(self.config.when, setting="filter.when")

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, FilterConfig)
        problem = condition_problem(config.when)
        return {} if problem is None else {"when": problem}

    @classmethod
    def is_pure(cls, config: OperatorConfig) -> bool:
        """See `Operator.is_pure`."""
        assert isinstance(config, FilterConfig)
        return is_immutable(config.when)

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: a condition looks at one row."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. The schema stays.

        Raises: ConfigError if the condition does not fit the columns or is no boolean, BatchError
            if it fails on a value.
        """
        return self.apply_all(data)[0]

    def apply_all(self, data: pa.RecordBatch) -> Mapped:
        """See `BatchTransform.apply_all`."""
        data = without_views(data)
        keep = self._condition.rows(data)
        rest: Mapping[str, pa.RecordBatch] = NOTHING_ELSE
        if DROPPED in self.context.listened:
            rest = {DROPPED: data.filter(pc.invert(keep))}
        return (data if keep.true_count == data.num_rows else data.filter(keep)), rest
