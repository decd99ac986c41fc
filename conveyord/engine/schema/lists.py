"""Lists of any Arrow layout, and maps, taken apart into elements and put together again."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt


@dataclass(frozen=True, slots=True)
class Elements:
    """`values` of all lists one after the other, and `lengths` (int64, null for a null list)."""

    values: pa.Array
    lengths: pa.Array

    @classmethod
    def of(cls, array: pa.Array) -> Elements:
        """Take lists or maps apart; a map's elements are structs of key and value."""
        kind = array.type
        if pt.is_map(kind):
            # Not by a cast: for a slice of maps Arrow 26 cuts children of type null too short, and
            # reading them then crashes the process. Nor by take, which cannot do views.
            keys = array.keys
            # Of a list's slice of maps, items of type null may be fewer than the keys.
            items = pa.nulls(len(keys)) if pt.is_null(kind.item_type) else array.items
            pairs = pa.StructArray.from_arrays([keys, items], names=["key", "value"])
            offsets = pc.add(array.offsets, pa.scalar(0, pa.int32()))  # a copy: a slice takes no mask
            array = pa.ListArray.from_arrays(offsets, pairs, mask=array.is_null())
        # Not through a cast to large_list: Arrow 26 loses elements of a list_view that holds a null.
        lengths = pc.list_value_length(array).cast(pa.int64())
        return cls(array.flatten(), pc.if_else(array.is_valid(), lengths, None))

    def offsets(self) -> pa.Array:
        """Where each list starts in `values`, and the end (int64, one more than there are lists)."""
        ends = pc.cumulative_sum(pc.fill_null(self.lengths, 0))
        return pa.concat_arrays([pa.array([0], pa.int64()), ends])

    def with_any(self, marked: pa.Array) -> pa.Array:
        """For each list whether any of its elements is marked (boolean, no nulls)."""
        before = pc.cumulative_sum(pc.cast(marked, pa.int64()))
        before = pa.concat_arrays([pa.array([0], pa.int64()), before]).take(self.offsets())
        return pc.not_equal(before.slice(1), before.slice(0, len(before) - 1))

    def rebuilt(self, values: pa.Array, target: pa.DataType) -> pa.Array:
        """The same lists over other `values`, as the list, large_list or map type `target`."""
        absent = self.lengths.is_null()
        if pt.is_large_list(target):
            return pa.LargeListArray.from_arrays(self.offsets(), values, type=target, mask=absent)
        offsets = self.offsets().cast(pa.int32())
        if pt.is_list(target):
            return pa.ListArray.from_arrays(offsets, values, type=target, mask=absent)
        keys, items = values.flatten()
        return pa.MapArray.from_arrays(offsets, keys, items, type=target, mask=absent)
