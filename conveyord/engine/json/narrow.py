"""Reading lines under the fields that they have, where a schema remembers many that they have not.

pyarrow's reader takes time and memory for every field that a record might have. One record of thousands of
fields, which the schema of its source never forgets, made all later blocks a hundred times slower to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from conveyord.engine.json.lines import records
from conveyord.engine.json.records import Unusable, parse_record
from conveyord.engine.json.shape import Shape, schema_of_shape, shape_of_schema
from conveyord.engine.json.strict import decode_strict

SPARED_MIN = 64  # fields; to read without fewer gains less than finding out costs
LOOKED_AT = 8  # records at each end of the lines: those of a source are mostly alike
LOOK_BYTES = 32 * 1024  # at each end, at most, so that all looks together take about a millisecond

Fields = dict[str, "Fields"]
"""The fields that some objects have, each with those of the objects in it."""


def narrowed(lines: bytes, schema: pa.Schema) -> pa.Schema | None:
    """The few fields of `schema` that `lines` seem to have, in which `decode_strict` may read them.

    None if those are most fields, or all together few, or lines are too long to look at. Fields of which some line
    turns out to have more are no reason to try `schema` itself: the exact path is faster. No fields at all if `schema`
    lacks one, or a line is no record.
    """
    if not _is_wide(schema):
        return None
    seen: Fields = {}
    looked_at = [*_at_the_ends(lines)]
    if not looked_at:  # longer lines than that cost more than their fields
        return None
    try:
        for line in looked_at:
            _see(parse_record(line), seen)
    except Unusable:
        return pa.schema([])
    narrowing = _Narrowing()
    fields = narrowing.of_fields(schema, len(schema), seen)
    if fields is None:
        return pa.schema([])
    return pa.schema(fields) if narrowing.spared >= max(SPARED_MIN, narrowing.kept) else None


def rows_in_bulk(lines: bytes, shape: Shape) -> int | None:
    """How many records the strict path reads in `lines` under `shape`; None if it stands aside."""
    few = narrowed(lines, schema_of_shape(shape, pa.schema([])))
    rows = decode_strict(lines, shape if few is None else shape_of_schema(few))
    return None if rows is None else len(rows)


def _is_wide(schema: pa.Schema) -> bool:
    """Whether there are so many fields at all that `SPARED_MIN` of them could be spared."""
    count, kinds = len(schema), list(schema.types) if len(schema) <= SPARED_MIN else []
    while kinds and count <= SPARED_MIN:
        kind = kinds.pop()
        if pt.is_struct(kind):
            count += kind.num_fields
            kinds += [child.type for child in islice(kind, SPARED_MIN)]
        elif pt.is_list(kind):
            kinds.append(kind.value_type)
    return count > SPARED_MIN


def _at_the_ends(lines: bytes) -> Iterator[bytes]:
    """Some of the first lines, and some of the last."""
    end = lines.rfind(b"\n", 0, LOOK_BYTES) + 1
    yield from (line for _, line in islice(records(lines, 0, end), LOOKED_AT))
    first = lines.find(b"\n", max(end, len(lines) - LOOK_BYTES)) + 1
    if first:
        yield from [line for _, line in records(lines, first, len(lines))][-LOOKED_AT:]


def _see(value: Any, seen: Fields) -> None:
    """Take the fields of `value` into account, and those of all objects in it."""
    if isinstance(value, dict):
        for key, item in value.items():
            _see(item, seen.setdefault(key, {}))
    elif isinstance(value, list):
        for item in value:
            _see(item, seen)


@dataclass(slots=True)
class _Narrowing:
    """Counts the fields that were kept of a schema, and those that were not."""

    kept: int = 0
    spared: int = 0

    def of_fields(self, given: pa.Schema | pa.StructType, count: int, seen: Fields) -> list[pa.Field] | None:
        """Those of the `count` fields of `given` that were seen; None if one was seen that is not there."""
        fields = []
        for name, inner in seen.items():
            index = given.get_field_index(name)
            kind = None if index < 0 else self._of_type(given.field(index).type, inner)
            if kind is None:
                return None
            fields.append(pa.field(name, kind))
        self.kept += len(fields)
        self.spared += count - len(fields)
        return fields

    def _of_type(self, given: pa.DataType, seen: Fields) -> pa.DataType | None:
        if pt.is_struct(given) and given.num_fields:
            if not seen:  # only null, as far as was looked; if not everywhere, the reader says so
                self.spared += given.num_fields
                return pa.null()
            fields = self.of_fields(given, given.num_fields, seen)
            return None if fields is None else pa.struct(fields)
        if pt.is_list(given) and seen:
            kind = self._of_type(given.value_type, seen)
            return None if kind is None else pa.list_(kind)
        return given
