"""Data files: what is in them, what a manifest says about them, and when they are begun, closed and deleted."""

from __future__ import annotations

import datetime as dt
import errno
import math
import os
import uuid
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.conversions import from_bytes
from pyiceberg.expressions import EqualTo
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform

from conveyord.storage.lake.data_files import DataFileWriter, WriterOptions, rewrite
from conveyord.storage.lake.schemas import create_table, evolve

NUMBERS = pa.schema([("id", pa.int64()), ("k", pa.int64()), ("text", pa.string())])


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[SqlCatalog]:
    catalog = SqlCatalog("test", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=str(tmp_path))
    yield catalog
    catalog.close()


def writer_for(table: Table, **options: Any) -> DataFileWriter:
    return DataFileWriter(table, WriterOptions(**options), lambda _: None)


def write(table: Table, batch: pa.RecordBatch, **options: Any) -> list[DataFile]:
    writer = writer_for(table, **options)
    writer.write(batch.cast(writer.schema))
    return writer.finish()


def commit(table: Table, files: list[DataFile]) -> Table:
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as snapshot:
        for file in files:
            snapshot.append_data_file(file)
    return table


def numbers(count: int, *, partitions: int = 1, first: int = 0) -> pa.RecordBatch:
    ids = range(first, first + count)
    return pa.record_batch(
        {"id": ids, "k": [i % partitions for i in ids], "text": [str(uuid.UUID(int=i * 7919**5)) for i in ids]},
        NUMBERS,
    )


def files_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*.parquet"))


# ------------------------------------------------------------------------------ contents

UTC = dt.UTC
EPOCH = dt.datetime.fromtimestamp(0, UTC).replace(tzinfo=None)
DEEP = pa.list_(pa.struct([("l", pa.list_(pa.string()))]))
EVERY_TYPE: list[tuple[str, pa.DataType, Any, Any]] = [
    ("boolean", pa.bool_(), True, False),
    ("int", pa.int32(), -(2**31), 2**31 - 1),
    ("long", pa.int64(), -(2**63), 2**63 - 1),
    ("float", pa.float32(), -1.5, 3.25),
    ("double", pa.float64(), -0.1, 1e300),
    ("decimal small", pa.decimal128(9, 2), Decimal("-9999999.99"), Decimal("0.01")),
    ("decimal middle", pa.decimal128(18, 6), Decimal("-1.000001"), Decimal("123456789012.5")),
    ("decimal large", pa.decimal128(38, 10), Decimal("-1e27"), Decimal("1e27")),
    ("date", pa.date32(), dt.date(1, 1, 1), dt.date(9999, 12, 31)),
    ("time", pa.time64("us"), dt.time(0, 0), dt.time(23, 59, 59, 999999)),
    ("timestamp", pa.timestamp("us"), EPOCH - dt.timedelta(days=9**5), EPOCH + dt.timedelta(microseconds=9**18)),
    (
        "zoned",
        pa.timestamp("us", "UTC"),
        dt.datetime(1969, 12, 31, 23, tzinfo=UTC),
        dt.datetime(2030, 1, 1, tzinfo=UTC),
    ),
    ("string", pa.string(), "", "日本語 Größe 😀"),
    ("binary", pa.binary(), b"", b"\x00\xff"),
    ("fixed", pa.binary(3), b"abc", b"\x00\x01\x02"),
    ("list", pa.list_(pa.int64()), [], [1, None, 3]),
    ("struct", pa.struct([("a b", pa.string()), ("n", pa.int64())]), {"a b": "x", "n": None}, {"a b": None, "n": 1}),
    ("deep", DEEP, [{"l": ["x"]}, None], [{"l": None}]),
]


def every_type_batch() -> pa.RecordBatch:
    columns = {name: pa.array([low, None, high], kind) for name, kind, low, high in EVERY_TYPE}
    return pa.record_batch({"row": pa.array([0, 1, 2])} | columns)


