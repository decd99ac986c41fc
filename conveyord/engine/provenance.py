"""Where each row came from, as columns, for sinks that ask for `provenance`.

The three columns pass through row-preserving stages like any others. A SQL stage must select them.
"""

from __future__ import annotations

import pyarrow as pa

from conveyord.core.flow.positions import Partition

SOURCE, PARTITION, OFFSET = "_source", "_partition", "_offset"
COLUMNS = (SOURCE, PARTITION, OFFSET)


def with_provenance(data: pa.RecordBatch, partition: Partition, offsets: pa.Int64Array) -> pa.RecordBatch:
    """`data` with its source stage, its partition and each row's record offset appended."""
    same = pa.nulls(data.num_rows, pa.int8()).fill_null(0)
    columns = (
        pa.DictionaryArray.from_arrays(same, [partition.source]),
        pa.DictionaryArray.from_arrays(same, [partition.name]),
        offsets,
    )
    for name, column in zip(COLUMNS, columns, strict=True):
        data = data.append_column(name, column)
    return data
