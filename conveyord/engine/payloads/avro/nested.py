"""Avro types that hold others: records, unions, arrays and maps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from conveyord.engine.naming import sibling_name, type_word
from conveyord.engine.payloads.assembling import Numbers
from conveyord.engine.payloads.avro.cursor import CUT, EMPTY_ITEMS_MAX, Cursor, Damaged, Single
from conveyord.engine.payloads.avro.nodes import Node, NullNode, StringNode

SIDE_BY_SIDE_MIN = 32
"""Lists that are read on side by side; with fewer, an operation on arrays costs more than reading them one by one."""
TOO_MANY = f"more than {EMPTY_ITEMS_MAX:,} elements without content"


class UnionNode(Node):
    """One of several types.

    With one of them beside null it is that, nullable. With more it is a struct with a field for each, of which one has
    the value; in a record those fields stand as columns side by side (`RecordNode`).
    """

    def __init__(self, branches: Sequence[Node], labels: Sequence[str]) -> None:
        """labels: by branch, what Avro calls its type, without a namespace."""
        self.branches = list(branches)
        self.kinds = [index for index, branch in enumerate(branches) if not isinstance(branch, NullNode)]
        self._labels = labels
        self._wrong = f"a union has a number beyond its {len(branches)} types"
        names = [name for name, _ in self.fields("", set())]
        if not self.kinds:
            self.type = pa.null()
        elif len(self.kinds) == 1:
            self.type = self.branch(0).type
        else:
            self._names = names
            self.type = pa.struct([pa.field(name, self.branch(at).type) for at, name in enumerate(names)])

    def branch(self, at: int) -> Node:
        """Of those that are not null."""
        return self.branches[self.kinds[at]]

    def fields(self, column: str, taken: set[str]) -> Iterator[tuple[str, pa.DataType]]:
        """The columns that the branches become: `column`, then siblings named after the branch's type.

        column: empty for the fields of a struct, which are named after the type alone. taken: names that are not free.
        """
        taken = set(taken)
        for at in range(len(self.kinds)):
            kind, label = self.branch(at).type, self._labels[self.kinds[at]]
            if not column:
                candidates = [type_word(kind), label]
            else:
                candidates = [column] if at == 0 else [sibling_name(column, kind), f"{column}__{label}"]
            name = next((name for name in candidates if name not in taken), None)
            number = 2
            while name is None:
                other = f"{candidates[-1]}_{number}"
                name = None if other in taken else other
                number += 1
            taken.add(name)
            yield name, kind

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        if not self.kinds:
            self.read_branches(cursor, rows)
            return pa.nulls(len(rows))
        arrays, nulls = self.read_branches(cursor, rows)
        if len(self.kinds) == 1:
            return arrays[0]
        return pa.StructArray.from_arrays(arrays, fields=list(self.type), mask=pa.array(nulls))

    def read_branches(self, cursor: Cursor, rows: Numbers) -> tuple[list[pa.Array], np.ndarray[Any, Any]]:
        """One array for each branch that is not null, with nulls where another one has the value; where null is."""
        chosen = self.choices(cursor, rows)
        arrays = [self._spread(self.branches[index], chosen == index, cursor, rows) for index in self.kinds]
        return arrays, ~np.isin(chosen, self.kinds)

    def choices(self, cursor: Cursor, rows: Numbers) -> Numbers:
        """The number of each row's branch."""
        chosen = cursor.longs(rows)
        wrong = (chosen < 0) | (chosen >= len(self.branches))
        if wrong.any():
            cursor.fail(rows[wrong], "MALFORMED_RECORD", self._wrong)
            chosen = np.where(wrong, 0, chosen)
        return chosen

    def _spread(self, branch: Node, has: np.ndarray[Any, Any], cursor: Cursor, rows: Numbers) -> pa.Array:
        """The values of one branch at the rows that have it, null at the others."""
        if has.all():
            return branch.read(cursor, rows)
        if not has.any():
            return pa.nulls(len(rows), branch.type)
        found = branch.read(cursor, rows[has])
        return found.take(pa.array(np.cumsum(has) - 1, mask=~has))

    def read_one(self, single: Single) -> Any:
        chosen, value = self.choice(single)
        if chosen is None or len(self.kinds) == 1:
            return value
        return {self._names[chosen]: value}

    def choice(self, single: Single) -> tuple[int | None, Any]:
        """Which branch of those that are not null has the value, if any, and the value."""
        index = single.long()
        if not 0 <= index < len(self.branches):
            raise Damaged("MALFORMED_RECORD", self._wrong)
        value = self.branches[index].read_one(single)
        return (self.kinds.index(index) if index in self.kinds else None), value