@pytest.mark.filterwarnings("ignore::polars.exceptions.PerformanceWarning")
def test_every_type_is_read_back_by_pyiceberg_polars_and_duckdb(catalog: SqlCatalog) -> None:
    batch = every_type_batch()
    table = create_table(catalog, "n.t", batch.schema, [], {})
    files = write(table, batch)
    commit(table, files)
    expected = batch.to_pylist()
    # pyiceberg reads a null list of structs as an empty one; the others below see that it is null.
    seen_by_pyiceberg = [row | {"deep": row["deep"] or []} for row in expected]
    assert table.scan().to_arrow().sort_by("row").to_pylist() == seen_by_pyiceberg
    frame = pl.scan_iceberg(table.metadata_location).collect().sort("row")
    assert frame.to_arrow().cast(batch.schema).to_pylist() == expected
    with duckdb.connect() as connection:
        read = connection.from_parquet(files[0].file_path).to_arrow_table()
    plain = [name for name, *_ in EVERY_TYPE if name not in {"struct", "deep", "zoned"}]
    stored = {name: name.replace(" ", "_x20") for name in plain}
    for name in plain:
        kind = batch.schema.field(name).type
        assert read[stored[name]].cast(kind).to_pylist() == batch[name].to_pylist(), name


def test_maps_and_uuids_are_read_back(catalog: SqlCatalog) -> None:
    mapped = pa.map_(pa.string(), pa.struct([("n", pa.int64())]))
    schema = pa.schema([("m", mapped), ("u", pa.uuid())])
    values = [uuid.UUID(int=5), None]
    batch = pa.record_batch(
        [pa.array([[("a", {"n": 1}), ("b", None)], None], mapped), pa.array(values, pa.uuid())], schema=schema
    )
    table = create_table(catalog, "n.t", schema, ["u"], {})
    rows = commit(table, write(table, batch)).scan().to_arrow()
    assert rows.num_rows == 2
    assert sorted(rows["m"].to_pylist(), key=str) == [[("a", {"n": 1}), ("b", None)], []]  # as above: null
    assert sorted(map(str, rows["u"].to_pylist())) == sorted(map(str, values))


def test_field_ids_are_on_every_level_and_files_written_before_a_change_stay_readable(catalog: SqlCatalog) -> None:
    schema = pa.schema([("s", pa.struct([("l", pa.list_(pa.int32()))])), ("m", pa.map_(pa.string(), pa.int32()))])
    table = create_table(catalog, "n.t", schema, [], {})
    row = {"s": {"l": [1]}, "m": [("a", 1)]}
    before = write(table, pa.RecordBatch.from_pylist([row], schema))
    described = str(pq.ParquetFile(before[0].file_path).schema)
    assert all(f"field_id={number} " in described for number in table.schema().field_ids)
    wider = pa.struct([("l", pa.list_(pa.int64())), ("new", pa.string())])
    evolve(table, pa.schema([("s", wider)]))
    after = write(
        table, pa.RecordBatch.from_pylist([{"s": {"l": [2**40], "new": "x"}, "m": []}], writer_for(table).schema)
    )
    rows = commit(table, before + after).scan().to_arrow().to_pylist()
    assert {"s": {"l": [1], "new": None}, "m": [("a", 1)]} in rows
    assert {"s": {"l": [2**40], "new": "x"}, "m": []} in rows


def test_rows_keep_their_order_within_a_partition(catalog: SqlCatalog) -> None:
    table = create_table(catalog, "n.t", NUMBERS, ["k"], {})
    writer = writer_for(table, row_group_rows_max=100)
    for first in range(0, 1000, 250):
        writer.write(numbers(250, partitions=3, first=first))
    for file in writer.finish():
        ids = pq.read_table(file.file_path, partitioning=None)["id"].to_pylist()
        assert ids == [i for i in range(1000) if i % 3 == file.partition[0]]


def test_a_dictionary_is_built_where_values_repeat_and_nowhere_else(catalog: SqlCatalog) -> None:
    inner = pa.struct([("country", pa.string()), ("x", pa.float64())])
    schema = pa.schema(
        [("id", pa.int64()), ("few", pa.string()), ("many", pa.string()), ("in", inner), ("ok", pa.bool_())]
    )
    rows = [
        {"id": i, "few": "ab"[i % 2], "many": str(uuid.UUID(int=i)), "in": {"country": "DE", "x": i / 7}, "ok": True}
        for i in range(5000)
    ]
    table = create_table(catalog, "n.t", schema, [], {})
    [file] = write(table, pa.RecordBatch.from_pylist(rows, schema))
    group = pq.read_metadata(file.file_path).row_group(0)
    columns = [group.column(position) for position in range(group.num_columns)]
    assert {c.path_in_schema for c in columns if c.has_dictionary_page} == {"few", "in.country"}


