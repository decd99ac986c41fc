"""SQL over one batch at a time, by DataFusion: read-only, rows in order, names with their case.

The only table is `input_data`. There is no way from here to a file or to the network: statements
other than queries are refused, no table function reads anything, names in FROM are never taken for
paths, and nothing is spilled to disk. tests/engine/test_sql.py pins all of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.schema.lists import Elements

INPUT_TABLE = "input_data"
QUERIES_CACHED = 10_000  # texts: a set of generated pipelines repeats the same few
BATCH_ROWS_MAX = 1 << 20  # DataFusion cuts its output at this size; larger than any batch of ours

_NOT_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_VOLATILE = re.compile(
    r"\b(now|random|uuid|uuidv4|today|current_date|current_time|current_timestamp|version)\b", re.IGNORECASE
)
"""DataFusion's functions that are not immutable. A column of such a name only costs the sharing of a stage."""
_FIRST_WORD = re.compile(r"[\s(]*(\w+)")
_PREFIXES = re.compile(
    r"(DataFusion error|Error during planning|Schema error|SQL error|Execution error|Arrow error|"
    r"This feature is not implemented|Optimizer rule '\w+' failed|type_coercion|caused by)[:\s]\s*"
)
_PARSER_ERROR = re.compile(r'(?:Parser|Tokenizer)Error\("(.*)"\)', re.DOTALL)


class BatchQuery:
    """One SELECT, run on batch after batch. Blocking; threads wait for each other."""

    def __init__(self, query: str, *, setting: str) -> None:
        """Check `query` as far as that is possible without knowing the columns.

        setting: what the query is called in messages, such as `sql_transform.query`.
        Raises: ConfigError if it is no single read-only query on `input_data`.
        """
        self._setting = setting
        self._query = query
        code = code_of(query)
        first = _FIRST_WORD.match(code)
        if first is None or first.group(1).upper() not in ("SELECT", "WITH"):
            raise ConfigError(
                f"{setting} must be one query that begins with SELECT or WITH, not with {code.strip()[:20]!r}"
            )
        if not re.search(rf"\b{INPUT_TABLE}\b", code):
            raise ConfigError(f"{setting} never mentions {INPUT_TABLE}, the table that holds the incoming rows")
        self._context, self._options = _session()
        self._one_at_a_time = Lock()
        self._planned: pa.Schema | None = None  # columns for which a failure is the fault of values
        self._check_without_columns()

    def run(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """The result as one batch, its columns nullable and of plain types whatever its size.

        Raises: ConfigError if the query does not fit the batch's columns or names a result column
            twice, BatchError if it fails on the values.
        """
        with self._input(_with_nulls_inside(data)):
            frame = self._plan()
            schema = self._result_schema(frame, data.schema)
            # An aggregate makes a row even of no rows, which would be a record that never was.
            batches = self._collect(frame, data.schema) if data.num_rows else []
        return self._joined(batches, schema)

    @contextmanager
    def _input(self, data: pa.RecordBatch) -> Iterator[None]:
        """Let the query see `data`, and nobody else meanwhile."""
        with self._one_at_a_time:
            self._context.register_record_batches(INPUT_TABLE, [[data]])
            try:
                yield
            finally:
                self._context.deregister_table(INPUT_TABLE)  # or it would hold the batch until the next

    def reads_rows_only(self, data: pa.RecordBatch) -> bool:
        """Whether the query is a bare projection of the input: a row for each row, in order."""
        return self._plan_steps(data) == ["Projection", "TableScan"]

    def is_row_wise(self, data: pa.RecordBatch) -> bool:
        """Whether each row of the result depends on one row of the input alone, and order is kept."""
        return set(self._plan_steps(data)) <= {"Projection", "Filter", "SubqueryAlias", "TableScan"}

    def _plan_steps(self, data: pa.RecordBatch) -> list[str]:
        """The kinds of the nodes of the logical plan, from the result down to the first with several inputs."""
        with self._input(data):
            plan = self._plan().logical_plan()
            names = [type(plan.to_variant()).__name__]
            while len(inputs := plan.inputs()) == 1:
                (plan,) = inputs
                names.append(type(plan.to_variant()).__name__)
        return names

    def _check_without_columns(self) -> None:
        empty = pa.RecordBatch.from_arrays([], schema=pa.schema([]))
        with self._input(empty):
            try:
                self._context.sql_with_options(self._query, self._options)
            except ValueError as error:
                message = str(error)
                never = ("SQL error", "This feature is not implemented", "Error during planning: table ")
                if message.startswith(never) or "not supported:" in message:
                    raise ConfigError(f"{self._setting} is refused: {readable(message)}") from None

    def _plan(self) -> Any:
        try:
            return self._context.sql_with_options(self._query, self._options)
        except ValueError as error:
            raise ConfigError(f"{self._setting} cannot work on these rows: {readable(str(error))}") from None

    def _collect(self, frame: Any, columns: pa.Schema) -> list[pa.RecordBatch]:
        try:
            return list(frame.collect())
        except Exception as error:  # noqa: BLE001 - DataFusion raises nothing more precise
            if self._planned is None or not self._planned.equals(columns):
                try:
                    frame.execution_plan()
                except Exception:  # noqa: BLE001 - it does not even plan, so no other rows will do better
                    raise ConfigError(f"{self._setting} cannot work on these rows: {readable(str(error))}") from None
                self._planned = columns
            raise BatchError(f"{self._setting} failed on a value: {readable(str(error))}") from None

    def _result_schema(self, frame: Any, source: pa.Schema) -> pa.Schema:
        schema = frame.schema()
        if not schema.names:
            raise ConfigError(f"{self._setting} returns no column")
        twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"{self._setting} returns more than one column named {twice[0]!r}; give each its own name with AS"
            )
        return pa.schema([pa.field(field.name, _result_type(field, source)) for field in schema])

    def _joined(self, batches: list[pa.RecordBatch], schema: pa.Schema) -> pa.RecordBatch:
        # By position: a recursive query's batches carry other names than its plan.
        settled = [
            pa.RecordBatch.from_arrays(
                [column.cast(kind, safe=False) for column, kind in zip(batch.columns, schema.types, strict=True)],
                schema=schema,
            )
            for batch in batches
        ]
        if len(settled) == 1:
            return settled[0]
        if not settled:
            return pa.RecordBatch.from_arrays([pa.nulls(0, kind) for kind in schema.types], schema=schema)
        try:
            return pa.concat_batches(settled)
        except pa.ArrowException as error:
            raise BatchError(f"{self._setting} returns more than one batch can hold: {error}") from error


