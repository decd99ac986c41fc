"""Where each row came from, as columns, for sinks that ask for `provenance`.

The three columns pass through row-preserving stages like any others. A SQL stage must select them.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.flow.positions import Partition
from conveyord.engine.decoding import BadRecord

SOURCE, PARTITION, OFFSET = "_source", "_partition", "_offset"
COLUMNS = (SOURCE, PARTITION, OFFSET)


def with_provenance(
    data: pa.RecordBatch, partition: Partition, starts: pa.Int64Array, bad: Sequence[BadRecord], *, first: int
) -> pa.RecordBatch:
    """`data` with its source stage, partition and record offset appended.

    starts: the start of every record of the block, bad ones included, relative to `first`; rows beyond
    `data` (after a stop at a bad record) are ignored.
    """
    if bad:
        dropped = pa.array([record.offset for record in bad], pa.int64())
        starts = starts.filter(pc.invert(pc.is_in(starts, dropped)))
    rows = data.num_rows
    offsets = pc.add(starts.slice(0, rows), pa.scalar(first, pa.int64()))
    same = pa.nulls(rows, pa.int8()).fill_null(0)
    columns = (
        pa.DictionaryArray.from_arrays(same, [partition.source]),
        pa.DictionaryArray.from_arrays(same, [partition.name]),
        offsets,
    )
    for name, column in zip(COLUMNS, columns, strict=True):
        data = data.append_column(name, column)
    return data
