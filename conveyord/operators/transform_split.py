"""Transform `split`: rows go to outputs by name, chosen by conditions."""

from __future__ import annotations

from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field, StringConstraints

from conveyord.engine.batch_transform import BatchTransform, Mapped
from conveyord.engine.conditions import RowCondition, condition_problem
from conveyord.engine.contracts import Mistakes, OperatorConfig, OperatorContext
from conveyord.engine.sql import is_immutable, without_views

OUTPUTS_MAX = 100  # each is a condition on every row

OutputName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$", max_length=64)]


class SplitConfig(OperatorConfig):
    """Sends rows to outputs by conditions. Those that meet none leave by the main output.

    An edge takes the rows of one output with `from: stage.output`, and those that are left with `from: stage`. Rows
    of an output that no edge leads from are counted as filtered.
    """

    outputs: dict[OutputName, str] = Field(
        min_length=1,
        max_length=OUTPUTS_MAX,
        examples=[{"big": "mag > 5"}],
        description="For each output a SQL condition on the columns of one row, as for filter. A null counts as not "
        "true.",
    )
    mode: Literal["first", "all"] = Field(
        default="first",
        description="`first`: a row goes to the first output whose condition it meets, and the conditions after it are "
        "not asked. `all`: to every one whose condition it meets.",
    )


class SplitTransform(BatchTransform):
    """See docs/operators.md."""

    Config = SplitConfig
    same_count_same_rows = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if a condition is none."""
        super().__init__(config, context)
        self._conditions = {
            name: RowCondition(when, setting=f"split.outputs.{name}") for name, when in self.config.outputs.items()
        }

    @classmethod
    def outputs_of(cls, config: OperatorConfig) -> tuple[str, ...]:
        """See `Transform.outputs_of`."""
        assert isinstance(config, SplitConfig)
        return tuple(config.outputs)

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, SplitConfig)
        found = {name: condition_problem(when) for name, when in config.outputs.items()}
        return {("outputs", name): f"{name}: {problem}" for name, problem in found.items() if problem is not None}

    @classmethod
    def is_pure(cls, config: OperatorConfig) -> bool:
        """See `Operator.is_pure`."""
        assert isinstance(config, SplitConfig)
        # Stages are compared without the order of keys, which decides here where a row goes.
        ordered = config.mode == "first" and len(config.outputs) > 1
        return not ordered and all(is_immutable(when) for when in config.outputs.values())

    def is_stateless(self) -> bool:
        """See `BatchTransform.is_stateless`: conditions look at one row, in an order that does not change."""
        return True

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: a condition looks at one row."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. The schema stays.

        Raises: ConfigError if a condition does not fit the columns or is no boolean, BatchError if one fails on a
            value.
        """
        return self.apply_all(data)[0]

    def apply_all(self, data: pa.RecordBatch) -> Mapped:
        """See `BatchTransform.apply_all`."""
        data = without_views(data)
        outputs: dict[str, pa.RecordBatch] = {}
        left, taken = data, pa.repeat(pa.scalar(False), data.num_rows)
        for name, condition in self._conditions.items():
            asked = left if self.config.mode == "first" else data
            rows = condition.rows(asked)
            if name in self.context.listened:
                outputs[name] = asked.filter(rows)
            if self.config.mode == "all":
                taken = pc.or_(taken, rows)
            elif rows.true_count:
                left = left.filter(pc.invert(rows))
        return (left if self.config.mode == "first" else data.filter(pc.invert(taken))), outputs
