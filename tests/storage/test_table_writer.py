"""Somebody else changes the table between writing and committing: rows land by its present spec and schema."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.types import LongType, StringType

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.fileio import local_path
from conveyord.storage.lake.ledger import Ledger
from conveyord.storage.lake.table_writer import TableWriter, TableWriterOptions
from tests.storage.duckdb_reader import duckdb_rows, partitions_are_right

NAME = "ns.t"
START = datetime(2024, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("small", pa.int32()),
        ("at", pa.timestamp("us", "UTC")),
        ("o", pa.struct([("x", pa.int64()), ("y", pa.string())])),
        ("items", pa.list_(pa.struct([("n", pa.int32())]))),
    ]
)

Row = dict[str, Any]


def row(number: int) -> Row:
    return {
        "id": number,
        "small": number % 7,
        "at": START + timedelta(hours=number),
        "o": {"x": number * 2, "y": f"t{number % 3}"},
        "items": [{"n": number}, {"n": None}] if number % 2 else None,
    }


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[TableWriter]:
    with closing(new_writer(tmp_path, partition_by=("day(at)",))) as made:
        made.open()
        made.shape(SCHEMA)
        yield made


def new_writer(data_dir: Path, *, partition_by: tuple[str, ...]) -> TableWriter:
    options = TableWriterOptions(
        identifier=NAME,
        pipeline="ns/p",
        partition_by=partition_by,
        adopt=False,
        adopt_from=None,
        target_file_bytes=1024 * 1024,
    )
    return TableWriter(open_embedded(data_dir), Ledger(data_dir), options)


def write(writer: TableWriter, numbers: range) -> None:
    assert writer.schema is not None
    writer.write(pa.RecordBatch.from_pylist([row(number) for number in numbers], schema=writer.schema))


def commit(writer: TableWriter, numbers: range) -> None:
    span = Span(Partition("source", "file"), numbers.start, numbers.stop)
    writer.commit([span], Tally(read=len(numbers)), {})


def theirs(data_dir: Path) -> Table:
    """The table as another client sees it."""
    return open_embedded(data_dir).load_table(NAME)


def by_id(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda one: one["id"])


# ------------------------------------------------------------------------------ what others do


def repartition(table: Table) -> None:
    with table.update_spec() as update:
        update.remove_field("at_day")
        update.add_field("id", BucketTransform(4), "id_bucket")


def add_partition(table: Table) -> None:
    with table.update_spec() as update:
        update.add_field("small", IdentityTransform(), "small")


def drop_partitions(table: Table) -> None:
    with table.update_spec() as update:
        update.remove_field("at_day")


def rename(table: Table) -> None:
    with table.update_schema() as update:
        update.rename_column("small", "tiny")
        update.rename_column("at", "happened")
        update.rename_column("o.x", "o_x")


def drop(table: Table) -> None:
    with table.update_schema(allow_incompatible_changes=True) as update:
        update.delete_column("small")
        update.delete_column("o.y")


def drop_and_add_again(table: Table) -> None:
    drop(table)
    with table.update_schema() as update:
        update.add_column("small", StringType())


def add(table: Table) -> None:
    with table.update_schema() as update:
        update.add_column("extra", StringType())
        update.add_column(("o", "z"), LongType())
        update.add_column(("items", "m"), LongType())


def widen(table: Table) -> None:
    with table.update_schema() as update:
        update.update_column("small", LongType())
        update.update_column(("items", "n"), LongType())


def reorder(table: Table) -> None:
    with table.update_schema() as update:
        update.move_first("o")


def everything(table: Table) -> None:
    for change in (repartition, rename, add):
        change(table)
        table.refresh()


def as_dropped(one: Row) -> Row:
    return {**{key: value for key, value in one.items() if key != "small"}, "o": {"x": one["o"]["x"]}}


def as_renamed(one: Row) -> Row:
    rest = {key: value for key, value in one.items() if key not in ("small", "at")}
    return {**rest, "tiny": one["small"], "happened": one["at"], "o": {"o_x": one["o"]["x"], "y": one["o"]["y"]}}


def as_added(one: Row) -> Row:
    items = one["items"] and [{**item, "m": None} for item in one["items"]]
    return {**one, "extra": None, "o": {**one["o"], "z": None}, "items": items}


CHANGES: list[tuple[Callable[[Table], None], Callable[[Row], Row]]] = [
    (repartition, lambda one: one),
    (add_partition, lambda one: one),
    (drop_partitions, lambda one: one),
    (rename, as_renamed),
    (drop, as_dropped),
    (drop_and_add_again, lambda one: {**as_dropped(one), "small": None}),
    (add, as_added),
    (widen, lambda one: one),
    (reorder, lambda one: one),
    (everything, lambda one: as_added(as_renamed(one))),
]


@pytest.mark.parametrize(
    ("then", "change", "seen"),
    [
        pytest.param(then, *change, id=f"{then}-{change[0].__name__}", marks=() if quick else pytest.mark.check)
        for change in CHANGES
        for then, quick in (("commit", change[0] in (repartition, everything)), ("shape", True), ("shape twice", False))
    ],
)
def test_rows_written_before_a_change_by_others_land_under_it(
    tmp_path: Path, writer: TableWriter, change: Callable[[Table], None], seen: Callable[[Row], Row], then: str
) -> None:
    write(writer, range(50))
    commit(writer, range(50))
    write(writer, range(50, 120))
    change(theirs(tmp_path))
    expected = [seen(row(number)) for number in range(120)]
    if then != "commit":
        # As the sink does: what is wanted is worked out anew after each look at the table.
        for _ in range(2 if then == "shape twice" else 1):
            assert writer.schema is not None
            writer.shape(writer.schema.append(pa.field("ours", pa.string())))
    commit(writer, range(50, 120))
    table = theirs(tmp_path)
    if "ours" in table.schema().column_names:
        expected = [{**one, "ours": None} for one in expected]
    assert then != "shape twice" or "ours" in table.schema().column_names
    assert by_id(duckdb_rows(table)) == by_id(expected)
    assert by_id(table.scan().to_arrow().to_pylist())[0].keys() == expected[0].keys()
    partitions_are_right(table)
    specs = {task.file.spec_id for task in table.scan().plan_files()}
    assert specs <= {0, table.spec().spec_id}
    for number in (60, 119):
        assert table.scan(row_filter=f"id == {number}").to_arrow()["id"].to_pylist() == [number]


def test_files_that_were_written_again_are_deleted_in_the_end(tmp_path: Path, writer: TableWriter) -> None:
    write(writer, range(50))
    repartition(theirs(tmp_path))
    writer.shape(pa.schema([*SCHEMA, ("ours", pa.string())]))
    before = set((tmp_path / "warehouse").rglob("*.parquet"))
    commit(writer, range(50))
    table = theirs(tmp_path)
    named = {str(local_path(task.file.file_path)) for task in table.scan().plan_files()}
    assert {str(path) for path in (tmp_path / "warehouse").rglob("*.parquet")} == named
    assert {str(path) for path in before} > named
    partitions_are_right(table)


def test_a_column_that_others_drop_while_another_grows_is_not_added_again(tmp_path: Path, writer: TableWriter) -> None:
    drop(theirs(tmp_path))
    grown = pa.schema([*SCHEMA, ("ours", pa.string())])
    writer.shape(grown)
    assert writer.schema is not None
    assert "small" not in writer.schema.names
    assert "ours" not in writer.schema.names, "what is wanted of a changed table is the caller's to say"
    writer.shape(writer.schema.append(pa.field("ours", pa.string())))
    assert writer.schema.names == ["id", "at", "o", "items", "ours"]


def test_a_column_that_others_require_stops_rows_without_it(tmp_path: Path, writer: TableWriter) -> None:
    write(writer, range(3))
    with theirs(tmp_path).update_schema(allow_incompatible_changes=True) as update:
        update.add_column("must", StringType(), required=True)
    with pytest.raises(
        Refused, match=r"table ns\.t: somebody made a column of it required while rows .* must: string not null"
    ):
        commit(writer, range(3))
    assert duckdb_rows(theirs(tmp_path)) == []


def test_a_column_that_others_require_and_every_row_has_is_no_matter(tmp_path: Path, writer: TableWriter) -> None:
    write(writer, range(3))
    with theirs(tmp_path).update_schema(allow_incompatible_changes=True) as update:
        update.update_column("id", required=True)
        update.update_column(("o", "x"), required=True)
    commit(writer, range(3))
    assert by_id(duckdb_rows(theirs(tmp_path))) == [row(number) for number in range(3)]


def test_partitions_changed_during_each_of_many_rebuilds_stop_the_run(
    tmp_path: Path, writer: TableWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(writer, range(10))
    changes = iter(range(100))
    rebuild = writer._rewrite

    def changed_again(table: Table) -> None:
        rebuild(table)
        with theirs(tmp_path).update_spec() as update:
            update.add_field("id", BucketTransform(10 + next(changes)))

    changed_again(theirs(tmp_path))
    monkeypatch.setattr(writer, "_rewrite", changed_again)
    with pytest.raises(Refused, match="changed 5 times during one commit"):
        commit(writer, range(10))
