"""Directories of files: what is refused, what is nobody's business, and what may change between runs."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from conveyord.core.errors import BatchError, ConfigError, Corrupt, Refused
from conveyord.core.flow.positions import Partition, Position
from conveyord.storage.commit_log import MANIFESTS_KEPT, state_directory
from conveyord.storage.parquet_dir.directory import FOOTER_KEY
from conveyord.storage.parquet_dir.hive import NULL, HivePartitioning, check_values
from tests.storage.directory_rig import KINDS, PARTITION, PIPELINE, ROWS, Run, files, offsets

PARQUET = ("parquet", "partitioned")
LINES = ("lines", "zstd", "single")


def committed(root: Path, kind: str, commits: int, **options: str) -> None:
    run = Run(root, kind, **options).open()
    while run.next_offset < commits * ROWS:
        run.commit_next()
    run.close()


def state(root: Path, kind: str, pipeline: str = PIPELINE) -> Path:
    return state_directory(root, pipeline, *(["rows.jsonl"] if kind == "single" else []))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_from_the_directory_alone(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 2)
    committed(tmp_path, kind, 5)
    run = Run(tmp_path, kind).open()
    assert run.positions[PARTITION] == Position(5 * ROWS, "m")
    assert run.positions[Partition("source", "finished-1")] == Position(9, "m")
    assert run.positions.states == {"source": "state 4"}
    run.close()
    assert offsets(tmp_path) == list(range(5 * ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_commit_without_rows_moves_positions_and_makes_no_file(tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path, kind).open()
    run.commit_next(rows=0)
    run.close()
    assert files(tmp_path) == []
    assert Run(tmp_path, kind).open().next_offset == ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_manifests_are_bounded(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, MANIFESTS_KEPT + 5)
    assert len(list(state(tmp_path, kind).glob("commit-*.json"))) == MANIFESTS_KEPT
    assert Run(tmp_path, kind).open().next_offset == (MANIFESTS_KEPT + 5) * ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_a_directory_may_be_moved(tmp_path: Path, kind: str) -> None:
    committed(tmp_path / "old", kind, 2)
    (tmp_path / "old").rename(tmp_path / "new")
    committed(tmp_path / "new", kind, 4)
    assert offsets(tmp_path / "new") == list(range(4 * ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_files_that_somebody_deleted_or_added_are_no_reason_to_fail(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 3)
    for path in files(tmp_path):
        path.unlink()
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine")
    committed(tmp_path, kind, 4)
    foreign.unlink()
    assert offsets(tmp_path) == list(range(3 * ROWS, 4 * ROWS))


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_of_one_pipeline_do_not_write_at_the_same_time(tmp_path: Path, kind: str) -> None:
    first = Run(tmp_path, kind).open()
    with pytest.raises(Refused, match="another run of this pipeline writes here; wait for it, or stop it"):
        Run(tmp_path, kind).open()
    first.close()
    Run(tmp_path, kind).open().close()


@pytest.mark.parametrize("kind", ["parquet", "partitioned", "lines", "zstd"])
def test_two_pipelines_may_share_a_directory(tmp_path: Path, kind: str) -> None:
    """Also at the same time, and with names that look alike in a file's name."""
    one, two = Run(tmp_path, kind, pipeline="a/b.c").open(), Run(tmp_path, kind, pipeline="a.b/c").open()
    for _ in range(3):
        one.commit_next()
        two.commit_next()
    one.close()
    two.close()
    assert offsets(tmp_path) == sorted([*range(3 * ROWS)] * 2)
    assert Run(tmp_path, kind, pipeline="a/b.c").open().next_offset == 3 * ROWS


