"""SQL over one batch: what is refused, and what is kept."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.schema import grow
from conveyord.engine.sql import BatchQuery, readable


def run(query: str, data: pa.RecordBatch) -> pa.RecordBatch:
    result = BatchQuery(query, setting="query").run(data)
    result.validate(full=True)
    return result


def batch(**columns: object) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(columns)


ROWS = batch(Id=[3, 1, 2], s=["a", "b", None], mag=[1.0, 2.0, None])


@pytest.mark.parametrize(
    "query",
    [
        "COPY (SELECT * FROM input_data) TO '{dir}/out.csv'",
        "COPY input_data TO '{dir}/out.parquet'",
        "EXPLAIN ANALYZE COPY (SELECT * FROM input_data) TO '{dir}/out.csv'",
        "EXPLAIN SELECT * FROM input_data",
        "DESCRIBE input_data",
        "SHOW TABLES",
        "SHOW ALL",
        "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{dir}/in.csv'",
        "CREATE TABLE t AS SELECT * FROM input_data",
        "CREATE VIEW v AS SELECT * FROM input_data",
        "CREATE FUNCTION f() RETURNS int RETURN 1",
        "DROP TABLE input_data",
        "INSERT INTO input_data SELECT * FROM input_data",
        "WITH a AS (SELECT * FROM input_data) INSERT INTO input_data SELECT * FROM a",
        "UPDATE input_data SET Id = 1",
        "DELETE FROM input_data",
        "TRUNCATE TABLE input_data",
        "SET datafusion.execution.target_partitions = 8",
        "RESET datafusion.execution.target_partitions",
        "PREPARE p AS SELECT * FROM input_data",
        "EXECUTE p",
        "DEALLOCATE p",
        "BEGIN",
        "SELECT * INTO t FROM input_data",
        "SELECT * FROM input_data; SELECT * FROM input_data",
        "SELECT * FROM input_data; DROP TABLE input_data",
        "SELECT a.* FROM input_data a, '{dir}/in.csv' b",
        "SELECT a.* FROM input_data a, '{dir}/in.parquet' b",
        "SELECT a.* FROM input_data a, 'file://{dir}/in.csv' b",
        "SELECT a.* FROM input_data a, 'http://127.0.0.1:9/in.csv' b",
        'SELECT a.* FROM input_data a, "{dir}/in.csv" b',
        "SELECT a.* FROM input_data a, read_csv('{dir}/in.csv') b",
        "SELECT a.* FROM input_data a, read_parquet('{dir}/in.parquet') b",
        "SELECT a.* FROM input_data a, read_json('{dir}/in.json') b",
        "SELECT a.* FROM input_data a, parquet_metadata('{dir}/in.parquet') b",
        "SELECT a.* FROM input_data a, metadata_cache() b",
        "SELECT a.* FROM input_data a, information_schema.tables b",
        "SELECT a.* FROM input_data a, information_schema.df_settings b",
        "SELECT 1",
        "SELECT 'input_data'",
        "SELECT 1 -- input_data",
        "VALUES (1)",
        "FROM input_data",
        "SELEC * FROM input_data",
        "SELECT * FROM input_data WHERE (",
        "",
        "   -- only a comment",
    ],
)
def test_anything_but_a_query_on_the_input_is_refused_and_touches_no_file(query: str, tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("a\n1\n")
    (tmp_path / "in.json").write_text('{"a": 1}\n')
    pq.write_table(pa.table({"a": [1]}), tmp_path / "in.parquet")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ConfigError):
        BatchQuery(query.replace("{dir}", str(tmp_path)), setting="query").run(ROWS)
    assert sorted(tmp_path.iterdir()) == before


def test_most_refusals_come_before_the_first_batch() -> None:
    for query in (
        "SELEC 1 FROM input_data",
        "SELECT * FROM input_data; SELECT 1",
        "SELECT * FROM input_dat, input_data",
    ):
        with pytest.raises(ConfigError, match=r"query "):
            BatchQuery(query, setting="query")


def test_columns_are_not_known_before_the_first_batch() -> None:
    query = BatchQuery("SELECT nowhere FROM input_data", setting="query")
    with pytest.raises(ConfigError, match=r"No field named nowhere.*Id"):
        query.run(ROWS)


@pytest.mark.parametrize(
    "query", ["SELECT s LIKE 5 AS x FROM input_data", "SELECT cast('a' AS int) AS x FROM input_data"]
)
def test_what_can_never_run_is_the_querys_fault(query: str) -> None:
    with pytest.raises(ConfigError):
        run(query, ROWS)


@pytest.mark.parametrize(
    "query", ["SELECT 1 / (Id - Id) AS x FROM input_data", "SELECT cast(s AS int) AS x FROM input_data"]
)
def test_what_fails_on_a_value_is_the_batchs_fault_and_leaves_the_query_usable(query: str) -> None:
    prepared = BatchQuery(query, setting="query")
    with pytest.raises(BatchError, match=r"query failed on a value: (Divide by zero|Cast error)"):
        prepared.run(ROWS)
    assert prepared.run(batch(Id=pa.array([], pa.int64()), s=pa.array([], pa.string()))).num_rows == 0


def test_messages_are_one_line_without_rust_wrappings() -> None:
    for message in (
        'SQL error: ParserError("Expected: an SQL statement, found: table at Line: 1, Column: 1")',
        "DataFusion error: type_coercion\ncaused by\nError during planning: There isn't a common type",
    ):
        text = readable(message)
        assert "\n" not in text
        assert not any(word in text for word in ("Error(", "caused by", "DataFusion error"))


def test_two_columns_of_one_name_are_refused() -> None:
    for query in (
        "SELECT a.Id, b.Id FROM input_data a JOIN input_data b ON a.Id = b.Id",
        "SELECT 1 AS x, 2 AS x FROM input_data",
    ):
        with pytest.raises(ConfigError, match=r"Id|same name"):
            run(query, ROWS)


def test_names_keep_their_case_and_functions_do_not_care() -> None:
    result = run("SELECT Id AS MyId, UPPER(s) AS up, Coalesce(s, 'x') AS \"a B\" FROM input_data", ROWS)
    assert result.schema.names == ["MyId", "up", "a B"]
    with pytest.raises(ConfigError, match='"Id"'):
        run("SELECT id FROM input_data", ROWS)


@given(st.lists(st.integers(-5, 5), max_size=50))
def test_rows_stay_in_order(values: list[int]) -> None:
    data = batch(x=pa.array(values, pa.int64()), n=pa.array(range(len(values)), pa.int64()))
    result = ORDERED.run(data)
    assert result.column("n").to_pylist() == [n for n, x in enumerate(values) if x > 0]


ORDERED = BatchQuery("SELECT x * 2 AS y, n FROM input_data WHERE x > 0", setting="query")


def test_large_batches_come_back_whole_and_in_order() -> None:
    n = 300_000
    result = run("SELECT n, concat('v', n) AS v FROM input_data WHERE n % 3 <> 0", batch(n=pa.array(range(n))))
    assert result.column("n").to_pylist() == [i for i in range(n) if i % 3]


@pytest.mark.parametrize(
    "query", ["SELECT * FROM input_data WHERE Id > 99", "SELECT Id, s, mag FROM input_data LIMIT 0"]
)
def test_no_rows_still_have_a_schema(query: str) -> None:
    assert run(query, ROWS).schema == ROWS.schema
    assert run(query, ROWS).num_rows == 0


def test_an_aggregate_of_no_rows_makes_no_record() -> None:
    assert run("SELECT count(*) AS n FROM input_data", ROWS.slice(0, 0)).num_rows == 0


def test_results_have_plain_types_at_any_depth() -> None:
    result = run(
        "SELECT arrow_cast(s, 'Utf8View') AS v, arrow_cast(s, 'LargeUtf8') AS l, substr(s, 1, 1) AS sub, "
        "struct(arrow_cast(s, 'Utf8View')) AS st, make_array(arrow_cast(s, 'LargeUtf8')) AS li FROM input_data",
        ROWS,
    )
    kinds = [str(kind) for kind in result.schema.types]
    assert not any("view" in kind or "large" in kind for kind in kinds), kinds
    assert result.schema.field("v").type == pa.string()


def test_a_recursive_query_carries_the_names_of_its_plan() -> None:
    query = (
        "WITH RECURSIVE r AS (SELECT min(Id) AS n FROM input_data "
        "UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT n FROM r"
    )
    assert run(query, ROWS).to_pydict() == {"n": [1, 2, 3]}


def test_a_field_of_a_null_struct_is_null() -> None:
    """Arrow leaves 0 under the null here, and DataFusion alone would return it."""
    data = batch(s=pa.array([{"a": 1}, None]), l=pa.array([[{"a": 1}, None], None]))
    assert run("SELECT s.a AS a FROM input_data", data).to_pydict() == {"a": [1, None]}
    assert run("SELECT l[2]['a'] AS a FROM input_data", data).to_pydict() == {"a": [None, None]}


def test_a_query_serves_batches_of_differing_schemas() -> None:
    query = BatchQuery("SELECT * FROM input_data", setting="query")
    for data in (ROWS, batch(x=[1.5]), batch(Id=["text"]), ROWS):
        assert query.run(data).equals(data)


def test_computed_timestamps_are_in_microseconds_and_given_ones_stay() -> None:
    data = batch(ns=pa.array([1_001], pa.timestamp("ns")), Id=[1])
    result = run("SELECT ns, now() AS at, to_timestamp(Id) AS t, row_number() OVER () AS n FROM input_data", data)
    assert result.column("ns").equals(data.column("ns"))
    assert result.schema.field("at").type.unit == result.schema.field("t").type.unit == "us"
    schema, _ = grow(pa.schema([]), result.select(["at", "t", "n"]))
    assert schema.names == ["at", "t", "n"]
    assert schema.field("n").type == pa.int64()


def test_nothing_of_a_batch_is_held_after_its_turn() -> None:
    query = BatchQuery("SELECT Id + 1 AS n FROM input_data", setting="query")
    query.run(ROWS)
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    query.run(batch(Id=pa.array(range(200_000))))
    assert pool.bytes_allocated() - before < 100_000
