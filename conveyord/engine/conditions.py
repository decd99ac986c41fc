"""Conditions on one row, in SQL: which rows of a batch a filter or an edge lets through."""

from __future__ import annotations

import re
from functools import lru_cache

import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import ConfigError
from conveyord.engine.sql import INPUT_TABLE, BatchQuery, code_of, without_views

_PARSER_PLACE = re.compile(r"(?P<found>found: .*?)(?P<at> at Line: (?P<line>\d+), Column: (?P<column>\d+))$")
_CONDITIONS_CACHED = 10_000  # texts: a set of generated pipelines repeats the same few


class RowCondition:
    """A condition that is true, false or null for each row by itself. Blocking; for one thread at a time."""

    def __init__(self, when: str, *, setting: str) -> None:
        """`setting` is what the condition is called in messages. Raises ConfigError if it is none."""
        if re.search(r"\bselect\b", code_of(when), re.IGNORECASE):
            raise ConfigError(f"{setting} must be a condition on one row, without subqueries; use sql_transform")
        # The line ends keep a comment at the end of the condition from swallowing the rest.
        query = f'SELECT (\n{when}\n) AS "keep" FROM {INPUT_TABLE}'  # noqa: S608 - read-only, and checked
        self._setting = setting
        self._query = BatchQuery(query, setting=setting)
        self._checked: pa.Schema | None = None

    def rows(self, data: pa.RecordBatch) -> pa.BooleanArray:
        """For each row whether the condition is true; a null counts as not true.

        Raises: ConfigError if the condition does not fit the columns or is no boolean, BatchError
            if it fails on a value.
        """
        data = without_views(data)
        if self._checked is None or not data.schema.equals(self._checked):
            self._check(data)
            self._checked = data.schema
        return self._query.run(data).column(0).fill_null(False)

    def _check(self, data: pa.RecordBatch) -> None:
        # Anything but a plain projection could return other rows, or the rows in another order,
        # and the mask would be laid over the wrong ones.
        if not self._query.reads_rows_only(data):
            raise ConfigError(
                f"{self._setting} must look at one row only, without aggregates or windows; use sql_transform"
            )
        result = self._query.run(data.slice(0, 0)).schema
        if len(result) != 1 or not pt.is_boolean(result.field(0).type):
            raise ConfigError(
                f"{self._setting} must be a condition that is true or false; this one gives {result.field(0).type}"
            )


@lru_cache(maxsize=_CONDITIONS_CACHED)
def condition_problem(when: str) -> str | None:
    """Why `when` cannot be a condition on a row, as far as that can be seen without the columns."""
    try:
        RowCondition(when, setting="when")
    except ConfigError as error:
        return _at_its_own_place(str(error), lines=when.count("\n") + 1)
    return None


def _at_its_own_place(message: str, *, lines: int) -> str:
    """`message` with places in the condition. The parser sees it from the second line of a query on."""
    place = _PARSER_PLACE.search(message)
    if place is None:
        return message
    line = int(place["line"]) - 1
    if line > lines:
        return f"{message[: place.start('found')]}found: the end"
    where = f" (line {line}, column {place['column']})" if lines > 1 else f" (column {place['column']})"
    return message[: place.start("at")] + where
