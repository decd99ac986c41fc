"""How bytes become record batches: the contract between a bulk reader and a format.

A reader cuts a partition's bytes into blocks of whole records and hands each to a `BlockDecoder`,
possibly several at a time in threads. Decoding is pure: the same block and schema give the same
result, which is what lets blocks be decoded out of order and replayed after a crash.

A schema only ever grows. A decoder may return a schema with more fields than it was given (a new
field, a sibling column for a value that does not fit, a type for a field that was only null so
far); it never changes or drops a field that has a type. So a block that decoded without growth
under an older schema is valid under every later one, with nulls in the new columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, TypeVar

import pyarrow as pa

SAMPLE_BYTES = 16 * 1024 * 1024  # types are inferred from this much of a source, never per block


@dataclass(frozen=True, slots=True)
class BadRecord:
    """One record of a block that cannot be used.

    offset: bytes from the block's start to the record's first byte. length: its bytes, line end not
    included. row: how many good rows of the block stand before it. code: see docs/errors.md.
    """

    offset: int
    length: int
    row: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Decoded:
    """The good records of one block in order, the schema they were written under, and the bad ones."""

    data: pa.RecordBatch
    schema: pa.Schema
    bad: tuple[BadRecord, ...] = ()


Layout = TypeVar("Layout")


class BlockDecoder(Protocol[Layout]):
    """One format. `Layout` is what must be known of a file beyond its schema (a CSV file's header).

    All methods are blocking, thread-safe and free of side effects.
    """

    lines_are_records: bool
    """Whether every line end ends a record, so that reading can go on at the next line after any fault."""

    def begin(self, head: bytes) -> tuple[int, Layout]:
        """Look at a file's first bytes. Returns how many to pass over, and the file's layout.

        Raises RecordError if the file cannot be of this format.
        """

    def boundary(self, buffer: bytes | bytearray) -> int:
        """The end of the last whole record in `buffer`, which starts at a record; 0 if there is none."""

    def infer(self, sample: bytes, layout: Layout) -> pa.Schema:
        """The schema of whole records. Fields seen only as null get the type null. Skips bad records."""

    def decode(self, block: bytes, schema: pa.Schema, layout: Layout) -> Decoded:
        """Decode whole records; the last may lack its line end. `Decoded.data` has `Decoded.schema`."""

    def starts(self, block: bytes) -> pa.Int64Array:
        """Where each record of `block` starts, bad ones included, blank lines not."""
