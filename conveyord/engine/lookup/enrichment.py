"""A reference in memory and how its columns come beside the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
import structlog

from conveyord.core.errors import BatchError, ConfigError, ConveyordError
from conveyord.engine.lookup import keys
from conveyord.engine.lookup.index import Duplicates, KeyIndex, shown
from conveyord.engine.lookup.integers import MISS, Rows
from conveyord.engine.lookup.keys import TooManyMisfits, common_type, comparable, read_keys
from conveyord.engine.sql import settled_type, without_views

log = structlog.get_logger(__name__)

Kinds = tuple[pa.DataType, ...]

INDEXES_MAX = 2  # of one reference: rows may bring their key now as long, now as double
COLUMNS_NAMED_MAX = 20  # what a message lists


@dataclass(frozen=True, slots=True)
class Enrichment:
    """What to look up, and what the rows get.

    on: the column of the reference for each of the rows. columns: those that the rows get, or their new names; None:
    all but the keys. prefix: stands before names that are not new. nest: the one column that holds them all; None:
    each is a column. defaults: values for rows without a match, by new name; None: nulls. text_keys: the reference's
    keys are text that stands for other types.
    """

    on: Mapping[str, str]
    columns: tuple[str, ...] | Mapping[str, str] | None
    prefix: str
    nest: str | None
    defaults: Mapping[str, Any] | None
    duplicates: Duplicates
    text_keys: bool

    def added(self, names: Sequence[str]) -> dict[str, str]:
        """By new name, which of a reference's columns `names` the rows get."""
        if isinstance(self.columns, Mapping):
            return {new: column for column, new in self.columns.items()}
        own = set(self.on.values())
        columns = [name for name in names if name not in own] if self.columns is None else self.columns
        return {self.prefix + column: column for column in columns}


