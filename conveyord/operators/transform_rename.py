"""Transform `rename`: other names for columns and nested fields."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from operator import add
from typing import Any, Literal

import pyarrow as pa
from pydantic import ConfigDict, Field, model_validator

from conveyord.core.errors import ConfigError
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import Mistakes, OperatorConfig
from conveyord.engine.field_tree import (
    Columns,
    FieldTree,
    Path,
    change_within,
    fields_within,
    paths_of,
    rebatched,
    with_siblings,
)

NAMES_CACHED = 10_000  # those of a few very wide tables, which come again with every batch

_WORD_STARTS = re.compile(r"(?<=[^\W_A-Z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NO_WORD = re.compile(r"\W+")


def _with_columns_or_case(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema of a definition that `columns` may be missing beside `case`."""
    schema["required"] = [key for key in schema.get("required", ()) if key != "columns"]
    schema["anyOf"] = [{"required": [key]} for key in ("columns", "case")]


class RenameConfig(OperatorConfig):
    """Gives columns other names. All take theirs at once, so `columns: {a: b, b: a}` swaps two.

    A dot leads into nested fields, also of lists of objects, and the new name is the field's own: `{user.nm: name}`
    makes `user.name`. A column that is itself called `user.nm` is meant before a nested one. Two columns, or two
    fields of an object, that would have the same name stop the run.

    What did not fit a column when it was read, and so stands in a column beside it, is renamed with it: `{phone: tel}`
    makes `tel__string` of `phone__string`, unless `columns` names that too.
    """

    model_config = ConfigDict(json_schema_extra=_with_columns_or_case)

    columns: dict[str, str] = Field(
        description="By name, the new one. May be left out beside `case`.", examples=[{"id": "key"}]
    )
    case: Literal["keep", "lower", "snake"] = Field(
        default="keep",
        description="What becomes of the names that `columns` does not give, at every depth but not of the keys of "
        "maps: `lower` writes them small; `snake` also parts words: `userID` and `User ID` become `user_id`.",
    )
    on_missing: Literal["fail", "ignore"] = Field(
        default="fail",
        description="What becomes of a name that rows do not have: `fail` stops the run, `ignore` passes over it, for "
        "fields that not all records have.",
    )

    @model_validator(mode="before")
    @classmethod
    def _may_have_a_case_alone(cls, given: Any) -> Any:
        """A stage without either would do nothing."""
        if not isinstance(given, dict):
            return given
        if not given.get("columns") and given.get("case", "keep") == "keep":
            raise ValueError("rename needs columns, with new names, or a case other than keep")
        return {"columns": {}, **given}


class RenameTransform(BatchTransform):
    """See docs/operators.md."""

    Config = RenameConfig
    same_count_same_rows = True
    pure = True

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, RenameConfig)
        return {
            ("columns", name): f"the new name of {name!r} is empty" for name, new in config.columns.items() if not new
        }

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: rows stay as they are."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Every column keeps its buffers and its place.

        Raises: ConfigError if a name is missing, or if two would be the same.
        """
        given: Mapping[str, str] = self.config.columns
        ignore = self.config.on_missing == "ignore"
        tree: FieldTree[str] = FieldTree()
        for name, path in paths_of(data.schema, given, setting="rename.columns", ignore_missing=ignore).items():
            _refuse_move(name, given[name], path)
            tree.put(path, given[name])
        tree = with_siblings(tree, data.schema, beside=add, instead=None)
        return rebatched(data, *_renamed(tree, _CASES[self.config.case], "", list(data.schema), data.columns))


@lru_cache(maxsize=NAMES_CACHED)
def snake(name: str) -> str:
    """`name` in small letters, its words parted by `_`; as it is if it has no letter and no digit.

    A word starts at a capital behind a small letter or digit, at the last of several capitals if a small letter
    follows, and behind what is no letter, digit or `_`. Underscores that were there stay.
    """
    parted = _NO_WORD.sub(" ", _WORD_STARTS.sub("_", name)).strip()
    return re.sub(r"_? _?", "_", parted).lower() if parted.strip("_ ") else name


_CASES: dict[str, Callable[[str], str]] = {"keep": lambda name: name, "lower": str.lower, "snake": snake}


def _refuse_move(name: str, new: str, path: Path) -> None:
    if len(path) > 1 and new.startswith(name.removesuffix(path[-1])):
        own = new.removeprefix(name.removesuffix(path[-1]))
        raise ConfigError(
            f"rename.columns: {name!r} keeps its place within {name.removesuffix(path[-1])[:-1]!r}; give its new name "
            f"alone, {own!r} instead of {new!r}"
        )


def _renamed(
    tree: FieldTree[str], case: Callable[[str], str], within: str, fields: list[pa.Field], columns: list[pa.Array]
) -> Columns:
    """Fields under their new names. within: where they stand, for a message: empty, or a path and a dot."""
    taken: dict[str, str] = {}
    renamed_fields, renamed_columns = [], []
    for field, values in zip(fields, columns, strict=True):
        node = tree.at(field.name)
        new = case(field.name) if node.said is None else node.said
        if new in taken:
            raise ConfigError(
                f"rename: {within + taken[new]!r} and {within + field.name!r} would both be called {new!r}; give one "
                "of them another name in rename.columns"
            )
        taken[new] = field.name
        if node.below or (fields_within(values.type) and _changes(case, values.type)):
            values = change_within(values, partial(_renamed, node, case, f"{within}{field.name}."))
            field = field.with_type(values.type)
        renamed_fields.append(field.with_name(new))
        renamed_columns.append(values)
    return renamed_fields, renamed_columns


def _changes(case: Callable[[str], str], kind: pa.DataType) -> bool:
    """Whether `case` gives any field in `kind`, at any depth, another name."""
    return any(case(field.name) != field.name or _changes(case, field.type) for field in fields_within(kind))
