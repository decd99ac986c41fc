"""Holding a batch to a schema contract before it reaches a table: which rows it may not bring, which values.

Whether a value fits is decided as `fit` decides it, value by value, so the verdict does not depend on the
other rows of a batch, nor on how rows were batched: 2.0 fits a long column, a number fits a string column as
its text. A field counts as one that the table lacks if it holds information: a scalar, or a list or struct
with one somewhere below. A decoder whose types are settled has put a value that does not fit beside its column
already; such a sibling (`id__string`) is no field of the record, but a misfit of `id`. A misfit has its place in a
sibling that the table has, however it came; where there is none, the contract decides. It decides on structs
and maps in any case, since whether there is a place for all that is in them is not looked at. All of it is computed by
columns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.pipeline.graph import SchemaContract, SchemaPolicy
from conveyord.engine.naming import SIBLING_SEPARATOR, overflowing_column, type_word
from conveyord.engine.schema.fit import convert, decoded, fill, rebuilt_lists
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.merge import fields_by_name, text_sibling_names, typed_sibling_name
from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import bare_type, is_list, is_text, plain_type
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


@dataclass(frozen=True, slots=True)
class _Aside:
    """Values that do not come as they are. marks: which. column: whose misfits they are, None if of none."""

    values: pa.Array
    marks: pa.Array
    breach: Breach
    column: str | None
    policy: SchemaPolicy

    def left_by(self, columns: dict[str, pa.Array], wanted: dict[str, pa.Field]) -> pa.Array:
        """Marks of those for which the target has no place, once the others are put into theirs among `columns`.

        A place is their column itself, if they came beside it, and the siblings that there are, as `fit` takes them.
        Values with fields of their own have none: whether it has room for all of those is not a matter of one value.
        """
        kind = self.values.type
        if self.column is None or _has_fields(kind) or not pc.any(self.marks).as_py():
            return self.marks
        nothing = pa.scalar(None, kind)
        rest = _filled(columns, wanted, self.column, pc.if_else(self.marks, self.values, nothing))
        typed = typed_sibling_name(self.column, kind)
        kept = nothing
        if typed in wanted:
            rest = _filled(columns, wanted, typed, rest)
        else:
            # What fits its type would go to that sibling, which the target does not get, and to no other.
            misfit = convert(rest, plain_type(kind))[1]
            untyped = pa.nulls(len(rest), pa.bool_()) if misfit is None else misfit
            untyped = untyped.fill_null(False)
            kept, rest = pc.if_else(untyped, nothing, rest), pc.if_else(untyped, rest, nothing)
        for sibling in text_sibling_names(self.column):
            held = wanted.get(sibling)
            if held is None or rest.null_count == len(rest):
                break
            if is_text(held.type) and _takes(columns, held):
                rest = fill(columns, sibling, rest, (to_text(rest).cast(held.type), None))
        left = rest.is_valid()
        return left if kept is nothing else pc.or_(left, kept.is_valid())


def _filled(columns: dict[str, pa.Array], wanted: dict[str, pa.Field], name: str, values: pa.Array) -> pa.Array:
    """Put what fits column `name`, and finds its cell there empty, into it; returns what is left over."""
    held = wanted[name]
    if _has_fields(held.type) or not _takes(columns, held):
        return values
    return fill(columns, name, values, convert(values, held.type))


def _takes(columns: dict[str, pa.Array], held: pa.Field) -> bool:
    """Whether what came for a column has its type, so that more can be put between it."""
    if held.name not in columns:
        return True
    columns[held.name] = decoded(columns[held.name])
    return bool(columns[held.name].type.equals(held.type))


def _has_fields(kind: pa.DataType) -> bool:
    return bool(pt.is_struct(kind) or pt.is_map(kind) or (is_list(kind) and _has_fields(kind.value_type)))


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
        wanted = fields_by_name(target)
        incoming = fields_by_name(fields)
        held_fields: dict[str, pa.Field] = {}
        columns: dict[str, pa.Array] = {}
        aside: list[_Aside] = []
        for field, array in zip(fields, arrays, strict=True):
            path, held = f"{place}{field.name}", wanted.get(field.name)
            if held is None and pt.is_null(plain_type(field.type)):
                continue  # it says nothing, and a table does not get it
            if held is None:
                policy, found = self._of_new(field, array, wanted, incoming, place)
                if policy != "evolve":
                    aside.append(found)
                    continue
            if held is not None:
                own, word = array, type_word(bare_type(array.type))
                array, misfit = self._value(array, held.type, path, lift)
                if misfit is not None:
                    breach = Breach(path, word, held.type)
                    aside.append(_Aside(decoded(own), misfit, breach, field.name, self._contract.types))
            held_fields[field.name], columns[field.name] = field, array
        for one in aside:
            self._rule(one.policy, one.left_by(columns, wanted), lift, one.breach)
        fields = [held_fields.get(name, pa.field(name, array.type)) for name, array in columns.items()]
        types = [array.type for array in columns.values()]
        fields = [
            field if field.type.equals(kind) else field.with_type(kind)
            for field, kind in zip(fields, types, strict=True)
        ]
        return fields, list(columns.values())

    def _of_new(
        self,
        field: pa.Field,
        array: pa.Array,
        wanted: dict[str, pa.Field],
        incoming: dict[str, pa.Field],
        place: str,
    ) -> tuple[SchemaPolicy, _Aside]:
        """What decides on a field that the target lacks, and what its values do if they may not come."""
        columns, kind = self._contract.columns, bare_type(field.type)
        marks, array = informative(array), decoded(array)
        name = overflowing_column(field.name, kind)
        column = None if name is None else wanted.get(name)
        if column is None and name is not None and columns == "evolve":
            column = incoming.get(name)  # a new column, which the target gets with this batch
        if column is None or name is None or pt.is_null(plain_type(column.type)):
            return columns, _Aside(array, marks, Breach(f"{place}{field.name}", type_word(kind)), None, columns)
        word = field.name.removeprefix(f"{name}{SIBLING_SEPARATOR}")
        breach = Breach(f"{place}{name}", word, column.type)
        # JSON text stands for a value that the text does not tell from others.
        own = name if name in wanted and word == type_word(kind) else None
        return self._contract.types, _Aside(array, marks, breach, own, self._contract.types)

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
