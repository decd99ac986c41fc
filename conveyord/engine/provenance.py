"""Where each row came from, as columns, for sinks that ask for `provenance`.

The three columns pass through row-preserving stages like any others. A SQL stage must select them.
"""

from __future__ import annotations

from collections.abc import Mapping

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


def with_own_source(data: pa.RecordBatch, names: Mapping[str, str]) -> pa.RecordBatch:
    """`data` with the sources that its provenance names under the names that `names` gives them."""
    index = data.schema.get_field_index(SOURCE)
    if index < 0 or not names:
        return data
    column = data.column(index)
    texts = column.dictionary_decode() if isinstance(column, pa.DictionaryArray) else column
    own = [names.get(name, name) for name in texts.to_pylist()]
    return data.set_column(index, SOURCE, pa.array(own, pa.string()).dictionary_encode())
