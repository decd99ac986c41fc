"""Transform `filter`: rows stay where a condition is true."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.types as pt
from pydantic import Field

from conveyord.core.errors import ConfigError
from conveyord.engine.contracts import BatchTransform, OperatorConfig, OperatorContext
from conveyord.engine.sql import INPUT_TABLE, BatchQuery, code_of, without_views

_SETTING = "filter.when"


class FilterConfig(OperatorConfig):
    """Keeps the rows for which a condition is true. A null counts as not true."""

    when: str = Field(
        min_length=1,
        description="A SQL condition on the columns of one row, such as `mag >= 2.5 AND place IS NOT NULL`. "
        "No subqueries, aggregates or windows: use sql_transform for those.",
    )


class FilterTransform(BatchTransform):
    """See docs/operators.md. Not `pure`: a condition may call now() or random()."""

    Config = FilterConfig

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if the condition is none."""
        super().__init__(config, context)
        when = self.config.when
        if re.search(r"\bselect\b", code_of(when), re.IGNORECASE):
            raise ConfigError(f"{_SETTING} must be a condition on one row, without subqueries; use sql_transform")
        # The line ends keep a comment at the end of the condition from swallowing the rest.
        query = f'SELECT (\n{when}\n) AS "keep" FROM {INPUT_TABLE}'  # noqa: S608 - read-only, and checked
        self._query = BatchQuery(query, setting=_SETTING)
        self._checked: pa.Schema | None = None

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. The schema stays, except that views of strings and bytes are
        copied out; so does the batch itself if every row does.

        Raises: ConfigError if the condition does not fit the columns or is no boolean, BatchError
            if it fails on a value.
        """
        data = without_views(data)
        if self._checked is None or not data.schema.equals(self._checked):
            self._check(data)
            self._checked = data.schema
        keep = self._query.run(data).column(0)
        if keep.true_count == data.num_rows:
            return data
        return data.filter(keep)  # drops where the mask is null

    def _check(self, data: pa.RecordBatch) -> None:
        # Anything but a plain projection could return other rows, or the rows in another order,
        # and the mask would be laid over the wrong ones.
        if not self._query.reads_rows_only(data):
            raise ConfigError(f"{_SETTING} must look at one row only, without aggregates or windows; use sql_transform")
        result = self._query.run(data.slice(0, 0)).schema
        if len(result) != 1 or not pt.is_boolean(result.field(0).type):
            raise ConfigError(
                f"{_SETTING} must be a condition that is true or false; this one gives {result.field(0).type}"
            )
