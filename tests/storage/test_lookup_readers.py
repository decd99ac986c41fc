"""References in files, SQLite databases and Iceberg tables: what is read, what is refused, what counts as a change."""

from __future__ import annotations

import datetime as dt
import gzip
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from conveyord.core.errors import ConfigError, Retryable
from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lookup.databases import SqliteReader
from conveyord.storage.lookup.files import CsvReader, ParquetReader
from conveyord.storage.lookup.reading import ReferenceReader, Wanted
from conveyord.storage.lookup.tables import IcebergReader

ROWS = [{"code": "AT", "name": "Austria", "area": 83_879}, {"code": "CH", "name": None, "area": 41_291}]
TABLE = pa.Table.from_pylist(ROWS)


def nothing() -> None:
    pass


def wanted(*keys: str, columns: tuple[str, ...] | None = None, rows_max: int = 100, bytes_max: int = 10_000) -> Wanted:
    return Wanted(keys, columns, rows_max, bytes_max)


def csv_of(path: Path, text: str, *, delimiter: str = ",") -> CsvReader:
    path.write_text(text)
    return CsvReader(str(path), delimiter=delimiter)


def csv_reader(folder: Path) -> ReferenceReader:
    return csv_of(folder / "r.csv", "code,name,area\nAT,Austria,83879\nCH,,41291\n")


def parquet_reader(folder: Path) -> ReferenceReader:
    pyarrow.parquet.write_table(TABLE, folder / "r.parquet")
    return ParquetReader(str(folder / "r.parquet"))


def sqlite_reader(folder: Path) -> ReferenceReader:
    fill(folder / "r.db", [tuple(row.values()) for row in ROWS])
    return SqliteReader(str(folder / "r.db"), table="countries", query=None)


def fill(path: Path, rows: list[tuple[Any, ...]]) -> None:
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE countries (code, name, area)")
        database.executemany("INSERT INTO countries VALUES (?, ?, ?)", rows)
    database.close()


def iceberg_reader(folder: Path) -> ReferenceReader:
    catalog = open_embedded(folder)
    catalog.create_namespace("geo")
    catalog.create_table("geo.countries", TABLE.schema).append(TABLE)
    return IcebergReader("geo.countries", catalog="lake", data_dir=folder, catalogs={})


READERS = [csv_reader, parquet_reader, sqlite_reader, iceberg_reader]
Opens = Callable[[Path], ReferenceReader]
every_reader = pytest.mark.parametrize("opens", READERS, ids=lambda opens: opens.__name__)


@every_reader
def test_all_columns_are_read_keys_first(opens: Opens, tmp_path: Path) -> None:
    reader = opens(tmp_path)
    table = reader.read(wanted("area"), nothing).table
    assert table.column_names == ["area", "code", "name"]
    areas = [str(row["area"]) if reader.text_keys else row["area"] for row in ROWS]
    assert table["area"].to_pylist() == areas, "keys of CSV stay text"
    assert table.select(["code", "name"]).to_pylist() == [{"code": row["code"], "name": row["name"]} for row in ROWS]
    assert all(column.num_chunks <= 1 for column in table.columns)
    reader.close()


@every_reader
def test_only_what_is_wanted_is_read(opens: Opens, tmp_path: Path) -> None:
    reader = opens(tmp_path)
    assert reader.read(wanted("code", columns=("area",)), nothing).table.column_names == ["code", "area"]
    assert reader.read(wanted("code", columns=("code", "code")), nothing).table.column_names == ["code"]
    reader.close()


@every_reader
def test_a_column_that_there_is_not_is_named_with_those_there_are(opens: Opens, tmp_path: Path) -> None:
    reader = opens(tmp_path)
    with pytest.raises(ConfigError) as refused:
        reader.read(wanted("code", columns=("aera",)), nothing)
    assert str(refused.value) == (f"{reader.name} has no column 'aera'; did you mean 'area'? It has code, name, area")
    reader.close()


@every_reader
def test_more_than_the_limits_is_refused(opens: Opens, tmp_path: Path) -> None:
    reader = opens(tmp_path)
    with pytest.raises(ConfigError) as refused:
        reader.read(wanted("code", rows_max=1), nothing)
    assert str(refused.value) == (
        f"{reader.name} has more than 1 rows, which cache.rows_max allows; raise that if there is memory for them, or "
        "look up in a smaller reference"
    )
    with pytest.raises(ConfigError) as refused:
        reader.read(wanted("code", bytes_max=20), nothing)
    assert str(refused.value) == (
        f"{reader.name} takes more than 20 B of memory, which cache.bytes_max allows; name fewer columns, look up in a "
        "smaller reference, or raise the limit"
    )
    assert reader.read(wanted("code", rows_max=2), nothing).table.num_rows == 2
    reader.close()


