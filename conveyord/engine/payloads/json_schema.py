"""The format `json_schema`: JSON objects framed for a registry, with columns of the types that their schemas name.

Where a schema leaves a type open, columns are typed by their values, as those of plain JSON are; and a value that is
not what its schema says is kept beside its column, as any that does not fit. Whether values keep all rules of a schema
is looked into by the transform `validate`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import RecordError
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.payloads.contract import BadPayload, Payloads
from conveyord.engine.payloads.framing import FRAME_BYTES, UNUSABLE_SCHEMA, unframed
from conveyord.engine.payloads.json import JsonPayloads
from conveyord.storage.schema_registry import SchemaRegistry

SCHEMAS_MAX = 1_000  # whose types are kept
STEPS_MAX = 10_000  # through one schema: references let a short one be endless
DEPTH_MAX = 50  # of types; below it, values say what they are
_SCALARS = {"boolean": pa.bool_(), "integer": pa.int64(), "number": pa.float64(), "string": pa.string()}
_DECODER = JsonLinesDecoder()


class JsonSchemaPayloads:
    """`PayloadDecoder` for JSON objects that begin with the id of a JSON Schema in a registry."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._types = lru_cache(SCHEMAS_MAX)(self._read)

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """See `PayloadDecoder.decode`."""
        by_id, bad = unframed(values)
        known = pa.schema([]) if schema is None else schema
        kept = np.zeros(len(values), np.bool_)
        for schema_id, stretch in by_id:
            try:
                known = filled(known, self._types(schema_id))
                kept[stretch.numbers] = True
            except RecordError as error:
                bad += [BadPayload(int(number), error.code, error.reason) for number in stretch.numbers]
        numbers = np.flatnonzero(kept)
        # One pass over all of them, whatever schema they are of: columns are told apart by their names.
        lines = [values[number][FRAME_BYTES:] for number in numbers.tolist()]
        if schema is None:
            known = filled(known, _DECODER.infer(b"\n".join(line.replace(b"\n", b"\r") for line in lines), None))
        found = JsonPayloads().decode(lines, known)
        bad += [BadPayload(int(numbers[one.number]), one.code, one.reason) for one in found.bad]
        if not bad:
            return found
        bad.sort(key=lambda one: one.number)
        good = numbers if found.numbers is None else numbers[found.numbers]
        return Payloads(found.data, found.schema, good, tuple(bad))

    def _read(self, schema_id: int) -> pa.Schema:
        found = self._registry.schema(schema_id)
        place = f"schema {schema_id}"
        if found.kind != "JSON":
            raise RecordError(place, f"{place} is of the type {found.kind}, not JSON Schema", code=UNUSABLE_SCHEMA)
        try:
            document = json.loads(found.text)
            others = {name: json.loads(text) for name, text in found.references}
        except (ValueError, RecursionError) as error:
            raise RecordError(place, f"{place} is no JSON Schema: not JSON", code=UNUSABLE_SCHEMA) from error
        return schema_of_document(document, others)


def schema_of_document(document: Any, others: Mapping[str, Any]) -> pa.Schema:
    """The columns that a JSON Schema names types for. others: the documents that it refers to, by their names.

    A type that contains itself is left open where it does.
    """
    kind = _Typing(document, others).type_of(document, document, ())
    return pa.schema(list(kind) if kind is not None and pt.is_struct(kind) else [])


def filled(schema: pa.Schema, others: pa.Schema) -> pa.Schema:
    """`schema`, and what `others` has beside it; the types of `schema` count, but those that say nothing yet."""
    return pa.schema(_filled(list(schema), list(others)), metadata=schema.metadata)


def _filled(fields: list[pa.Field], others: list[pa.Field]) -> list[pa.Field]:
    made = {field.name: field for field in fields}
    for other in others:
        held = made.get(other.name)
        made[other.name] = other if held is None else held.with_type(_filled_type(held.type, other.type))
    return list(made.values())


def _filled_type(kind: pa.DataType, other: pa.DataType) -> pa.DataType:
    if pt.is_null(kind):
        return other
    if pt.is_struct(kind) and pt.is_struct(other):
        return pa.struct(_filled(list(kind), list(other)))
    if pt.is_list(kind) and pt.is_list(other):
        return pa.list_(kind.value_field.with_type(_filled_type(kind.value_type, other.value_type)))
    return kind


class _Typing:
    """One walk through a schema."""

    def __init__(self, document: Any, others: Mapping[str, Any]) -> None:
        self._others = dict(others)
        if isinstance(document, dict) and isinstance(document.get("$id"), str):
            self._others.setdefault(document["$id"], document)
        self._left = STEPS_MAX

    def type_of(self, schema: Any, root: Any, within: tuple[str, ...]) -> pa.DataType | None:
        """The type that a schema names; None if it leaves it open. root: the document it stands in.

        within: the references that led here.
        """
        self._left -= 1
        if not isinstance(schema, dict) or self._left < 0 or len(within) > DEPTH_MAX:
            return None
        if isinstance(schema.get("$ref"), str):
            return self._referred(schema["$ref"], root, within)
        for key in ("anyOf", "oneOf"):
            if isinstance(schema.get(key), list):
                choices = [choice for choice in schema[key] if choice != {"type": "null"}]
                return self.type_of(choices[0], root, (*within, "")) if len(choices) == 1 else None
        if isinstance(schema.get("allOf"), list):
            return self._all_of(schema, root, within)
        kind = schema.get("type")
        if isinstance(kind, list):
            kinds = [one for one in kind if one != "null"]
            kind = kinds[0] if len(kinds) == 1 else None
        if kind == "array":
            item = self.type_of(schema.get("items"), root, (*within, ""))
            return None if item is None else pa.list_(item)
        if kind == "object" or kind is None and "properties" in schema:
            return self._object(schema, root, within)
        if kind == "string" and schema.get("format") == "date-time":
            return pa.timestamp("us", "UTC")
        return _SCALARS.get(kind) if isinstance(kind, str) else None

    def _object(self, schema: dict[str, Any], root: Any, within: tuple[str, ...]) -> pa.DataType | None:
        properties = schema.get("properties")
        if not isinstance(properties, dict):
            return None
        fields = []
        for name, inner in properties.items():
            kind = self.type_of(inner, root, (*within, ""))
            if kind is not None and name and "\0" not in name:
                fields.append(pa.field(name, kind))
        return pa.struct(fields) if fields else None

    def _all_of(self, schema: dict[str, Any], root: Any, within: tuple[str, ...]) -> pa.DataType | None:
        rest = {key: value for key, value in schema.items() if key != "allOf"}
        parts = [self.type_of(part, root, (*within, "")) for part in (rest, *schema["allOf"])]
        kinds = [kind for kind in parts if kind is not None]
        if kinds and all(pt.is_struct(kind) for kind in kinds):
            found: list[pa.Field] = []
            for kind in kinds:
                found = _filled(found, list(kind))
            return pa.struct(found)
        return kinds[0] if len(kinds) == 1 else None

    def _referred(self, reference: str, root: Any, within: tuple[str, ...]) -> pa.DataType | None:
        name, _, path = reference.partition("#")
        document = root if not name else self._others.get(name)
        found, place = document, f"{name or id(root)}#{path}"
        for part in path.split("/")[1:]:
            part = part.replace("~1", "/").replace("~0", "~")
            found = found.get(part) if isinstance(found, dict) else None
        if place in within:
            return None
        return self.type_of(found, document, (*within, place))
