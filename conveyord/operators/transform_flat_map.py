"""Transform `flat_map`: a row for each element of a list."""

from __future__ import annotations

import re
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from pydantic import AliasChoices, Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, bad_rows
from conveyord.engine.column_paths import missing_column
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.expressions import RowExpression, expression_problem
from conveyord.engine.naming import type_word
from conveyord.engine.repetition import Repetition, oversized, repeated_bytes, row_problem
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.types import is_list
from conveyord.engine.sql import is_immutable, without_views

_NAME = re.compile(r"\s*(?:(?P<bare>[^\W\d]\w*)|\"(?P<quoted>(?:[^\"]|\"\")+)\")\s*\Z")
_WHAT = "an expression that gives a list"
ITEM = "item"


class FlatMapConfig(OperatorConfig):
    """Makes a row of each element of a list; the other columns are repeated. Rows keep their order.

    A column of the list is replaced by one of its elements, where it stood; of an expression the elements come last.
    The elements of a map are objects of `key` and `value`. A row that would become more than 64 MiB is bad.
    A batch that would become more than 256 MiB stops the run: give the source a smaller `block_bytes` or `batch_rows`.
    """

    each: str = Field(
        min_length=1,
        validation_alias=AliasChoices("each", "column"),
        examples=["items"],
        description="The column that holds the list, or a SQL expression on one row that gives one, such as "
        "`string_to_array(tags, ',')`.",
    )
    as_: str | None = Field(
        default=None,
        alias="as",
        min_length=1,
        description="The name of the column of elements. None: that of the list's column, or `item` for an expression.",
    )
    ordinal: str | None = Field(
        default=None, min_length=1, description="The name of a column with the element's place in its list, from 0."
    )
    keep_empty: bool = Field(
        default=False,
        description="Keep a row whose list is empty or null, with a null for the element. Otherwise it is removed, and "
        "counted as filtered.",
    )
    open: bool = Field(
        default=False, description="Make columns of the fields of the elements, which must be objects: `item_sku`, ..."
    )


class FlatMapTransform(BatchTransform):
    """See docs/operators.md. Pure, unless the expression calls now() or random()."""

    Config = FlatMapConfig

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if the expression is none."""
        super().__init__(config, context)
        options: FlatMapConfig = self.config
        self._column = _column_named(options.each)
        self._expression: RowExpression | None = None
        if self._column is None:
            self._expression = RowExpression(options.each, setting="flat_map.each", what=_WHAT)
        self._as = options.as_ or self._column or ITEM
        self._checked: pa.Schema | None = None

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, FlatMapConfig)
        if _column_named(config.each) is not None:
            return {}
        problem = expression_problem(config.each, setting="each", what=_WHAT)
        return {} if problem is None else {"each": problem}

    @classmethod
    def is_pure(cls, config: OperatorConfig) -> bool:
        """See `Operator.is_pure`."""
        assert isinstance(config, FlatMapConfig)
        return _column_named(config.each) is not None or is_immutable(config.each)

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: rows are made of one row."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`.

        Raises: ConfigError if there is no such column, if it holds no lists, if a name is taken, or if the
            batch would become too large; BadRows for rows
            that would become too many; BatchError if the expression fails on a value, or the result is more than
            one batch can hold.
        """
        data = without_views(data)
        lists, rest, at = self._lists(data)
        sizes = repeated_bytes(rest.columns, pc.fill_null(Elements.of(lists).lengths, 0))
        bad = None if sizes is None else oversized(sizes, what="flat_map")
        if bad is None or not bad.true_count:
            return self._repeated(lists, rest, at)
        good = pc.invert(bad)
        made = self._repeated(lists.filter(good), rest.filter(good), at)
        raise bad_rows(data, bad, [row_problem("flat_map")] * bad.true_count, (made, NOTHING_ELSE))

    def _lists(self, data: pa.RecordBatch) -> tuple[pa.Array, pa.RecordBatch, int]:
        """The lists, the columns to repeat, and where among them the elements go."""
        if self._expression is not None:
            if self._checked is None or not data.schema.equals(self._checked):
                self._expression.check(data)
                self._checked = data.schema
            return self._as_lists(self._expression.values(data)), data, data.num_columns
        assert self._column is not None
        at = data.schema.get_field_index(self._column)
        if at < 0:
            raise missing_column(self._column, data.schema.names, setting="flat_map.each")
        lists = self._as_lists(data.column(at))
        names = [name for name in data.schema.names if name != self._column]
        return lists, data.select(names), at

    def _as_lists(self, array: pa.Array) -> pa.Array:
        kind = array.type
        if pt.is_null(kind):
            return array.cast(pa.list_(pa.null()))
        if not (is_list(kind) or pt.is_map(kind)):
            raise ConfigError(f"flat_map.each: {self.config.each!r} is of type {type_word(kind)}, not a list")
        return array

    def _repeated(self, lists: pa.Array, rest: pa.RecordBatch, at: int) -> pa.RecordBatch:
        try:
            made = Repetition.of(lists, keep_empty=self.config.keep_empty)
            columns = [column.take(made.row_of) for column in rest.columns]
        except (pa.ArrowCapacityError, pa.ArrowInvalid) as error:
            raise BatchError(f"flat_map: this makes more rows than one batch holds: {error}") from error
        fields = list(rest.schema)
        new = self._opened(made.items)
        if self.config.ordinal is not None:
            new.append((self.config.ordinal, made.place))
        names = [*rest.schema.names, *(name for name, _ in new)]
        for name, _ in new:
            if names.count(name) > 1:
                raise ConfigError(f"flat_map makes a column {name!r}, but there is one already; choose another name")
        columns[at:at] = [column for _, column in new]
        fields[at:at] = [pa.field(name, column.type) for name, column in new]
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=rest.schema.metadata))

    def _opened(self, items: pa.Array) -> list[tuple[str, pa.Array]]:
        """The columns that the elements become."""
        kind = items.type
        if not self.config.open or pt.is_null(kind):
            return [(self._as, items)]
        if not pt.is_struct(kind):
            raise ConfigError(f"flat_map.open: the elements are of type {type_word(kind)}, not objects; leave it out")
        return [(f"{self._as}_{field.name}", column) for field, column in zip(kind, items.flatten(), strict=True)]


def _column_named(each: str) -> str | None:
    """The column that `each` is, or None if it is an expression on several, or on parts of one."""
    name = _NAME.match(each)
    if name is None:
        return None
    return name["bare"] or name["quoted"].replace('""', '"')
