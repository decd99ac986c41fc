"""Rows repeated once for each element of a list that they hold."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.types import is_bytes, is_list, is_text

ROW_BYTES_MAX = 64 * 1024 * 1024  # of all that one row becomes: a long text beside a long list would fill the memory
_FIXED_BYTES = 8  # of a value of fixed width, at most nearly always


@dataclass(frozen=True, slots=True)
class Repetition:
    """How often each row comes, and what stands in each of its copies.

    row_of: for each row of the result the one that it is a copy of. place: which of its copies it is, from 0, null for
    a row that is kept although its list is empty. items: the element.
    """

    row_of: pa.Array
    place: pa.Array
    items: pa.Array

    @classmethod
    def of(cls, lists: pa.Array, *, keep_empty: bool) -> Repetition:
        """A row for each element of `lists` (any layout, or maps); with `keep_empty` one for a list without any.

        Raises pa.ArrowInvalid or pa.ArrowCapacityError if these are more than one array can hold.
        """
        elements = Elements.of(lists)
        lengths = pc.fill_null(elements.lengths, 0)
        counts = pc.max_element_wise(lengths, 1) if keep_empty else lengths
        ends = pc.cumulative_sum(counts)
        rows = ends[-1].as_py() if len(ends) else 0
        offsets = pa.concat_arrays([pa.array([0], pa.int64()), ends])
        row_of = pc.list_parent_indices(pa.LargeListArray.from_arrays(offsets, pa.nulls(rows)))
        numbers = pc.subtract(pc.cumulative_sum(pa.repeat(pa.scalar(1, pa.int64()), rows)), 1)
        place = pc.subtract(numbers, offsets.take(row_of))
        if rows == len(elements.values):  # no list is empty, or none is kept
            return cls(row_of, place, elements.values)
        place = pc.if_else(pc.less(place, lengths.take(row_of)), place, pa.scalar(None, pa.int64()))
        index = pc.add(elements.offsets().take(row_of), place)
        return cls(row_of, place, elements.values.take(index))


def oversized(data: pa.RecordBatch, lists: pa.Array) -> pa.BooleanArray | None:
    """The rows of `data` of which repetition would make more than `ROW_BYTES_MAX`; None if there are none."""
    lengths = pc.fill_null(Elements.of(lists).lengths, 0)
    longest = pc.max(lengths).as_py() or 0
    if longest * (data.nbytes + _FIXED_BYTES) <= ROW_BYTES_MAX:
        return None
    sizes = reduce(pc.add, [_bytes_of(column) for column in data.columns], _repeated(_FIXED_BYTES, len(lists)))
    bad = pc.greater(pc.multiply(sizes.cast(pa.float64()), lengths), ROW_BYTES_MAX)
    return bad if bad.true_count else None


def _bytes_of(array: pa.Array) -> pa.Array:
    """About how much each value takes, as int64 without nulls."""
    kind = array.type
    if is_text(kind) or is_bytes(kind):
        return pc.fill_null(pc.binary_length(array), 0).cast(pa.int64())
    if pt.is_struct(kind) and kind.num_fields:
        return reduce(pc.add, [_bytes_of(child) for child in array.flatten()])
    if is_list(kind) or pt.is_map(kind):
        elements = Elements.of(array)
        before = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(_bytes_of(elements.values))])
        at = before.take(elements.offsets())
        return pc.add(pc.subtract(at.slice(1), at.slice(0, len(at) - 1)), _FIXED_BYTES)
    return _repeated(_FIXED_BYTES, len(array))


def _repeated(number: int, count: int) -> pa.Array:
    return pa.repeat(pa.scalar(number, pa.int64()), count)
