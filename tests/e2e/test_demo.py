"""The demo as `make demo` runs it: its result is exact, and other engines read the table."""

from __future__ import annotations

import json
import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import polars as pl
import pytest

from tests.e2e.harness import CONVEYORD, ROOT, Job, conveyord, local

INPUT = ROOT / "examples" / "data" / "earthquakes.jsonl"


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The data directory and what the demo printed."""
    data_dir = tmp_path_factory.mktemp("demo") / "data"
    ran = subprocess.run(
        ["sh", str(ROOT / "examples" / "demo.sh")],
        env={**os.environ, "CONVEYORD": str(CONVEYORD), "DEMO_DATA": str(data_dir)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "Traceback" not in ran.stderr
    return data_dir, ran.stdout


def expected() -> dict[str, tuple[datetime, float | None, bool, float]]:
    """What the demo's SQL should give, computed by hand from the input."""
    with INPUT.open(encoding="utf-8") as file:
        features = [json.loads(text) for text in file]
    assert len(features) == 1_707
    return {
        feature["id"]: (
            datetime.fromtimestamp(feature["properties"]["time"] / 1000, UTC),
            feature["properties"]["mag"],
            feature["properties"]["tsunami"] == 1,
            feature["geometry"]["coordinates"][2],
        )
        for feature in features
        if feature["properties"]["type"] == "earthquake"
    }


def demo_table(data_dir: Path) -> Job:
    job = Job(data_dir.parent, table="seismic.quakes")
    job.data_dir = data_dir
    return job


def test_polars_reads_exactly_the_expected_rows(demo: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")  # the other one is a package of its own
    data_dir, _ = demo
    location = demo_table(data_dir).metadata_location()
    assert location is not None
    frame = pl.scan_iceberg(location).select("id", "at", "mag", "tsunami", "depth_km").collect()
    found = {identity: tuple(rest) for identity, *rest in frame.rows()}
    assert len(found) == len(frame)
    wanted = expected()
    assert found.keys() == wanted.keys()
    for identity, (at, mag, tsunami, depth) in wanted.items():
        got_at, *rest = found[identity]
        assert got_at.replace(tzinfo=UTC) == at
        assert rest == [mag, tsunami, depth], identity


def test_duckdb_counts_the_same_by_day_and_files_lie_by_day(demo: tuple[Path, str]) -> None:
    job = demo_table(demo[0])
    by_day: dict[str, int] = {}
    for at, *_ in expected().values():
        by_day[str(at.date())] = by_day.get(str(at.date()), 0) + 1
    counted = job.sql("SELECT CAST(day AS VARCHAR), count(*) FROM t GROUP BY 1")
    assert dict(counted) == by_day
    for task in job.static_table().scan().plan_files():
        query = 'SELECT count(DISTINCT CAST("at" AS DATE)) FROM read_parquet(?, hive_partitioning=false)'
        assert duckdb.execute(query, [local(task.file.file_path)]).fetchall() == [(1,)]


def test_the_second_run_of_the_demo_adds_nothing_and_the_audit_agrees(demo: tuple[Path, str]) -> None:
    data_dir, printed = demo
    again = conveyord("run", ROOT / "examples" / "earthquakes.yaml", "--data-dir", data_dir, "-o", "json", cwd=ROOT)
    assert again.succeeded()["rows_in"] == 0
    report = demo_table(data_dir).audit()
    assert report["rows"] == len(expected())
    assert report["fence"]["default/earthquakes"]["read"] == 1_707
    for said in ("ok", "strongest", "warehouse", "catalog.db", "birdstrikes.yaml"):
        assert said in printed


def test_the_example_run_from_elsewhere_says_what_is_missing(tmp_path: Path) -> None:
    file = ROOT / "examples" / "earthquakes.yaml"
    ended = conveyord("run", file, "--data-dir", tmp_path / "data", "-o", "json", cwd=tmp_path)
    ended.failed("examples/data/earthquakes.jsonl", "matches no file", "looked from", code=2)


def test_the_csv_example_loads_every_row_that_its_filter_keeps(tmp_path: Path) -> None:
    file = ROOT / "examples" / "birdstrikes.yaml"
    summary = conveyord("run", file, "--data-dir", tmp_path / "data", "-o", "json", cwd=ROOT).succeeded()
    lines = duckdb.execute(
        'SELECT count(*), count(*) FILTER ("Cost Total $" >= 0) FROM read_csv(?, header=true)',
        [str(ROOT / "examples" / "data" / "birdstrikes.csv")],
    ).fetchall()
    assert [(summary["rows_in"], summary["rows_out"])] == lines
