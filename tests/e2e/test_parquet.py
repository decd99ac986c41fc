"""Parquet files into a table, by the real process that is killed on the way."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.e2e.harness import Job

SEED = 20240601
FILE_ROWS = 20_000
FILES = 3


@pytest.mark.check
@pytest.mark.timeout(600)
def test_every_row_of_parquet_files_that_differ_is_there_once_after_kills(tmp_path: Path) -> None:
    source = {"type": "file_parquet", "path": "in/*", "batch_rows": 500}
    job = Job(tmp_path, source=source, sink={"commit": {"rows": 2000, "every": "0.1s"}, "provenance": True})
    for index in range(FILES):
        ids = range(index * FILE_ROWS, (index + 1) * FILE_ROWS)
        kinds = (pa.int32(), pa.int64(), pa.string())
        values = pa.array([str(n) if index == 2 else n for n in ids], kinds[index])
        table = pa.table({"id": ids, f"only_{index}": [f"v{n}" for n in ids], "value": values})
        pq.write_table(table, job.input / f"{index}.parquet", row_group_size=3000)
    kills, rng = 0, random.Random(SEED)
    for _ in range(5):
        running = job.start()
        running.saw("committed", times=rng.randint(1, 3))
        kills += running.killed_after(rng.uniform(0.0, 0.1))
    assert kills >= 3, "the runs were too short to be killed"
    job.sink = {"commit": {}, "provenance": True}
    job.run().succeeded()
    job.holds(range(FILES * FILE_ROWS))
    same = "coalesce(value::VARCHAR, value__string) = id::VARCHAR"
    query = f"SELECT id FROM t WHERE coalesce(only_0, only_1, only_2) = 'v' || id AND {same}"
    assert len(job.sql(query)) == FILES * FILE_ROWS
    assert job.run().succeeded()["rows_in"] == 0
    job.audit()