# ------------------------------------------------------------------------------ statistics

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
STATISTICS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.float64(), FLOATS),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=40) | st.sampled_from(["x" * 5000, "a" * 15 + "\ud7fftail", "\U0010ffff" * 20])),
    (pa.binary(), st.binary(max_size=40) | st.just(b"\xff" * 20)),
    (pa.decimal128(9, 2), st.integers(-(10**9) + 1, 10**9 - 1).map(lambda n: Decimal(n).scaleb(-2))),
    (pa.decimal128(30, 2), st.integers(-(10**29), 10**29).map(lambda n: Decimal(n).scaleb(-2))),
    (pa.date32(), st.dates()),
    (pa.timestamp("us"), st.integers(-(2**62), 2**62)),
    (pa.timestamp("us", "UTC"), st.datetimes(timezones=st.just(UTC))),
    (pa.time64("us"), st.times()),
]


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_bounds_and_counts_equal_a_recomputation(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Exact bounds for numbers and times; for texts, bounds that hold; none at all rather than a wrong one."""
    folder = tmp_path_factory.mktemp("w")
    catalog = SqlCatalog("test", uri=f"sqlite:///{folder}/catalog.db", warehouse=str(folder))
    kinds = [kind for kind, _ in STATISTICS]
    size = data.draw(st.integers(1, 8))
    columns = [
        pa.array(data.draw(st.lists(st.none() | values, min_size=size, max_size=size)), kind)
        for kind, values in STATISTICS
    ]
    batch = pa.record_batch(columns, names=[f"c{position}" for position in range(len(kinds))])
    table = create_table(catalog, "n.t", batch.schema, [], {})
    [file] = write(table, batch, row_group_rows_max=3)
    catalog.close()
    assert file.record_count == size
    assert file.file_size_in_bytes == Path(file.file_path).stat().st_size
    assert len(file.split_offsets) == math.ceil(size / 3)
    for number, (column, field) in enumerate(zip(columns, table.schema().fields, strict=True), 1):
        assert file.value_counts[number] == size
        assert file.null_value_counts[number] == column.null_count
        lower, upper = file.lower_bounds.get(number), file.upper_bounds.get(number)
        bounds = [None if raw is None else from_bytes(field.field_type, raw) for raw in (lower, upper)]
        check_bounds(column, *bounds)


def check_bounds(column: pa.Array, lower: Any, upper: Any) -> None:
    kind = column.type
    if pa.types.is_temporal(kind):
        column = column.cast(pa.int32() if pa.types.is_date(kind) else pa.int64())
    values = [value for value in column.to_pylist() if value is not None]
    values = [value for value in values if not (isinstance(value, float) and math.isnan(value))]
    if not values:
        assert lower is None
        assert upper is None
    elif isinstance(values[0], str | bytes):
        assert lower is None or lower <= min(values)
        assert upper is None or upper >= max(values)
        assert max(map(len, values)) > 16 or upper is not None
    elif lower is not None:
        assert (lower, upper) == (min(values), max(values))
    else:
        assert upper is None
        assert pa.types.is_timestamp(kind) or pa.types.is_floating(kind)


def test_a_value_too_long_for_parquet_statistics_leaves_the_column_without_bounds(catalog: SqlCatalog) -> None:
    table = create_table(catalog, "n.t", pa.schema([("s", pa.string())]), [], {})
    batch = pa.record_batch({"s": ["m", "z" * 10_000, "a"]})
    files = write(table, batch, row_group_rows_max=1)
    assert 1 not in files[0].upper_bounds
    assert commit(table, files).scan(row_filter=EqualTo("s", "z" * 10_000)).to_arrow().num_rows == 1


def test_metrics_settings_of_the_table_are_kept(catalog: SqlCatalog) -> None:
    properties = {"write.metadata.metrics.default": "none", "write.metadata.metrics.column.id": "counts"}
    table = create_table(catalog, "n.t", NUMBERS, [], properties)
    [file] = write(table, numbers(3))
    assert (file.value_counts, file.lower_bounds) == ({1: 3}, {})


# ------------------------------------------------------------------------------ files


def test_a_new_file_begins_when_the_bytes_written_pass_the_target(catalog: SqlCatalog) -> None:
    table = create_table(catalog, "n.t", NUMBERS, [], {})
    writer = writer_for(table, target_file_bytes=30_000, row_group_rows_max=500)
    for first in range(0, 10_000, 500):
        writer.write(numbers(500, first=first))
    assert (writer.rows, writer.buffered_bytes) == (10_000, 0)
    assert writer.bytes_written > 100_000
    files = writer.finish()
    assert len(files) > 2
    assert all(30_000 <= file.file_size_in_bytes < 45_000 for file in files[:-1])
    assert [file.file_path for file in files] == sorted(file.file_path for file in files)
    assert commit(table, files).scan().to_arrow()["id"].to_pylist() == list(range(10_000))


def test_a_file_is_announced_before_it_exists_and_named_after_its_partition(catalog: SqlCatalog) -> None:
    schema = pa.schema([("region", pa.string())])
    table = create_table(catalog, "n.t", schema, ["region"], {})
    announced = []

    def on_open(path: str) -> None:
        assert not Path(path).exists()
        announced.append(path)

    writer = DataFileWriter(table, WriterOptions(name_prefix="p1"), on_open)
    regions = ["a/b", None, "é ü", "..", "%2F", "", "x" * 300, "x" * 300 + "y"]
    writer.write(pa.record_batch({"region": regions}, schema))
    files = writer.finish()
    assert [file.file_path for file in files] == announced
    assert len(announced) == len(regions)
    folders = [Path(path).relative_to(f"{table.location()}/data").parent.name for path in announced]
    assert folders[:3] == ["region=a~2Fb", "region=null", "region=~C3~A9~20~C3~BC"]
    assert all(len(folder) < 255 for folder in folders)
    assert all(Path(path).name.startswith(f"p1-{number:05d}-") for number, path in enumerate(announced, 1))
    rows = commit(table, files).scan().to_arrow()["region"].to_pylist()
    assert sorted(map(str, rows)) == sorted(map(str, regions))


def test_the_writer_can_be_used_again_after_finish_and_makes_no_empty_files(
    catalog: SqlCatalog, tmp_path: Path
) -> None:
    table = create_table(catalog, "n.t", NUMBERS, [], {})
    writer = writer_for(table)
    assert writer.finish() == []
    writer.write(numbers(0))
    assert writer.finish() == []
    assert files_below(tmp_path) == []
    for round_number in range(2):
        writer.write(numbers(5, first=round_number * 5))
        assert writer.rows == 5
        commit(table, writer.finish())
        assert (writer.rows, writer.bytes_written, writer.buffered_bytes) == (0, 0, 0)
    assert sorted(table.scan().to_arrow()["id"].to_pylist()) == list(range(10))


def test_abort_deletes_the_files_of_this_round_and_no_others(catalog: SqlCatalog, tmp_path: Path) -> None:
    table = create_table(catalog, "n.t", NUMBERS, ["k"], {})
    writer = writer_for(table, target_file_bytes=1000, row_group_rows_max=50)
    writer.write(numbers(200, partitions=3))
    kept = sorted(file.file_path for file in writer.finish())
    writer.write(numbers(1000, partitions=7))
    assert len(files_below(tmp_path)) > len(kept)
    writer.abort()
    assert files_below(tmp_path) == kept
    writer.abort()
    assert (writer.rows, writer.bytes_written, writer.buffered_bytes) == (0, 0, 0)
    writer.write(numbers(10))
    assert sum(file.record_count for file in writer.finish()) == 10


class FullDiskIO(PyArrowFileIO):
    """Has room for `room` bytes, then is full. Closing a file that could not be written fails as well."""

    room = 0

    def new_output(self, location: str) -> Any:
        output, disk = super().new_output(location), self

        class Stream:
            def __init__(self) -> None:
                self.inner = output.create()
                self.closed = False

            def write(self, data: bytes) -> int:
                if len(data) > disk.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                disk.room -= len(data)
                return self.inner.write(data)

            def tell(self) -> int:
                return self.inner.tell()

            def flush(self) -> None:
                self.inner.flush()

            def close(self) -> None:
                self.inner.close()
                self.closed = True

        class Output:
            def create(self) -> Stream:
                return Stream()

        return Output()


@pytest.mark.parametrize("room", [0, 3, 4, 2_000, 5_000, 9_000, 20_000, 40_000])
def test_a_full_disk_comes_through_as_it_is_and_abort_still_cleans_up(
    catalog: SqlCatalog, tmp_path: Path, room: int
) -> None:
    table = create_table(catalog, "n.t", NUMBERS, ["k"], {})
    table.io = FullDiskIO()
    table.io.room = room
    writer = writer_for(table, row_group_rows_max=100)

    def fill() -> None:
        for first in range(0, 2000, 200):
            writer.write(numbers(200, partitions=3, first=first))
        writer.finish()

    with pytest.raises(OSError, match="No space left") as caught:
        fill()
    assert caught.value.errno == errno.ENOSPC
    writer.abort()
    assert files_below(tmp_path) == []


def test_memory_and_open_files_stay_within_their_limits_with_500_partitions(catalog: SqlCatalog) -> None:
    table = create_table(catalog, "n.t", NUMBERS, ["k"], {})
    budget = 400_000
    stream_buffer = 1024 * 1024 + 4096  # pyarrow's own, per open file
    writer = writer_for(table, buffer_bytes_max=budget, open_files_max=16)
    before = pa.total_allocated_bytes()
    for first in range(0, 20_000, 4000):
        writer.write(numbers(4000, partitions=500, first=first))
        assert writer.buffered_bytes <= budget
        allocated = pa.total_allocated_bytes() - before - 16 * stream_buffer
        assert allocated < 4 * budget
        open_files = [entry.readlink() for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        assert sum(path.suffix == ".parquet" for path in open_files) <= 16
    files = writer.finish()
    assert pc.sum(pa.array([file.record_count for file in files])).as_py() == 20_000
    assert {file.partition[0] for file in files} == set(range(500))
    commit(table, files)
    assert sorted(table.scan().to_arrow()["id"].to_pylist()) == list(range(20_000))


def test_of_many_partitions_the_largest_is_written_first(catalog: SqlCatalog, tmp_path: Path) -> None:
    table = create_table(catalog, "n.t", NUMBERS, ["k"], {})
    writer = writer_for(table, buffer_bytes_max=20_000)
    batch = numbers(500)
    writer.write(batch.set_column(1, "k", pa.array([0] * 480 + list(range(1, 21)))))
    assert [Path(path).parent.name for path in files_below(tmp_path)] == ["k=0"]


# ------------------------------------------------------------------------------ re-partitioned tables


def points_found(table: Table) -> int:
    return sum(table.scan(row_filter=EqualTo("k", key)).to_arrow()["k"].to_pylist() == [key] for key in range(100))


def repartitioned(catalog: SqlCatalog) -> tuple[Table, list[DataFile]]:
    """A table whose partitioning was changed after files for it were written."""
    schema = pa.schema([("k", pa.int64()), ("text", pa.string())])
    table = create_table(catalog, "n.t", schema, ["bucket(4, k)"], {})
    files = write(table, pa.record_batch({"k": range(100), "text": [str(i) for i in range(100)]}, schema))
    theirs = catalog.load_table("n.t")
    with theirs.update_spec() as update:
        update.remove_field("k_bucket_4")
        update.add_field("k", BucketTransform(64), "k_bucket_64")
    return table.refresh(), files


def test_files_of_a_former_partitioning_must_not_be_committed_as_they_are(catalog: SqlCatalog) -> None:
    """Pins the library's trap, which `rewrite` exists for: everything is there, look-ups miss it."""
    table, files = repartitioned(catalog)
    commit(table, files)
    assert table.scan().to_arrow().num_rows == 100
    assert points_found(table) < 20


def test_rewritten_files_are_found_by_every_look_up(catalog: SqlCatalog) -> None:
    table, files = repartitioned(catalog)
    evolve(table, pa.schema([("added", pa.int64())]))
    announced: list[str] = []
    rewritten = rewrite(files, table, WriterOptions(), announced.append)
    assert {file.spec_id for file in rewritten} == {table.spec().spec_id}
    assert [file.file_path for file in rewritten] == announced
    assert all(Path(file.file_path).exists() for file in files)
    commit(table, rewritten)
    assert points_found(table) == 100
    assert table.scan().to_arrow().sort_by("k").to_pylist() == [
        {"k": i, "text": str(i), "added": None} for i in range(100)
    ]


def test_a_rewrite_that_fails_leaves_no_new_file(catalog: SqlCatalog, tmp_path: Path) -> None:
    table, files = repartitioned(catalog)
    Path(files[-1].file_path).unlink()
    with pytest.raises(FileNotFoundError):
        rewrite(files, table, WriterOptions(row_group_rows_max=1), lambda _: None)
    assert files_below(tmp_path) == sorted(file.file_path for file in files[:-1])


def test_names_with_special_characters_are_stored_escaped_at_every_depth(catalog: SqlCatalog) -> None:
    kind = pa.list_(pa.struct([("a b", pa.int64())]))
    table = create_table(catalog, "n.t", pa.schema([("x.y", kind)]), [], {})
    [file] = write(table, pa.record_batch({"x.y": pa.array([[{"a b": 1}], None], kind)}))
    assert pq.read_table(file.file_path).to_pylist() == [{"x_x2Ey": [{"a_x20b": 1}]}, {"x_x2Ey": None}]
    assert commit(table, [file]).scan().to_arrow().to_pylist()[0] == {"x.y": [{"a b": 1}]}
