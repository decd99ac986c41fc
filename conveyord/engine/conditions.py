"""Conditions on one row, in SQL: which rows of a batch a filter or an edge lets through."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.expressions import RowExpression, expression_problem
from conveyord.engine.sql import without_views

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
        data = without_views(data)
        if self._checked is None or not data.schema.equals(self._checked):
            kind = self._expression.check(data)
            if not pt.is_boolean(kind):
                raise ConfigError(f"{self._setting} must be a condition that is true or false; this one gives {kind}")
            self._checked = data.schema
        return self._expression.values(data).fill_null(False)


def condition_problem(when: str) -> str | None:
    """Why `when` cannot be a condition on a row, as far as that can be seen without the columns."""
    return expression_problem(when, setting="when", what=_CONDITION)
