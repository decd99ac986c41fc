"""Text put in order at any depth: what `clean_data` does to values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.engine.column_paths import plain_values
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.types import is_list, is_text
from conveyord.engine.sql import settled_type

Case = Literal["keep", "lower", "upper"]

_CASES: dict[Case, Callable[[pa.Array], pa.Array]] = {"lower": pc.utf8_lower, "upper": pc.utf8_upper}


@dataclass(frozen=True, slots=True)
class Cleaning:
    """trim: remove white space, as Unicode has it, at both ends. empty_to_null: after that. case: of letters."""

    trim: bool
    empty_to_null: bool
    case: Case

    def __call__(self, array: pa.Array) -> pa.Array:
        """`array` with every text in it clean: in structs, in lists, among the values of maps, not their keys.

        What holds no text keeps its buffers. Text in encodings such as dictionaries becomes plain.
        """
        if not _holds_text(array.type):
            return array
        array = plain_values(array)
        kind = array.type
        if pt.is_struct(kind):
            return self._structs(array)
        if pt.is_map(kind):
            elements = Elements.of(array)
            keys, items = elements.values.flatten()
            items = self(items)
            pairs = pa.StructArray.from_arrays([keys, items], names=["key", "value"])
            return elements.rebuilt(pairs, pa.map_(kind.key_field, kind.item_field.with_type(items.type)))
        if is_list(kind):
            elements = Elements.of(array)
            values = self(elements.values)
            layout = pa.large_list if pt.is_large_list(kind) else pa.list_
            return elements.rebuilt(values, layout(kind.value_field.with_type(values.type)))
        return self._texts(array)

    def _structs(self, array: pa.Array) -> pa.Array:
        # flatten, not field: what lies under a null struct is no value.
        children = array.flatten()
        cleaned = [self(child) for child in children]
        fields = [field.with_type(child.type) for field, child in zip(array.type, cleaned, strict=True)]
        return pa.StructArray.from_arrays(cleaned, fields=fields, mask=array.is_null())

    def _texts(self, array: pa.Array) -> pa.Array:
        array = array.cast(settled_type(array.type))
        if self.trim:
            array = pc.utf8_trim_whitespace(array)
        if self.case != "keep":
            array = _CASES[self.case](array)
        if self.empty_to_null:
            empty = pc.equal(pc.binary_length(array), 0)
            if pc.any(empty).as_py():
                array = pc.if_else(empty, pa.scalar(None, array.type), array)
        return array


def _holds_text(kind: pa.DataType) -> bool:
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return _holds_text(kind.value_type)
    if isinstance(kind, pa.BaseExtensionType):
        return False  # a UUID or a document has a form of its own
    if pt.is_map(kind):
        return _holds_text(kind.item_type)
    if is_list(kind):
        return _holds_text(kind.value_type)
    if pt.is_struct(kind):
        return any(_holds_text(field.type) for field in kind)
    return is_text(kind)
