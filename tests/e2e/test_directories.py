"""The real process writes directories of files: killed at random, on full and read-only disks, read by others."""

from __future__ import annotations

import faulthandler
import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.dataset as ds
import pytest

from tests.e2e.harness import HEAD, Job, lines
from tests.e2e.test_disk_faults import ROOM_BYTES, fill, mount, mounted, noisy
from tests.storage.directory_rig import leftovers

SEED = int(os.environ.get("CONVEYORD_SEED", "20240601"))
SMALL_BLOCKS = {"type": "file_jsonl", "path": "in/*", "block_bytes": 65536}
OFTEN = {"rows": 800, "every": "0.1s"}
PARQUET: dict[str, Any] = {"type": "parquet_dir", "path": "out", "partition_by": ["name_k", "day(at)"], "commit": OFTEN}
LINES: dict[str, Any] = {"type": "file_jsonl", "path": "out", "file": {"bytes": 65536}, "commit": OFTEN}
PACKED: dict[str, Any] = {**LINES, "compression": "zstd"}
SINGLE: dict[str, Any] = {"type": "file_jsonl", "path": "out/rows.jsonl.gz", "commit": OFTEN}
SHAPES = {"parquet_dir": PARQUET, "file_jsonl": LINES, "zstd": PACKED, "single": SINGLE}


class DirectoryJob(Job):
    """A pipeline whose sink is a directory `out`, read by DuckDB and Arrow alone."""

    @property
    def file(self) -> Path:
        path = self.home / f"{self.name}.yaml"
        spec = json.dumps({"source": self.source, "steps": self.steps, "sink": self.sink})
        path.write_text(f"{HEAD}metadata: {{name: {self.name}}}\nspec: {spec}\n", encoding="utf-8")
        return path

    @property
    def out(self) -> Path:
        return self.home / "out"

    def ids(self, column: str = "id") -> list[int]:
        if self.sink["type"] == "parquet_dir":
            query = f"SELECT {column} FROM read_parquet('{self.out}/**/*.parquet', union_by_name=true) ORDER BY 1"
            if not list(self.out.rglob("*.parquet")):
                return []
            found = [row[0] for row in duckdb.sql(query).fetchall()]
            others = [".", "_", "ballast", "lost+found"]  # the first two are what Arrow passes over anyway
            dataset = ds.dataset(self.out, partitioning="hive", ignore_prefixes=others)
            by_arrow = dataset.to_table(columns=[column])[column]
            assert sorted(by_arrow.to_pylist()) == found
            return found
        files = sorted(path for path in self.out.glob("*.json*") if path.stat().st_size)
        if not files:
            return []
        listed = [str(path) for path in files]
        relation = duckdb.read_json(listed, format="newline_delimited")
        return [row[0] for row in relation.project(column).order(column).fetchall()]


def job_of(home: Path, sink: dict[str, Any]) -> DirectoryJob:
    query = "SELECT *, 'k' || (id % 3) AS name_k FROM input_data"
    return DirectoryJob(home, source=SMALL_BLOCKS, steps=[{"type": "sql_transform", "query": query}], sink=dict(sink))


def kill_loop(job: DirectoryJob, *, kills: int, records: int) -> None:
    """Kill so many runs, finish, and assert that every record is there once."""
    faulthandler.cancel_dump_traceback_later()
    rng, killed, written, seen = random.Random(SEED), 0, 0, 0
    print(f"seed={SEED}")
    while killed < kills:
        if written == 0 or rng.random() < 0.3:
            (job.input / f"{written:08d}.jsonl").write_bytes(lines(range(written, written + records)))
            written += records
        running = job.start()
        if running.saw("committed", times=rng.randint(1, 4)):
            killed += running.killed_after(rng.uniform(0.0, 0.08))
        else:
            running.wait()
        if job.sink["type"] == "parquet_dir":  # what readers see is never doubled and never taken back
            found = job.ids()
            assert len(found) == len(set(found)) >= seen
            seen = len(found)
    job.sink["commit"] = {}
    job.run().succeeded()
    job.holds(range(written))
    assert job.run().succeeded()["rows_in"] == 0
    assert not leftovers(job.out)


@pytest.mark.parametrize("shape", ["parquet_dir", "file_jsonl"])
def test_every_record_is_there_once_after_a_few_kills(tmp_path: Path, shape: str) -> None:
    kill_loop(job_of(tmp_path, SHAPES[shape]), kills=2, records=8_000)


@pytest.mark.check
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("shape", "kills"), [("parquet_dir", 12), ("file_jsonl", 12), ("zstd", 6), ("single", 6)])
def test_every_record_is_there_once_after_many_kills(tmp_path: Path, shape: str, kills: int) -> None:
    kill_loop(job_of(tmp_path, SHAPES[shape]), kills=kills, records=20_000)


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_record_is_there_once_after_100_kills(tmp_path: Path, shape: str) -> None:
    kill_loop(job_of(tmp_path, SHAPES[shape]), kills=100, records=20_000)


def test_what_one_pipeline_writes_as_lines_another_reads(tmp_path: Path) -> None:
    """Rows come back with their values and their types, through a compressed file and back to lines."""
    first = DirectoryJob(tmp_path, sink={"type": "file_jsonl", "path": "mid/", "compression": "gzip"}, name="first")
    (first.input / "a.jsonl").write_bytes(lines(range(500), more={"l": [1.0, 2], "t": 'a"\n\u6771'}))
    first.run().succeeded()
    source = {"type": "file_jsonl", "path": "mid/*.jsonl.gz"}
    second = DirectoryJob(tmp_path, source=source, sink={"type": "file_jsonl", "path": "out/b.jsonl"}, name="second")
    second.run().succeeded()
    (middle,) = (tmp_path / "mid").glob("*.gz")
    assert gzip.decompress(middle.read_bytes()) == (tmp_path / "out" / "b.jsonl").read_bytes()
    found = [json.loads(line) for line in (tmp_path / "out" / "b.jsonl").read_bytes().splitlines()]
    wanted = [json.loads(line) for line in (first.input / "a.jsonl").read_bytes().splitlines()]
    assert found == wanted
    assert [type(row["value"]) for row in found] == [float] * len(found)


@pytest.mark.check
@pytest.mark.parametrize("shape", SHAPES)
def test_a_disk_that_fills_up_stops_the_run_and_the_next_goes_on(tmp_path: Path, shape: str) -> None:
    job = job_of(tmp_path, {**SHAPES[shape], "commit": {"rows": 2_000, "every": "0.2s"}})
    records = 24_000
    (job.input / "a.jsonl").write_bytes(noisy(records))
    with mounted("ext4", tmp_path / "image", job.out):
        ballast = fill(job.out, leave_bytes=ROOM_BYTES)
        for _ in range(2):
            job.run().failed("out.*cannot be written.*No space left", "free space")
            held = job.ids()
            assert held == list(range(len(held)))
            assert len(held) < records
        ballast.unlink()
        job.run().succeeded()
        job.holds(range(records))


@pytest.mark.check
@pytest.mark.parametrize("shape", SHAPES)
def test_a_directory_that_is_read_only_is_named(tmp_path: Path, shape: str) -> None:
    job = job_of(tmp_path, SHAPES[shape])
    (job.input / "a.jsonl").write_bytes(lines(range(3_000)))
    with mounted("ext4", tmp_path / "image", job.out):
        mount("-o", "remount,ro", job.out)
        job.run().failed("out.*cannot be written.*Read-only", "make it writable")
        mount("-o", "remount,rw", job.out)
        job.run().succeeded()
        job.holds(range(3_000))
