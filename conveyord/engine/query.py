"""Read-only SQL over the tables of one Iceberg catalog, with DataFusion.

Tables are found while the query is planned, so only those it mentions are opened. Each is read by
pyiceberg's table provider: projections and filters reach the Parquet files, and fields are matched
by id, so that evolved, renamed and re-partitioned tables read right. What it cannot read pyiceberg reads, into memory:
columns whose nested fields changed. Sorts and groups that outgrow the memory pool go to the temporary directory.
Results are streamed. `namespace.table$schemas` is the history of a table's schema.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from conveyord.core.errors import BatchError, ConfigError, ConveyordError, Corrupt
from conveyord.core.units import format_bytes
from conveyord.engine.sql import MEMORY_BYTES_MAX, OUT_OF_MEMORY, Panicked, PanicsRaised, check_size
from conveyord.storage.lake.reading import LakeReader, loaded, only_pyiceberg_reads
from conveyord.storage.lake.schema_history import history

HISTORY = "$schemas"
"""What follows a table's name to make it the name of its schema's history. No table that we create is called so."""

_STAR = re.compile(r"(?:\bselect|\bdistinct|,|\.)\s*\*", re.IGNORECASE)
"""A star that stands for all columns."""

_MISSING = re.compile(r"table '(?:[^'.]+\.)?([^']+)' not found|failed to resolve schema: (\S+)")

_MISSING_FILE = re.compile(
    r"NotFound \([a-z]+\) at [a-z]+, context: \{ service: (\w+), path: (.+?)(?:, range: [^}]*)? \}"
)

_OPTIMIZER = re.compile(r"Optimizer rule '[^']*' failed\s+caused by\s+")

_PANIC = re.compile(r'JoinError::Panic\(.*?, "((?:[^"\\]|\\.)*)"', re.DOTALL)

_PARSER = re.compile(r'ParserError\("(.*)"\)', re.DOTALL)


@dataclass(frozen=True, slots=True)
class QueryResult:
    """Columns, and rows that are computed as `batches` is consumed.

    Consuming may raise BatchError if the execution fails, Corrupt if a data file is missing.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]


def run_query(sql: str, lake: LakeReader, *, limit: int | None) -> QueryResult:
    """Plan `sql`, one SELECT or EXPLAIN, and start it. Blocking.

    Names are case-sensitive and written `namespace.table`. At most `limit` rows are returned.
    Raises ConfigError if the SQL is wrong or too large, writes anything, or names a table that does not exist.
    """
    from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext, SQLOptions

    check_size(sql, setting="the query")
    tables = _tables_of(lake, sql)
    settings = SessionConfig(
        {
            "datafusion.sql_parser.enable_ident_normalization": "false",
            "datafusion.catalog.information_schema": "true",
            # What is spilled plain stays mapped while it is read back, and memory grows with the result.
            "datafusion.execution.spill_compression": "lz4_frame",
        }
    ).with_default_catalog_and_schema(lake.name, "public")
    # Fair, because several partitions sort at a time: the first to come would leave the others nothing to spill with.
    runtime = RuntimeEnvBuilder().with_disk_manager_os().with_fair_spill_pool(MEMORY_BYTES_MAX)
    context = SessionContext(settings.with_create_default_catalog_and_schema(False), runtime)
    context.register_catalog_provider(lake.name, tables)
    read_only = SQLOptions().with_allow_ddl(False).with_allow_dml(False).with_allow_statements(False)
    try:
        frame = context.sql_with_options(sql, read_only)
        if limit is not None and not str(frame.logical_plan()).startswith(("Explain", "Analyze")):
            frame = frame.limit(limit)
        with PanicsRaised():
            stream = frame.execute_stream()
    except Exception as error:  # DataFusion's bindings raise bare Exception for every kind of failure
        raise _planning_error(error, lake, tables.failures) from error
    return QueryResult(frame.schema(), _batches(stream))


def _batches(stream: Any) -> Iterator[pa.RecordBatch]:
    try:
        with PanicsRaised():
            for batch in stream:
                yield batch.to_pyarrow()
    except Exception as error:  # as above
        if OUT_OF_MEMORY in str(error):
            raise BatchError(
                f"the query needs more than {format_bytes(MEMORY_BYTES_MAX)} of memory: read fewer rows or columns, "
                f"and join the larger table to the smaller one ({_first_line(error)})"
            ) from error
        if (missing := _MISSING_FILE.search(str(error))) is not None:
            path = f"/{missing[2]}" if missing[1] == "fs" else missing[2]
            raise Corrupt(
                f"the data file {path} is missing, but the table names it; restore it from a backup of the warehouse, "
                "or roll the table back to a snapshot without it (conveyord audit TABLE finds every such file)"
            ) from error
        text = _first_line(error)
        if text.startswith("FFI error"):  # what the table provider met; its innermost cause comes last
            reason = text.rpartition("source: ")[2] or text
            if "StructArray fields" in reason:  # a way of naming all columns that `_wants` does not know
                raise BatchError(
                    "a table could not be read: the fields within one of its columns changed, and data files differ; "
                    "name its columns in the query"
                ) from error
            raise BatchError(
                f"a table could not be read: {reason}; conveyord audit TABLE names each data file that is damaged"
            ) from error
        raise BatchError(f"the query failed while it ran: {text}") from error


