"""The exact path: one record at a time, right for every input, some twenty times slower than bulk.

It defines what the decoder means. The bulk paths must give the same or stand aside.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from conveyord.engine.decoding import BadRecord
from conveyord.engine.json.lines import records
from conveyord.engine.json.place import place_record
from conveyord.engine.json.records import Unusable, parse_record
from conveyord.engine.json.shape import Shape, type_of_shape


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of lines, decoded.

    rows: one struct per good record, of the fields that some of them have. bad: offsets count from the block's start,
    rows from the piece's.
    """

    rows: pa.StructArray
    bad: tuple[BadRecord, ...] = ()


def decode_exact(block: bytes, shape: Shape, *, first: int, end: int) -> Piece:
    """Decode the whole lines `block[first:end]`, growing `shape` by what does not fit it."""
    rows: list[dict[str, Any]] = []
    bad: list[BadRecord] = []
    for offset, line in records(block, first, end):
        try:
            record = parse_record(line)
        except Unusable as error:
            bad.append(BadRecord(offset, len(line), len(rows), error.code, error.reason))
            continue
        rows.append(place_record(record, shape))
    # Of thousands of fields these rows may have few.
    names = dict.fromkeys(name for row in rows for name in row)
    kind = pa.struct([pa.field(name, type_of_shape(shape.fields[name])) for name in names])
    return Piece(pa.array(rows, kind), tuple(bad))
