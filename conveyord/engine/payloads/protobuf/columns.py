"""Protobuf messages to Arrow, column by column: the values of one field of all messages at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np
import pyarrow as pa

from conveyord.engine.payloads.protobuf.descriptors import UnusableSchema

COLUMNS_MAX = 10_000  # of one message, those within others included
DEPTH_MAX = 100
_LONG_MAX = (1 << 63) - 1
_SCALARS = {
    1: pa.float64(),
    2: pa.float32(),
    3: pa.int64(),
    4: pa.uint64(),
    5: pa.int32(),
    6: pa.uint64(),
    7: pa.uint32(),
    8: pa.bool_(),
    9: pa.string(),
    12: pa.binary(),
    13: pa.uint32(),
    15: pa.int32(),
    16: pa.int64(),
    17: pa.int32(),
    18: pa.int64(),
}
"""By the number of a field's type in FieldDescriptorProto."""
_ENUM = 14
_JSON = {"google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue"}
_WRAPPERS = {
    f"google.protobuf.{name}Value"
    for name in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
}


class BeyondRange(Exception):
    """A time that the unit at hand cannot hold. finer: it needs a finer one; else a coarser one."""

    def __init__(self, *, finer: bool) -> None:
        super().__init__("a timestamp lies beyond its range")
        self.finer = finer


class Column(ABC):
    """What values of one type become. unit: of times, `us` or `ns`, as the caller asks for."""

    @abstractmethod
    def array(self, values: list[Any], unit: str) -> pa.Array:
        """None of `values` is missing. Raises BeyondRange, and what Python and Arrow raise for text that is none."""


class _Scalar(Column):
    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind

    def array(self, values: list[Any], unit: str) -> pa.Array:  # noqa: ARG002 - the contract's
        return pa.array(values, self._kind)


class _Enum(Column):
    """The name; the number as text where the schema has no name for it."""

    def __init__(self, descriptor: Any) -> None:
        self._names = {value.number: value.name for value in reversed(descriptor.values)}

    def array(self, values: list[Any], unit: str) -> pa.Array:  # noqa: ARG002 - likewise
        return pa.array([self._names.get(value) or str(value) for value in values], pa.string())


