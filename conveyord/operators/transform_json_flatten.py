"""Transform `json_flatten`: nested fields become columns, and lists, if asked, rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from pydantic import Field

from conveyord.core.errors import BatchError
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, bad_rows
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.repetition import oversized, repeated_bytes, row_problem
from conveyord.engine.schema.lists import Elements
from conveyord.engine.sql import without_views

Rows = npt.NDArray[np.int64]


class JsonFlattenConfig(OperatorConfig):
    """Turns nested fields into columns: `{"a": {"b": 1}}` gives a column `a_b`.

    A column of a null object is null in all its fields. If two columns would get the same name, the
    one that was less deeply nested keeps it and the other becomes `a_b_2`, `a_b_3`, ...

    A row that would become more than 64 MiB, because what is long stands beside a long list, is bad. A batch that
    would become more than 256 MiB stops the run: give the source a smaller `block_bytes` or `batch_rows`.
    """

    separator: str = Field(default="_", min_length=1, description="Stands between the names of nested fields.")
    max_depth: int = Field(
        default=8,
        ge=1,
        description="How many levels of objects and exploded lists are opened. What is deeper stays nested.",
    )
    lists: Literal["keep", "explode"] | tuple[str, ...] = Field(
        default="keep",
        description="`keep` leaves lists as they are. `explode` makes a row of each element of every list; "
        "a list of column names, as they are after flattening, does so for these only. The other columns are "
        "repeated. Lists side by side are exploded together, position by position, and the shorter ones filled "
        "with null; a list within a list is exploded after it. An empty or null list keeps its row, with null.",
    )


class _OversizedError(Exception):
    """Some rows of a batch would become too large; `rows` says which."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows


@dataclass(frozen=True, slots=True)
class _Column:
    path: tuple[str, ...]
    depth: int  # levels of objects and lists opened on the way here
    values: pa.Array


class JsonFlattenTransform(BatchTransform):
    """See docs/operators.md."""

    Config = JsonFlattenConfig
    same_count_same_rows = True
    pure = True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Columns that were not nested keep their buffers and come first to last
        where they were, nested ones in their place.

        Raises: BadRows for rows that exploding would make too large; ConfigError if the whole batch would be.
        """
        if self.config.lists == "keep":
            return self._flattened(data)
        data = without_views(data)
        bad = np.zeros(data.num_rows, np.bool_)
        made = None
        while made is None:
            try:
                made = self._flattened(data.filter(pa.array(~bad)) if bad.any() else data)
            except _OversizedError as error:  # for each level of lists at most once
                bad[np.flatnonzero(~bad)[error.rows]] = True
        if not bad.any():
            return made
        errors = [row_problem("json_flatten")] * int(bad.sum())
        raise bad_rows(data, pa.array(bad), errors, (made, NOTHING_ELSE))

    def _flattened(self, data: pa.RecordBatch) -> pa.RecordBatch:
        columns = [_Column((name,), 0, values) for name, values in zip(data.schema.names, data.columns, strict=True)]
        owners = np.arange(data.num_rows)  # for each row the one of `data` that it was made of
        try:
            while True:
                columns = [flat for column in columns for flat in self._opened(column)]
                lists = [self._explodes(column) for column in columns]
                if not any(lists):
                    break
                columns, owners = _exploded(columns, lists, owners)
        except (pa.ArrowCapacityError, pa.ArrowInvalid) as error:
            raise BatchError(f"json_flatten: exploding lists makes more rows than one batch holds: {error}") from error
        if all(column.depth == 0 for column in columns):
            return data
        names = _distinct_names(columns, self.config.separator)
        return pa.RecordBatch.from_arrays([column.values for column in columns], names=names)

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: every row is flattened by itself."""
        return True

    def _opened(self, column: _Column) -> list[_Column]:
        kind = column.values.type
        if not pt.is_struct(kind) or not kind.num_fields or column.depth >= self.config.max_depth:
            return [column]
        # flatten, not field: the fields of a null object must be null, whatever their buffers hold.
        children = column.values.flatten()
        return [
            flat
            for field, values in zip(kind, children, strict=True)
            for flat in self._opened(_Column((*column.path, field.name), column.depth + 1, values))
        ]

    def _explodes(self, column: _Column) -> bool:
        lists = self.config.lists
        kind = column.values.type
        if lists == "keep" or column.depth >= self.config.max_depth:
            return False
        if not (pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind)):
            return False
        return lists == "explode" or self.config.separator.join(column.path) in lists


def _exploded(columns: list[_Column], lists: list[bool], owners: Rows) -> tuple[list[_Column], Rows]:
    """A row per position of the longest list of each row, at least one, and the owner of each.

    Raises _OversizedError, or ConfigError, before anything is made.
    """
    opened = [Elements.of(column.values) if each else None for column, each in zip(columns, lists, strict=True)]
    longest = pc.max_element_wise(*[pc.fill_null(each.lengths, 0) for each in opened if each is not None], 1)
    others = [column.values for column, elements in zip(columns, opened, strict=True) if elements is None]
    sizes = repeated_bytes(others, longest)
    if sizes is not None:
        of_owner = np.bincount(owners, weights=sizes.to_numpy(zero_copy_only=False))
        too_large = np.flatnonzero(oversized(pa.array(of_owner), what="json_flatten").to_numpy(zero_copy_only=False))
        if len(too_large):
            raise _OversizedError(too_large)
    ends = pc.cumulative_sum(longest)
    starts = pc.subtract(ends, longest)
    rows = ends[-1].as_py() if len(ends) else 0
    offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
    row_of = pc.list_parent_indices(pa.LargeListArray.from_arrays(offsets, pa.nulls(rows)))
    place = pc.subtract(pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), rows)), 1)
    place = pc.subtract(place, starts.take(row_of))
    exploded = []
    for column, elements in zip(columns, opened, strict=True):
        if elements is None:
            exploded.append(_Column(column.path, column.depth, column.values.take(row_of)))
            continue
        there = pc.less(place, pc.fill_null(elements.lengths, 0).take(row_of))
        first = elements.offsets().take(row_of)
        index = pc.if_else(there, pc.add(first, place), pa.scalar(None, pa.int64()))
        exploded.append(_Column(column.path, column.depth + 1, elements.values.take(index)))
    return exploded, owners[row_of.to_numpy(zero_copy_only=False)]


def _distinct_names(columns: list[_Column], separator: str) -> list[str]:
    """A name for each column. Less deeply nested ones choose first, then those further left."""
    names = [""] * len(columns)
    taken: set[str] = set()
    for index in sorted(range(len(columns)), key=lambda index: len(columns[index].path)):
        wanted = name = separator.join(columns[index].path)
        count = 1
        while name in taken:
            count += 1
            name = f"{wanted}{separator}{count}"
        taken.add(name)
        names[index] = name
    return names
