"""Transform `cast`: columns of other types, exactly or not at all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import structlog
from pydantic import Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, Mapped, bad_rows
from conveyord.engine.casting import Casting
from conveyord.engine.column_paths import plain_values
from conveyord.engine.contracts import Inbound, Mistakes, OperatorConfig, OperatorContext, Outbound
from conveyord.engine.field_tree import (
    FieldTree,
    changed_values,
    leads_through_lists,
    paths_of,
    rebatched,
    refuse_parts,
)
from conveyord.engine.messages import Batch
from conveyord.engine.schema.text import to_text
from conveyord.engine.sql import without_views
from conveyord.engine.time_formats import TimeFormat
from conveyord.engine.type_words import type_named, word_of

VALUE_CHARS_MAX = 60  # of a value in a message

log = structlog.get_logger(__name__)


class CastConfig(OperatorConfig):
    """Changes the types of columns. A null stays null; a value that does not fit its new type makes its row fail.

    Text becomes a number, a truth value (`true`, `false`) or a time if it says one: numbers as CSV's declared types
    take them, dates as `2024-05-31`, times as `13:05:00.5`, timestamps as `2024-05-31T13:05:00.5` and, for
    `timestamptz`, with `Z` or an offset behind. A number becomes another if that is exactly the same: a double takes
    the decimal that it is printed as. 0 and 1 are truth values. All types become `string` as they stand in JSON.
    Numbers do not become times: say what they count, in `map` with `to_timestamp_millis(column)`.

    A dot leads into nested fields, also of lists of objects. Columns that hold what did not fit a column
    when it was read (`price__string`) are columns of their own.
    """

    columns: dict[str, str] = Field(
        min_length=1,
        examples=[{"id": "string"}],
        description="By column, its type: `boolean`, `int`, `long`, `float`, `double`, `decimal(10,2)`, `date`, "
        "`time`, `timestamp` (what a clock shows), `timestamptz` (an instant), `string` or `binary` (text as UTF-8).",
    )
    on_error: Literal["fail", "nullify"] = Field(
        default="fail",
        description="What becomes of a value that does not fit: `fail` makes its row a dead letter, or stops the run "
        "if there is no `dlq`; `nullify` makes it null, and logs so once for each column, and how many when the run "
        "ends.",
    )
    formats: tuple[str, ...] | dict[str, tuple[str, ...]] = Field(
        default=(),
        examples=[["%d.%m.%Y %H:%M", "%d.%m.%Y"]],
        description="How text says dates and timestamps, instead of ISO 8601: a list, tried in turn, for all columns "
        "or by column. Directives as of strptime: %Y %y %m %b %B %d %H %I %p %M %S %f %z %a %A %F %T.",
    )
    timezone: str | None = Field(
        default=None,
        min_length=1,
        examples=["Europe/Berlin"],
        description="The zone whose clock timestamps without a zone show. Needed between `timestamp` and "
        "`timestamptz`. An hour that the clock left out or showed twice does not fit.",
    )
    truncate: bool = Field(
        default=False,
        description="Cut what does not fit behind the point (towards zero), the time of day for a `date`, digits for "
        "`float` and `double`. What is too large never fits.",
    )
    on_missing: Literal["fail", "ignore"] = Field(
        default="fail",
        description="What becomes of a name that rows do not have: `fail` stops the run, `ignore` passes over it, for "
        "fields that not all records have.",
    )


class CastTransform(BatchTransform):
    """See docs/operators.md."""

    Config = CastConfig
    same_count_same_rows = True
    pure = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError for a type or a format that is none."""
        super().__init__(config, context)
        assert isinstance(config, CastConfig)
        formats = config.formats
        self._castings = {
            name: Casting(
                type_named(word),
                tuple(
                    TimeFormat.parse(text) for text in (formats.get(name, ()) if isinstance(formats, dict) else formats)
                ),
                config.timezone,
                config.truncate,
            )
            for name, word in config.columns.items()
        }
        self._nulled: Counter[str] = Counter()

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, CastConfig)
        found: dict[str | tuple[str, str], str] = {}
        for name, word in config.columns.items():
            try:
                type_named(word)
            except ConfigError as error:
                found["columns", name] = f"columns.{name}: {error}"
        problem = _format_problem(config) if not found else None
        if problem is not None:
            found["formats"] = problem
        if config.timezone is not None and not _zone_exists(config.timezone):
            found["timezone"] = f"there is no time zone {config.timezone!r}; write one as Europe/Berlin, UTC or +02:00"
        return found

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: every value is cast by itself."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Columns keep their places.

        Raises: ConfigError if a column is missing, or of a type that cannot be cast; BatchError if a value does
            not fit, unless it is to be null.
        """
        found: list[_Misfits] = []
        tree, fields = self._tree(data.schema), list(data.schema)
        made = rebatched(data, *changed_values(tree, partial(self._cast, found), fields, data.columns))
        if found and self.config.on_error == "fail":
            raise _failure(data, made, found)
        return made

    def _tree(self, schema: pa.Schema) -> FieldTree[str]:
        """Where the columns to be cast stand, by the name in `columns`."""
        ignore = self.config.on_missing == "ignore"
        paths = paths_of(schema, self._castings, setting="cast.columns", ignore_missing=ignore)
        refuse_parts(paths, setting="cast.columns")
        tree: FieldTree[str] = FieldTree()
        for name, path in paths.items():
            tree.put(path, name)
        return tree

    def _cast(self, found: list[_Misfits], name: str, array: pa.Array) -> pa.Array:
        casting = self._castings[name]
        refusal = casting.refusal(array.type)
        if refusal is not None:
            has, word = word_of(array.type), word_of(casting.target)
            raise ConfigError(f"cast.columns: {name!r} is of type {has}, which is never a {word}; {refusal}")
        values, misfit = casting.values(array)
        if misfit is not None:
            found.append(_Misfits(name, casting, array, misfit))
        return values

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """See `Transform.run`. Says in the log how many values became null, also if the run fails."""
        try:
            await super().run(inbound, outbound)
        finally:
            for name in sorted(+self._nulled):
                self._warn("values that did not fit were made null in this run", name)

    def _warn(self, event: str, column: str) -> None:
        log.warning(event, stage=self.context.stage, column=column, count=self._nulled[column])

    async def _mapped(self, batch: Batch) -> tuple[Mapped, frozenset[int]]:
        # Not in `apply`, which later stages call again to find out where a row came from.
        mapped, bad = await super()._mapped(batch)
        if self.config.on_error == "nullify":
            nulled = await self.context.in_thread(self._nulled_in, batch.data, mapped[0])
            self._nulled.update(nulled)
            for name, count in nulled.items():
                if count and self._nulled[name] == count:  # the first of the run
                    self._warn("values that do not fit are made null", name)
        return mapped, bad

    def _nulled_in(self, data: pa.RecordBatch, made: pa.RecordBatch) -> Counter[str]:
        """How many values of each column became null. Those within lists count one by one."""
        tree = self._tree(data.schema)
        counts = _nulls(tree, made)
        counts.subtract(_nulls(tree, data))
        return counts


@dataclass(frozen=True, slots=True)
class _Misfits:
    """The values of one column that do not fit: those of `array` that are `marked`."""

    name: str
    casting: Casting
    array: pa.Array
    marked: pa.BooleanArray

    def errors(self) -> list[BatchError]:
        """One for each, in order."""
        word, remedy = word_of(self.casting.target), _remedy(self.casting)
        texts = to_text(plain_values(self.array).filter(self.marked)).to_pylist()
        shown = (text if len(text) <= VALUE_CHARS_MAX else f"{text[:VALUE_CHARS_MAX]}..." for text in texts)
        return [BatchError(f"cast: {text!r} in column {self.name!r} does not fit {word}; {remedy}") for text in shown]


def _failure(data: pa.RecordBatch, made: pa.RecordBatch, found: list[_Misfits]) -> BatchError:
    """What to raise for `found`, which names the rows unless a value stands in a list."""
    schema = data.schema
    by_row: dict[int, BatchError] = {}
    for misfits in found:
        path = paths_of(schema, [misfits.name], setting="cast.columns", ignore_missing=False)[misfits.name]
        if leads_through_lists(schema, path):
            return misfits.errors()[0]
        for row, error in zip(pc.indices_nonzero(misfits.marked).to_pylist(), misfits.errors(), strict=True):
            by_row.setdefault(row, error)
    bad = pa.array([row in by_row for row in range(data.num_rows)], pa.bool_())
    good = without_views(made).filter(pc.invert(bad))
    return bad_rows(data, bad, [by_row[row] for row in sorted(by_row)], (good, NOTHING_ELSE))


def _nulls(tree: FieldTree[str], data: pa.RecordBatch) -> Counter[str]:
    """How many values of each column that `tree` names are null."""
    counts: Counter[str] = Counter()

    def counted(name: str, array: pa.Array) -> pa.Array:
        counts[name] += plain_values(array).null_count
        return array

    changed_values(tree, counted, list(data.schema), data.columns)
    return counts


def _remedy(casting: Casting) -> str:
    target = casting.target
    if pt.is_timestamp(target) or pt.is_date(target):
        return "say in formats how it is written, and in timezone where, if it does not; or on_error: nullify"
    if not casting.truncate and not pt.is_boolean(target):
        return "truncate: true cuts fractions; or on_error: nullify"
    return "mend it before, or on_error: nullify"


def _format_problem(config: CastConfig) -> str | None:
    timed = {name for name, word in config.columns.items() if word in ("date", "timestamp", "timestamptz")}
    if isinstance(config.formats, dict):
        other = next((name for name in config.formats if name not in timed), None)
        if other is not None:
            return f"{other!r} is not cast to date, timestamp or timestamptz in columns, so it has no formats"
    elif config.formats and not timed:
        return "no column is cast to date, timestamp or timestamptz; leave formats out"
    texts = config.formats.values() if isinstance(config.formats, dict) else (config.formats,)
    for text in (text for group in texts for text in group):
        try:
            TimeFormat.parse(text)
        except ConfigError as error:
            return str(error)
    return None


def _zone_exists(name: str) -> bool:
    try:
        pc.assume_timezone(pa.array([0], pa.timestamp("us")), name)
    except pa.ArrowInvalid:
        return False
    return True
