"""JSON lines as a block format: see the package's docstring for what is promised."""

from __future__ import annotations

import codecs
from dataclasses import replace
from functools import cached_property

import pyarrow as pa

from conveyord.core.errors import RecordError
from conveyord.engine.decoding import SAMPLE_BYTES, BadRecord, Decoded
from conveyord.engine.json.conform import batch_of, concat
from conveyord.engine.json.exact import Piece, decode_exact
from conveyord.engine.json.infer import infer_schema
from conveyord.engine.json.lines import record_starts
from conveyord.engine.json.narrow import narrowed
from conveyord.engine.json.pieces import read_range
from conveyord.engine.json.shape import Shape, schema_of_shape, shape_of_schema
from conveyord.engine.json.strict import decode_strict


class JsonLinesDecoder:
    """`BlockDecoder[None]` for JSON lines: a file's layout is its schema alone. Holds no state."""

    lines_are_records = True

    def begin(self, head: bytes) -> tuple[int, None]:
        """Pass over a UTF-8 byte order mark. Raises RecordError for a file in UTF-16 or UTF-32."""
        if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)):
            raise RecordError("byte 0", "the file is UTF-16 or UTF-32 text; convert it to UTF-8", code="INVALID_UTF8")
        return (len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0), None

    def boundary(self, buffer: bytes | bytearray) -> int:
        """One past the last line end in `buffer`; 0 if there is none."""
        return buffer.rfind(b"\n") + 1

    def infer(self, sample: bytes, layout: None) -> pa.Schema:  # noqa: ARG002 - the protocol's
        """The schema of the first `SAMPLE_BYTES` of whole lines. Bad records are passed over."""
        if len(sample) > SAMPLE_BYTES:
            sample = sample[: sample.rfind(b"\n", 0, SAMPLE_BYTES) + 1] or sample
        return infer_schema(sample)

    def decode(self, block: bytes, schema: pa.Schema, layout: None) -> Decoded:  # noqa: ARG002 - likewise
        """Decode whole lines under `schema`, grown by what it lacks."""
        reading = _Reading(block, schema)
        pieces, _ = read_range(block, first=0, end=len(block), bulk=reading.in_bulk, exact=reading.exactly)
        return _assembled(pieces, reading.grown())

    def starts(self, block: bytes) -> pa.Int64Array:
        """Where each line of `block` starts, blank lines left out."""
        return record_starts(block)


class _Reading:
    """The reading of one block under a schema, which the exact path may grow."""

    def __init__(self, block: bytes, schema: pa.Schema) -> None:
        self._block = block
        self._schema = schema

    @cached_property
    def _shape(self) -> Shape:
        return shape_of_schema(self._schema)

    def in_bulk(self, first: int, end: int) -> Piece | None:
        """See `read_range`."""
        lines = self._block[first:end]
        few = narrowed(lines, self._schema)
        rows = decode_strict(lines, self._shape if few is None else shape_of_schema(few))
        return None if rows is None else Piece(rows)

    def exactly(self, first: int, end: int) -> Piece:
        """See `read_range`."""
        return decode_exact(self._block, self._shape, first=first, end=end)

    def grown(self) -> pa.Schema:
        """The schema by now; the same object if it did not grow."""
        return schema_of_shape(self._shape, self._schema) if "_shape" in self.__dict__ else self._schema


def _assembled(pieces: list[Piece], schema: pa.Schema) -> Decoded:
    """All pieces of a block as one batch, and their bad records with rows counted from its start."""
    bad: list[BadRecord] = []
    before = 0
    for piece in pieces:
        bad += [replace(record, row=before + record.row) for record in piece.bad]
        before += len(piece.rows)
    rows = concat([piece.rows for piece in pieces], schema)
    return Decoded(batch_of(rows, schema), schema, tuple(bad))
