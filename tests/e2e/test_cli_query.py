"""`query`: right results on tables that changed shape, sane values, helpful refusals, nothing written."""

from __future__ import annotations

import csv
import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from conveyord.engine import query
from conveyord.storage.lake.catalog import open_catalog, open_embedded


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with an evolved partitioned table, an empty one, one with every type, one with odd names."""
    from pyiceberg.transforms import DayTransform
    from pyiceberg.types import LongType, StringType

    data_dir = tmp_path_factory.mktemp("shapes") / "data"
    catalog = open_embedded(data_dir)
    catalog.create_namespace("ns")
    when = datetime(2024, 1, 1, 12, 30, 0, 250000, tzinfo=UTC)
    first = pa.table({"id": pa.array([1, 2], pa.int32()), "at": pa.array([when, when], pa.timestamp("us", "UTC"))})
    table = catalog.create_table("ns.evolved", schema=first.schema)
    with table.update_spec() as spec:
        spec.add_field("at", DayTransform(), "at_day")
    table.append(first)
    with table.update_schema() as schema:
        schema.add_column("added", StringType())
        schema.update_column("id", LongType())
        schema.rename_column("at", "When")
    second = {"id": pa.array([2**40], pa.int64()), "When": pa.array([when], pa.timestamp("us", "UTC")), "added": ["x"]}
    table.append(pa.table(second))
    catalog.create_table("ns.empty", schema=pa.schema([("id", pa.int64())]))
    kinds = pa.table(
        {
            "amount": pa.array([Decimal("12345678901234567.89")], pa.decimal128(20, 2)),
            "raw": pa.array([b"\x00\xff"]),
            "nan": pa.array([float("nan")]),
            "nested": pa.array(
                [{"a": [1, 2], "b": None}], pa.struct([("a", pa.list_(pa.int64())), ("b", pa.string())])
            ),
            "day": pa.array([when.date()]),
            "nothing": pa.array([None], pa.string()),
        }
    )
    catalog.create_table("ns.kinds", schema=kinds.schema).append(kinds)
    odd = pa.table({"select": [1], "é ü": ["a,b"]})
    catalog.create_table("ns.odd-name", schema=odd.schema).append(odd)
    catalog.close()
    return data_dir


def rows(call: Any, data_dir: Path, sql: str) -> Any:
    ended = call("query", sql, "--data-dir", data_dir, "-o", "json")
    assert ended.code == 0, ended.err
    return ended.json


def test_an_evolved_and_partitioned_table_reads_by_field_id(call: Any, shapes: Path) -> None:
    assert rows(call, shapes, 'SELECT id, "When", added FROM ns.evolved ORDER BY id') == [
        {"id": 1, "When": "2024-01-01T12:30:00.250000Z", "added": None},
        {"id": 2, "When": "2024-01-01T12:30:00.250000Z", "added": None},
        {"id": 2**40, "When": "2024-01-01T12:30:00.250000Z", "added": "x"},
    ]
    assert rows(call, shapes, "SELECT count(*) AS n FROM ns.evolved WHERE added IS NULL") == [{"n": 2}]
    late = "SELECT count(*) AS n FROM ns.evolved WHERE \"When\" > TIMESTAMP '2024-01-02 00:00:00'"
    assert rows(call, shapes, late) == [{"n": 0}]
    assert rows(call, shapes, "SELECT a.id FROM ns.evolved a JOIN lake.ns.evolved b ON a.id = b.id WHERE a.id = 1") == [
        {"id": 1}
    ]


@pytest.mark.parametrize("kind", ["struct", "list", "map", "list in struct"])
def test_a_table_whose_nested_fields_grew_reads_from_files_of_before_and_after(
    call: Any, tmp_path: Path, kind: str
) -> None:
    from pyiceberg.types import LongType

    inner = pa.struct([("x", pa.int64())])
    column: pa.DataType
    column, path, old, new = {
        "struct": (inner, ("y",), {"x": 1}, {"x": 2, "y": 3}),
        "list": (pa.list_(inner), ("element", "y"), [{"x": 1}], [{"x": 2, "y": 3}]),
        "map": (pa.map_(pa.string(), inner), ("value", "y"), [("k", {"x": 1})], [("k", {"x": 2, "y": 3})]),
        "list in struct": (
            pa.struct([("in", pa.list_(inner))]),
            ("in", "element", "y"),
            {"in": [{"x": 1}]},
            {"in": [{"x": 2, "y": 3}]},
        ),
    }[kind]
    with open_embedded(tmp_path) as catalog:
        catalog.create_namespace("ns")
        held = pa.schema([("id", pa.int64()), ("v", column)])
        table = catalog.create_table("ns.t", schema=held)
        table.append(pa.table({"id": [1], "v": pa.array([old], column)}))
        with table.update_schema() as schema:
            schema.add_column(("v", *path), LongType())
        grown = table.schema().as_arrow()
        table.append(pa.table({"id": [2], "v": pa.array([new], grown.field("v").type)}, schema=grown))
    for sql in ("SELECT * FROM ns.t ORDER BY id", "SELECT v FROM ns.t ORDER BY id"):
        found = json.dumps([row["v"] for row in rows(call, tmp_path, sql)])
        assert ('"x": 1, "y": null' in found, '"x": 2, "y": 3' in found) == (True, True), found
    assert rows(call, tmp_path, "SELECT count(*) AS n, max(id) AS id FROM ns.t") == [{"n": 2, "id": 2}]


def test_an_empty_table_has_columns_and_no_rows(call: Any, shapes: Path) -> None:
    assert rows(call, shapes, "SELECT * FROM ns.empty") == []
    assert call("query", "SELECT * FROM ns.empty", "--data-dir", shapes).out == "id\n--\n"
    assert call("query", "SELECT * FROM ns.empty", "--data-dir", shapes, "-o", "csv").out == "id\n"


def test_every_value_means_one_thing_in_json(call: Any, shapes: Path) -> None:
    assert rows(call, shapes, "SELECT * FROM ns.kinds") == [
        {
            "amount": "12345678901234567.89",
            "raw": "AP8=",
            "nan": "NaN",
            "nested": {"a": [1, 2], "b": None},
            "day": "2024-01-01",
            "nothing": None,
        }
    ]
    precise = rows(call, shapes, "SELECT to_timestamp_nanos(1700000000123456789) AS at")
    assert precise == [{"at": "2023-11-14T22:13:20.123456789"}]


def test_csv_reads_back(call: Any, shapes: Path) -> None:
    ended = call("query", 'SELECT * FROM ns."odd-name"', "--data-dir", shapes, "-o", "csv")
    assert list(csv.reader(ended.out.splitlines())) == [["select", "é ü"], ["1", "a,b"]]
    assert ended.err.startswith("1 row in ")


def test_a_table_for_people_is_aligned_and_cut(call: Any, shapes: Path) -> None:
    ended = call("query", "SELECT 5 AS n, repeat('x', 100) AS t, 'a\tb' AS tab", "--data-dir", shapes)
    head, rule, row = ended.out.splitlines()
    assert (head.split(), rule[0], row.split()[0]) == (["n", "t", "tab"], "-", "5")
    assert "…" in row
    assert "\t" not in row
    many = call("query", "SELECT * FROM generate_series(1, 5000)", "--data-dir", shapes)
    assert len(many.out.splitlines()) == 1002
    assert "there are more" in many.err


def test_a_limit_is_kept_in_every_format(call: Any, shapes: Path) -> None:
    sql = "SELECT * FROM generate_series(1, 5000)"
    assert len(json.loads(call("query", sql, "--data-dir", shapes, "-o", "json", "--limit", 7).out)) == 7
    assert len(call("query", sql, "--data-dir", shapes, "--limit", 7).out.splitlines()) == 9
    assert len(json.loads(call("query", sql, "--data-dir", shapes, "-o", "json").out)) == 5000


@pytest.mark.parametrize(
    ("sql", "sentence"),
    [
        ("SELECT * FROM ns.evolvd", "unknown table 'ns.evolvd'; did you mean 'ns.evolved'? The tables of 'lake' are"),
        ("SELECT * FROM evolved", "unknown table 'evolved'; did you mean 'ns.evolved'?"),
        ("SELECT * FROM Ns.evolved", "unknown table 'Ns.evolved'; did you mean 'ns.evolved'?"),
        ("SELECT * FROM other.x.y", "unknown table 'x.y'"),
        ("SELECT nme FROM ns.evolved", "Names are case-sensitive."),
        ("SELEC 1", "the query cannot be run: Expected: an SQL statement, found: SELEC at Line: 1, Column: 1"),
        ("SELECT 1; SELECT 2", "only supports a single SQL statement"),
        ("SELECT 1 LIMIT -1", "the query cannot be run: LIMIT must be >= 0, '-1' was provided"),
        ("SELECT 1 OFFSET -1", "the query cannot be run: OFFSET must be >=0, '-1' was provided"),
        ('SELECT * FROM "../../etc".x', "the tables of 'lake' are"),
        ('SELECT * FROM " ".x', "the tables of 'lake' are"),
        ("SELECT a.id, b.id FROM ns.empty a, ns.empty b", "two columns of the result are named 'id'"),
    ],
)
def test_a_wrong_query_is_exit_code_2_with_a_sentence(call: Any, shapes: Path, sql: str, sentence: str) -> None:
    ended = call("query", sql, "--data-dir", shapes, "-o", "json")
    assert ended.code == 2
    assert sentence in ended.err
    assert ended.json["error"]["code"] == "CONFIG"


@pytest.mark.parametrize(
    "sql",
    [
        "DROP TABLE ns.evolved",
        "CREATE TABLE ns.x (a INT)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "INSERT INTO ns.evolved VALUES (1, NULL, NULL)",
        "COPY (SELECT 1) TO '{scratch}/x.csv'",
        "SET datafusion.execution.batch_size = 1",
        "SELECT * FROM '/etc/passwd'",
        "EXPLAIN ANALYZE INSERT INTO ns.evolved VALUES (1, NULL, NULL)",
    ],
)
def test_nothing_can_be_written_or_read_beside_the_tables(call: Any, shapes: Path, tmp_path: Path, sql: str) -> None:
    assert call("query", sql.format(scratch=tmp_path), "--data-dir", shapes).code == 2
    assert list(tmp_path.iterdir()) == []
    assert rows(call, shapes, "SELECT count(*) AS n FROM ns.evolved") == [{"n": 3}]


def test_a_failure_while_rows_flow_is_exit_code_1_without_a_traceback(call: Any, shapes: Path) -> None:
    ended = call("query", "SELECT 1 / (id - id) FROM ns.evolved", "--data-dir", shapes)
    assert ended.code == 1
    assert ended.err.startswith("error: the query failed while it ran: ")


LARGE = "generate_series(1, 900000)"


def test_a_sort_that_outgrows_memory_goes_to_disk(call: Any, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "MEMORY_BYTES_MAX", 32 << 20)
    wide = f"SELECT value, repeat('x', 100) AS wide FROM {LARGE}"
    ordered = f"SELECT value, row_number() OVER (ORDER BY wide, value DESC) AS place FROM ({wide})"
    assert rows(call, shapes, f"SELECT value FROM ({ordered}) WHERE place = 900000") == [{"value": 1}]


def test_a_query_that_holds_too_much_is_a_sentence_with_the_limit(
    call: Any, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "MEMORY_BYTES_MAX", 8 << 20)
    ended = call("query", f"SELECT count(*) FROM {LARGE} a JOIN {LARGE} b USING (value)", "--data-dir", shapes)
    assert ended.code == 1
    assert "the query needs more than 8.00 MiB of memory: read fewer rows or columns, and join" in ended.err


def test_a_query_has_the_limits_of_other_sql(call: Any, shapes: Path) -> None:
    for sql, said in (
        ("SELECT " + " + ".join(["id"] * 600) + " FROM ns.empty", "the query has 600 operators, and 500 is the most"),
        ("SELECT repeat('x', 2000000000) FROM ns.empty", "the query calls repeat with 2,000,000,000"),
    ):
        ended = call("query", sql, "--data-dir", shapes)
        assert ended.code == 2
        assert said in ended.err


def test_a_reader_that_goes_away_ends_a_query_quietly(shell: Any, shapes: Path, tmp_path: Path) -> None:
    sql = "SELECT * FROM generate_series(1, 1000000)"
    process = shell.popen("query", sql, "-o", "csv", "--data-dir", str(shapes), cwd=tmp_path)
    assert process.stdout.readline() == "value\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


def test_tables_and_plans_can_be_shown(call: Any, shapes: Path) -> None:
    shown = {row["table_name"] for row in rows(call, shapes, "SHOW TABLES") if row["table_schema"] == "ns"}
    assert shown == {"evolved", "empty", "kinds", "odd-name"}
    assert "TableScan: ns.empty" in call("query", "EXPLAIN SELECT * FROM ns.empty", "--data-dir", shapes).out
    measured = call("query", "EXPLAIN ANALYZE SELECT id FROM ns.evolved", "--data-dir", shapes)
    assert (measured.code, "Plan with Metrics" in measured.out) == (0, True), measured.err


def test_the_history_of_a_schema_can_be_queried_like_a_table(call: Any, shapes: Path) -> None:
    sql = 'SELECT schema_id, is_current, change, "column", type, former FROM ns.evolved$schemas WHERE schema_id = 1'
    assert [tuple(row.values()) for row in rows(call, shapes, sql)] == [
        (1, True, "type", "id", "long", "int"),
        (1, True, "renamed", "When", "timestamptz", "at"),
        (1, True, "added", "added", "string", None),
    ]
    missing = call("query", "SELECT * FROM ns.evolve$schemas", "--data-dir", shapes)
    assert missing.code == 2
    assert "unknown table 'ns.evolve$schemas'" in missing.err


def test_only_the_tables_that_a_query_mentions_are_opened(
    call: Any, shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    opened: list[Any] = []
    load = SqlCatalog.load_table

    def spy(catalog: SqlCatalog, identifier: Any) -> Any:
        opened.append(identifier)
        return load(catalog, identifier)

    monkeypatch.setattr(SqlCatalog, "load_table", spy)
    rows(call, shapes, "SELECT * FROM ns.empty")
    assert set(opened) == {("ns", "empty")}


def test_a_directory_without_a_catalog_says_what_to_do(call: Any, tmp_path: Path) -> None:
    ended = call("query", "SELECT 1", "--data-dir", tmp_path)
    assert ended.code == 2
    assert "no catalog.db in it; run a pipeline first" in ended.err
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_catalog_names_the_known_ones(call: Any, shapes: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[catalogs.prod]\ntype = "rest"\n', encoding="utf-8")
    ended = call("query", "SELECT 1", "--data-dir", shapes, "--catalog", "prd", "--config", config)
    assert ended.code == 2
    assert "unknown catalog 'prd'; conveyord.toml and the data directory give lake, prod" in ended.err


def test_a_catalog_that_does_not_answer_is_a_sentence(call: Any, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('[catalogs.prod]\ntype = "rest"\nuri = "http://127.0.0.1:9"\n', encoding="utf-8")
    ended = call("query", "SELECT * FROM a.b", "--catalog", "prod", "--config", config)
    assert ended.code == 1
    assert "catalog 'prod' does not answer: ConnectionError" in ended.err


def test_a_configured_catalog_is_queried_by_its_name(call: Any, tmp_path: Path) -> None:
    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path}/c.db", "warehouse": f"file://{tmp_path}/w"}
    catalog = open_catalog("other", properties)
    catalog.create_namespace("ns")
    catalog.create_table("ns.t", schema=pa.schema([("id", pa.int64())])).append(pa.table({"id": [7]}))
    catalog.close()
    lines = [f'{key} = "{value}"' for key, value in properties.items()]
    (tmp_path / "c.toml").write_text("\n".join(["[catalogs.other]", *lines]), encoding="utf-8")
    arguments = ("--catalog", "other", "--config", tmp_path / "c.toml", "-o", "json")
    assert call("query", "SELECT * FROM ns.t", *arguments).json == [{"id": 7}]
    assert call("query", "SELECT * FROM other.ns.t", *arguments).json == [{"id": 7}]
    assert call("audit", "ns.t", *arguments).json["basis"] == "none"


def test_the_provenance_columns_can_be_queried(call: Any, tmp_path: Path) -> None:
    # `_partition` is a name that the Iceberg specification keeps, and iceberg-rust cannot read it.
    (tmp_path / "in.jsonl").write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8")
    definition = tmp_path / "p.yaml"
    definition.write_text(
        "apiVersion: conveyor.etl/v1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n"
        f"  source: {{type: file_jsonl, path: {tmp_path}/in.jsonl}}\n"
        "  sink: {type: iceberg, table: a.placed, provenance: true}\n",
        encoding="utf-8",
    )
    assert call("run", str(definition), "--data-dir", str(tmp_path / "d")).code == 0
    done = call("query", "SELECT * FROM a.placed ORDER BY a", "--data-dir", str(tmp_path / "d"), "-o", "json")
    assert [(row["a"], row["_partition"], row["_offset"]) for row in done.json] == [
        (1, f"{tmp_path}/in.jsonl", 0),
        (2, f"{tmp_path}/in.jsonl", 9),
    ]
