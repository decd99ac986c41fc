"""Transform `clean_data`: text without stray spaces, nulls in place of empty text, rows without nulls."""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from pydantic import Field

from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, Mapped
from conveyord.engine.cleaning import Cleaning
from conveyord.engine.column_paths import column_beside, missing_column, plain_values, siblings_at, value_at
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.field_tree import (
    FieldTree,
    Path,
    changed_values,
    paths_of,
    rebatched,
    refuse_parts,
    with_siblings,
)
from conveyord.engine.provenance import COLUMNS as PROVENANCE
from conveyord.engine.sql import without_views

DROPPED = "dropped"


class CleanDataConfig(OperatorConfig):
    """Trims text, makes empty text null, and, if asked, drops the rows that have a null then.

    Text is cleaned wherever it stands, also within objects, lists and the values of maps; keys of maps stay as they
    are, and so do `_source` and `_partition`, which `provenance` adds. The rows that are dropped leave by the output
    `dropped`, cleaned, if an edge leads from there.

    What did not fit a column when it was read, and so stands in a column beside it (`phone__string`), is cleaned with
    it; so is what stands where an object should be. A column is not null where its value stands beside it.
    """

    trim_strings: bool = Field(default=True, description="Remove white space at both ends, as Unicode has it.")
    empty_to_null: bool = Field(default=True, description="Make empty text null, after trimming.")
    normalize_case: Literal["keep", "lower", "upper"] = Field(
        default="keep", description="Write all letters small (`lower`) or large (`upper`)."
    )
    columns: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Clean the text in these columns only, or in these fields: `user.name`. All if not given.",
    )
    remove_nulls: bool | tuple[str, ...] = Field(
        default=False,
        examples=[["id"]],
        description="Drop the rows in which any column is null, or any of the columns or fields in a list. A null in "
        "an object or a list does not count, unless the list names its field. Dropped rows count as filtered.",
    )


class CleanDataTransform(BatchTransform):
    """See docs/operators.md."""

    Config = CleanDataConfig
    same_count_same_rows = True
    pure = True
    outputs = (DROPPED,)

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        assert isinstance(config, CleanDataConfig)
        self._cleaning = Cleaning(config.trim_strings, config.empty_to_null, config.normalize_case)

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, CleanDataConfig)
        if config.remove_nulls == ():
            return {"remove_nulls": "the list is empty; name columns, or write true or false"}
        if config.columns and not (config.trim_strings or config.empty_to_null or config.normalize_case != "keep"):
            return {"columns": "nothing is to be done to these columns: trim_strings and empty_to_null are off"}
        return {}

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: every row is cleaned by itself."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Columns without text keep their buffers.

        Raises: ConfigError if a column is missing.
        """
        return self.apply_all(data)[0]

    def apply_all(self, data: pa.RecordBatch) -> Mapped:
        """See `BatchTransform.apply_all`."""
        listened = DROPPED in self.context.listened
        cleaned = self._cleaned(data)
        keep = self._without_nulls(cleaned)
        if keep is None:
            return cleaned, ({DROPPED: cleaned.slice(0, 0)} if listened else NOTHING_ELSE)
        cleaned = without_views(cleaned)
        return cleaned.filter(keep), ({DROPPED: cleaned.filter(pc.invert(keep))} if listened else NOTHING_ELSE)

    def _cleaned(self, data: pa.RecordBatch) -> pa.RecordBatch:
        paths: dict[str, Path] = {name: (name,) for name in data.schema.names if name not in PROVENANCE}
        if self.config.columns is not None:
            setting = "clean_data.columns"
            paths = paths_of(data.schema, self.config.columns, setting=setting, ignore_missing=False)
            refuse_parts(paths, setting=setting)
        tree: FieldTree[bool] = FieldTree()
        for path in paths.values():
            tree.put(path, True)
        tree = with_siblings(tree, data.schema, beside=lambda said, _: said, instead=True)
        fields = list(data.schema)
        return rebatched(data, *changed_values(tree, lambda _, values: self._cleaning(values), fields, data.columns))

    def _without_nulls(self, data: pa.RecordBatch) -> pa.BooleanArray | None:
        """For each row whether nothing that matters is null; None if all rows stay."""
        wanted = self.config.remove_nulls
        if isinstance(wanted, bool):
            names = data.schema.names
            own = [name for name in names if column_beside(name) not in names] if wanted else []
        else:
            own = list(wanted)
        there = [held for name in own if (held := self._held(data, name)).false_count]
        return reduce(pc.and_, there) if there else None

    def _held(self, data: pa.RecordBatch, name: str) -> pa.BooleanArray:
        """For each row whether there is a value at `name`, or beside it."""
        found = [self._values(data, name), *siblings_at(data, name)]
        return reduce(pc.or_, [plain_values(array).is_valid() for array in found])

    def _values(self, data: pa.RecordBatch, name: str) -> pa.Array:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            array = value_at(data, ".".join(parts[:end]))
            if array is not None and (end == len(parts) or pt.is_null(array.type)):
                return array  # what lies within a column that has no type yet is null
        raise missing_column(name, data.schema.names, setting="clean_data.remove_nulls")