class RecordNode(Node):
    """Fields one after the other. A union of several types is several columns: see `UnionNode.fields`."""

    def __init__(self, fields: Sequence[tuple[str, Node]]) -> None:
        taken = {name for name, _ in fields}
        self._columns: list[tuple[Node, list[str]]] = []
        kinds: list[pa.Field] = []
        for name, node in fields:
            made = [(name, node.type)]
            if isinstance(node, UnionNode) and len(node.kinds) > 1:
                made = list(node.fields(name, taken - {name}))
            taken.update(made_name for made_name, _ in made)
            self._columns.append((node, [made_name for made_name, _ in made]))
            kinds += [pa.field(made_name, kind) for made_name, kind in made]
        self.type = pa.struct(kinds)
        self.bytes_min = sum(node.bytes_min for node, _ in self._columns)

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        arrays: list[pa.Array] = []
        for node, names in self._columns:
            if len(names) == 1:
                arrays.append(node.read(cursor, rows))
            else:
                assert isinstance(node, UnionNode)
                arrays += node.read_branches(cursor, rows)[0]
        if not arrays:
            return pa.array([{}] * len(rows), self.type)
        return pa.StructArray.from_arrays(arrays, fields=list(self.type))

    def read_one(self, single: Single) -> Any:
        row = {}
        for node, names in self._columns:
            if len(names) == 1:
                row[names[0]] = node.read_one(single)
            else:
                assert isinstance(node, UnionNode)
                chosen, value = node.choice(single)
                if chosen is not None:
                    row[names[chosen]] = value
        return row


@dataclass(slots=True)
class _Gathered:
    """The elements of many lists as they are read: arrays of some, and the lists that these belong to."""

    arrays: list[pa.Array]
    owners: list[Numbers]

    def lists_of(self, count: int, kind: pa.DataType) -> tuple[pa.Array, pa.Array]:
        """Offsets of `count` lists, and their elements in order."""
        if not self.arrays:
            return pa.array(np.zeros(count + 1, np.int32)), pa.nulls(0, kind)
        owners = np.concatenate(self.owners)
        values = self.arrays[0] if len(self.arrays) == 1 else pa.concat_arrays(self.arrays)
        if (owners[1:] < owners[:-1]).any():
            order = np.argsort(owners, kind="stable")
            values = values.take(pa.array(order))
        offsets = np.zeros(count + 1, np.int32)
        np.cumsum(np.bincount(owners, minlength=count), out=offsets[1:])
        return pa.array(offsets), values