class _Timestamp(Column):
    def array(self, values: list[Any], unit: str) -> pa.Array:
        seconds = np.array([value.seconds for value in values], np.int64)
        nanos = np.array([value.nanos for value in values], np.int64)
        per_second, divisor = (1_000_000_000, 1) if unit == "ns" else (1_000_000, 1_000)
        if (np.abs(seconds) > _LONG_MAX // per_second - 4).any():
            raise BeyondRange(finer=False)
        if (nanos % divisor).any():
            raise BeyondRange(finer=True)
        return pa.array(seconds * per_second + nanos // divisor).view(pa.timestamp(unit, "UTC"))


class _Wrapper(Column):
    def __init__(self, kind: pa.DataType) -> None:
        self._kind = kind

    def array(self, values: list[Any], unit: str) -> pa.Array:  # noqa: ARG002 - likewise
        return pa.array([value.value for value in values], self._kind)


class _Json(Column):
    """Values whose types are only in the values, as JSON text."""

    def array(self, values: list[Any], unit: str) -> pa.Array:  # noqa: ARG002 - likewise
        from google.protobuf.json_format import MessageToJson

        return pa.array([MessageToJson(value, indent=None) for value in values], pa.string())


class MessageColumns(Column):
    """A message: a struct of its fields. One without fields says that it is there, and is `true`."""

    def __init__(self, fields: Sequence[_Field]) -> None:
        self._fields = fields

    def array(self, values: list[Any], unit: str) -> pa.Array:
        if not self._fields:
            return pa.array([True] * len(values), pa.bool_())
        return self.rows(values, unit)

    def rows(self, values: list[Any], unit: str) -> pa.StructArray:
        """One struct for each message."""
        if not self._fields:
            return pa.array([{}] * len(values), pa.struct([]))
        arrays = [field.array(values, unit) for field in self._fields]
        return pa.StructArray.from_arrays(arrays, names=[field.name for field in self._fields])


class _Field(ABC):
    """One field of a message."""

    def __init__(self, name: str, column: Column) -> None:
        self.name = name
        self._get = attrgetter(name) if name.isidentifier() else lambda message: getattr(message, name)
        self._column = column

    @abstractmethod
    def array(self, messages: list[Any], unit: str) -> pa.Array:
        """Its values in all of `messages`."""


class _Single(_Field):
    def array(self, messages: list[Any], unit: str) -> pa.Array:
        return self._column.array(list(map(self._get, messages)), unit)


class _Optional(_Field):
    """Null where it is not set: members of a oneof, messages, and what is declared so."""

    def array(self, messages: list[Any], unit: str) -> pa.Array:
        name = self.name
        has = np.fromiter(map(methodcaller("HasField", name), messages), np.bool_, len(messages))
        given = (
            messages if has.all() else [message for message, there in zip(messages, has.tolist(), strict=True) if there]
        )
        found = self._column.array(list(map(self._get, given)), unit)
        return found if has.all() else found.take(pa.array(np.cumsum(has) - 1, pa.int64(), mask=~has))


class _Repeated(_Field):
    def array(self, messages: list[Any], unit: str) -> pa.Array:
        lists = list(map(self._get, messages))
        values = self._column.array(list(chain.from_iterable(lists)), unit)
        return pa.ListArray.from_arrays(_offsets(map(len, lists), len(lists)), values)


class _Map(_Field):
    def __init__(self, name: str, keys: Column, values: Column) -> None:
        super().__init__(name, values)
        self._keys = keys

    def array(self, messages: list[Any], unit: str) -> pa.Array:
        maps = [sorted(found.items()) if found else () for found in map(self._get, messages)]
        pairs = list(chain.from_iterable(maps))
        keys = self._keys.array([key for key, _ in pairs], unit)
        values = self._column.array([value for _, value in pairs], unit)
        return pa.MapArray.from_arrays(_offsets(map(len, maps), len(maps)), keys, values)


def _offsets(lengths: Iterable[int], count: int) -> pa.Array:
    found = np.zeros(count + 1, np.int32)
    np.cumsum(np.fromiter(lengths, np.int64, count), out=found[1:])
    return pa.array(found)


def columns_of(descriptor: Any) -> MessageColumns:
    """What messages of a type become. Raises UnusableSchema for a type that contains itself."""
    return _Building().message(descriptor, ())


class _Building:
    def __init__(self) -> None:
        self._left = COLUMNS_MAX

    def message(self, descriptor: Any, within: tuple[str, ...]) -> MessageColumns:
        """within: the messages around it."""
        name = descriptor.full_name
        if name in within:
            raise UnusableSchema(f"the message {name!r} contains itself, and no table has such columns")
        if len(within) > DEPTH_MAX:
            raise UnusableSchema(f"its messages nest deeper than {DEPTH_MAX} levels")
        return MessageColumns([self._field(field, (*within, name)) for field in descriptor.fields])

    def _field(self, field: Any, within: tuple[str, ...]) -> _Field:
        self._left -= 1
        if self._left < 0:
            raise UnusableSchema(f"the message {within[0]!r} has more than {COLUMNS_MAX} fields")
        inner = field.message_type
        if inner is not None and inner.GetOptions().map_entry:
            key, value = inner.fields_by_name["key"], inner.fields_by_name["value"]
            return _Map(field.name, self._column(key, within), self._column(value, within))
        column = self._column(field, within)
        if field.is_repeated:
            return _Repeated(field.name, column)
        return _Optional(field.name, column) if field.has_presence else _Single(field.name, column)

    def _column(self, field: Any, within: tuple[str, ...]) -> Column:
        inner = field.message_type
        if inner is None:
            return _Enum(field.enum_type) if field.type == _ENUM else _Scalar(_SCALARS[field.type])
        if inner.full_name == "google.protobuf.Timestamp":
            return _Timestamp()
        if inner.full_name in _JSON:
            return _Json()
        if inner.full_name in _WRAPPERS:
            return _Wrapper(_SCALARS[inner.fields_by_name["value"].type])
        return self.message(inner, within)
