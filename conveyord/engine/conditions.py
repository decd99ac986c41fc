"""Conditions on one row, in SQL: which rows of a batch a filter or an edge lets through."""

from __future__ import annotations

from functools import lru_cache

import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.expressions import RowExpression, expression_problem
from conveyord.engine.sql import QUERIES_CACHED, without_views

_CONDITION = "a condition"


class RowCondition:
    """A condition that is true, false or null for each row by itself. Blocking; for one thread at a time."""

    def __init__(self, when: str, *, setting: str) -> None:
        """`setting` is what the condition is called in messages. Raises ConfigError if it is none."""
        self._setting = setting
        self._expression = RowExpression(when, setting=setting, what=_CONDITION)
        self._checked: pa.Schema | None = None

    def rows(self, data: pa.RecordBatch) -> pa.BooleanArray:
        """For each row whether the condition is true; a null counts as not true.

        Raises: ConfigError if the condition does not fit the columns or is no boolean, BatchError
            if it fails on a value.
        """
        if not data.num_rows and not data.schema.names:  # no record has told yet what columns there are
            return pa.array([], pa.bool_())
        data = without_views(data)
        if self._checked is None or not data.schema.equals(self._checked):
            kind = self._expression.check(data)
            if not pt.is_boolean(kind):
                raise ConfigError(_is_none(self._setting, kind))
            self._checked = data.schema
        return self._expression.values(data).fill_null(False)


@lru_cache(maxsize=QUERIES_CACHED)
def condition_problem(when: str) -> str | None:
    """Why `when` cannot be a condition on a row, as far as that can be seen without the columns."""
    problem = expression_problem(when, setting="when", what=_CONDITION)
    if problem is not None:
        return problem
    try:
        kind = RowExpression(when, setting="when", what=_CONDITION).type_of_any_row()
    except ConfigError as error:
        return str(error)
    return None if kind is None or pt.is_boolean(kind) else _is_none("when", kind)


def _is_none(setting: str, kind: pa.DataType) -> str:
    return f"{setting} must be a condition that is true or false; this one gives {kind}"
