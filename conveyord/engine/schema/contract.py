"""Holding a batch to a schema contract before it reaches a table: which rows it may not bring, which values.

Whether a value fits is decided as `fit` decides it, value by value, so the verdict does not depend on the
other rows of a batch, nor on how rows were batched: 2.0 fits a long column, a number fits a string column as
its text. A field counts as one that the table lacks if it holds information: a scalar, or a list or struct
with one somewhere below. All of it is computed by columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.pipeline.graph import SchemaContract, SchemaPolicy
from conveyord.engine.naming import type_word
from conveyord.engine.schema.fit import convert, decoded, rebuilt_lists
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.merge import fields_by_name
from conveyord.engine.schema.types import bare_type, is_list, plain_type
from conveyord.engine.schema.values import Converted

Lift = Callable[[pa.Array], pa.Array]
"""From marks of nested values to marks of the rows that hold them."""


@dataclass(frozen=True, slots=True)
class Breach:
    """What a row may not bring: a field that its target lacks, or a value that its column cannot take.

    path: the field's dotted name. word: the value's type. held: the column's, None if there is no such column.
    """

    path: str
    word: str
    held: pa.DataType | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a contract leaves of a batch.

    data: the rows that may go on, without what they may not bring. kept: their numbers in the batch, None if all
    may. refused: the others by number, each with what it did. discarded: values left out of rows that go on, by
    the dotted name of their field.
    """

    data: pa.RecordBatch
    kept: pa.Array | None
    refused: dict[int, Breach]
    discarded: Counter[str]

    def row(self, number: int) -> int:
        """The number that row `number` of `data` had in the batch."""
        return number if self.kept is None else int(self.kept[number].as_py())


def held_to(contract: SchemaContract, data: pa.RecordBatch, target: pa.Schema) -> Verdict:
    """What `contract` says of bringing `data` to a table of schema `target`.

    `grow(target, verdict.data)` grows only what the contract lets evolve. data: without string views.
    Raises ConfigError if a schema names a field twice.
    """
    if (contract.columns, contract.types) == ("evolve", "evolve") or data.schema.equals(target):
        return Verdict(data, None, {}, Counter())
    judge = _Judge(contract)
    held = judge.batch(data, target)
    if not judge.breaches:
        return Verdict(held, None, {}, judge.discarded)
    refused: dict[int, Breach] = {}
    for rows, breach in judge.breaches:
        for row in pc.indices_nonzero(rows).to_pylist():
            refused.setdefault(row, breach)
    kept = pc.indices_nonzero(pa.array([row not in refused for row in range(data.num_rows)], pa.bool_()))
    again = _Judge(contract)  # what was discarded from rows that do not go on does not count
    return Verdict(again.batch(data.take(kept), target), kept, dict(sorted(refused.items())), again.discarded)


