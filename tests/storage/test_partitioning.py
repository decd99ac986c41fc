"""Which rows go to which partition, and that look-ups find them there."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo, GreaterThanOrEqual, IsNull, LessThan
from pyiceberg.table import Table

from conveyord.core.errors import BatchError, ConfigError
from conveyord.storage.lake.data_files import DataFileWriter, WriterOptions
from conveyord.storage.lake.partitioning import Partitioner, check_times, partition_spec, timed_columns
from conveyord.storage.lake.schemas import arrow_schema, create_table

COLUMNS = pa.schema(
    [
        ("id", pa.int64()),
        ("at", pa.timestamp("us", "UTC")),
        ("day", pa.date32()),
        ("s", pa.string()),
        ("region", pa.string()),
        ("n", pa.int32()),
        ("d", pa.decimal128(9, 2)),
        ("b", pa.binary()),
        ("f", pa.float64()),
        ("m", pa.struct([("x", pa.int64())])),
        ("a.b", pa.int64()),
        ("l", pa.list_(pa.int64())),
    ]
)


def test_every_form_of_a_partition_expression_is_understood() -> None:
    expressions = [
        "day(at)",
        "bucket(16, id)",
        "truncate(4,s)",
        "region",
        "HOUR( at )",
        "month(at)",
        "year(day)",
    ]
    spec = partition_spec(COLUMNS, [*expressions, "identity(n)", "bucket(8, m.x)", "a.b"])
    assert [(field.name, str(field.transform)) for field in spec.fields] == [
        ("at_day", "day"),
        ("id_bucket_16", "bucket[16]"),
        ("s_trunc_4", "truncate[4]"),
        ("region", "identity"),
        ("at_hour", "hour"),
        ("at_month", "month"),
        ("day_year", "year"),
        ("n", "identity"),
        ("m.x_bucket_8", "bucket[8]"),
        ("a.b", "identity"),
    ]


def test_a_column_that_looks_like_a_call_is_taken_as_a_column() -> None:
    spec = partition_spec(pa.schema([("day(at)", pa.int64())]), ["day(at)"])
    assert str(spec.fields[0].transform) == "identity"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("days(at)", "did you mean 'day'"),
        ("xyz(at)", "known are identity, year"),
        ("day(att)", "did you mean 'at'"),
        ("reigon", "did you mean 'region'"),
        ("bucket(id)", "whole number from 1"),
        ("bucket(0, id)", "whole number from 1"),
        ("bucket(99999999999, id)", "whole number from 1"),
        ("truncate(-1, s)", "whole number from 1"),
        ("bucket(16, f)", "does not work on 'f' of type double"),
        ("day(s)", "does not work on 's' of type string"),
        ("hour(day)", "does not work on 'day' of type date"),
        ("f", "floating|equality"),
        ("m", "does not work on 'm'"),
        ("l.element", "does not work on 'l.element'"),
        ("", "no column ''"),
    ],
)
def test_an_expression_that_cannot_work_is_refused_with_what_would(expression: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        partition_spec(COLUMNS, [expression])


def test_names_of_partitions_do_not_clash() -> None:
    with pytest.raises(ConfigError, match="twice"):
        partition_spec(COLUMNS, ["day(at)", "day(at)"])
    with pytest.raises(ConfigError, match="is a column already"):
        partition_spec(pa.schema([("at", pa.date32()), ("at_day", pa.string())]), ["day(at)"])


# ------------------------------------------------------------------------------ rows and look-ups

TEXTS = st.text(max_size=6) | st.sampled_from(["", "é", "日本語日本", "null", "a/b", "a%2Fb", "..", "x" * 400])
INTEGERS = st.integers(-(2**31), 2**31 - 1) | st.integers(-20, 20)
SECONDS = 2**32 - 1  # from 1833 to 2106
TIMES = st.integers(-SECONDS, SECONDS).map(lambda s: dt.datetime.fromtimestamp(s + s % 7 / 7, dt.UTC))
DATES = st.dates(dt.date(1900, 1, 1), dt.date(2100, 1, 1))
DECIMALS = st.integers(-(10**9) + 50, 10**9 - 1).map(lambda number: Decimal(number).scaleb(-2))

CASES: dict[str, tuple[str, pa.DataType, st.SearchStrategy[Any]]] = {
    "bucket(4, k) text": ("bucket(4, k)", pa.string(), TEXTS),
    "bucket(4, k) int": ("bucket(4, k)", pa.int32(), INTEGERS),
    "bucket(4, k) long": ("bucket(4, k)", pa.int64(), INTEGERS),
    "bucket(4, k) time": ("bucket(4, k)", pa.timestamp("us", "UTC"), TIMES),
    "bucket(4, k) decimal": ("bucket(4, k)", pa.decimal128(9, 2), DECIMALS),
    "bucket(4, k) binary": ("bucket(4, k)", pa.binary(), st.binary(max_size=4)),
    "truncate(2, k) text": ("truncate(2, k)", pa.string(), TEXTS),
    "truncate(10, k) long": ("truncate(10, k)", pa.int64(), INTEGERS),
    "truncate(50, k) decimal": ("truncate(50, k)", pa.decimal128(9, 2), DECIMALS),
    "k text": ("k", pa.string(), TEXTS),
    "k long": ("k", pa.int64(), INTEGERS),
    "k boolean": ("k", pa.bool_(), st.booleans()),
    "k date": ("k", pa.date32(), DATES),
    "k time": ("k", pa.timestamp("us", "UTC"), TIMES),
    "k decimal": ("k", pa.decimal128(9, 2), DECIMALS),
    "year(k) date": ("year(k)", pa.date32(), DATES),
    "month(k)": ("month(k)", pa.timestamp("us", "UTC"), TIMES),
    "day(k)": ("day(k)", pa.timestamp("us", "UTC"), TIMES),
    "hour(k)": ("hour(k)", pa.timestamp("us", "UTC"), TIMES),
}
ORDERED = {"truncate", "k", "year", "month", "day", "hour"}


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    folder: Path = tmp_path_factory.mktemp("warehouse")
    catalog = SqlCatalog("test", uri=f"sqlite:///{folder}/catalog.db", warehouse=str(folder))
    made = {}
    for number, (case, (expression, kind, _)) in enumerate(CASES.items()):
        schema = pa.schema([("row", pa.int64()), ("k", kind)])
        made[case] = create_table(catalog, f"n.t{number}", schema, [expression], {})
    return made


def load(table: Table, rows: pa.RecordBatch) -> Table:
    """The table with these rows and no others, committed by pyiceberg."""
    writer = DataFileWriter(table, WriterOptions(), lambda _: None)
    writer.write(rows)
    with table.transaction() as transaction:
        transaction.delete("row >= 0")
        with transaction.update_snapshot().fast_append() as snapshot:
            for file in writer.finish():
                snapshot.append_data_file(file)
    return table


def found(table: Table, condition: Any) -> list[int]:
    return sorted(table.scan(row_filter=condition, selected_fields=("row",)).to_arrow()["row"].to_pylist())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:Delete operation did not match any records")
def test_a_filtered_scan_finds_exactly_the_rows_that_were_written(tables: dict[str, Table], case: str) -> None:
    expression, kind, values = CASES[case]
    table = tables[case]

    @settings(max_examples=4, suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(st.none() | values, min_size=1, max_size=12))
    def holds(keys: list[Any]) -> None:
        load(table, pa.record_batch({"row": range(len(keys)), "k": pa.array(keys, kind)}, arrow_schema(table)))
        for probe in set(keys) - {None}:
            literal = probe.isoformat() if isinstance(probe, dt.date) else probe
            expected = [row for row, key in enumerate(keys) if key == probe]
            assert found(table, EqualTo("k", literal)) == expected
            if expression.split("(")[0] in ORDERED and not isinstance(probe, bool | str):
                above = [row for row, key in enumerate(keys) if key is not None and key >= probe]
                assert found(table, GreaterThanOrEqual("k", literal)) == above
                below = [row for row, key in enumerate(keys) if key is not None and key < probe]
                assert found(table, LessThan("k", literal)) == below
        assert found(table, IsNull("k")) == [row for row, key in enumerate(keys) if key is None]

    holds()


@given(
    regions=st.lists(st.sampled_from(["a", "b", None]), min_size=1, max_size=60),
    data=st.data(),
)
def test_splitting_keeps_every_row_once_and_in_order(regions: list[str | None], data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(-9, 9), min_size=len(regions), max_size=len(regions)))
    nested = pa.array([{"n": number} for number in numbers])
    batch = pa.record_batch({"row": range(len(regions)), "region": pa.array(regions, pa.string()), "m": nested})
    parts = list(partitioner(batch.schema, ["region", "truncate(5, m.n)"]).split(batch))
    keys = [(record[0], record[1]) for record, _ in parts]
    assert len(set(keys)) == len(keys)
    assert sorted(row for _, part in parts for row in part["row"].to_pylist()) == list(range(len(regions)))
    for record, part in parts:
        rows = part["row"].to_pylist()
        assert rows == sorted(rows)
        assert {(regions[row], numbers[row] // 5 * 5) for row in rows} == {(record[0], record[1])}


def partitioner(schema: pa.Schema, expressions: list[str]) -> Partitioner:
    """A partitioner without a catalog: of a table it needs the schema and the spec alone."""
    from conveyord.storage.lake.schemas import iceberg_schema

    class Described:
        def schema(self) -> Any:
            return iceberg_schema(schema)

        def spec(self) -> Any:
            return partition_spec(schema, expressions)

    return Partitioner(Described())  # type: ignore[arg-type]


def test_rows_that_belong_together_are_not_copied() -> None:
    batch = pa.record_batch({"n": pa.array([3, 4, 2])})
    [(record, part)] = partitioner(batch.schema, ["truncate(10, n)"]).split(batch)
    assert part is batch
    assert record[0] == 0


def test_a_small_part_does_not_keep_the_batch_in_memory() -> None:
    batch = pa.record_batch({"n": pa.array([0] * 10_000 + [1])})
    parts = {record[0]: part for record, part in partitioner(batch.schema, ["n"]).split(batch)}
    assert parts[1].get_total_buffer_size() < 1000


def test_a_null_struct_puts_its_rows_into_the_null_partition() -> None:
    batch = pa.record_batch({"m": pa.array([{"n": 1}, None, {"n": None}], pa.struct([("n", pa.int64())]))})
    parts = {record[0]: part.num_rows for record, part in partitioner(batch.schema, ["bucket(4, m.n)"]).split(batch)}
    assert parts[None] == 2


FAR_DAYS = [-719_163, 2_932_897, 20_000_000]


@pytest.mark.parametrize("kind", [pa.timestamp("us"), pa.timestamp("us", "UTC"), pa.date32()])
@pytest.mark.parametrize("expression", ["at", "year(at)", "month(at)", "Day ( at )", "hour(at)", "s.at", "day(s.at)"])
def test_a_time_whose_year_no_partition_can_tell_is_the_fault_of_its_row(kind: pa.DataType, expression: str) -> None:
    if pa.types.is_date(kind) and "hour" in expression:
        return
    for day, year in zip(FAR_DAYS, [0, 10_000, 56_728], strict=True):
        days = pa.array([0, -719_162, 2_932_896, None, day], pa.int32()).cast(pa.date32())
        times = days.cast(pa.timestamp("us")).cast(kind)
        batch = pa.record_batch({"at": times, "s": pa.StructArray.from_arrays([times], names=["at"])})
        columns = timed_columns([expression])
        check_times(batch.slice(0, 4), columns)
        assert len(list(partitioner(batch.schema, [expression]).split(batch.slice(0, 4)))) == 4
        message = f"in the year {year}, and partitions can tell the years 0001 to 9999 only"
        for check in (
            lambda batch=batch, columns=columns: check_times(batch, columns),
            lambda batch=batch: list(partitioner(batch.schema, [expression]).split(batch)),
        ):
            with pytest.raises(BatchError, match=message):
                check()


def test_buckets_take_times_of_any_year() -> None:
    batch = pa.record_batch({"at": pa.array([2**61, -(2**61)], pa.timestamp("us"))})
    check_times(batch, timed_columns(["bucket(4, at)"]))
    assert sum(part.num_rows for _, part in partitioner(batch.schema, ["bucket(4, at)"]).split(batch)) == 2


def test_an_empty_batch_has_no_partitions() -> None:
    batch = pa.record_batch({"n": pa.array([], pa.int64())})
    assert list(partitioner(batch.schema, ["n"]).split(batch)) == []
    assert list(partitioner(batch.schema, []).split(batch)) == []


def test_a_decimal_that_truncates_beyond_its_digits_is_refused(tables: dict[str, Table]) -> None:
    table = tables["truncate(50, k) decimal"]
    keys = pa.array([Decimal("-9999999.51")], pa.decimal128(9, 2))
    with pytest.raises(BatchError, match=r"'k' truncates to -10000000.00, which has more than the 9 digits"):
        list(Partitioner(table).split(pa.record_batch({"row": [1], "k": keys}, arrow_schema(table))))
