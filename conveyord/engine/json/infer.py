"""The schema of a sample of JSON lines."""

from __future__ import annotations

import pyarrow as pa

from conveyord.engine.json.lines import records
from conveyord.engine.json.narrow import rows_in_bulk
from conveyord.engine.json.observe import Observed
from conveyord.engine.json.pieces import LEAF_BYTES, ranges, read_range
from conveyord.engine.json.records import Unusable, parse_record
from conveyord.engine.json.shape import schema_of_shape

_SLICE_BYTES = 1024 * 1024  # what the strict path reads at once; smaller would pay its fixed cost often


def infer_schema(sample: bytes) -> pa.Schema:
    """The schema of whole lines. Bad records are passed over; no records give an empty schema.

    Lines are looked at one by one only where they teach something: a range that the strict path can
    read under what is known so far holds no field and no kind that was not seen before it.
    """
    seen = Observed()

    def known(first: int, end: int) -> bool | None:
        return None if rows_in_bulk(sample[first:end], seen.record_shape(provisional=True)) is None else True

    def observe(first: int, end: int) -> bool:
        _observe(sample, seen, first=first, end=end)
        return True

    start = next(ranges(sample, first=0, end=len(sample), bytes_max=LEAF_BYTES), (0, 0))[1]
    observe(0, start)
    for first, end in ranges(sample, first=start, end=len(sample), bytes_max=_SLICE_BYTES):
        read_range(sample, first=first, end=end, bulk=known, exact=observe)
    return schema_of_shape(seen.record_shape(), pa.schema([]))


def _observe(sample: bytes, seen: Observed, *, first: int, end: int) -> None:
    for _, line in records(sample, first, end):
        try:
            record = parse_record(line)
        except Unusable:
            continue
        seen.add_fields(record)
