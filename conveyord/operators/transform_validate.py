"""Transform `validate`: rows that break rules are set aside, dropped, marked or sent another way."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, model_validator

from conveyord.core.errors import ConfigError, RecordError
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, Mapped, bad_rows
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Outbound
from conveyord.engine.model_keys import Instead
from conveyord.engine.sql import without_views
from conveyord.engine.validation.column_rules import ColumnRules, breaches
from conveyord.engine.validation.document import SCHEMA_BYTES_MAX, Document, document_problem

INVALID = "invalid"
VALID_COLUMN, ERRORS_COLUMN = "_valid", "_errors"
CODE = "VALIDATION_FAILED"


def _with_columns_or_schema(schema: dict[str, Any]) -> None:
    """Say in the JSON Schema of a definition that `columns` may be missing beside a schema."""
    schema["required"] = [key for key in schema.get("required", ()) if key != "columns"]
    schema["anyOf"] = [{"required": [key]} for key in ("columns", "schema", "schema_file")]


class ValidateConfig(OperatorConfig):
    """Checks every row against rules on its columns, a JSON Schema, or both.

    Rules on columns are computed for whole columns at a time; a JSON Schema is checked row by row in Python, some
    hundred times slower (about 30,000 rows a second), and is for what rules cannot say.

    The types of columns come from the data, and one word among the numbers of a column makes it a column of text when
    its type is settled. So a text that reads as a number or a time passes as one under `type`, `min` and `max`. To a
    JSON Schema it is text: say `type: [number, string]` there, or make numbers of it before, with cast.

    A null breaks nothing but `nullable: false`, or `required` in a schema, for which a null is a field that is not
    there. A value that did not fit its column when it was read, and so stands beside it (`mag__string`), breaks every
    rule on `mag` but `nullable`; a schema sees it in its place. Rules on a path look into objects, not into lists.

    Of JSON Schema, `format` is not checked, `patternProperties` are refused, and a `$ref` stays within the schema.
    `multipleOf` counts as decimals do: 19.99 is a multiple of 0.01, and no infinite number of anything.
    Dates and times are ISO 8601 text to it, bytes base64.
    """

    model_config = ConfigDict(json_schema_extra=_with_columns_or_schema)

    columns: Annotated[dict[str, ColumnRules], Instead(("schema", "schema_file"))] = Field(
        examples=[{"id": {"nullable": False}}],
        description="May be left out if there is a schema. Rules by column or path (`user.age`): `type` (string, long, "
        "double, boolean, timestamp, date, binary, struct or list), `nullable`, `min`, `max`, `pattern` (RE2, found "
        "anywhere in the text unless it has ^ and $), `one_of`, `length_min`, `length_max`.",
    )
    schema_: dict[str, Any] | None = Field(
        default=None, alias="schema", description="A JSON Schema for rows as objects, draft 2020-12 unless it says so."
    )
    schema_file: str | None = Field(
        default=None, description="A file with one, as JSON, at most 1 MiB; relative to the working directory."
    )
    on_invalid: Literal["dead_letter", "drop", "tag", "route"] = Field(
        default="dead_letter",
        description="What becomes of a row that breaks a rule. `dead_letter`: it becomes one, with the code "
        "`VALIDATION_FAILED`; in a pipeline without `dlq` the run stops. `drop`: it is removed, counted as filtered. "
        "`tag`: every row goes on with a column `_valid`, and `_errors`, which says what is wrong. `route`: it leaves "
        "by the output `invalid`, with the column `_errors`.",
    )
    missing: Literal["error", "allow"] = Field(
        default="error",
        description="What happens if a batch has no column that `columns` names: `error` stops the run, `allow` takes "
        "it for a column of nulls.",
    )

    @model_validator(mode="before")
    @classmethod
    def _may_have_a_schema_alone(cls, given: Any) -> Any:
        """No rules on columns are needed beside a schema."""
        if isinstance(given, dict) and any(given.get(key) is not None for key in ("schema", "schema_file")):
            return {"columns": {}, **given}
        return given

    @model_validator(mode="after")
    def _has_rules(self) -> Self:
        if self.schema_ is not None and self.schema_file is not None:
            raise ValueError("schema and schema_file exclude each other; leave one out")
        if not self.columns and self.schema_ is None and self.schema_file is None:
            raise ValueError("validate has no rules; give it columns, schema or schema_file")
        return self


class ValidateTransform(BatchTransform):
    """See docs/operators.md. The rows at fault are known, so nothing is searched for them, however many they are."""

    Config = ValidateConfig
    same_count_same_rows = True
    pure = True
    outputs = (INVALID,)

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._document: Document | None = None

    @classmethod
    def outputs_of(cls, config: OperatorConfig) -> tuple[str, ...]:
        """See `Transform.outputs_of`."""
        assert isinstance(config, ValidateConfig)
        return cls.outputs if config.on_invalid == "route" else ()

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, ValidateConfig)
        problem = None if config.schema_ is None else document_problem(config.schema_)
        return {} if problem is None else {"schema": f"the schema {problem}"}

    async def check(self) -> None:
        """See `Operator.check`: the schema's file must be there, and be one."""
        await self.context.in_thread(self._load)

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """See `Transform.run`. Raises ConfigError before the first batch if the schema cannot be used."""
        await self.context.in_thread(self._load)
        await super().run(inbound, outbound)

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`: rules look at one row."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`. The schema stays, unless rows are tagged.

        Raises: BadRows for rows that break rules, if they are to be dead letters; ConfigError if a column is
            missing, or one that rows are to be tagged with is there.
        """
        return self.apply_all(data)[0]

    def apply_all(self, data: pa.RecordBatch) -> Mapped:
        """See `BatchTransform.apply_all`."""
        data = without_views(data)
        errors = self._errors(data)
        valid = errors.is_null()
        if self.config.on_invalid == "tag":
            return _with(_with(data, VALID_COLUMN, valid), ERRORS_COLUMN, errors), NOTHING_ELSE
        good = data if errors.null_count == data.num_rows else data.filter(valid)
        if self.config.on_invalid == "route" and INVALID in self.context.listened:
            bad = errors.is_valid()
            return good, {INVALID: _with(data.filter(bad), ERRORS_COLUMN, errors.filter(bad))}
        if self.config.on_invalid == "dead_letter" and good.num_rows < data.num_rows:
            found = [RecordError("validate", error, code=CODE) for error in errors.drop_null().to_pylist()]
            raise bad_rows(data, errors.is_valid(), found, (good, NOTHING_ELSE))
        return good, NOTHING_ELSE

    def _errors(self, data: pa.RecordBatch) -> pa.StringArray:
        """For each row what is wrong with it; null if nothing is."""
        options: ValidateConfig = self.config
        found = breaches(data, options.columns, is_missing_allowed=options.missing == "allow")
        texts = [pc.if_else(breach.rows, pa.scalar(breach.message), pa.scalar(None, pa.string())) for breach in found]
        document = self._load()
        if document is not None:
            texts.append(pa.array(document.errors(data), pa.string()))
        return _sentences(texts, data.num_rows)

    def _load(self) -> Document | None:
        """The schema, if there is one. Blocking: reads its file the first time."""
        options: ValidateConfig = self.config
        if self._document is None:
            if options.schema_ is not None:
                self._document = Document(options.schema_, setting="validate.schema")
            elif options.schema_file is not None:
                self._document = Document(
                    _read(options.schema_file), setting=f"validate.schema_file {options.schema_file}"
                )
        return self._document


def _sentences(texts: Sequence[pa.Array], count: int) -> pa.StringArray:
    """The texts of each row, one after the other; null if there is none."""
    if not texts:
        return pa.nulls(count, pa.string())
    if len(texts) == 1:
        return texts[0]
    # Not by null_handling="skip": Arrow 26 leaves out the rows that have no text at all.
    ended = [pc.fill_null(pc.binary_join_element_wise(text, "", "; "), "") for text in texts]
    together = pc.utf8_rtrim(pc.binary_join_element_wise(*ended, ""), characters="; ")
    return pc.if_else(pc.equal(together, ""), None, together)


def _with(data: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    if name in data.schema.names:
        raise ConfigError(f"validate adds a column {name!r}, but there is one already; rename that first")
    return data.append_column(name, column)


def _read(file: str) -> Mapping[str, Any]:
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(SCHEMA_BYTES_MAX + 1)
    except OSError as error:
        raise ConfigError(f"validate.schema_file {file} cannot be read: {error.strerror}") from error
    if len(content) > SCHEMA_BYTES_MAX:
        raise ConfigError(f"validate.schema_file {file} has more than {SCHEMA_BYTES_MAX} bytes; is it the right file?")
    try:
        schema = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"validate.schema_file {file} is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"validate.schema_file {file} holds no object; a JSON Schema for rows is one")
    return schema
