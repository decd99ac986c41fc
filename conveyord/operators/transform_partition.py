"""Transform `partition`: a column with the path of the partition that each row belongs to."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, bad_rows
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.partition_paths import (
    NAME_BYTES_MAX,
    Part,
    column_of,
    parts_of_columns,
    parts_of_format,
    paths,
    too_long,
)
from conveyord.engine.sql import without_views


class PartitionConfig(OperatorConfig):
    """Adds a column with the path of the partition that a row belongs to, such as `country=DE/at_day=2026-01-31`.

    Null and empty text are `__HIVE_DEFAULT_PARTITION__`, characters that a path cannot hold are escaped, both as
    Hive does. Times are in UTC. A row for which a name in the path would have more than 255 bytes is bad.

    The sinks iceberg and parquet_dir partition by themselves (their own `partition_by`) and need no such column.
    """

    partition_by: tuple[str, ...] = Field(
        min_length=1,
        examples=[["country", "day(at)"]],
        description="Columns or paths (`user.country`), and `year(c)`, `month(c)`, `day(c)` or `hour(c)` of dates and "
        "times. Without a format each makes `name=value`, named as Iceberg names it (`at_day`).",
    )
    partition_format: str | None = Field(
        default=None,
        description="How the path is written, such as `country={country}/dt={at:%Y-%m-%d}`: every column of "
        "`partition_by` and no other, those of dates and times with a format of strftime. A `/` in it makes a "
        "directory.",
    )
    column: str = Field(default="_partition_path", min_length=1, description="The name of the new column.")


class PartitionTransform(BatchTransform):
    """See docs/operators.md."""

    Config = PartitionConfig
    same_count_same_rows = True
    pure = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if an expression or the format cannot be understood."""
        super().__init__(config, context)
        problems = self.mistakes(self.config)
        if problems:
            raise ConfigError("; ".join(f"partition.{key}: {problem}" for key, problem in problems.items()))
        self._parts = _parts(self.config)

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, PartitionConfig)
        try:
            columns = {column_of(expression)[0] for expression in config.partition_by}
        except ConfigError as error:
            return {"partition_by": str(error)}
        if len(set(config.partition_by)) < len(config.partition_by):
            return {"partition_by": "an expression stands there twice; leave one out"}
        if config.partition_format is None:
            return {}
        try:
            used = {part.column for part in parts_of_format(config.partition_format) if part.column is not None}
        except ConfigError as error:
            return {"partition_format": str(error)}
        unlike = sorted(used ^ columns)
        if not unlike:
            return {}
        there, missing = "partition_by", "partition_format"
        if unlike[0] in used:
            there, missing = missing, there
        problem = f"{there} names {unlike[0]!r} and {missing} does not; they must name the same columns"
        return {"partition_format": problem}

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: a path is made of one row."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. The column comes last.

        Raises: ConfigError if a column is missing, cannot stand in a path, or if the new one is there; BadRows for
            rows whose path has a name that is too long.
        """
        data = without_views(data)
        options: PartitionConfig = self.config
        if options.column in data.schema.names:
            raise ConfigError(f"partition.column: there is a column {options.column!r} already; choose another name")
        made = paths(data, self._parts)
        result = data.append_column(options.column, made)
        bad = too_long(made)
        if bad is None:
            return result
        problem = f"partition_by: a name in the path has more than {NAME_BYTES_MAX} bytes; shorten the value before"
        errors = [BatchError(problem)] * bad.true_count
        raise bad_rows(data, bad, errors, (result.filter(pc.invert(bad)), NOTHING_ELSE))


def _parts(config: PartitionConfig) -> tuple[Part, ...]:
    if config.partition_format is not None:
        return parts_of_format(config.partition_format)
    return parts_of_columns(config.partition_by)
