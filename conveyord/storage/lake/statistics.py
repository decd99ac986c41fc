"""What a manifest says about one Parquet file: sizes, counts and bounds per column, by Iceberg id.

The statistics are pyiceberg's. This module only decides which bounds it may not compute, because a
wrong bound makes readers skip files that hold rows they ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

if TYPE_CHECKING:
    from pyiceberg.table import Table


class FileStatistics:
    """Statistics for files of the table's current schema, under its metrics settings."""

    def __init__(self, table: Table) -> None:
        from pyiceberg.io.pyarrow import compute_statistics_plan, parquet_path_to_id_mapping
        from pyiceberg.schema import sanitize_column_names

        self._plan = compute_statistics_plan(table.schema(), table.properties)
        self._ids = parquet_path_to_id_mapping(sanitize_column_names(table.schema()))

    def of(self, footer: pq.FileMetaData) -> dict[str, Any]:
        """The statistics of one closed file as arguments for `DataFile.from_args`."""
        from pyiceberg.io.pyarrow import (
            MetricModeTypes,
            MetricsMode,
            data_file_statistics_from_parquet_metadata,
        )

        counts_only = MetricsMode(MetricModeTypes.COUNTS)
        plan = dict(self._plan)
        for field_id in _unbounded(footer, self._ids):
            if plan[field_id].mode.type is not MetricModeTypes.NONE:
                plan[field_id] = replace(plan[field_id], mode=counts_only)
        statistics = data_file_statistics_from_parquet_metadata(footer, plan, self._ids)
        for field_id, bounds in list(statistics.column_aggregates.items()):
            try:
                bounds.min_as_bytes(), bounds.max_as_bytes()
            except UnicodeEncodeError:
                # A bound is cut to 16 characters and its last one raised by one; after U+D7FF come surrogates.
                del statistics.column_aggregates[field_id]
        return statistics.to_serialized_dict()


def _unbounded(footer: pq.FileMetaData, ids: dict[str, int]) -> Iterator[int]:
    """Columns of which some row group holds values but tells no usable bounds.

    Parquet leaves bounds out for values over some kilobytes and where all values are NaN; pyiceberg would
    take the bounds of the other row groups for those of the file. Dates after the year 9999 cannot be
    read from Python at all.
    """
    for position in range(footer.num_columns):
        for group in range(footer.num_row_groups):
            column = footer.row_group(group).column(position)
            if not _has_bounds(column):
                yield ids[column.path_in_schema]
                break


def _has_bounds(column: pq.ColumnChunkMetaData) -> bool:
    statistics = column.statistics
    if statistics is None:
        return False
    if not statistics.has_min_max:
        return bool(statistics.has_null_count and statistics.null_count == column.num_values)
    try:
        return statistics.min is not None and statistics.max is not None
    except (ValueError, OverflowError):
        return False
