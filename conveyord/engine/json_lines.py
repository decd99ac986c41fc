"""Rows as JSON lines, built column by column in Arrow.

One object a line with every column in order, null where there is no value. Numbers and booleans are JSON's own,
whole numbers in full however long; a double always has a point or an exponent, so that it is read back as one. NaN
and the infinities, which JSON lacks, are null, and counted. Decimals are strings, because a reader would make
doubles of them. Other types are as `engine/schema/text.py` writes them: timestamps in ISO 8601, bytes in base64,
structs as objects, maps as lists of objects with key and value.

Only bytes, and texts with control characters other than line breaks and tabs, go through Python one by one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import is_list, is_text

TEXT = pa.large_string()
_NEEDS_ESCAPE = '["\\\\\x00-\x1f]'
_RARE = "[\x00-\x1f]"
_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
_WHOLE = "^-?[0-9]+$"


@dataclass(frozen=True, slots=True)
class JsonLines:
    """text: UTF-8, each row ending in a line break. no_numbers: how many NaN and infinities became null."""

    text: memoryview
    no_numbers: int


def json_lines(rows: pa.RecordBatch) -> JsonLines:
    """`rows` as JSON lines. Blocking."""
    if rows.num_rows == 0:
        return JsonLines(memoryview(b""), 0)
    if rows.num_columns == 0:
        return JsonLines(memoryview(b"{}\n" * rows.num_rows), 0)
    writer = _Writer()
    lines = _joined(*writer.object_parts(list(rows.schema.names), rows.columns), "}\n")
    first, end = lines.offset, lines.offset + len(lines)
    offsets = memoryview(lines.buffers()[1]).cast("q")
    return JsonLines(memoryview(lines.buffers()[2])[offsets[first] : offsets[end]], writer.no_numbers)


class _Writer:
    """Turns arrays into arrays of JSON text without nulls, and counts what became null on the way."""

    def __init__(self) -> None:
        self.no_numbers = 0

    def object_parts(self, names: list[str], columns: list[pa.Array]) -> list[Any]:
        """Everything of an object but its closing brace, to be joined element by element."""
        parts: list[Any] = []
        for name, column in zip(names, columns, strict=True):
            parts += [f"{',' if parts else '{'}{json.dumps(name, ensure_ascii=False)}:", self.text(column)]
        return parts

    def text(self, array: pa.Array) -> pa.Array:
        """One JSON value for each of `array`, `null` for null."""
        if pt.is_dictionary(array.type):
            values = self._quietly(array.dictionary)
            if values is not None:
                return pc.fill_null(values.take(array.indices), pa.scalar("null", TEXT))
            array = array.dictionary_decode()
        if isinstance(array.type, pa.BaseExtensionType):
            array = array.storage
        if pt.is_run_end_encoded(array.type):
            array = pc.run_end_decode(array)
        return pc.fill_null(self._values(array), pa.scalar("null", TEXT))

    def _quietly(self, values: pa.Array) -> pa.Array | None:
        """The texts of a dictionary's values; None if one is no number: then each use of it counts."""
        before = self.no_numbers
        texts = self.text(values)
        if self.no_numbers == before:
            return pc.if_else(values.is_valid(), texts, pa.scalar(None, TEXT))
        self.no_numbers = before
        return None

    def _values(self, array: pa.Array) -> pa.Array:
        kind = array.type
        if pt.is_null(kind):
            return pa.nulls(len(array), TEXT)
        if is_text(kind):
            return _quoted(array.cast(TEXT))
        if pt.is_integer(kind) or pt.is_boolean(kind):
            return array.cast(TEXT)
        if pt.is_floating(kind):
            return self._floats(array)
        if pt.is_struct(kind):
            return self._structs(array)
        if is_list(kind) or pt.is_map(kind):
            return self._lists(array)
        text = to_text(array).cast(TEXT)
        return text if pt.is_duration(kind) else _joined('"', text, '"')

    def _floats(self, array: pa.Array) -> pa.Array:
        finite = pc.is_finite(array)
        strange = len(array) - array.null_count - (pc.sum(finite).as_py() or 0)
        if strange:
            self.no_numbers += strange
            array = pc.if_else(finite, array, pa.scalar(None, array.type))
        text = to_text(array).cast(TEXT)
        whole = pc.match_substring_regex(text, _WHOLE)
        return pc.if_else(whole, _joined(text, ".0"), text) if pc.any(whole).as_py() else text

    def _structs(self, array: pa.Array) -> pa.Array:
        if array.type.num_fields == 0:
            text = pa.array(["{}"] * len(array), TEXT)
        else:
            # `flatten` gives null to the fields of a null struct, so that nothing behind one is counted.
            names = [field.name for field in array.type]
            text = _joined(*self.object_parts(names, array.flatten()), "}")
        return pc.if_else(array.is_valid(), text, pa.scalar(None, TEXT)) if array.null_count else text

    def _lists(self, array: pa.Array) -> pa.Array:
        elements = Elements.of(array)
        texts = elements.rebuilt(self.text(elements.values), pa.large_list(TEXT))
        return _joined("[", pc.binary_join(texts, pa.scalar(",", TEXT)), "]")


def _joined(*parts: Any) -> pa.Array:
    """Texts put together row by row; null where one is null. Plain strings stand in every row."""
    arguments = [pa.scalar(part, TEXT) if isinstance(part, str) else part for part in parts]
    return pc.binary_join_element_wise(*arguments, pa.scalar("", TEXT))


def _quoted(text: pa.Array) -> pa.Array:
    """Texts as JSON strings."""
    if not pc.any(pc.match_substring_regex(text, _NEEDS_ESCAPE)).as_py():
        return _joined('"', text, '"')
    plain = text
    for character, escape in _ESCAPES:
        text = pc.replace_substring(text, character, escape)
    rare = pc.match_substring_regex(text, _RARE)
    quoted = _joined('"', text, '"')
    if pc.any(rare).as_py():
        spelled = [json.dumps(value, ensure_ascii=False) for value in plain.filter(rare).to_pylist()]
        quoted = pc.replace_with_mask(quoted, pc.fill_null(rare, False), pa.array(spelled, TEXT))
    return quoted