@pytest.mark.parametrize("kind", KINDS)
def test_without_its_manifests_a_directory_is_not_written_twice(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 2)
    shutil.rmtree(state(tmp_path, kind))
    with pytest.raises(Refused, match=r"exists already.*knows of no (such )?commit.*restore"):
        committed(tmp_path, kind, 2)
    assert offsets(tmp_path) == list(range(2 * ROWS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [b"", b"{", b'{"version":9}', b'{"version":1,"fence":{},"notes":{}}', b"[]"])
def test_a_damaged_manifest_stops_the_run(tmp_path: Path, kind: str, damage: bytes) -> None:
    committed(tmp_path, kind, 2)
    (state(tmp_path, kind) / "commit-00000002.json").write_bytes(damage)
    with pytest.raises(Corrupt, match=r"commit-00000002\.json"):
        Run(tmp_path, kind).open()


def test_another_type_of_sink_does_not_go_on_in_the_same_place(tmp_path: Path) -> None:
    committed(tmp_path, "lines", 1)
    with pytest.raises(Refused, match=r"the commits of a sink file_jsonl.*give this sink another path"):
        Run(tmp_path, "parquet").open()


@pytest.mark.parametrize("kind", ["lines", "zstd"])
def test_many_small_pieces_are_written_together(tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path, kind).open()
    run.driver._options = replace(run.driver._options, file_rows_max=None)
    run.write(0, rows=5_000)
    run.commit_next(rows=0)
    run.close()
    assert offsets(tmp_path) == list(range(5_000))


@pytest.mark.parametrize("kind", KINDS)
def test_a_renamed_pipeline_takes_over_what_its_former_name_wrote(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 2, pipeline="ns/old")
    committed(tmp_path, kind, 4, pipeline="ns/new", former="ns/old")
    committed(tmp_path, kind, 5, pipeline="ns/new", former="ns/old")  # the flag may stay
    assert offsets(tmp_path) == list(range(5 * ROWS))
    assert not state(tmp_path, kind, "ns/old").exists()
    with pytest.raises(Refused, match="no commits to take over; check the former name"):
        Run(tmp_path, kind, pipeline="ns/third", former="ns/old").open()


@pytest.mark.parametrize("kind", PARQUET)
def test_what_is_being_written_is_seen_by_no_reader(tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path, kind).open()
    run.commit_next()
    run.write(run.next_offset, rows=40)
    staged = list((state(tmp_path, kind) / "staged").iterdir())
    assert staged
    found = duckdb.sql(f"SELECT \"offset\" FROM read_parquet('{tmp_path}/**/*.parquet')").fetchall()
    assert sorted(row[0] for row in found) == list(range(ROWS))
    read = ds.dataset(tmp_path, partitioning="hive").to_table()
    assert sorted(read["offset"].to_pylist()) == list(range(ROWS))
    run.close()
    assert list((state(tmp_path, kind) / "staged").iterdir()) == []


@pytest.mark.parametrize("kind", PARQUET)
def test_footers_say_which_records_a_commit_covers(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 3)
    covered = {}
    for path in files(tmp_path):
        said = json.loads(pq.read_metadata(path).metadata[FOOTER_KEY.encode()])
        assert said["pipeline"] == PIPELINE
        assert said["path"] == path.relative_to(tmp_path).as_posix()
        for source, name, first, end, mark in said["positions"]:
            covered.setdefault((source, name), set()).add((said["commit"], first, end, mark))
    assert covered[PARTITION] == {(n + 1, n * ROWS, (n + 1) * ROWS, "m") for n in range(3)}


def test_partitioning_may_change_between_runs(tmp_path: Path) -> None:
    committed(tmp_path, "parquet", 2)
    committed(tmp_path, "partitioned", 4)
    assert offsets(tmp_path) == list(range(4 * ROWS))


def test_a_column_keeps_its_type_whichever_pipeline_wrote_it_first(tmp_path: Path) -> None:
    committed(tmp_path, "parquet", 4, pipeline="ns/first")
    run = Run(tmp_path, "parquet", pipeline="ns/second").open()
    assert run.driver.schema == pa.schema([("offset", pa.int64()), ("k", pa.string()), ("late", pa.int64())])
    run.close()


@pytest.mark.parametrize("kind", LINES)
def test_a_file_that_lost_committed_lines_is_refused_and_let_go(tmp_path: Path, kind: str) -> None:
    committed(tmp_path, kind, 1)
    (path,) = files(tmp_path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(Refused, match=r"has \d+ bytes, but \d+ were committed.*Move it away"):
        (run := Run(tmp_path, kind)).open()
    run.close()
    path.unlink()
    committed(tmp_path, kind, 2)


def test_a_file_that_was_rotated_away_is_begun_anew_whatever_happens_then(tmp_path: Path) -> None:
    committed(tmp_path, "single", 3)
    (tmp_path / "rows.jsonl").rename(tmp_path.parent / f"{tmp_path.name}.rotated")
    run = Run(tmp_path, "single").open()
    run.write(run.next_offset)
    run.driver._flush()
    run.die()  # the new file is longer or shorter than the old one was, and nothing of it is committed
    committed(tmp_path, "single", 4)
    assert offsets(tmp_path) == list(range(3 * ROWS, 4 * ROWS))


def test_a_file_that_another_program_wrote_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"offset": -1}\n')
    with pytest.raises(Refused, match=r"rows\.jsonl: exists already.*move it away"):
        Run(tmp_path, "single").open()
    assert (tmp_path / "rows.jsonl").read_text() == '{"offset": -1}\n'


def test_compression_may_change_between_runs(tmp_path: Path) -> None:
    committed(tmp_path, "lines", 1)
    run = Run(tmp_path, "lines").open()
    run.write(run.next_offset)
    run.driver._flush()
    run.die()
    committed(tmp_path, "zstd", 3)
    assert {path.suffix for path in files(tmp_path)} == {".jsonl", ".zst"}
    assert offsets(tmp_path) == list(range(3 * ROWS))


# ------------------------------------------------------------------------------ Hive partitions


@pytest.mark.parametrize(
    ("value", "directory"),
    [
        ("DE", "DE"),
        ("a/b", "a%2Fb"),
        ("50%", "50%25"),
        ("a=b:c", "a%3Db%3Ac"),
        ("\x00\n", "%00%0A"),
        ("Übersee 東", "Übersee 東"),
        ("..", ".."),
        ("", ""),
        (None, NULL),
    ],
)
def test_values_are_escaped_as_hive_does_and_read_back(tmp_path: Path, value: str | None, directory: str) -> None:
    rows = pa.record_batch({"k": pa.array([value], pa.string()), "n": [1]})
    partitioning = HivePartitioning(rows.schema, ["k"])
    ((key, part),) = partitioning.split(rows)
    assert partitioning.path_of(key) == f"k={directory}"
    target = tmp_path / partitioning.path_of(key) / "a.parquet"
    target.parent.mkdir()
    pq.write_table(pa.Table.from_batches([part]), target)
    hive = ds.partitioning(pa.schema([("k", pa.string())]), flavor="hive")
    assert ds.dataset(tmp_path, partitioning=hive).to_table()["k"].to_pylist() == [value]
    found = duckdb.sql(f"SELECT k FROM read_parquet('{tmp_path}/*/*.parquet', hive_types_autocast=false)")
    assert found.fetchall() == [(value,)]


def test_times_are_named_as_iceberg_names_them() -> None:
    rows = pa.record_batch({"at": pa.array([86_400_000_000 * 365], pa.timestamp("us", "UTC")), "n": [17]})
    partitioning = HivePartitioning(rows.schema, ["year(at)", "month(at)", "day(at)", "hour(at)", "truncate(10, n)"])
    ((key, part),) = partitioning.split(rows)
    path = "at_year=1971/at_month=1971-01/at_day=1971-01-01/at_hour=1971-01-01-00/n_trunc_10=10"
    assert partitioning.path_of(key) == path
    assert part.schema.names == ["at", "n"]


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("missing", "no column 'missing'"),
        ("_hidden", "readers pass over names that begin with '_'; rename the column"),
        ("raw", "'raw' is binary, which no directory's name can hold; use bucket"),
        ("s.a", "a field within a column, which cannot leave the files"),
        ("x", "equality of such numbers makes no reliable partitions"),
        ("dya(n)", "did you mean 'day'"),
    ],
)
def test_partitions_that_cannot_be_are_refused(expression: str, message: str) -> None:
    schema = pa.schema(
        [
            ("_hidden", pa.int64()),
            ("raw", pa.binary()),
            ("s", pa.struct([("a", pa.int64())])),
            ("n", pa.int64()),
            ("x", pa.float64()),
        ]
    )
    with pytest.raises(ConfigError, match=message):
        HivePartitioning(schema, [expression])


