"""Somebody else does something to the table, between two runs or during one.

Each ends in a sentence that says what to do, or goes on as if nothing had been; never in a lost or
doubled record.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import EqualTo
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.types import IntegerType, LongType
from sqlalchemy.exc import OperationalError

from tests.e2e.harness import Ended, Job, line, lines

RECORDS = 24_000
FIRST = 2_000
SMALL = {"rows": 1_000, "every": "0.1s"}
LARGE = {"rows": 50_000}
TRIES_MAX = 200  # the run commits dozens of times a second, and whoever is slower loses


@pytest.fixture
def job(tmp_path: Path) -> Job:
    source = {"type": "file_jsonl", "path": "in/*", "block_bytes": 65536}
    return Job(tmp_path, source=source, sink={"commit": SMALL})


def loaded(job: Job) -> Job:
    """The first records are in the table, in several snapshots; the others wait in a second file."""
    (job.input / "a.jsonl").write_bytes(lines(range(FIRST)))
    job.run().succeeded()
    job.sink["commit"] = LARGE
    (job.input / "b.jsonl").write_bytes(lines(range(FIRST, RECORDS)))
    return job


def persist(job: Job, change: Callable[[Table], object]) -> None:
    """Apply `change` to the newest state of the table until the catalog takes it."""
    for _ in range(TRIES_MAX):
        try:
            change(job.writer())
        except (CommitFailedException, OperationalError, FileNotFoundError):
            continue
        return
    raise AssertionError(f"another writer was refused {TRIES_MAX} times in a row")


def meanwhile(job: Job, change: Callable[[Table], object]) -> Ended:
    """Start a run, apply `change` after its third commit, and let it end."""
    job.sink["commit"] = SMALL
    running = job.start()
    assert running.saw("committed", times=3)
    persist(job, change)
    return running.wait()


def foreign(count: int = 5) -> pa.Table:
    return pa.table({"id": pa.array(range(-count, 0), pa.int64()), "name": ["foreign"] * count})


def append(table: Table) -> None:
    held = table.schema().as_arrow()
    rows = foreign()
    missing = [field for field in held if field.name not in rows.column_names]
    for field in missing:
        rows = rows.append_column(field.name, pa.nulls(rows.num_rows, field.type))
    table.append(rows.select(held.names).cast(held))


def repartition(table: Table) -> None:
    with table.update_spec() as update:
        update.add_field("id", BucketTransform(4), "id_bucket")


def add_column(table: Table) -> None:
    with table.update_schema() as update:
        update.add_column("remark", LongType())


def drop(table: Table) -> None:
    table.catalog.drop_table(table.name())


def roll_back(table: Table) -> None:
    earlier = table.metadata.snapshots[0].snapshot_id
    table.manage_snapshots().set_current_snapshot(earlier).commit()


# ------------------------------------------------------------------ what goes on by itself


@pytest.mark.parametrize(
    "change",
    [pytest.param(repartition, id="repartition"), pytest.param(add_column, id="add_column", marks=pytest.mark.check)],
)
@pytest.mark.parametrize("when", ["between runs", pytest.param("during a run", marks=pytest.mark.check)])
def test_a_table_that_somebody_reshapes_keeps_every_record_once(
    job: Job, change: Callable[[Table], object], when: str
) -> None:
    if when == "between runs":
        persist(loaded(job), change)
        job.run().succeeded()
    else:
        meanwhile(loaded(job), change).succeeded()
    job.holds(range(RECORDS))
    job.audit()
    if change is repartition:
        assert job.static_table().scan(row_filter=EqualTo("id", RECORDS - 1)).to_arrow().num_rows == 1


@pytest.mark.parametrize("when", ["between runs", pytest.param("during a run", marks=pytest.mark.check)])
def test_rows_that_somebody_appends_stay_beside_ours(job: Job, when: str) -> None:
    if when == "between runs":
        persist(loaded(job), append)
        job.run().succeeded()
    else:
        meanwhile(loaded(job), append).succeeded()
    job.holds([*range(-5, 0), *range(RECORDS)])
    assert job.audit()["rows"] == RECORDS + 5


def test_a_column_that_both_sides_add_is_one_column(job: Job) -> None:
    def add_late(table: Table) -> None:
        with table.update_schema() as update:
            update.add_column("late", IntegerType())

    (job.input / "a.jsonl").write_bytes(lines(range(100)))
    job.run().succeeded()
    persist(job, add_late)
    (job.input / "b.jsonl").write_bytes(line(100, late=7) + line(101, late=2**40))
    job.run().succeeded()
    job.holds(range(102))
    late = job.static_table().scan(row_filter="id >= 100").to_arrow().sort_by("id")["late"]
    assert late.to_pylist() == [7, 2**40], "an int column widens to long"


def test_a_table_dropped_between_runs_is_loaded_anew(job: Job) -> None:
    drop(loaded(job).writer())
    job.run().succeeded()
    job.holds(range(RECORDS))
    job.audit()


# ------------------------------------------------------------------ what an operator decides


@pytest.mark.check
def test_a_table_dropped_during_a_run_stops_it_and_the_next_loads_it_anew(job: Job) -> None:
    ended = meanwhile(loaded(job), drop)
    ended.failed(r"table ns\.t", "dropped|not found|gone|no longer|does not exist")
    job.run().succeeded()
    job.holds(range(RECORDS))
    job.audit()


def test_a_table_rolled_back_between_runs_is_refused_until_it_is_restored(job: Job) -> None:
    head = loaded(job).snapshot_id()
    assert head is not None
    persist(job, roll_back)
    before = job.ids()
    job.run().failed(r"table ns\.t", "rolled back|restored", "snapshot")
    assert job.ids() == before
    persist(job, lambda table: table.manage_snapshots().set_current_snapshot(head).commit())
    job.run().succeeded()
    job.holds(range(RECORDS))


@pytest.mark.check
def test_a_table_rolled_back_during_a_run_stops_it(job: Job) -> None:
    meanwhile(loaded(job), roll_back).failed(r"table ns\.t", "rolled back|restored")
    job.run().failed("rolled back|restored")
    assert job.ids() == list(range(len(job.ids()))), "what it was rolled back to is untouched"


@pytest.mark.check
def test_a_table_with_foreign_rows_is_refused_until_it_is_adopted(job: Job) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    job.data_dir.mkdir()
    (job.data_dir / "warehouse").mkdir()
    properties = {"warehouse": f"file://{job.data_dir / 'warehouse'}"}
    catalog = SqlCatalog("lake", uri=f"sqlite:///{job.data_dir / 'catalog.db'}", **properties)
    catalog.create_namespace("ns")
    catalog.create_table("ns.t", foreign().schema).append(foreign())
    catalog.close()
    (job.input / "a.jsonl").write_bytes(lines(range(2_000)))
    job.run().failed(r"table ns\.t", "5 rows", "adopt: true")
    job.holds(range(-5, 0))
    job.sink["adopt"] = True
    job.run().succeeded()
    job.run().succeeded()
    job.holds([*range(-5, 0), *range(2_000)])


@pytest.mark.check
def test_a_renamed_pipeline_is_refused_and_takes_over_with_adopt(job: Job) -> None:
    loaded(job).name = "renamed"
    job.run().failed("no fence of default/renamed", "--adopt")
    job.holds(range(FIRST))
    job.run("--adopt", "default/job").succeeded()
    job.run().succeeded()
    job.holds(range(RECORDS))
    job.audit()
    job.name = "job"
    job.run().failed("no fence of default/job")


def test_a_second_process_on_the_data_directory_is_refused(job: Job) -> None:
    (job.input / "a.jsonl").write_bytes(lines(range(RECORDS)))
    running = job.start()
    assert running.saw("committed")
    os.kill(running.pid, signal.SIGSTOP)  # so that it cannot be done before the second one starts
    try:
        job.run().failed("data directory", f"in use by process {running.pid}", "--data-dir")
    finally:
        os.kill(running.pid, signal.SIGCONT)
    running.wait().succeeded()
    job.holds(range(RECORDS))


@pytest.mark.check
def test_a_replaced_or_truncated_input_is_refused_and_goes_on_once_restored(job: Job) -> None:
    whole = lines(range(3_000))
    file = job.input / "a.jsonl"
    file.write_bytes(whole)
    job.run().succeeded()
    file.write_bytes(lines(range(5_000, 9_000)))
    job.run().failed(r"a\.jsonl", "replaced or edited", "another name")
    file.write_bytes(whole[:20_000])
    job.run().failed(r"a\.jsonl", "truncated", "Restore")
    job.holds(range(3_000))
    file.write_bytes(whole + lines(range(3_000, 3_500)))
    job.run().succeeded()
    job.holds(range(3_500))


@pytest.mark.check
def test_a_table_with_files_of_two_partitionings_keeps_every_record_once(job: Job) -> None:
    def other(table: Table) -> None:
        with table.update_spec() as update:
            update.remove_field("name")
            update.add_field("value", IdentityTransform(), "value_is")

    job.sink["partition_by"] = ["name"]
    named = [line(n, name=f"n{n % 3}", value=float(n % 2)) for n in range(6_000)]
    (job.input / "a.jsonl").write_bytes(b"".join(named[:3_000]))
    job.run().succeeded()
    persist(job, other)
    (job.input / "b.jsonl").write_bytes(b"".join(named[3_000:]))
    # The definition says one thing and the table another: the table is what is written to.
    job.run().succeeded()
    job.holds(range(6_000))
    job.audit()
