"""From values to a shape: what was seen of a column, and the type that follows from it.

The rules, per column (and per element of lists): null alone is NULL; a string, or an integer beyond
64 bits, anywhere makes it STRING, unless every value is a string and every string a timestamp, all
with a zone or all without; otherwise the first kind that was seen counts, where a double makes longs
DOUBLE. Objects that never had a key are STRING too, because a table cannot hold a struct of nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from conveyord.engine.json.records import NumberText
from conveyord.engine.json.shape import Kind, Shape
from conveyord.engine.json.timestamps import parse_timestamp


@dataclass(slots=True)
class Observed:
    """The kinds seen so far in a column, without values: its size is that of the schema."""

    first: Kind | None = None
    mixed: bool = False
    text: bool = False
    double: bool = False
    zones: set[bool | None] = field(default_factory=set)
    fields: dict[str, Observed] = field(default_factory=dict)
    element: Observed | None = None

    def add(self, value: Any) -> None:
        """Take one parsed value into account."""
        if value is None:
            return
        kind = kind_of(value)
        if self.first is None:
            self.first = kind
        elif kind is not self.first:
            self.mixed = True
        if kind is Kind.STRING:
            self._add_text(value)
        elif kind is Kind.DOUBLE:
            self.double = True
        elif kind is Kind.STRUCT:
            self.add_fields(value)
        elif kind is Kind.LIST:
            if self.element is None:
                self.element = Observed()
            for item in value:
                self.element.add(item)

    def add_fields(self, record: dict[str, Any]) -> None:
        """Take the fields of one object into account."""
        fields = self.fields
        for key, value in record.items():
            seen = fields.get(key)
            if seen is None:
                seen = fields[key] = Observed()
            seen.add(value)

    def shape(self, *, provisional: bool = False) -> Shape:
        """The type that follows from everything seen.

        provisional: objects that never had a key are NULL, as more values may still give them keys.
        """
        if self.first is None:
            return Shape(Kind.NULL)
        if self.text:
            return Shape(self._text_kind())
        if self.first in (Kind.LONG, Kind.DOUBLE):
            return Shape(Kind.DOUBLE if self.double else Kind.LONG)
        if self.first is Kind.STRUCT:
            if self.fields:
                return self.record_shape(provisional=provisional)
            return Shape(Kind.NULL if provisional else Kind.STRING)
        if self.first is Kind.LIST:
            assert self.element is not None
            return Shape(Kind.LIST, element=self.element.shape(provisional=provisional))
        return Shape(self.first)

    def record_shape(self, *, provisional: bool = False) -> Shape:
        """The struct of all fields seen, also if there are none."""
        fields = {name: seen.shape(provisional=provisional) for name, seen in self.fields.items()}
        return Shape(Kind.STRUCT, fields=fields)

    def _add_text(self, value: str) -> None:
        self.text = True
        if None in self.zones or len(self.zones) > 1:
            return
        parsed = None if isinstance(value, NumberText) else parse_timestamp(value)
        self.zones.add(None if parsed is None else parsed[1])

    def _text_kind(self) -> Kind:
        if self.mixed or len(self.zones) != 1 or None in self.zones:
            return Kind.STRING
        return Kind.TIMESTAMP_UTC if True in self.zones else Kind.TIMESTAMP


def kind_of(value: Any) -> Kind:
    """The kind of one parsed value by itself. An integer beyond 64 bits counts as a string."""
    match value:
        case None:
            return Kind.NULL
        case bool():
            return Kind.BOOLEAN
        case int():
            return Kind.LONG
        case NumberText():
            return _number_kind(value)
        case str():
            return Kind.STRING
        case dict():
            return Kind.STRUCT
        case _:
            return Kind.LIST


def shape_of_value(value: Any) -> Shape:
    """The shape that one value asks for when it stands in a new column."""
    seen = Observed()
    seen.add(value)
    return seen.shape()


def _number_kind(text: NumberText) -> Kind:
    if text == "-0":
        return Kind.LONG
    if not any(mark in text for mark in ".eE"):
        return Kind.STRING
    # A float that overflows has no double; its text is the only exact form.
    return Kind.DOUBLE if abs(float(text)) != float("inf") else Kind.STRING
