"""The types of JSON data as a tree that can grow, and its two-way mapping to Arrow types.

A `Shape` is private to one call: it starts from the schema given, grows while records are placed in
it, and is read back as a schema at the end. It never shrinks and never changes a type it has.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

import pyarrow as pa


class Kind(Enum):
    """What a column holds. `OTHER` is any Arrow type that JSON inference never gives: nothing fits it."""

    NULL = auto()
    BOOLEAN = auto()
    LONG = auto()
    DOUBLE = auto()
    STRING = auto()
    TIMESTAMP = auto()
    TIMESTAMP_UTC = auto()
    STRUCT = auto()
    LIST = auto()
    OTHER = auto()


SCALARS = {
    Kind.NULL: pa.null(),
    Kind.BOOLEAN: pa.bool_(),
    Kind.LONG: pa.int64(),
    Kind.DOUBLE: pa.float64(),
    Kind.STRING: pa.string(),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.TIMESTAMP_UTC: pa.timestamp("us", tz="UTC"),
}
_KINDS = {arrow_type: kind for kind, arrow_type in SCALARS.items()}


@dataclass(slots=True)
class Shape:
    """One column's type. `fields` is used by STRUCT, `element` by LIST.

    `given` is the Arrow type this shape was made from, handed back as it was unless the shape grew.
    """

    kind: Kind
    fields: dict[str, Shape] = field(default_factory=dict)
    element: Shape | None = None
    given: pa.DataType | None = None

    @property
    def items(self) -> Shape:
        """The element shape of a LIST."""
        assert self.element is not None, f"a {self.kind.name} has no elements"
        return self.element

    def become(self, other: Shape) -> None:
        """Give a column that was only null so far its type."""
        assert self.kind is Kind.NULL, f"a {self.kind.name} column cannot become {other.kind.name}"
        self.kind, self.fields, self.element, self.given = other.kind, other.fields, other.element, None


def shape_of_type(arrow_type: pa.DataType) -> Shape:
    """The shape that stands for `arrow_type`."""
    if pa.types.is_struct(arrow_type):
        children = {child.name: shape_of_type(child.type) for child in arrow_type}
        return Shape(Kind.STRUCT, fields=children, given=arrow_type)
    if pa.types.is_list(arrow_type):
        return Shape(Kind.LIST, element=shape_of_type(arrow_type.value_type), given=arrow_type)
    return Shape(_KINDS.get(arrow_type, Kind.OTHER), given=arrow_type)


def shape_of_schema(schema: pa.Schema) -> Shape:
    """The shape of whole records under `schema`."""
    return shape_of_type(pa.struct(list(schema)))


def type_of_shape(shape: Shape) -> pa.DataType:
    """The Arrow type of `shape`: the one it was made from if it has not grown since."""
    given = shape.given
    if shape.kind is Kind.STRUCT:
        known = {child.name: child for child in given} if given is not None else {}
        fields = [_grown_field(known.get(name), name, child) for name, child in shape.fields.items()]
        return given if given is not None and fields == list(given) else pa.struct(fields)
    if shape.kind is Kind.LIST:
        element = type_of_shape(shape.items)
        if given is None:
            return pa.list_(element)
        return given if given.value_type == element else pa.list_(given.value_field.with_type(element))
    if shape.kind is Kind.OTHER:
        assert given is not None
        return given
    return SCALARS[shape.kind]


def schema_of_shape(shape: Shape, given: pa.Schema) -> pa.Schema:
    """`given` with everything added that `shape` grew; `given` itself if it did not grow."""
    known = {child.name: child for child in given}
    fields = [_grown_field(known.get(name), name, child) for name, child in shape.fields.items()]
    return given if fields == list(given) else pa.schema(fields, metadata=given.metadata)


def _grown_field(known: pa.Field | None, name: str, shape: Shape) -> pa.Field:
    arrow_type = type_of_shape(shape)
    return pa.field(name, arrow_type) if known is None else known.with_type(arrow_type)