class _Blocks(Node):
    """Elements in blocks, each with its count, until a block of none."""

    _item: Node

    def _gather(self, cursor: Cursor, rows: Numbers) -> _Gathered:
        """All elements of all rows: the first of each row, then the second, and so on."""
        gathered = _Gathered([], [])
        active = np.arange(len(rows))
        while len(active):
            counts = self._counts(cursor, rows[active])
            open_lists = counts > 0
            active, left = active[open_lists], counts[open_lists]
            current = active
            while len(current) >= SIDE_BY_SIDE_MIN:
                gathered.arrays.append(self._item.read(cursor, rows[current]))
                gathered.owners.append(current)
                left = left - 1
                # A damaged row has no elements: it would be read from zeros as often as it claims to have some.
                more = (left > 0) & cursor.are_good(rows[current])
                current, left = current[more], left[more]
            self._one_by_one(cursor, rows, current, left, gathered)
            active = active[cursor.are_good(rows[active])]
        return gathered

    def _counts(self, cursor: Cursor, rows: Numbers) -> Numbers:
        """How many elements the next block of each row has."""
        counts = cursor.longs(rows)
        sized = counts < 0
        if sized.any():
            cursor.longs(rows[sized])  # the block's size, for those who pass over it
            counts = np.where(sized, -counts, counts)
        if self._item.bytes_min:
            wrong = (counts < 0) | (counts > (cursor.ends[rows] - cursor.at[rows]) // self._item.bytes_min)
            reason = CUT
        else:
            wrong = (counts < 0) | (counts > EMPTY_ITEMS_MAX)
            cursor.empty_items[rows] += np.where(wrong, 0, counts)
            wrong |= cursor.empty_items[rows] > EMPTY_ITEMS_MAX
            reason = TOO_MANY
        if wrong.any():
            cursor.fail(rows[wrong], "MALFORMED_RECORD", reason)
        return np.where(cursor.are_good(rows), counts, 0)

    def _one_by_one(self, cursor: Cursor, rows: Numbers, current: Numbers, left: Numbers, gathered: _Gathered) -> None:
        values: list[Any] = []
        owners: list[int] = []
        for index, count in zip(current.tolist(), left.tolist(), strict=True):
            row = int(rows[index])
            single = Single(cursor.raw, int(cursor.at[row]), int(cursor.ends[row]), int(cursor.empty_items[row]))
            try:
                found = [self._item.read_one(single) for _ in range(count)]
            except Damaged as error:
                cursor.fail(rows[index : index + 1], error.code, error.reason)
                continue
            cursor.at[row], cursor.empty_items[row] = single.at, single.empty_items
            values += found
            owners += [index] * count
        if values:
            gathered.arrays.append(pa.array(values, self._item.type))
            gathered.owners.append(np.array(owners, np.int64))

    def _items_one(self, single: Single) -> list[Any]:
        found: list[Any] = []
        while count := single.long():
            if count < 0:
                single.long()
                count = -count
            if self._item.bytes_min:
                if count > (single.end - single.at) // self._item.bytes_min:
                    raise Damaged("MALFORMED_RECORD", CUT)
            else:
                single.empty_items += count
                if single.empty_items > EMPTY_ITEMS_MAX:
                    raise Damaged("MALFORMED_RECORD", TOO_MANY)
            found += [self._item.read_one(single) for _ in range(count)]
        return found


class ArrayNode(_Blocks):
    """A list."""

    def __init__(self, item: Node) -> None:
        self._item = item
        self.type = pa.list_(item.type)

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        offsets, values = self._gather(cursor, rows).lists_of(len(rows), self._item.type)
        return pa.ListArray.from_arrays(offsets, values, type=self.type)

    def read_one(self, single: Single) -> Any:
        return self._items_one(single)


class MapNode(_Blocks):
    """Values under text. A key that stands twice is kept twice."""

    def __init__(self, value: Node) -> None:
        self._item = RecordNode([("key", StringNode()), ("value", _Whole(value))])
        self.type = pa.map_(pa.string(), value.type)

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        offsets, pairs = self._gather(cursor, rows).lists_of(len(rows), self._item.type)
        return pa.MapArray.from_arrays(offsets, pairs.field("key"), pairs.field("value"), type=self.type)

    def read_one(self, single: Single) -> Any:
        return [(pair["key"], pair["value"]) for pair in self._items_one(single)]


class _Whole(Node):
    """A node that stays one column, whatever it is."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.type = node.type
        self.bytes_min = node.bytes_min

    def read(self, cursor: Cursor, rows: Numbers) -> pa.Array:
        return self._node.read(cursor, rows)

    def read_one(self, single: Single) -> Any:
        return self._node.read_one(single)
