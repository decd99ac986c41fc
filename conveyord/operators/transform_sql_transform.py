"""Transform `sql_transform`: one SQL query over each batch."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import pyarrow as pa
from pydantic import Field

from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, Mapped
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.sql import BatchQuery, is_immutable, query_problem

_SELECT = re.compile(
    r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?P<select>\bselect\b)(?!\s*\*)", re.DOTALL | re.IGNORECASE
)
"""A list of columns begins behind it, unless it stands in a comment, in a string or in a name."""


class SqlConfig(OperatorConfig):
    """Replaces the rows of each batch by the result of a SQL query over them (DataFusion's dialect).

    Rows keep their order unless the query orders them. Names keep their case and need quotes only
    where they hold other characters than letters, digits and `_`. Timestamps that the query computes
    are cut to microseconds, the finest that a table holds.

    A query has at most 100,000 characters and 500 operators; its sorts, groups and joins of one batch have
    at most 1 GiB of memory. What functions such as `repeat` make of a batch must fit too (docs/sql.md).
    """

    query: str = Field(
        min_length=1,
        examples=["SELECT * FROM input_data"],
        description="One read-only query (SELECT or WITH) over the table `input_data`. It sees one batch at "
        "a time: an aggregate, DISTINCT, a join or a window covers that batch, not the whole stream.",
    )


class SqlTransform(BatchTransform):
    """See docs/operators.md. Pure, unless the query calls now() or random()."""

    Config = SqlConfig
    same_count_same_rows = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if the query is no single read-only one."""
        super().__init__(config, context)
        self._query = BatchQuery(self.config.query, setting="sql_transform.query")
        self._passing_on: BatchQuery | None = None

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, SqlConfig)
        problem = query_problem(config.query)
        return {} if problem is None else {"query": problem}

    @classmethod
    def is_pure(cls, config: OperatorConfig) -> bool:
        """See `Operator.is_pure`."""
        assert isinstance(config, SqlConfig)
        return is_immutable(config.query)

    def row_wise(self, data: pa.RecordBatch) -> bool:
        """See `BatchTransform.row_wise`: true of queries without aggregates, windows, joins and sorting."""
        return self._query.is_row_wise(data)

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Raises ConfigError or BatchError as `BatchQuery.run` does."""
        return self._query.run(data)

    def is_stateless(self) -> bool:
        """See `BatchTransform.is_stateless`: a query sees one batch, whatever it calls."""
        return True

    def passing_on(self, data: pa.RecordBatch, columns: Sequence[str]) -> Mapped:
        """See `BatchTransform.passing_on`: the columns are put before every list of columns of the query."""
        if self._passing_on is None:
            more = ", ".join(f'"{name}"' for name in columns)
            query = _SELECT.sub(lambda found: f"{found[0]} {more}," if found["select"] else found[0], self.config.query)
            self._passing_on = BatchQuery(query, setting="sql_transform.query")
        return self._passing_on.run(data), NOTHING_ELSE
