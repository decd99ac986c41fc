"""Rows repeated once for each element of a list that they hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from math import ceil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.types import is_bytes, is_list, is_text

ROW_BYTES_MAX = 64 * 1024 * 1024  # of all that one row becomes: a long text beside a long list would fill the memory
BATCH_BYTES_MAX = 256 * 1024 * 1024  # of all that one batch becomes, of which some are under way at a time
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


def repeated_bytes(columns: Sequence[pa.Array], counts: pa.Array) -> pa.DoubleArray | None:
    """About how many bytes each row takes once its values in `columns` come `counts` times.

    None if all of them together take no more than `ROW_BYTES_MAX`, so that nothing needs to be looked at.
    """
    longest = pc.max(counts).as_py() or 0
    fixed = _FIXED_BYTES * len(counts) * (len(columns) + 1)
    if longest * (sum(column.nbytes for column in columns) + fixed) <= ROW_BYTES_MAX:
        return None
    sizes = reduce(pc.add, [_bytes_of(column) for column in columns], _repeated(_FIXED_BYTES, len(counts)))
    return pc.multiply(sizes.cast(pa.float64()), counts)


def oversized(sizes: pa.DoubleArray, *, what: str) -> pa.BooleanArray:
    """Which rows would take more than `ROW_BYTES_MAX` each, by their `repeated_bytes`.

    what: the stage, for the message. Raises ConfigError if all others together would still take more than
    `BATCH_BYTES_MAX`: no row is at fault then, and parts of the batch would have to be put together again.
    """
    bad = pc.greater(sizes, ROW_BYTES_MAX)
    good = sizes.filter(pc.invert(bad))
    total = pc.sum(good).as_py() or 0.0
    if total > BATCH_BYTES_MAX:
        raise ConfigError(
            f"{what}: {len(good)} rows of one batch would become about {_mib(total)} MiB, and a batch has at most "
            f"{_mib(BATCH_BYTES_MAX)} MiB; project what is long away before, or lower block_bytes or batch_rows of the "
            f"source to 1/{ceil(total / BATCH_BYTES_MAX)} of what they are"
        )
    return bad


def row_problem(what: str) -> BatchError:
    """What is said of a row that is `oversized`."""
    return BatchError(f"{what}: the row would become more than {ROW_BYTES_MAX} bytes; project what is long away before")


def _mib(size_bytes: float) -> int:
    return round(size_bytes / 1024**2)


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
