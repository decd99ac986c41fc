"""SQL expressions on one row: what a condition, and a column of `map`, are made of.

An expression sees the columns of one row and gives one value. What looks at several rows (aggregates, windows,
subqueries) is refused: by its words where a definition is checked, and by DataFusion's plan before any row is
computed. `engine/sql.py` runs it, so nothing here can reach a file or the network.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

import pyarrow as pa

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.sql import INPUT_TABLE, QUERIES_CACHED, BatchQuery, check_size

_SEVERAL_ROWS = (
    "approx_distinct approx_median approx_percentile_cont approx_percentile_cont_with_weight array_agg avg bit_and "
    "bit_or bit_xor bool_and bool_or corr count covar covar_pop covar_samp cume_dist dense_rank first_value grouping "
    "lag last_value lead max mean median min nth_value ntile percent_rank percentile_cont quantile_cont rank "
    "regr_avgx regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy row_number stddev "
    "stddev_pop stddev_samp string_agg sum unnest var var_pop var_population var_samp var_sample"
)
SEVERAL_ROWS = frozenset(_SEVERAL_ROWS.split())
"""DataFusion's functions that look at several rows, or make several of one; tests/engine/test_transform_map.py
compares. Knowing them spares a run that would fail at its first batch; the plan decides what is right."""

_NOT_WORDS = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"", re.DOTALL)
_CALLED = re.compile(r"\b(\w+)\s*\(")
_SUBQUERY = re.compile(r"\bselect\b", re.IGNORECASE)
_WINDOW = re.compile(r"\bover\s*\(", re.IGNORECASE)
_PARSER_PLACE = re.compile(r"(?P<found>found: .*?)(?P<at> at Line: (?P<line>\d+), Column: (?P<column>\d+))$")


class RowExpression:
    """One expression, checked by itself. Blocking; for one thread at a time."""

    def __init__(self, text: str, *, setting: str, what: str = "an expression") -> None:
        """Raises ConfigError if it is none, as far as that can be seen without the columns.

        setting: what it is called in messages, such as `filter.when`. what: what it should be.
        """
        self.text = text
        self._setting = setting
        check_size(text, setting=setting)
        words = _NOT_WORDS.sub(" ", text)
        if _SUBQUERY.search(words):
            raise ConfigError(f"{setting} must be {what} on one row, without subqueries; use sql_transform")
        if _WINDOW.search(words) or any(name.lower() in SEVERAL_ROWS for name in _CALLED.findall(words)):
            raise self._looks_further()
        self._query = BatchQuery(select_of({"value": text}), setting=setting, is_measured=True)

    def values(self, data: pa.RecordBatch) -> pa.Array:
        """One value for each row of `data`, whose columns `check` has taken. Raises as `BatchQuery.run` does."""
        return self._query.run(data).column(0)

    def check(self, data: pa.RecordBatch) -> pa.DataType:
        """The type of the values for columns like those of `data`; raises ConfigError if it does not fit them."""
        # Anything but a plain projection could return other rows, or the rows in another order, and the
        # values would be laid beside the wrong ones.
        if not self._query.reads_rows_only(data):
            raise self._looks_further()
        result = self._query.run(data.slice(0, 0)).schema
        if len(result) != 1:
            raise ConfigError(f"{self._setting} must give one value, not {len(result)} columns")
        return result.field(0).type

    def type_of_any_row(self) -> pa.DataType | None:
        """The type of the values if columns of other types do not change it; None if they may.

        Raises ConfigError if a function is called that there is not.
        """
        found = self._query.type_over(pa.null())
        # What passes a column on, such as coalesce or CASE, has the type of that column.
        if found is None or found == pa.null() or self._query.type_over(pa.bool_()) not in (found, None):
            return None
        return found

    def _looks_further(self) -> ConfigError:
        return ConfigError(
            f"{self._setting} must look at one row only, without aggregates or windows; use sql_transform"
        )


class RowExpressions:
    """Several expressions over the same columns, computed together. Blocking; for one thread at a time."""

    def __init__(self, expressions: Mapping[str, str], *, setting: str) -> None:
        """expressions: by the name of the column that each gives. Raises as `RowExpression` does."""
        self._each = {name: RowExpression(text, setting=f"{setting}.{name}") for name, text in expressions.items()}
        self._together = BatchQuery(select_of(expressions), setting=setting, is_measured=True)
        self._checked: pa.Schema | None = None

    def values(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """A column for each expression, in their order; rows as those of `data`.

        Raises: ConfigError if an expression does not fit the columns, BatchError if one fails on a value;
            the message names it.
        """
        if self._checked is None or not data.schema.equals(self._checked):
            for expression in self._each.values():
                expression.check(data)
            self._checked = data.schema
        try:
            return self._together.run(data)
        except (BatchError, ConfigError):
            for expression in self._each.values():  # one of these raises the error that names it
                expression.values(data)
            raise


def select_of(expressions: Mapping[str, str]) -> str:
    """The query that computes `expressions` for every row. The first of them begins on its second line."""
    # Line ends around an expression keep a comment at its end from swallowing the rest.
    columns = ", ".join(f"(\n{text}\n) AS {_quoted(name)}" for name, text in expressions.items())
    return f"SELECT {columns} FROM {INPUT_TABLE}"  # noqa: S608 - read-only, and checked


@lru_cache(maxsize=QUERIES_CACHED)
def expression_problem(text: str, *, setting: str, what: str = "an expression") -> str | None:
    """Why `text` cannot be an expression on a row, as far as that can be seen without the columns."""
    try:
        RowExpression(text, setting=setting, what=what)
    except ConfigError as error:
        return _at_its_own_place(str(error), lines=text.count("\n") + 1)
    return None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _at_its_own_place(message: str, *, lines: int) -> str:
    """`message` with places in the expression. The parser sees it from the second line of a query on."""
    place = _PARSER_PLACE.search(message)
    if place is None:
        return message
    line = int(place["line"]) - 1
    if line > lines:
        return f"{message[: place.start('found')]}found: the end"
    where = f" (line {line}, column {place['column']})" if lines > 1 else f" (column {place['column']})"
    return message[: place.start("at")] + where