def code_of(query: str) -> str:
    """`query` with comments and string literals blanked out, for looking at its words."""
    return _NOT_CODE.sub(" ", query)


def readable(message: str) -> str:
    """One line out of an error of DataFusion's, without its wrappings; its suggestions stay."""
    message = _PARSER_ERROR.sub(r"\1", message)
    message = _PREFIXES.sub("", message).replace("datafusion.public.", "")
    return " ".join(message.replace('\\"', '"').split())


def _result_type(field: pa.Field, source: pa.Schema) -> pa.DataType:
    kind = settled_type(field.type)
    computed = source.get_field_index(field.name) < 0 or source.field(field.name).type != kind
    if computed and pt.is_timestamp(kind) and kind.unit == "ns":
        # now() and to_timestamp() count nanoseconds. No table column could hold them, and nobody
        # asked for them; a column that came in with nanoseconds keeps them.
        return pa.timestamp("us", kind.tz)
    return kind


def settled_type(kind: pa.DataType) -> pa.DataType:
    """`kind` in the layout that every stage knows: no views, no 64-bit offsets, at any depth."""
    if pt.is_string_view(kind) or pt.is_large_string(kind):
        return pa.string()
    if pt.is_binary_view(kind) or pt.is_large_binary(kind):
        return pa.binary()
    if pt.is_struct(kind):
        return pa.struct([field.with_type(settled_type(field.type)) for field in kind])
    if pt.is_list(kind) or pt.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(settled_type(kind.value_type)))
    if pt.is_map(kind):
        items = kind.item_field.with_type(settled_type(kind.item_type))
        return pa.map_(kind.key_field.with_type(settled_type(kind.key_type)), items)
    if pt.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(settled_type(kind.value_type)), kind.list_size)
    return kind


@lru_cache(maxsize=QUERIES_CACHED)
def query_problem(query: str) -> str | None:
    """Why `query` cannot be run on any rows, as far as that can be seen without the columns."""
    try:
        BatchQuery(query, setting="query")
    except ConfigError as error:
        return str(error)
    return None


def is_immutable(sql: str) -> bool:
    """Whether `sql` gives the same for the same rows whenever it is run: it names no function that does not."""
    return not _VOLATILE.search(code_of(sql))


def without_views(data: pa.RecordBatch) -> pa.RecordBatch:
    """`data` with views of strings and bytes copied out: Arrow 26 can neither take nor filter them."""
    for index, field in enumerate(data.schema):
        if "_view" in str(field.type):  # alone: a cast of the whole batch fails for slices with lists of nulls
            kind = settled_type(field.type)
            data = data.set_column(index, field.with_type(kind), data.column(index).cast(kind))
    return data


def _session() -> tuple[Any, Any]:
    from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext, SQLOptions

    config = (
        SessionConfig()
        .with_target_partitions(1)  # more would not keep the order of rows
        .with_batch_size(BATCH_ROWS_MAX)
        .with_information_schema(False)
        .set("datafusion.sql_parser.enable_ident_normalization", "false")
    )
    runtime = RuntimeEnvBuilder().with_disk_manager_disabled()
    options = SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)
    return SessionContext(config, runtime), options


def _with_nulls_inside(data: pa.RecordBatch) -> pa.RecordBatch:
    """`data` with every null struct null in its fields too.

    Arrow leaves the fields of a null struct undefined, and DataFusion reads them: `s.x` of a null
    struct came out as 0.
    """
    columns = [_nulls_inside(column) for column in data.columns]
    if all(new is old for new, old in zip(columns, data.columns, strict=True)):
        return data
    return pa.RecordBatch.from_arrays(columns, schema=data.schema)


def _nulls_inside(array: pa.Array) -> pa.Array:
    kind = array.type
    if pt.is_struct(kind) and kind.num_fields:
        children = array.flatten()
        inside = [_nulls_inside(child) for child in children]
        if array.null_count == 0 and all(new is old for new, old in zip(inside, children, strict=True)):
            return array
        return pa.StructArray.from_arrays(inside, fields=list(kind), mask=array.is_null())
    if (pt.is_list(kind) or pt.is_large_list(kind)) and pt.is_nested(kind.value_type):
        elements = Elements.of(array)
        values = _nulls_inside(elements.values)
        return array if values is elements.values else elements.rebuilt(values, kind)
    return array