@dataclass(frozen=True, slots=True)
class _Readable:
    """A table as DataFusion takes it. pyiceberg's own way fails where a catalog adds objects to the properties."""

    table: Any

    def __datafusion_table_provider__(self, session: Any = None) -> Any:
        from pyiceberg_core.datafusion import IcebergDataFusionTable

        texts = {key: value for key, value in self.table.io.properties.items() if isinstance(value, str)}
        provider = IcebergDataFusionTable(
            identifier=self.table.name(),
            metadata_location=self.table.metadata_location,
            file_io_properties=texts,
        )
        return provider.__datafusion_table_provider__(session)


def _wants(sql: str, columns: list[str]) -> bool:
    """Whether `sql` may ask for one of `columns`: by its name, or by a star."""
    names = "|".join(re.escape(name) for name in columns)
    return bool(columns) and bool(_STAR.search(sql) or re.search(rf"(?<!\w)(?:{names})(?!\w)", sql, re.IGNORECASE))


def _tables_of(lake: LakeReader, sql: str) -> Any:
    """A DataFusion catalog provider over `lake`, for `sql`, with the exceptions that opening a table raised."""
    from datafusion.catalog import CatalogProvider, SchemaProvider, Table

    failures: list[Exception] = []

    class Namespace(SchemaProvider):  # type: ignore[misc]  # datafusion has no stubs
        def __init__(self, name: str) -> None:
            self._name = name

        @property  # the bindings read a sequence from an attribute, whatever their base class declares
        def table_names(self) -> list[str]:
            prefix = f"{self._name}."
            below = (name.removeprefix(prefix) for name in lake.table_names() if name.startswith(prefix))
            return sorted(name for name in below if "." not in name)

        def table(self, name: str) -> Table | None:
            try:
                found = lake.table_or_none((*self._name.split("."), name))
                if found is None:
                    return self._history(name)
                special = only_pyiceberg_reads(found)
                return Table(loaded(found, special) if _wants(sql, special) else _Readable(found))
            except Exception as error:  # DataFusion would keep only its text; it is raised again below
                failures.append(error)
                raise

        def _history(self, name: str) -> Table | None:
            if not name.endswith(HISTORY):
                return None
            found = lake.table_or_none((*self._name.split("."), name.removesuffix(HISTORY)))
            return None if found is None else Table(schema_history(found))

        def table_exist(self, name: str) -> bool:
            names = (name, name.removesuffix(HISTORY))
            return any(lake.table_or_none((*self._name.split("."), one)) is not None for one in names)

    class Namespaces(CatalogProvider):  # type: ignore[misc]  # datafusion has no stubs
        def __init__(self) -> None:
            self.failures = failures

        def schema_names(self) -> set[str]:
            return {name.rpartition(".")[0] for name in lake.table_names()}

        def schema(self, name: str) -> Namespace:
            return Namespace(name)

    return Namespaces()


def schema_history(table: Any) -> Any:
    """The history of an Iceberg table's schema as a dataset: a row for each change of a column, oldest first."""
    import pyarrow.dataset

    changes = history(table)
    columns = {
        "schema_id": pa.array([one.schema_id for one in changes], pa.int64()),
        "is_current": pa.array([one.is_current for one in changes], pa.bool_()),
        "at": pa.array([one.at_micros for one in changes], pa.timestamp("us", "UTC")),
        "pipeline": pa.array([one.pipeline for one in changes], pa.string()),
        "used_since": pa.array([one.used_micros for one in changes], pa.timestamp("us", "UTC")),
        "change": pa.array([one.change for one in changes], pa.string()),
        "column": pa.array([one.column for one in changes], pa.string()),
        "type": pa.array([one.type for one in changes], pa.string()),
        "former": pa.array([one.former for one in changes], pa.string()),
    }
    return pyarrow.dataset.dataset(pa.table(columns))


def _planning_error(error: Exception, lake: LakeReader, failures: list[Exception]) -> Exception:
    if failures:
        cause = failures[0]
        if isinstance(cause, ConveyordError):
            return cause
        return BatchError(f"a table of {lake.name!r} could not be opened: {type(cause).__name__}: {cause}")
    text = _first_line(error)
    missing = _MISSING.search(text)
    if missing is not None:
        return ConfigError(lake.unknown_table((missing[1] or missing[2]).removeprefix("public.")))
    hint = " Names are case-sensitive." if text.startswith("No field named") else ""
    return ConfigError(f"the query cannot be run: {text}{hint}")


def _first_line(error: Exception) -> str:
    """DataFusion's message without its prefixes and backtraces."""
    text = str(error).split("\nbacktrace:", 1)[0].strip().split("\n\n", 1)[0]
    if (panic := _PANIC.search(str(error))) is not None:
        return str(Panicked(panic[1]))
    text = _OPTIMIZER.sub("", text)
    for prefix in (
        "DataFusion error: ",
        "Error during planning: ",
        "SQL error: ",
        "Schema error: ",
        "Execution error: ",
    ):
        text = text.removeprefix(prefix)
    parser = _PARSER.fullmatch(text)
    return parser[1] if parser is not None else text