class Reference:
    """The rows of a reference at one time. Never changes, so the same rows always get the same from it."""

    def __init__(self, enrichment: Enrichment, table: pa.Table, *, name: str) -> None:
        """table: the keys, and what is added, each in one chunk. name: what messages call the reference.

        Raises ConfigError if a default does not fit its column, or there is nothing to nest.
        """
        self._enrichment = enrichment
        self._name = name
        self._keys = [_only_chunk(table[key]) for key in enrichment.on.values()]
        added = enrichment.added(table.column_names)
        self._added = {new: _settled(_only_chunk(table[column])) for new, column in added.items()}
        if enrichment.nest is not None and not added:
            raise ConfigError(f"lookup: {name} brings no column beside its keys to nest")
        unknown = sorted(set(enrichment.defaults or ()) - set(added))
        if unknown:
            raise ConfigError(
                f"lookup: `default` names {unknown[0]!r}, which the rows do not get; they get "
                f"{', '.join(added) or 'no columns'}"
            )
        self._defaults = {new: self._default(new, values.type) for new, values in self._added.items()}
        self._indexes: dict[Kinds, KeyIndex] = {}
        self._asked: dict[Kinds, None] = {}
        self._building = Lock()

    @property
    def asked(self) -> tuple[Kinds, ...]:
        """The types of keys that were looked up last."""
        return tuple(self._asked)

    def prepare(self, asked: tuple[Kinds, ...] = ()) -> None:
        """Build the indexes for keys of the types `asked`, or of its own. Raises ConfigError as `rows_of`."""
        for kinds in asked or (tuple(key.type for key in self._keys),):
            self._index(self._common(kinds))

    def rows_of(self, data: pa.RecordBatch) -> Rows:
        """For each row of a batch the row of this reference, or MISS.

        Raises: ConfigError if the batch has no such column or keys that cannot be compared with these,
            BatchError if a key is out of the range of what is compared.
        """
        columns = [self._column(data, name) for name in self._enrichment.on]
        asked = tuple(column.type for column in columns)
        kinds = self._common(asked)
        if data.num_rows == 0 or any(pt.is_null(kind) for kind in asked):
            return np.full(data.num_rows, MISS, np.int32)
        self._remember(asked)
        try:
            asked_for = [comparable(column, kind) for column, kind in zip(columns, kinds, strict=True)]
        except pa.ArrowInvalid as error:
            raise BatchError(f"lookup: a key cannot be compared: {error}") from error
        return self._index(kinds).find(asked_for)

    def enriched(self, data: pa.RecordBatch, rows: Rows) -> pa.RecordBatch:
        """`data` with the columns of the reference's `rows` behind its own.

        Raises ConfigError if `data` has a column of such a name already.
        """
        misses = rows == MISS
        indices = pa.array(rows, mask=misses if misses.any() else None)
        missed = pa.array(misses)
        added = {name: self._taken(name, values, indices, missed) for name, values in self._added.items()}
        nest = self._enrichment.nest
        if nest is not None:
            # Without a default, a row without a match gets no object at all, rather than one of nulls.
            mask = None if self._enrichment.defaults is not None else missed
            fields = [pa.field(name, values.type) for name, values in added.items()]
            added = {nest: pa.StructArray.from_arrays(list(added.values()), fields=fields, mask=mask)}
        for name in added:
            if name in data.schema.names:
                remedy = "set `prefix`, or rename it in `columns`" if nest is None else "choose another name by `into`"
                raise ConfigError(f"lookup: the rows have a column {name!r} already; {remedy}")
        schema = data.schema
        for name, values in added.items():
            schema = schema.append(pa.field(name, values.type))
        if not len(schema):
            return data
        return pa.RecordBatch.from_arrays([*data.columns, *added.values()], schema=schema)

    def missing(self, data: pa.RecordBatch, rows: Rows) -> list[ConveyordError]:
        """What to say of each row of `data` that has no match, in order."""
        asked = [(column, data[name]) for name, column in self._enrichment.on.items()]
        return [self._missing(asked, int(at)) for at in np.flatnonzero(rows == MISS)]

    def _missing(self, asked: Sequence[tuple[str, pa.Array]], at: int) -> BatchError:
        key = ", ".join(
            f"{column} = {shown(values[at])}" if values[at].is_valid else f"{column} = null, which matches nothing"
            for column, values in asked
        )
        return BatchError(f"lookup: {self._name} has no row with {key}")

    def _taken(self, name: str, values: pa.Array, indices: pa.Array, missed: pa.Array) -> pa.Array:
        if not len(values):
            taken = pa.nulls(len(indices), values.type)
        else:
            taken = values.take(indices)
        default = self._defaults[name]
        return taken if not default.is_valid else pc.if_else(missed, default, taken)

    def _default(self, name: str, kind: pa.DataType) -> pa.Scalar:
        value = (self._enrichment.defaults or {}).get(name)
        try:
            return pa.scalar(value).cast(kind) if value is not None else pa.scalar(None, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(
                f"lookup: the default {value!r} does not fit the column {name!r}, which is {kind} in {self._name}"
            ) from error

    def _column(self, data: pa.RecordBatch, name: str) -> pa.Array:
        if name not in data.schema.names:
            names = data.schema.names
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            listed = ", ".join(names[:COLUMNS_NAMED_MAX]) + (", ..." if len(names) > COLUMNS_NAMED_MAX else "")
            raise ConfigError(
                f"lookup: `on` names the column {name!r}, which the rows do not have; "
                f"{hint}They have {listed or 'no columns'}"
            )
        return data[name]

    def _remember(self, asked: Kinds) -> None:
        if asked not in self._asked:
            with self._building:
                while len(self._asked) >= INDEXES_MAX:
                    del self._asked[next(iter(self._asked))]
                self._asked[asked] = None

    def _common(self, rows: Kinds) -> Kinds:
        """The types under which keys of rows with the types `rows` are compared."""
        kinds = []
        for (name, column), row, key in zip(self._enrichment.on.items(), rows, self._keys, strict=True):
            is_parsed = self._enrichment.text_keys and not pt.is_null(row)
            kind = common_type(row, row) if is_parsed else common_type(row, key.type)
            if kind is None:
                raise ConfigError(
                    f"lookup: {name!r} is {row}, and {column!r} of {self._name} is "
                    f"{key.type}, which cannot be compared exactly; give one of them the type of the other, "
                    "with `cast` before this stage or in the reference"
                )
            kinds.append(kind)
        return tuple(kinds)

    def _index(self, kinds: Kinds) -> KeyIndex:
        with self._building:
            found = self._indexes.get(kinds)
            if found is None:
                columns = [
                    self._converted(values, kind, column)
                    for values, kind, column in zip(self._keys, kinds, self._enrichment.on.values(), strict=True)
                ]
                found = KeyIndex(
                    columns, list(self._enrichment.on.values()), duplicates=self._enrichment.duplicates, name=self._name
                )
                while len(self._indexes) >= INDEXES_MAX:
                    del self._indexes[next(iter(self._indexes))]
                self._indexes[kinds] = found
            return found

    def _converted(self, values: pa.Array, kind: pa.DataType, column: str) -> pa.Array:
        """A key column of the reference as the type that is compared, exactly."""
        if pt.is_null(values.type):
            return pa.nulls(len(values), kind)
        try:
            if pt.is_floating(values.type) and pt.is_int64(kind):
                return values.cast(pa.float64()).cast(kind)  # checked: a fraction is an error
            if self._enrichment.text_keys and not pt.is_string(kind):
                return self._read(values, kind, column)
            return comparable(values, kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise ConfigError(
                f"lookup: the rows' key is {kind}, and column {column!r} of {self._name} has "
                f"values that are none: {error}"
            ) from error

    def _read(self, values: pa.Array, kind: pa.DataType, column: str) -> pa.Array:
        """A key column that is text as the type of the rows' key. What is none of it matches nothing."""
        try:
            read = read_keys(values.cast(pa.string()), kind)
        except pa.ArrowInvalid as error:
            raise ConfigError(
                f"lookup: the rows' key is {kind}, and no value of column {column!r} of {self._name} is one: {error}"
            ) from error
        except TooManyMisfits as error:
            raise ConfigError(
                f"lookup: the rows' key is {kind}, and more than {keys.MISFITS_MAX:,} values of column {column!r} of "
                f"{self._name} are none: {error}; give one of them the type of the other, with `cast` before this "
                "stage or in the reference"
            ) from error
        if read.misfits:
            log.warning(
                "keys of the reference match no row",
                reference=self._name,
                column=column,
                reason=f"they are no {kind}, which the rows have",
                count=read.misfits,
                first_row=read.first + 1,
            )
        return read.values


def _only_chunk(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.nulls(0, column.type)


def _settled(values: pa.Array) -> pa.Array:
    kind = settled_type(values.type)
    return values if kind == values.type else values.cast(kind)


def select(data: pa.RecordBatch, keep: Any) -> pa.RecordBatch:
    """The rows of `data` for which `keep` is true."""
    return data if keep.all() else without_views(data).filter(pa.array(keep))
