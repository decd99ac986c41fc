"""SQL over one batch at a time, by DataFusion: read-only, rows in order, names with their case.

The only table is `input_data`. There is no way from here to a file or to the network: statements
other than queries are refused, no table function reads anything, names in FROM are never taken for
paths, and nothing is spilled to disk. tests/engine/test_sql.py pins all of this.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import lru_cache
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.errors import BatchError, ConfigError
from conveyord.core.units import format_bytes
from conveyord.engine.schema.lists import Elements
from conveyord.engine.sql_calls import repetitions

INPUT_TABLE = "input_data"
QUERIES_CACHED = 10_000  # texts: a set of generated pipelines repeats the same few
COLUMNS_GUESSED_MAX = 50  # of one expression whose type is asked for before there are rows; each costs a plan
TEXT_CHARS_MAX = 100_000  # of a query or an expression: a list of ten thousand values, and planned in about a second
OPERATORS_MAX = 500  # of one text: each is a level of the plan, which costs its square, and in the end the stack
MEMORY_BYTES_MAX = 1 << 30  # of what sorts, groups and joins of one batch hold; a batch itself is some megabytes
COUNT_MAX = 1_000_000  # written into a call of what repeats or pads: beyond it one value may be as large as memory
BATCH_ROWS_MAX = 1 << 20  # DataFusion cuts its output at this size; larger than any batch of ours

_SUBQUERY_NODE = re.compile(r"^ *Subquery:\s*$", re.MULTILINE)
_VOLATILE = re.compile(r"\b(?:random|uuid)\"?\s*\(", re.IGNORECASE)
"""What DataFusion computes anew for every row and every time."""
_NOT_CODE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.DOTALL)
_VOLATILE = re.compile(
    r"\b(now|random|uuid|uuidv4|today|current_date|current_time|current_timestamp|version)\b", re.IGNORECASE
)
"""DataFusion's functions that are not immutable. A column of such a name only costs the sharing of a stage."""
_OPERATOR = re.compile(
    r"[^\w\s(),;\"'.]+|\b(?:and|or|not|is|in|like|ilike|between|similar|union|intersect|except|join|at|case|when|select)\b",
    re.IGNORECASE,
)
"""What joins expressions or tables, of all that may stand in a row in any number without parentheses."""
_TABLES = re.compile(r"\bfrom\b(?:(?!\b(?:where|group|order|having|limit|select)\b)[^()])*", re.IGNORECASE)
_QUOTED_NAME = re.compile(r'"(?:[^"]|"")*"')
OUT_OF_MEMORY = "Resources exhausted"
"""In what DataFusion says when its pool is used up."""
_NO_FUNCTION = "Error during planning: Invalid function"
_NOT_ALIKE = re.compile(r"Invalid function '(\w+)'\.\s*Did you mean '(\w+)'\?")
_FIRST_WORD = re.compile(r"[\s(]*(\w+)")
_PREFIXES = re.compile(
    r"(DataFusion error|Error during planning|Schema error|SQL error|Execution error|Arrow error|"
    r"This feature is not implemented|Optimizer rule '\w+' failed|type_coercion|caused by)[:\s]\s*"
)
_NO_FIELD = re.compile(r'No field named (?:"((?:[^"]|"")*)"|(\w+))')
_PARSER_ERROR = re.compile(r'(?:Parser|Tokenizer)Error\("(.*)"\)', re.DOTALL)


