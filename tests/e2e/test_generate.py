"""Made-up rows into a table, by the real process: killed on the way, and asked to stop."""

from __future__ import annotations

import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conveyord.engine.generating.generator import Generator
from conveyord.engine.generating.shapes import SHAPES
from tests.e2e.harness import Job

SEED = 20240601
BROKEN_SHARE = 0.01
OFTEN = {"rows": 3000, "every": "0.1s"}


def generate(**options: Any) -> dict[str, Any]:
    return {"type": "generate", "shape": "events", "broken_share": BROKEN_SHARE, "batch_rows": 400, **options}


def expected(count: int) -> list[dict[str, Any]]:
    """The rows that are not bad."""
    made = Generator(SHAPES["events"], seed=1, broken_share=BROKEN_SHARE).generate(np.arange(count, dtype=np.uint64))
    return made.data.to_pylist()


def table_holds(job: Job, rows: list[dict[str, Any]]) -> None:
    job.holds(row["id"] for row in rows)
    query = 'SELECT id, kind, "user".name, len(items), items[1].price, note FROM t ORDER BY id'
    assert job.sql(query) == [
        (row["id"], row["kind"], row["user"]["name"], len(row["items"]), first_price(row), row["note"]) for row in rows
    ]


def first_price(row: dict[str, Any]) -> float | None:
    return row["items"][0]["price"] if row["items"] else None


@pytest.mark.check
@pytest.mark.timeout(600)
def test_every_row_is_there_once_after_kills(tmp_path: Path) -> None:
    rows, kills, rng = 60_000, 0, random.Random(SEED)
    job = Job(tmp_path, source=generate(rows=rows, partitions=3), sink={"commit": OFTEN, "provenance": True})
    for _ in range(6):
        running = job.start("--skip-bad")
        running.saw("committed", times=rng.randint(1, 3))
        kills += running.killed_after(rng.uniform(0.0, 0.1))
    assert kills >= 3, "the runs were too short to be killed"
    job.sink = {"commit": {}, "provenance": True}
    job.run("--skip-bad").succeeded()
    table_holds(job, expected(rows))
    assert job.run("--skip-bad").succeeded()["rows_in"] == 0
    job.audit()


@pytest.mark.check
def test_an_endless_run_stops_when_asked_and_goes_on_where_it_was(tmp_path: Path) -> None:
    job = Job(tmp_path, source=generate(rows_per_second=20_000), sink={"commit": OFTEN})
    for _ in range(2):
        running = job.start("--skip-bad")
        assert running.saw("committed")
        running.send(signal.SIGTERM)
        running.wait().orderly(0)
    ids = job.ids()
    table_holds(job, expected(ids[-1] + 1))
    job.audit()
