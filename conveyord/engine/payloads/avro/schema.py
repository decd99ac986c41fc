"""From the text of an Avro schema to what reads values of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from conveyord.engine.payloads.avro.logical import logical_node
from conveyord.engine.payloads.avro.nested import ArrayNode, MapNode, RecordNode, UnionNode
from conveyord.engine.payloads.avro.nodes import (
    BooleanNode,
    BytesNode,
    EnumNode,
    FloatingNode,
    Node,
    NullNode,
    StringNode,
    int_node,
    long_node,
)

NODES_MAX = 10_000  # of one schema, a type counted wherever it is used; a table with more columns cannot be worked with
DEPTH_MAX = 100
FIXED_BYTES_MAX = 16 * 1024 * 1024
_PRIMITIVES = {
    "null": NullNode,
    "boolean": BooleanNode,
    "int": int_node,
    "long": long_node,
    "float": lambda: FloatingNode(pa.float32()),
    "double": lambda: FloatingNode(pa.float64()),
    "bytes": BytesNode,
    "string": StringNode,
}
_NAMED = ("record", "error", "enum", "fixed")


class UnusableSchema(Exception):
    """A schema whose values cannot become rows. Its text is a sentence that says why."""


def node_of_schema(text: str, references: Iterable[tuple[str, str]] = ()) -> Node:
    """The reader of a schema. references: name and text of the schemas that it uses, each before those that use it.

    Raises UnusableSchema for what is no schema, and for a type that contains itself: no table has such columns.
    """
    building = _Building()
    for _, inner in references:
        building.node(_parsed(inner), "", ())
        building.left = NODES_MAX
    return building.node(_parsed(text), "", ())


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if text.strip() in _PRIMITIVES:  # some registries keep a primitive's name without quotes
            return text.strip()
        raise UnusableSchema("the Avro schema is not JSON") from None


class _Building:
    """One walk through a schema. left: how many nodes it may still make."""

    def __init__(self) -> None:
        self.left = NODES_MAX
        self._named: dict[str, tuple[dict[str, Any], str]] = {}

    def node(self, schema: Any, namespace: str, within: tuple[str, ...]) -> Node:
        """The reader of `schema`. namespace: of names without one. within: the named types around it."""
        self.left -= 1
        if self.left < 0:
            raise UnusableSchema(f"the Avro schema has more than {NODES_MAX} types")
        if len(within) > DEPTH_MAX:
            raise UnusableSchema(f"the Avro schema nests deeper than {DEPTH_MAX} levels")
        if isinstance(schema, str):
            return self._by_name(schema, namespace, within)
        if isinstance(schema, list):
            return self._union(schema, namespace, (*within, ""))
        if not isinstance(schema, dict) or "type" not in schema:
            raise UnusableSchema(f"the Avro schema has a type that is none: {_shown(schema)}")
        kind = schema["type"]
        if isinstance(kind, str) and kind in _NAMED:
            return self._defined(schema, namespace, within)
        if isinstance(kind, str) and kind in ("array", "map"):
            key = "items" if kind == "array" else "values"
            inner = self.node(_at(schema, key), namespace, (*within, ""))
            return ArrayNode(inner) if kind == "array" else MapNode(inner)
        if isinstance(kind, str) and kind in _PRIMITIVES:
            return _logical(schema, kind) or self._by_name(kind, namespace, within)
        return self.node(kind, namespace, (*within, ""))

    def _by_name(self, name: str, namespace: str, within: tuple[str, ...]) -> Node:
        if name in _PRIMITIVES:
            made: Node = _PRIMITIVES[name]()
            return made
        full = _full_name(name, namespace)
        if full not in self._named:
            full = name  # a name without a namespace that was defined without one
        if full not in self._named:
            raise UnusableSchema(f"the Avro schema names a type {name!r} that it does not define")
        return self._made(full, within)

    def _defined(self, schema: dict[str, Any], namespace: str, within: tuple[str, ...]) -> Node:
        name = _at(schema, "name")
        own = schema.get("namespace", namespace)
        if not isinstance(name, str) or not isinstance(own, str):
            raise UnusableSchema(f"the Avro schema has a type with a name that is none: {_shown(name)}")
        full = _full_name(name, own)
        self._named[full] = (schema, full.rpartition(".")[0])
        return self._made(full, within)

    def _made(self, full: str, within: tuple[str, ...]) -> Node:
        schema, namespace = self._named[full]
        if full in within:
            raise UnusableSchema(f"the Avro type {full!r} contains itself, and no table has such columns")
        match schema["type"]:
            case "enum":
                symbols = _at(schema, "symbols")
                if not isinstance(symbols, list) or not all(isinstance(symbol, str) for symbol in symbols):
                    raise UnusableSchema(f"the Avro enum {full!r} has symbols that are none")
                return EnumNode(symbols)
            case "fixed":
                size = _at(schema, "size")
                if type(size) is not int or not 0 <= size <= FIXED_BYTES_MAX:
                    raise UnusableSchema(f"the Avro type {full!r} has a size that is none: {_shown(size)}")
                return _logical(schema, "fixed") or BytesNode(size)
            case _:
                return self._record(schema, namespace, (*within, full))

    def _record(self, schema: dict[str, Any], namespace: str, within: tuple[str, ...]) -> Node:
        fields = _at(schema, "fields")
        if not isinstance(fields, list) or not all(isinstance(field, dict) for field in fields):
            raise UnusableSchema(f"the Avro record {within[-1]!r} has fields that are none")
        made: list[tuple[str, Node]] = []
        for field in fields:
            name = _at(field, "name")
            if not isinstance(name, str) or not name or "\0" in name:
                raise UnusableSchema(f"the Avro record {within[-1]!r} has a field whose name is none: {_shown(name)}")
            if name in (other for other, _ in made):
                raise UnusableSchema(f"the Avro record {within[-1]!r} has two fields {name!r}")
            # Some write a logical type beside the field's type; those who read by the specification pass over it.
            made.append((name, self.node(_at(field, "type"), namespace, within)))
        return RecordNode(made)

    def _union(self, branches: list[Any], namespace: str, within: tuple[str, ...]) -> Node:
        if any(isinstance(branch, list) for branch in branches):
            raise UnusableSchema("the Avro schema has a union within a union")
        made = [self.node(branch, namespace, within) for branch in branches]
        return UnionNode(made, [_label(branch) for branch in branches])


def _logical(schema: dict[str, Any], base: str) -> Node | None:
    name = schema.get("logicalType")
    return logical_node(name, base, schema) if isinstance(name, str) else None


def _label(branch: Any) -> str:
    """What a branch of a union is called: its type, or its name without the namespace."""
    if isinstance(branch, dict):
        named = branch.get("type") in _NAMED
        branch = branch.get("name") if named else branch.get("type")
    return str(branch).rpartition(".")[2]


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _at(schema: dict[str, Any], key: str) -> Any:
    if key not in schema:
        raise UnusableSchema(f"the Avro schema has a type without {key!r}: {_shown(schema)}")
    return schema[key]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