class BatchQuery:
    """One SELECT, run on batch after batch. Blocking; threads wait for each other."""

    def __init__(self, query: str, *, setting: str, is_measured: bool = False) -> None:
        """Check `query` as far as that is possible without knowing the columns.

        setting: what the query is called in messages, such as `sql_transform.query`. is_measured: its parts have been
        through `check_size`, each by itself.
        Raises: ConfigError if it is no single read-only query on `input_data`.
        """
        self._setting = setting
        self._query = query
        if not is_measured:
            check_size(query, setting=setting)
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
        steps = set(self._plan_steps(data))
        if "Filter" in steps and _VOLATILE.search(code_of(self._query)):
            return False  # which rows stay is another matter each time
        return steps <= {"Projection", "Filter", "SubqueryAlias", "TableScan"}

    def _plan_steps(self, data: pa.RecordBatch) -> list[str]:
        """The kinds of the nodes of the logical plan, from the result down to the first with several inputs.

        `Subquery` stands first if an expression holds one, for those are no inputs of a node.
        """
        with self._input(data):
            plan = self._plan().logical_plan()
            names = ["Subquery"] if _SUBQUERY_NODE.search(plan.display_indent()) else []
            names.append(type(plan.to_variant()).__name__)
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
                never = ("SQL error", "This feature is not implemented", "Error during planning: table ", _NO_FUNCTION)
                if message.startswith(never) or "not supported:" in message:
                    raise ConfigError(f"{self._setting} is refused: {readable(message)}") from None

    def type_over(self, kind: pa.DataType) -> pa.DataType | None:
        """The type of the result's first column if all columns of the input had type `kind`; None if that is no plan.

        Raises: ConfigError if the query calls a function that there is not.
        """
        names: list[str] = []
        while len(names) < COLUMNS_GUESSED_MAX:
            empty = pa.RecordBatch.from_arrays([pa.nulls(0, kind) for _ in names], names=names)
            with self._input(empty):
                try:
                    result = self._context.sql_with_options(self._query, self._options).schema()
                except ValueError as error:
                    message = str(error)
                else:
                    return result.field(0).type
            if message.startswith(_NO_FUNCTION):
                raise ConfigError(f"{self._setting} is refused: {readable(message)}")
            missing = _NO_FIELD.search(message)
            name = "" if missing is None else missing[2] or missing[1].replace('""', '"')
            if not name or name in names:
                return None
            names.append(name)
        return None

    def _plan(self) -> Any:
        try:
            return self._context.sql_with_options(self._query, self._options)
        except ValueError as error:
            raise ConfigError(f"{self._setting} cannot work on these rows: {readable(str(error))}") from None

    def _collect(self, frame: Any, columns: pa.Schema) -> list[pa.RecordBatch]:
        try:
            with PanicsRaised():
                return list(frame.collect())
        except Exception as error:  # noqa: BLE001 - DataFusion raises nothing more precise
            if self._planned is None or not self._planned.equals(columns):
                try:
                    with PanicsRaised():
                        frame.execution_plan()
                except Exception:  # noqa: BLE001 - it does not even plan, so no other rows will do better
                    raise ConfigError(f"{self._setting} cannot work on these rows: {readable(str(error))}") from None
                self._planned = columns
            if OUT_OF_MEMORY in str(error):
                raise BatchError(
                    f"{self._setting} needs more than {format_bytes(MEMORY_BYTES_MAX)} of memory for one batch: sort, "
                    f"group or join fewer rows ({readable(str(error))})"
                ) from None
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


class Panicked(Exception):
    """DataFusion gave up within itself, on a value or a plan. reason: what it says, made for its authors."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"DataFusion cannot compute it ({reason}); look for a number that is far too large")


class PanicsRaised:
    """Raises a panic of DataFusion's within it as `Panicked`, which unlike PyO3's exception is an Exception."""

    def __enter__(self) -> None:
        """Nothing is to be prepared."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Raise `Panicked` in place of a panic; let everything else pass."""
        # The class cannot be imported. A session goes on working after it.
        if kind is not None and kind.__name__ == "PanicException":
            raise Panicked(str(error)) from None


def check_size(text: str, *, setting: str) -> None:
    """Refuse a query or an expression that DataFusion would plan for minutes, or not survive.

    Raises: ConfigError if `text` is too long, joins too much without parentheses, or repeats something too often.
    """
    if len(text) > TEXT_CHARS_MAX:
        raise ConfigError(
            f"{setting} has {len(text):,} characters, and {TEXT_CHARS_MAX:,} is the most; keep long lists of values in "
            "a table, or in the reference of a lookup"
        )
    code = _QUOTED_NAME.sub(" ", code_of(text))
    # A comma between tables joins them; one between columns or values costs nothing.
    count = sum(1 for _ in _OPERATOR.finditer(code)) + sum(one[0].count(",") for one in _TABLES.finditer(code))
    if count > OPERATORS_MAX:
        raise ConfigError(
            f"{setting} has {count:,} operators, and {OPERATORS_MAX} is the most; spread it over several steps, and "
            "write x IN (...) for x = ... OR x = ..."
        )
    for name, times in repetitions(code):
        if times > COUNT_MAX:
            raise ConfigError(
                f"{setting} calls {name} with {times:,.0f}, and {COUNT_MAX:,} is the most: each value that comes of "
                "it, and those of all rows of a batch together, must fit memory; ask for fewer"
            )


def code_of(query: str) -> str:
    """`query` with comments and string literals blanked out, for looking at its words."""
    return _NOT_CODE.sub(" ", query)


def readable(message: str) -> str:
    """One line out of an error of DataFusion's, without its wrappings; its suggestions stay."""
    message = _PARSER_ERROR.sub(r"\1", message)
    message = _NOT_ALIKE.sub(_unknown_function, message)
    message = _PREFIXES.sub("", message).replace("datafusion.public.", "")
    return " ".join(message.replace('\\"', '"').split())


def _unknown_function(match: re.Match[str]) -> str:
    """What DataFusion says of a function it does not know. Of several equally far off it suggests any."""
    name, other = match.groups()
    remedy = f"; did you mean '{other}'?" if get_close_matches(name.lower(), [other]) else ""
    return f"there is no function '{name}'{remedy}"


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
    runtime = RuntimeEnvBuilder().with_disk_manager_disabled().with_greedy_memory_pool(MEMORY_BYTES_MAX)
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
