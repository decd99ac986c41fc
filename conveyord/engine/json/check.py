"""Whether lines are records, before anything is done with them."""

from __future__ import annotations

from conveyord.engine.decoding import BadRecord
from conveyord.engine.json.lines import records
from conveyord.engine.json.narrow import rows_in_bulk
from conveyord.engine.json.observe import Observed
from conveyord.engine.json.pieces import LEAF_BYTES, ranges, read_range
from conveyord.engine.json.records import Unusable, parse_record

SLICE_BYTES = 1024 * 1024  # what the strict path reads at once


def first_bad(lines: bytes) -> BadRecord | None:
    """The first of whole lines that is no record; None if the decoder takes all of them. Blocking.

    What it says agrees with `JsonLinesDecoder.decode` under every schema: a record is bad by itself. `row` counts
    the records before it.
    """
    seen = Observed()
    bad: list[BadRecord] = []
    count = 0
    teaches = len(lines) > LEAF_BYTES  # else nothing is read in bulk

    def in_bulk(first: int, end: int) -> bool | None:
        if bad:
            return True
        rows = rows_in_bulk(lines[first:end], seen.record_shape(provisional=True))
        if rows is None:
            return None
        nonlocal count
        count += rows
        return True

    def one_by_one(first: int, end: int) -> bool:
        nonlocal count
        for offset, line in records(lines, first, end) if not bad else ():
            try:
                record = parse_record(line)
            except Unusable as error:
                bad.append(BadRecord(offset, len(line), count, error.code, error.reason))
                break
            if teaches:
                seen.add_fields(record)
            count += 1
        return True

    start = next(ranges(lines, first=0, end=len(lines), bytes_max=LEAF_BYTES), (0, 0))[1]
    one_by_one(0, start)
    for first, end in ranges(lines, first=start, end=len(lines), bytes_max=SLICE_BYTES):
        read_range(lines, first=first, end=end, bulk=in_bulk, exact=one_by_one)
    return bad[0] if bad else None