def test_partitions_by_every_column_are_refused() -> None:
    with pytest.raises(ConfigError, match="no column would be left for the files; leave one out"):
        HivePartitioning(pa.schema([("a", pa.int64())]), ["a"])


@pytest.mark.parametrize(("length", "fits"), [(253, True), (254, False), (84, True)])
def test_a_value_that_is_too_long_for_a_name_is_the_fault_of_its_row(length: int, *, fits: bool) -> None:
    rows = pa.record_batch({"k": ["x" * length, None, "short"]})
    if fits:
        check_values(rows, ["k"])
        return
    with pytest.raises(BatchError, match=r"'k' has a value of 254 characters.*use truncate\(n, k\)"):
        check_values(rows, ["k"])


@pytest.mark.parametrize(
    ("expression", "value", "fits"),
    [
        ("truncate(300, k)", "x" * 299, False),
        ("truncate(300, k)", "x" * 200, True),
        ("truncate(100, k)", "/" * 300, False),
        ("truncate(100, k)", "\N{GRINNING FACE}" * 300, False),
        ("truncate(40, k)", "\N{GRINNING FACE}" * 300, True),
        ("TRUNCATE ( 250 , k )", b"\xff" * 300, False),
    ],
)
def test_the_beginning_of_a_value_may_be_too_long_for_a_name_too(
    tmp_path: Path, expression: str, value: object, fits: bool
) -> None:
    rows = pa.record_batch({"k": [value, None], "n": [1, 2]})
    if fits:
        check_values(rows, [expression])
        partitioning = HivePartitioning(rows.schema, [expression])
        for values, _ in partitioning.split(rows):
            (tmp_path / partitioning.path_of(values)).mkdir()
        return
    with pytest.raises(BatchError, match=r"makes the name .* too long for a directory .*use a smaller n"):
        check_values(rows, [expression])
    check_values(rows.slice(1), [expression])


def test_a_value_that_means_null_to_every_reader_is_the_fault_of_its_row() -> None:
    with pytest.raises(BatchError, match="'k' has the value '__HIVE_DEFAULT_PARTITION__', which says null in the name"):
        check_values(pa.record_batch({"k": ["a", NULL]}), ["k"])


def test_a_time_that_no_directory_can_tell_is_the_fault_of_its_row() -> None:
    rows = pa.record_batch({"at": pa.array([0, 2**62], pa.timestamp("us"))})
    for expression in ("at", "day(at)", "hour(at)"):
        with pytest.raises(BatchError, match="'at' has a .* in the year 148108, and partitions can tell the years"):
            check_values(rows, [expression])
        check_values(rows.slice(0, 1), [expression])
