"""Transform `clamp`: numbers outside limits become the limit."""

from __future__ import annotations

import math

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from pydantic import Field, model_validator

from conveyord.core.errors import ConfigError
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import OperatorConfig


class ClampConfig(OperatorConfig):
    """Replaces numbers of a column below `low` by `low`, and above `high` by `high`. Nulls stay."""

    column: str = Field(min_length=1, description="A column of numbers.", examples=["value"])
    # Not float alone: it would round whole numbers above 2**53.
    low: int | float | None = Field(default=None, description="The least that is let through; none: no limit.")
    high: int | float | None = Field(default=None, description="The most that is let through; none: no limit.")

    # A rule about several keys. The sentence is shown with the place in the file, so it names values and remedy.
    @model_validator(mode="after")
    def _in_order(self) -> ClampConfig:
        if self.low is not None and self.high is not None and self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high}); exchange them")
        return self


class ClampTransform(BatchTransform):
    """Maps a batch to a batch. The engine calls `apply` in a thread and carries positions and acknowledgements on."""

    Config = ClampConfig
    pure = True  # no clock, no randomness, nothing remembered between batches

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - it is so for all data
        """Each row of the result depends on one row alone, so a batch may be divided to find one that fails."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`.

        Raises ConfigError if there is no such column, or it holds no numbers, or cannot hold a limit.
        """
        config: ClampConfig = self.config
        index = data.schema.get_field_index(config.column)
        if index < 0:
            known = ", ".join(data.schema.names)
            raise ConfigError(f"stage {self.context.stage!r}: no column {config.column!r}; the columns are {known}")
        values = data.column(index)
        if not (pt.is_integer(values.type) or pt.is_float32(values.type) or pt.is_float64(values.type)):
            raise ConfigError(
                f"stage {self.context.stage!r}: the column {config.column!r} is {values.type}, not a number"
            )
        # Arrow's arrays are shared between stages and never changed: new ones are made.
        for name, limit, beyond in (("low", config.low, pc.less), ("high", config.high, pc.greater)):
            if limit is not None:
                bound = self._bound(name, limit, values.type)
                values = pc.if_else(beyond(values, bound), bound, values)  # null where a value is null
        return data.set_column(index, data.schema.field(index), values)

    def _bound(self, name: str, limit: float, kind: pa.DataType) -> pa.Scalar:
        """`limit` as a value of a column of type `kind`. Raises ConfigError if that would change it.

        What a user can cause must become a sentence that names place, value and remedy: any other exception is
        taken for a mistake in the operator.
        """
        whole = pt.is_integer(kind)
        remedy = f"write a {'whole ' if whole else ''}number in its range"
        try:
            bound = pa.scalar(int(limit) if whole else float(limit), kind)
        except (pa.ArrowInvalid, OverflowError):  # out of range
            bound = None
        if bound is not None and bound.as_py() == limit:
            return bound
        if bound is not None and not whole and math.isfinite(bound.as_py()):
            remedy = f"write {bound.as_py()!r}, the nearest that it can"
        raise ConfigError(
            f"stage {self.context.stage!r}: {name} is {limit}, which the column {self.config.column!r} cannot hold: "
            f"it is {kind}; {remedy}"
        )