@every_reader
def test_reading_ends_where_the_checkpoint_raises(opens: Opens, tmp_path: Path) -> None:
    def stop() -> None:
        raise KeyboardInterrupt

    reader = opens(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        reader.read(wanted("code"), stop)
    assert reader.read(wanted("code"), nothing).table.num_rows == 2, "it can be read again"
    reader.close()


@every_reader
def test_the_mark_stays_while_nothing_changes(opens: Opens, tmp_path: Path) -> None:
    reader = opens(tmp_path)
    mark = reader.mark()
    assert reader.read(wanted("code"), nothing).mark == mark == reader.mark()
    reader.close()


@pytest.mark.parametrize(
    ("reader", "sentence"),
    [
        (CsvReader("nowhere.csv", delimiter=","), "reference nowhere.csv does not exist; the path is taken from "),
        (ParquetReader("nowhere.parquet"), "reference nowhere.parquet does not exist; the path is taken from "),
        (SqliteReader("nowhere.db", table="t", query=None), "reference nowhere.db (table t) does not exist; the path"),
        (CsvReader("/", delimiter=","), "reference / "),
    ],
)
def test_a_file_that_there_is_not_is_named(reader: ReferenceReader, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        reader.read(wanted("a"), nothing)
    assert str(refused.value).startswith(sentence)


# ---------------------------------------------------------------------------- files


@pytest.mark.parametrize("opens", [csv_reader, parquet_reader])
def test_a_file_that_was_replaced_or_written_has_another_mark(opens: Opens, tmp_path: Path) -> None:
    reader = opens(tmp_path)
    mark = reader.mark()
    (path,) = tmp_path.iterdir()
    content, times = path.read_bytes(), path.stat()
    other = tmp_path / "other"
    other.write_bytes(content)
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.rename(path)
    replaced = reader.mark()
    assert replaced != mark, "even with the same size and time: it is another file"
    path.write_bytes(content + b" ")
    assert reader.mark() != replaced


@pytest.mark.parametrize("opens", [csv_reader, parquet_reader])
def test_a_file_that_changes_while_it_is_read_is_not_taken(opens: Opens, tmp_path: Path) -> None:
    reader = opens(tmp_path)
    (path,) = tmp_path.iterdir()

    def change() -> None:
        path.write_bytes(path.read_bytes() + b"more")

    with pytest.raises(Retryable) as away:
        reader.read(wanted("code"), change)
    assert str(away.value) == (
        f"reference {path} changed while it was read; replace it by renaming a finished file, not by writing into it"
    )


def test_columns_of_csv_get_the_type_that_all_their_values_have(tmp_path: Path) -> None:
    header = "key,whole,part,yes,day,at,zip,mixed,empty,tail,nan,bits"
    rows = [
        "1,1,1.5,true,2020-01-02,2020-01-02 03:04:05,00501,1,,a,nan,0",
        "2,-7,2,false,2020-01-03,2020-01-02T03:04:05.123456,10001,x,,,1.5,1",
    ]
    table = csv_of(tmp_path / "r.csv", "\n".join([header, *rows])).read(wanted("key"), nothing).table
    assert {name: str(kind) for name, kind in zip(table.column_names, table.schema.types, strict=True)} == {
        "key": "string",
        "whole": "int64",
        "part": "double",
        "yes": "bool",
        "day": "date32[day]",
        "at": "timestamp[us]",
        "zip": "string",
        "mixed": "string",
        "empty": "string",
        "tail": "string",
        "nan": "string",
        "bits": "int64",
    }
    assert table["tail"].to_pylist() == ["a", None]
    assert table["day"].to_pylist() == [dt.date(2020, 1, 2), dt.date(2020, 1, 3)]


def test_types_of_csv_do_not_depend_on_where_it_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The value that is no number stands far behind the first block."""
    monkeypatch.setattr("conveyord.storage.lookup.files.BLOCK_BYTES", 1_000)
    text = "key,value\n" + "".join(f"{n},{n}\n" for n in range(20_000)) + "last,x\n"
    limits = {"rows_max": 10**6, "bytes_max": 10**9}
    table = csv_of(tmp_path / "r.csv", text).read(wanted("key", **limits), nothing).table
    assert table.schema.types == [pa.string(), pa.string()]
    assert table.num_rows == 20_001
    assert table["value"][-1].as_py() == "x"


def test_csv_may_be_compressed_quoted_and_delimited_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "r.csv.gz"
    path.write_bytes(gzip.compress(b'code;name\n"A;T";"Au\nstria"\n"";""\n'))
    table = CsvReader(str(path), delimiter=";").read(wanted("code"), nothing).table
    assert table.to_pylist() == [{"code": "A;T", "name": "Au\nstria"}, {"code": "", "name": ""}]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "cannot be read: Empty CSV file"),
        (b"code,code\n1,2\n", "has more than one column 'code'; give each its own name"),
        (b"code,name\n1\n", "cannot be read: CSV parse error: Row #2: Expected 2 columns, got 1"),
        (b"code\n\xff\n", "cannot be read: "),
    ],
)
def test_a_file_that_is_no_csv_says_why(content: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        CsvReader(str(path), delimiter=",").read(wanted("code"), nothing)
    assert str(refused.value).startswith(f"reference {path} {sentence}")


def test_a_csv_of_a_header_only_has_no_rows(tmp_path: Path) -> None:
    assert csv_of(tmp_path / "r.csv", "code,name\n").read(wanted("code"), nothing).table.num_rows == 0


def test_a_file_that_is_no_parquet_says_so(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ConfigError, match="cannot be read: Parquet magic bytes not found"):
        ParquetReader(str(tmp_path / "r.parquet")).read(wanted("code"), nothing)


# ---------------------------------------------------------------------------- SQLite


@pytest.mark.parametrize("journal", ["DELETE", "WAL"])
def test_a_database_that_was_written_has_another_mark(journal: str, tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    reader = sqlite_reader(tmp_path)
    writer = sqlite3.connect(path)
    writer.execute(f"PRAGMA journal_mode = {journal}")
    marks = [reader.mark()]
    for name in ("Deutschland", "Schweiz"):
        writer.execute("UPDATE countries SET name = ?", (name,))
        assert reader.mark() == marks[-1], "not committed yet"
        writer.commit()
        marks.append(reader.mark())
        assert reader.read(wanted("code"), nothing).table["name"].to_pylist() == [name] * 2
    assert len(set(marks)) == 3
    writer.close()
    reader.close()


def test_a_database_that_was_replaced_is_opened_anew(tmp_path: Path) -> None:
    reader = sqlite_reader(tmp_path)
    mark = reader.mark()
    fill(tmp_path / "new.db", [("DE", "Germany", 357_588)])
    (tmp_path / "new.db").rename(tmp_path / "r.db")
    assert reader.mark() != mark
    assert reader.read(wanted("code"), nothing).table["code"].to_pylist() == ["DE"]
    reader.close()


def test_the_result_of_a_query_is_a_reference_too(tmp_path: Path) -> None:
    fill(tmp_path / "r.db", [("AT", "a", 1), ("CH", "b", 2)])
    query = (
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3) SELECT i AS k, i * 2 AS v FROM n"
    )
    reader = SqliteReader(str(tmp_path / "r.db"), table=None, query=query)
    assert reader.read(wanted("k"), nothing).table.to_pylist() == [{"k": 1, "v": 2}, {"k": 2, "v": 4}, {"k": 3, "v": 6}]
    reader.close()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("DELETE FROM countries", "the query does more than read"),
        ("ATTACH '/tmp/other.db' AS o", "the query does more than read"),
        ("PRAGMA query_only = 0", "the query does more than read"),
        ("SELECT load_extension('x')", "not authorized"),
        ("SELECT 1 AS code; DELETE FROM countries", "one statement at a time"),
        ("SELECT * FROM nowhere", "no such table: nowhere"),
        ("SELEC 1", 'near "SELEC": syntax error'),
        ("", "a SELECT"),
    ],
)
def test_a_query_that_is_no_single_select_is_refused(query: str, sentence: str, tmp_path: Path) -> None:
    fill(tmp_path / "r.db", [("AT", "a", 1)])
    reader = SqliteReader(str(tmp_path / "r.db"), table=None, query=query)
    with pytest.raises(ConfigError) as refused:
        reader.read(wanted("code"), nothing)
    assert sentence in str(refused.value)
    reader.close()
    with sqlite3.connect(tmp_path / "r.db") as database:
        assert database.execute("SELECT count(*) FROM countries").fetchone() == (1,)
    database.close()


def test_an_endless_query_ends_with_the_run(tmp_path: Path) -> None:
    fill(tmp_path / "r.db", [])
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS code FROM n"
    reader, looks = SqliteReader(str(tmp_path / "r.db"), table=None, query=query), []

    def stop() -> None:
        looks.append(1)
        if len(looks) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reader.read(wanted("code"), stop)
    reader.close()


def test_an_endless_query_ends_at_its_limit(tmp_path: Path) -> None:
    fill(tmp_path / "r.db", [("AT", "a", 1)])
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS code FROM n"
    reader = SqliteReader(str(tmp_path / "r.db"), table=None, query=query, query_seconds_max=0.0)
    with pytest.raises(ConfigError, match="reference .*r.db: the query takes longer than 0 s; make it smaller"):
        reader.read(wanted("code"), nothing)
    reader.close()


def test_values_of_one_column_must_be_of_one_type(tmp_path: Path) -> None:
    mixed = [("AT", "a", 1)] * 15_000 + [("CH", "b", "two")]
    fill(tmp_path / "r.db", mixed)
    reader = SqliteReader(str(tmp_path / "r.db"), table="countries", query=None)
    with pytest.raises(ConfigError) as refused:
        reader.read(wanted("code", rows_max=10**6, bytes_max=10**9), nothing)
    assert str(refused.value) == (
        f"reference {tmp_path / 'r.db'} (table countries): the values of column 'area' are of different types; give "
        'reference.query a SELECT with CAST("area" AS TEXT) or another type'
    )
    reader.close()


def test_whole_numbers_and_others_make_a_column_of_doubles(tmp_path: Path) -> None:
    fill(tmp_path / "r.db", [("AT", None, 1)] * 15_000 + [("CH", None, 2.5)])
    reader = SqliteReader(str(tmp_path / "r.db"), table="countries", query=None)
    table = reader.read(wanted("code", rows_max=10**6, bytes_max=10**9), nothing).table
    assert [str(kind) for kind in table.schema.types] == ["string", "null", "double"]
    reader.close()


def test_a_locked_database_may_be_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyord.storage.lookup.databases.LOCK_WAIT_SECONDS", 0)
    reader = sqlite_reader(tmp_path)
    writer = sqlite3.connect(tmp_path / "r.db", isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Retryable, match="database is locked"):
        reader.read(wanted("code"), nothing)
    writer.execute("COMMIT")
    assert reader.read(wanted("code"), nothing).table.num_rows == 2
    writer.close()
    reader.close()


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "r.db").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="file is not a database"):
        SqliteReader(str(tmp_path / "r.db"), table="t", query=None).read(wanted("a"), nothing)


def test_names_are_quoted(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "r.db") as database:
        database.execute('CREATE TABLE "a "" b" (k)')
    database.close()
    reader = SqliteReader(str(tmp_path / "r.db"), table='a " b', query=None)
    assert reader.read(wanted("k"), nothing).table.num_rows == 0
    reader.close()


# ---------------------------------------------------------------------------- Iceberg


def test_a_table_changes_with_its_snapshot(tmp_path: Path) -> None:
    reader = iceberg_reader(tmp_path)
    mark = reader.mark()
    open_embedded(tmp_path).load_table("geo.countries").append(TABLE.slice(0, 1))
    assert reader.mark() != mark
    loaded = reader.read(wanted("code"), nothing)
    assert loaded.table.num_rows == 3
    assert loaded.mark == reader.mark()


def test_a_table_without_a_snapshot_has_no_rows(tmp_path: Path) -> None:
    catalog = open_embedded(tmp_path)
    catalog.create_namespace("geo")
    catalog.create_table("geo.empty", TABLE.schema)
    reader = IcebergReader("geo.empty", catalog="lake", data_dir=tmp_path, catalogs={})
    assert reader.read(wanted("code"), nothing).table.num_rows == 0


def test_a_table_that_there_is_not_is_named_with_those_there_are(tmp_path: Path) -> None:
    iceberg_reader(tmp_path)
    reader = IcebergReader("geo.contries", catalog="lake", data_dir=tmp_path, catalogs={})
    with pytest.raises(ConfigError, match="did you mean 'geo.countries'"):
        reader.mark()
    with pytest.raises(ConfigError, match="unknown catalog 'nowhere'"):
        IcebergReader("geo.countries", catalog="nowhere", data_dir=tmp_path, catalogs={}).mark()


def test_a_table_whose_files_are_gone_may_be_read_later(tmp_path: Path) -> None:
    reader = iceberg_reader(tmp_path)
    for file in tmp_path.rglob("*.parquet"):
        file.unlink()
    with pytest.raises(Retryable, match=r"reference geo.countries of the catalog 'lake' cannot be read"):
        reader.read(wanted("code"), nothing)
