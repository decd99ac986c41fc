"""Transform `map`: columns computed from the columns of the same row."""

from __future__ import annotations

import re

import pyarrow as pa
from pydantic import Field

from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import Mistakes, OperatorConfig, OperatorContext
from conveyord.engine.expressions import RowExpressions, expression_problem
from conveyord.engine.sql import code_of, is_immutable

_OPENING, _CLOSING = "([{", ")]}"
_NAME = re.compile(r'"(?:[^"]|"")*"')


class MapConfig(OperatorConfig):
    """Adds or replaces columns by SQL expressions on the row they stand in; all other columns stay.

    Every expression sees the row as it came, never what another expression of the same `map` made of it. A
    column that is replaced keeps its place; new ones follow behind the last, in the order they are given.

    An expression has at most 100,000 characters and 500 operators. What `repeat` and the like make of a batch must fit
    memory (docs/sql.md).
    """

    columns: dict[str, str] = Field(
        min_length=1,
        examples=[{"loaded_at": "now()"}],
        description="By column, the expression that gives its values, such as `full_name: first || ' ' || last` or "
        "`mag: round(mag, 1)`. A name is a whole column's, dots and all; it keeps its case. No subqueries, "
        "aggregates or windows: use sql_transform for those.",
    )


class MapTransform(BatchTransform):
    """See docs/operators.md. Pure, unless an expression calls now() or random()."""

    Config = MapConfig
    same_count_same_rows = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if an expression is none."""
        super().__init__(config, context)
        self._expressions = RowExpressions(self.config.columns, setting="map.columns")

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, MapConfig)
        found = {}
        for name, text in config.columns.items():
            setting = f"columns.{name}"
            problem = "a column has an empty name" if not name else _several(text, setting=setting)
            problem = problem or expression_problem(text, setting=setting)
            if problem is not None:
                found["columns", name] = problem
        return found

    @classmethod
    def is_pure(cls, config: OperatorConfig) -> bool:
        """See `Operator.is_pure`."""
        assert isinstance(config, MapConfig)
        return all(is_immutable(text) for text in config.columns.values())

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: an expression looks at one row."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Columns that are not replaced keep their buffers.

        Raises: ConfigError if an expression does not fit the columns, BatchError if one fails on a value;
            the message names its column.
        """
        computed = self._expressions.values(data)
        fields, columns = list(data.schema), list(data.columns)
        for field, values in zip(computed.schema, computed.columns, strict=True):
            place = data.schema.get_field_index(field.name)
            if place < 0:
                fields.append(field)
                columns.append(values)
            else:
                fields[place], columns[place] = field, values
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=data.schema.metadata))


def _several(text: str, *, setting: str) -> str | None:
    """Why `text` is more than one expression, of which SQL would make an object; None if it is not."""
    depth = 0
    for character in _NAME.sub(" ", code_of(text)):
        depth += (character in _OPENING) - (character in _CLOSING)
        if character == "," and depth == 0:
            return f"{setting} has several expressions, parted by a comma; give each a column of its own"
    return None
