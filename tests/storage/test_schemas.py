"""Schemas between Arrow and Iceberg, and tables that grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from conveyord.core.errors import ConfigError, Retryable
from conveyord.storage.lake.data_files import DataFileWriter, WriterOptions
from conveyord.storage.lake.schemas import (
    EVOLVE_ATTEMPTS_MAX,
    TABLE_DEPTH_MAX,
    TableAppeared,
    arrow_schema,
    create_table,
    evolve,
    iceberg_schema,
)


def open_catalog(folder: Path) -> SqlCatalog:
    return SqlCatalog("test", uri=f"sqlite:///{folder}/catalog.db", warehouse=str(folder))


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    catalog = open_catalog(tmp_path)
    yield catalog
    catalog.close()


def append(table: Table, rows: list[dict[str, Any]]) -> list[DataFile]:
    """Write `rows` through the writer and commit them with pyiceberg alone."""
    writer = DataFileWriter(table, WriterOptions(), lambda _: None)
    writer.write(pa.RecordBatch.from_pylist(rows, schema=arrow_schema(table)))
    files = writer.finish()
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as snapshot:
        for file in files:
            snapshot.append_data_file(file)
    return files


def types_of(schema: pa.Schema) -> dict[str, str]:
    return {field.name: str(field.field_type) for field in iceberg_schema(schema).fields}


@pytest.mark.parametrize(
    ("arrow_type", "expected"),
    [
        (pa.bool_(), "boolean"),
        (pa.int8(), "int"),
        (pa.uint16(), "int"),
        (pa.int32(), "int"),
        (pa.uint32(), "long"),
        (pa.int64(), "long"),
        (pa.uint64(), "decimal(20, 0)"),
        (pa.float16(), "float"),
        (pa.float32(), "float"),
        (pa.float64(), "double"),
        (pa.decimal128(38, 5), "decimal(38, 5)"),
        (pa.decimal32(5, 2), "decimal(5, 2)"),
        (pa.date32(), "date"),
        (pa.date64(), "date"),
        (pa.time32("s"), "time"),
        (pa.time64("us"), "time"),
        (pa.timestamp("s"), "timestamp"),
        (pa.timestamp("ns"), "timestamp"),
        (pa.timestamp("ms", "UTC"), "timestamptz"),
        (pa.timestamp("us", "Europe/Paris"), "timestamptz"),
        (pa.large_string(), "string"),
        (pa.string_view(), "string"),
        (pa.json_(), "string"),
        (pa.dictionary(pa.int32(), pa.string()), "string"),
        (pa.binary_view(), "binary"),
        (pa.binary(7), "fixed[7]"),
        (pa.uuid(), "uuid"),
    ],
    ids=str,
)
def test_a_type_becomes_the_iceberg_type_that_holds_all_its_values(arrow_type: pa.DataType, expected: str) -> None:
    assert types_of(pa.schema([("x", arrow_type)])) == {"x": expected}


def test_columns_that_carry_no_value_are_left_out_at_any_depth() -> None:
    nothing = pa.null()
    schema = pa.schema(
        [
            ("kept", pa.struct([("a", pa.int64()), ("b", nothing)])),
            ("null", nothing),
            ("struct", pa.struct([("a", pa.struct([("b", nothing)]))])),
            ("empty", pa.struct([])),
            ("list", pa.list_(pa.struct([("a", nothing)]))),
            ("map", pa.map_(pa.string(), nothing)),
        ]
    )
    assert types_of(schema) == {"kept": "struct<2: a: optional long>"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (pa.schema([("d", pa.duration("s"))]), "'d': Iceberg has no type for duration"),
        (pa.schema([("m", pa.struct([("d", pa.duration("s"))]))]), "'m.d': Iceberg has no type"),
        (pa.schema([("d", pa.decimal256(60, 2))]), "38 digits"),
        (pa.schema([("", pa.int64())]), "empty name"),
        (pa.schema([("m", pa.struct([("", pa.int64())]))]), "in 'm' has an empty name"),
        (pa.schema([("a", pa.int64()), ("a", pa.int64())]), "appears twice"),
        (pa.schema([("a b", pa.int64()), ("a_x20b", pa.int64())]), "the same name in Parquet"),
        (pa.schema([("a.b", pa.int64()), ("a", pa.struct([("b", pa.int64())]))]), "dotted name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_table_cannot_have_is_refused_by_name(schema: pa.Schema, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        iceberg_schema(schema)


NESTINGS = [
    lambda within: pa.struct([("x", within)]),
    pa.list_,
    lambda within: pa.map_(pa.string(), within),
]


@pytest.mark.parametrize("nesting", NESTINGS, ids=["struct", "list", "map"])
def test_what_a_table_takes_can_be_read_again_however_deep(
    tmp_path: Path, catalog: SqlCatalog, nesting: Callable[[pa.DataType], pa.DataType]
) -> None:
    kind = pa.int64()
    for _ in range(TABLE_DEPTH_MAX):
        kind = nesting(kind)
    table = create_table(catalog, "lake.deep", pa.schema([("x", kind)]), [], {})
    evolve(table, pa.schema([("x", kind), ("y", kind)]))
    assert len(open_catalog(tmp_path).load_table("lake.deep").schema().fields) == 2
    with pytest.raises(ConfigError, match=f"column 'z'.*nested deeper than {TABLE_DEPTH_MAX} levels.*flatten it"):
        evolve(table, pa.schema([("z", nesting(kind))]))
    with pytest.raises(ConfigError, match="flatten it"):
        create_table(catalog, "lake.deeper", pa.schema([("z", nesting(kind))]), [], {})


def test_a_table_of_others_that_nests_deeper_takes_other_columns(catalog: SqlCatalog) -> None:
    kind = pa.int64()
    for _ in range(TABLE_DEPTH_MAX + 2):
        kind = pa.list_(kind)
    catalog.create_namespace("lake")
    table = catalog.create_table("lake.deep", iceberg_schema(pa.schema([("x", kind)])))
    evolved = evolve(table, pa.schema([("y", pa.int64())]))
    assert [field.name for field in evolved.schema().fields] == ["x", "y"]


ODD_NAMES = [
    "a.b",
    "order by",
    "Größe",
    "日本",
    "1st",
    "a-b",
    '"',
    "x/y",
    "A",
    "a",
    "select",
    "😀",
    "%41",
    "'",
]


def test_odd_names_can_be_written_evolved_filtered_and_read_back(catalog: SqlCatalog) -> None:
    schema = pa.schema([(name, pa.int64()) for name in ODD_NAMES])
    table = create_table(catalog, "odd.names", schema, [], {})
    nested = pa.struct([(name, pa.int64()) for name in ODD_NAMES])
    evolve(table, pa.schema([("with.dot", nested), ("s", pa.list_(nested))]))
    inner = {name: position * 10 for position, name in enumerate(ODD_NAMES)}
    row = {name: position for position, name in enumerate(ODD_NAMES)} | {"with.dot": inner, "s": [inner]}
    append(table, [row])
    from pyiceberg.expressions import EqualTo

    table = catalog.load_table("odd.names")
    for position, name in enumerate(ODD_NAMES):
        assert table.scan(row_filter=EqualTo(name, position)).to_arrow().to_pylist() == [row]
        assert table.scan(row_filter=EqualTo(name, -1)).to_arrow().num_rows == 0


def test_creating_a_table_that_somebody_else_just_created_hands_over_theirs(catalog: SqlCatalog) -> None:
    create_table(catalog, "a.b.t", pa.schema([("theirs", pa.int64())]), [], {})
    with pytest.raises(TableAppeared) as caught:
        create_table(catalog, "a.b.t", pa.schema([("ours", pa.int64())]), [], {})
    assert caught.value.table.schema().column_names == ["theirs"]


def test_what_the_writer_takes_is_the_tables_columns_without_metadata(catalog: SqlCatalog) -> None:
    schema = pa.schema(
        [
            ("i", pa.int16()),
            ("s", pa.large_string()),
            ("l", pa.large_list(pa.struct([("t", pa.timestamp("ms", "UTC"))]))),
            ("m", pa.map_(pa.string(), pa.float32())),
        ]
    )
    plain = arrow_schema(create_table(catalog, "n.t", schema, [], {}))
    assert plain.equals(
        pa.schema(
            [
                ("i", pa.int32()),
                ("s", pa.string()),
                ("l", pa.list_(pa.struct([("t", pa.timestamp("us", "UTC"))]))),
                ("m", pa.map_(pa.string(), pa.float32())),
            ]
        ),
        check_metadata=True,
    )


def test_evolving_adds_and_widens_at_any_depth_and_touches_nothing_else(catalog: SqlCatalog) -> None:
    inner = pa.struct([("n", pa.int32()), ("d", pa.decimal128(5, 2)), ("keep", pa.int64())])
    schema = pa.schema(
        [
            ("l", pa.list_(inner)),
            ("m", pa.map_(pa.int32(), inner)),
            ("f", pa.float32()),
            ("same", pa.string()),
        ]
    )
    table = create_table(catalog, "n.t", schema, [], {})
    wide = pa.struct([("extra", pa.bool_()), ("n", pa.int64()), ("d", pa.decimal128(9, 2)), ("keep", pa.int32())])
    target = pa.schema(
        [
            ("new", pa.list_(pa.int32())),
            ("l", pa.list_(wide)),
            ("m", pa.map_(pa.int64(), wide)),
            ("f", pa.float64()),
            ("same", pa.int64()),
        ]
    )
    versions = len(table.metadata.metadata_log)
    before = {table.schema().find_column_name(i): i for i in table.schema().field_ids}
    assert evolve(table, target) is table
    merged = pa.struct([("n", pa.int64()), ("d", pa.decimal128(9, 2)), ("keep", pa.int64()), ("extra", pa.bool_())])
    assert arrow_schema(table).equals(
        pa.schema(
            [
                ("l", pa.list_(merged)),
                ("m", pa.map_(pa.int32(), merged)),
                ("f", pa.float64()),
                ("same", pa.string()),
                ("new", pa.list_(pa.int32())),
            ]
        )
    )
    after = {table.schema().find_column_name(i): i for i in table.schema().field_ids}
    assert before.items() <= after.items()
    assert len(set(after.values())) == len(after)
    assert len(table.metadata.metadata_log) == versions + 1
    evolve(table, target)
    assert len(table.metadata.metadata_log) == versions + 1


def test_evolving_a_stale_table_keeps_what_the_other_writer_added(catalog: SqlCatalog) -> None:
    ours = create_table(catalog, "n.t", pa.schema([("a", pa.int32())]), [], {})
    theirs = catalog.load_table("n.t")
    evolve(theirs, pa.schema([("theirs", pa.string()), ("both", pa.int64())]))
    evolve(ours, pa.schema([("a", pa.int64()), ("both", pa.int64()), ("ours", pa.string())]))
    assert ours.schema().column_names == ["a", "theirs", "both", "ours"]
    ids = [field.field_id for field in ours.schema().fields]
    assert len(set(ids)) == 4


def test_evolving_gives_up_when_the_table_never_stands_still(
    catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = create_table(catalog, "n.t", pa.schema([("a", pa.int32())]), [], {})
    attempts = []

    def lost(*arguments: object) -> None:
        attempts.append(arguments)
        raise CommitFailedException("somebody else was faster")

    monkeypatch.setattr(catalog, "commit_table", lost)
    with pytest.raises(Retryable, match=r"n\.t"):
        evolve(table, pa.schema([("b", pa.int32())]))
    assert len(attempts) == EVOLVE_ATTEMPTS_MAX


def test_evolving_back_to_a_schema_that_was_left_reuses_it(catalog: SqlCatalog) -> None:
    from pyiceberg.table.update import SetCurrentSchemaUpdate

    table = create_table(catalog, "n.t", pa.schema([("a", pa.int32())]), [], {})
    evolve(table, pa.schema([("a", pa.int64())]))
    catalog.commit_table(table, (), (SetCurrentSchemaUpdate(schema_id=0),))
    table.refresh()
    evolve(table, pa.schema([("a", pa.int64())]))
    assert (table.schema().schema_id, len(table.schemas())) == (1, 2)


def test_a_new_column_with_the_name_of_a_partition_is_refused(catalog: SqlCatalog) -> None:
    table = create_table(catalog, "n.t", pa.schema([("at", pa.date32())]), ["day(at)"], {})
    with pytest.raises(ConfigError, match="at_day"):
        evolve(table, pa.schema([("at_day", pa.string())]))


# ------------------------------------------------------------------------------ growing, read by others

# No name that Parquet escapes: pyiceberg loses the values of such fields in lists of lists when it reads.
NAMES = st.sampled_from(["a", "b", "C", "é"])
LEAVES = st.sampled_from([pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.string(), pa.decimal128(5, 1)])
TYPES = st.recursive(
    LEAVES,
    lambda inner: (
        st.builds(pa.list_, inner)
        | st.dictionaries(NAMES, inner, min_size=1, max_size=3).map(lambda fields: pa.struct(list(fields.items())))
    ),
    max_leaves=4,
)


def value_of(kind: pa.DataType, seed: int) -> Any:
    if pa.types.is_struct(kind):
        return {field.name: value_of(field.type, seed) for field in kind} if seed % 5 else None
    if pa.types.is_list(kind):
        return [value_of(kind.value_type, seed + step) for step in range(seed % 3)]
    if seed % 7 == 0:
        return None
    if pa.types.is_decimal(kind):
        from decimal import Decimal

        return Decimal(seed) / 2
    return str(seed) if pa.types.is_string(kind) else seed


def widened(old: pa.DataType, value: Any, new: pa.DataType) -> Any:
    """`value` as a reader of a later schema sees it."""
    if value is None:
        return None
    if pa.types.is_struct(old):
        known = {field.name: field.type for field in old}
        return {
            field.name: widened(known[field.name], value[field.name], field.type) if field.name in known else None
            for field in new
        }
    if pa.types.is_list(old):
        return [widened(old.value_type, item, new.value_type) for item in value]
    return value


class GrowingTable(RuleBasedStateMachine):
    """Any order of growing and writing: every reader sees every row, with null where it was written before."""

    folder: Path
    runs = 0

    @initialize()
    def create(self) -> None:
        type(self).runs += 1
        folder = self.folder / str(self.runs)
        folder.mkdir()
        self.catalog = open_catalog(folder)
        self.table = create_table(self.catalog, "g.t", pa.schema([("id", pa.int32())]), [], {})
        self.written: list[tuple[pa.Schema, dict[str, Any]]] = []

    @rule(fields=st.dictionaries(NAMES, TYPES, min_size=1, max_size=3))
    def grow(self, fields: dict[str, pa.DataType]) -> None:
        evolve(self.table, pa.schema(list(fields.items())))

    @rule()
    def widen_id(self) -> None:
        evolve(self.table, pa.schema([("id", pa.int64())]))

    @rule(count=st.integers(1, 4))
    def write(self, count: int) -> None:
        schema = arrow_schema(self.table)
        first = len(self.written)
        rows = [
            {field.name: value_of(field.type, first + step) for field in schema} | {"id": first + step}
            for step in range(count)
        ]
        append(self.table, rows)
        self.written += [(schema, row) for row in rows]

    @invariant()
    def pyiceberg_reads_what_was_written(self) -> None:
        rows = self.table.scan().to_arrow().sort_by("id").to_pylist() if self.written else []
        assert rows == self.expected()

    def expected(self) -> list[dict[str, Any]]:
        now = pa.struct(list(arrow_schema(self.table)))
        return [widened(pa.struct(list(schema)), row, now) for schema, row in self.written]

    def teardown(self) -> None:
        if not getattr(self, "written", None):
            return
        import polars as pl

        frame = pl.scan_iceberg(self.table.metadata_location).sort("id").collect()
        assert frame.to_arrow().cast(arrow_schema(self.table)).to_pylist() == self.expected()
        self.catalog.close()


@pytest.mark.filterwarnings("ignore::polars.exceptions.PerformanceWarning")
def test_a_table_can_grow_in_any_order(tmp_path: Path) -> None:
    machine = type("Machine", (GrowingTable,), {"folder": tmp_path})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=10,
            stateful_step_count=8,
            deadline=None,
            phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking would commit for minutes
            suppress_health_check=list(HealthCheck),
        ),
    )


@given(fields=st.dictionaries(NAMES, TYPES, min_size=1, max_size=4))
def test_a_schema_survives_the_way_to_iceberg_and_back(fields: dict[str, pa.DataType]) -> None:
    from conveyord.storage.lake.schemas import file_schema

    schema = pa.schema(list(fields.items()))
    stored = file_schema(iceberg_schema(schema))
    assert stored.names == schema.names
    assert str(stored.types).replace("element:", "item:") == str(schema.types)
