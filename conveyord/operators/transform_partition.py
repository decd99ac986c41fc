"""Transform `partition`: a column with the path of the partition that each row belongs to."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, bad_rows
from conveyord.engine.contracts import Mistakes, OperatorConfig, OperatorContext
from conveyord.engine.partition_paths import (
    NAME_BYTES_MAX,
    Part,
    beyond,
    column_of,
    parts_of_columns,
    parts_of_format,
    paths,
    too_long,
)
from conveyord.engine.sql import without_views
from conveyord.storage.calendar import YEARS

_LONG = f"partition_by: a name in the path has more than {NAME_BYTES_MAX} bytes; shorten the value before"
_FAR = f"and a path can tell {YEARS} only; mend or filter such rows before"


class PartitionConfig(OperatorConfig):
    """Adds a column with the path of the partition that a row belongs to, such as `country=DE/at_day=2026-01-31`.

    Null and empty text are `__HIVE_DEFAULT_PARTITION__`, characters that a path cannot hold are escaped, both as
    Hive does. Times are in UTC. A row for which a name in the path would have more than 255 bytes is bad,
    and so is one with a time to write whose year is not of 0001 to 9999.

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
            said = {key if isinstance(key, str) else key[0]: problem for key, problem in problems.items()}
            raise ConfigError("; ".join(f"partition.{key}: {problem}" for key, problem in said.items()))
        self._parts = _parts(self.config)

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, PartitionConfig)
        columns, found = set[str](), dict[tuple[str, int], str]()
        for place, expression in enumerate(config.partition_by):
            try:
                columns.add(column_of(expression)[0])
            except ConfigError as error:
                found["partition_by", place] = str(error)
            if expression in config.partition_by[:place]:
                found["partition_by", place] = "an expression stands there twice; leave one out"
        if found:
            return found
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
            rows whose path has a name that is too long, or is of a time in a year that it cannot tell.
        """
        data = without_views(data)
        options: PartitionConfig = self.config
        if options.column in data.schema.names:
            raise ConfigError(f"partition.column: there is a column {options.column!r} already; choose another name")
        made = paths(data, self._parts)
        result = data.append_column(options.column, made)
        long, far = too_long(made), beyond(data, self._parts)
        if long is None and far is None:
            return result
        none = pa.nulls(data.num_rows, pa.string())
        far = none if far is None else far
        long = none if long is None else pc.if_else(long, _LONG, pa.scalar(None, pa.string()))
        problems = pc.coalesce(pc.binary_join_element_wise("partition_by:", far, _FAR, " "), long)
        bad = problems.is_valid()
        errors = [BatchError(problem) for problem in problems.filter(bad).to_pylist()]
        raise bad_rows(data, bad, errors, (result.filter(problems.is_null()), NOTHING_ELSE))


def _parts(config: PartitionConfig) -> tuple[Part, ...]:
    if config.partition_format is not None:
        return parts_of_format(config.partition_format)
    return parts_of_columns(config.partition_by)