class _Judge:
    """One look at one batch. breaches: marks of rows, and what those did."""

    def __init__(self, contract: SchemaContract) -> None:
        self._contract = contract
        self.breaches: list[tuple[pa.Array, Breach]] = []
        self.discarded: Counter[str] = Counter()

    def batch(self, data: pa.RecordBatch, target: pa.Schema) -> pa.RecordBatch:
        """`data` without the fields that `target` may not get, and with values that fit alone."""
        fields, columns = self._fields(list(data.schema), data.columns, list(target), "", lambda marks: marks)
        if not columns:
            return data.select([])
        return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields, metadata=data.schema.metadata))

    def _fields(
        self, fields: list[pa.Field], arrays: list[pa.Array], target: list[pa.Field], place: str, lift: Lift
    ) -> tuple[list[pa.Field], list[pa.Array]]:
        wanted, columns, types = fields_by_name(target), self._contract.columns, self._contract.types
        held_fields, held_arrays = [], []
        for field, array in zip(fields, arrays, strict=True):
            path, held = f"{place}{field.name}", wanted.get(field.name)
            if held is None and pt.is_null(plain_type(field.type)):
                continue  # it says nothing, and a table does not get it
            if held is None and columns != "evolve":
                self._rule(columns, informative(array), lift, Breach(path, type_word(bare_type(array.type))))
                continue
            if held is not None:
                word = type_word(bare_type(array.type))
                array, misfit = self._value(array, held.type, path, lift)
                if misfit is not None:
                    self._rule(types, misfit, lift, Breach(path, word, held.type))
            held_fields.append(field if array.type.equals(field.type) else field.with_type(array.type))
            held_arrays.append(array)
        return held_fields, held_arrays

    def _rule(self, policy: SchemaPolicy, marks: pa.Array, lift: Lift, breach: Breach) -> None:
        count = pc.sum(marks).as_py() or 0
        if count and policy == "discard_value":
            self.discarded[breach.path] += count
        elif count:
            self.breaches.append((lift(marks), breach))

    def _value(self, array: pa.Array, target: pa.DataType, path: str, lift: Lift) -> Converted:
        """Values as they may go on under a column of type `target`, and which do not fit. Those are null."""
        kind = bare_type(array.type)
        if kind.equals(target):
            return array, None
        if pt.is_struct(kind) and pt.is_struct(target):
            return self._structs(decoded(array), target, path, lift), None
        if is_list(kind) and (pt.is_list(target) or pt.is_large_list(target)):
            return self._lists(decoded(array), target, path, lift)
        if pt.is_map(kind) and pt.is_map(target):
            return self._maps(decoded(array), target, path, lift)
        return (array, None) if self._contract.types == "evolve" else convert(array, target)

    def _structs(self, array: pa.Array, target: pa.DataType, path: str, lift: Lift) -> pa.Array:
        children = array.flatten() if array.type.num_fields else []
        fields, columns = self._fields(list(array.type), children, list(target), f"{path}.", lift)
        if not columns:  # that it was a struct, not null, is kept
            fields = [pa.field(target.field(0).name, target.field(0).type)]
            columns = [pa.nulls(len(array), fields[0].type)]
        return pa.StructArray.from_arrays(columns, fields=fields, mask=array.is_null())

    def _lists(self, array: pa.Array, target: pa.DataType, path: str, lift: Lift) -> Converted:
        elements = Elements.of(array)
        values, misfit = self._value(
            elements.values, target.value_type, f"{path}.element", lambda marks: lift(elements.with_any(marks))
        )
        return rebuilt_lists(array, elements, values, misfit, pa.list_(values.type))

    def _maps(self, array: pa.Array, target: pa.DataType, path: str, lift: Lift) -> Converted:
        elements = Elements.of(array)

        def lifted(marks: pa.Array) -> pa.Array:
            return lift(elements.with_any(marks))

        keys, key_misfit = self._value(elements.values.field("key"), target.key_type, f"{path}.key", lifted)
        items, item_misfit = self._value(elements.values.field("value"), target.item_type, f"{path}.value", lifted)
        pairs = pa.StructArray.from_arrays([keys, items], names=["key", "value"])
        marks = [one for one in (key_misfit, item_misfit) if one is not None]
        misfit = pc.or_(*marks) if len(marks) == 2 else marks[0] if marks else None
        return rebuilt_lists(array, elements, pairs, misfit, pa.map_(keys.type, items.type))


def informative(array: pa.Array) -> pa.Array:
    """For each value whether it says anything: booleans without nulls."""
    array = decoded(array)
    kind = array.type
    if pt.is_struct(kind) and kind.num_fields:
        found = None
        for child in array.flatten():
            found = informative(child) if found is None else pc.or_(found, informative(child))
        return found
    if is_list(kind):
        elements = Elements.of(array)
        return elements.with_any(informative(elements.values))
    if pt.is_map(kind):
        starts = array.offsets
        return pc.and_(array.is_valid(), pc.greater(starts.slice(1), starts.slice(0, len(array))))
    if pt.is_null(kind) or pt.is_struct(kind):
        return pa.nulls(len(array), pa.bool_()).fill_null(False)
    return array.is_valid()
