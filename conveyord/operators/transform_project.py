"""Transform `project`: which columns stay."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import pyarrow as pa
from pydantic import ConfigDict, Field, model_validator

from conveyord.core.errors import ConfigError
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import Mistakes, OperatorConfig, OperatorContext
from conveyord.engine.field_tree import (
    Columns,
    FieldTree,
    change_within,
    fields_within,
    paths_of,
    rebatched,
    refuse_parts,
    with_siblings,
)

Take = Callable[[FieldTree[bool], list[pa.Field], list[pa.Array]], Columns]


def _with_columns_or_drop(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema of a definition that `columns` may be missing beside `drop`."""
    schema["required"] = [key for key in schema.get("required", ()) if key != "columns"]
    schema["anyOf"] = [{"required": [key]} for key in ("columns", "drop")]


class ProjectConfig(OperatorConfig):
    """Keeps the columns that `columns` names, in that order, or all but those that `drop` names. One of the two.

    A dot leads into nested fields, also of lists of objects. The field stays in its object: of `b: {c: 1, d: 2}`,
    `columns: [b.c]` leaves `b: {c: 1}` and `drop: [b.c]` leaves `b: {d: 2}`. A null object stays null. An object
    that loses its last field goes as a whole. A column that is itself called `b.c` is meant before a nested one.

    What did not fit a column when it was read, and so stands in a column beside it (`phone__string`), stays and goes
    with it; so does what stands where an object should be, with the object's fields. Name `phone__string` itself to
    say otherwise of it alone.
    """

    model_config = ConfigDict(json_schema_extra=_with_columns_or_drop)

    columns: list[str] | None = Field(
        min_length=1,
        examples=[["id"]],
        description="What stays; left out beside `drop`. An object stands where the first of its fields is named, and "
        "has its fields in the order they are named.",
    )
    drop: list[str] | None = Field(default=None, min_length=1, description="What goes, instead of `columns`.")
    on_missing: Literal["fail", "ignore"] = Field(
        default="fail",
        description="What becomes of a name that rows do not have: `fail` stops the run, `ignore` passes over it, for "
        "fields that not all records have.",
    )

    @model_validator(mode="before")
    @classmethod
    def _may_have_drop_alone(cls, given: Any) -> Any:
        """A stage without either would do nothing."""
        if not isinstance(given, dict):
            return given
        if given.get("columns") is None and given.get("drop") is None:
            raise ValueError("project needs columns, what stays, or drop, what goes")
        return {"columns": None, **given}


class ProjectTransform(BatchTransform):
    """See docs/operators.md."""

    Config = ProjectConfig
    same_count_same_rows = True
    pure = True

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        """Raises ConfigError if it is said in two ways what stays."""
        super().__init__(config, context)
        for mistake in self.mistakes(config).values():
            raise ConfigError(mistake)

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, ProjectConfig)
        if config.columns is not None and config.drop is not None:
            return {"drop": "project takes `columns` or `drop`, not both"}
        key, names = ("columns", config.columns) if config.columns is not None else ("drop", config.drop or [])
        return {(key, place): f"{name!r} is named twice" for place, name in enumerate(names) if name in names[:place]}

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: rows stay as they are."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. Columns keep their buffers, and so do nested fields that stay.

        Raises: ConfigError if a name is missing, or if a field is named beside one that holds it.
        """
        keeps = self.config.columns is not None
        names, setting = (self.config.columns, "project.columns") if keeps else (self.config.drop or [], "project.drop")
        paths = paths_of(data.schema, names, setting=setting, ignore_missing=self.config.on_missing == "ignore")
        tree: FieldTree[bool] = FieldTree()
        refuse_parts(paths, setting=setting)
        for path in paths.values():
            tree.put(path, True)
        tree = with_siblings(tree, data.schema, beside=lambda said, _: said, instead=True)
        take = _kept if keeps else _left
        return rebatched(data, *take(tree, list(data.schema), data.columns))


def _kept(tree: FieldTree[bool], fields: list[pa.Field], columns: list[pa.Array]) -> Columns:
    place = {field.name: number for number, field in enumerate(fields)}
    return _each([(tree.below[name], fields[place[name]], columns[place[name]]) for name in tree.below], _kept)


def _left(tree: FieldTree[bool], fields: list[pa.Field], columns: list[pa.Array]) -> Columns:
    stays = [
        (node, field, values)
        for field, values in zip(fields, columns, strict=True)
        if (node := tree.at(field.name)).said is None and not _emptied(node, field.type)
    ]
    return _each(stays, _left)


def _emptied(tree: FieldTree[bool], kind: pa.DataType) -> bool:
    """Whether dropping what `tree` names leaves no field of the structs in `kind`."""
    if tree.said is not None:
        return True
    within = fields_within(kind) if tree.below else []
    return bool(within) and all(_emptied(tree.at(field.name), field.type) for field in within)


def _each(parts: list[tuple[FieldTree[bool], pa.Field, pa.Array]], take: Take) -> Columns:
    """The fields that stay, those of which a part is taken with that part."""
    fields, columns = [], []
    for node, field, values in parts:
        if node.below:
            values = change_within(values, partial(take, node))
            field = field.with_type(values.type)
        fields.append(field)
        columns.append(values)
    return fields, columns
