"""The real process over object stores that fail now and then, killed again and again: every row once, no litter."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest
from pyarrow.fs import FileSelector
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from tests.e2e.harness import Job, conveyord, lines
from tests.storage.faulty_proxy import Fault, Store, faulty
from tests.storage.lake_rig import files_reachable
from tests.storage.object_stores import BUCKET, Kind, Servers, servers_below

pytestmark = pytest.mark.check

RECORDS = 3_000
KILLS = 6
FAULTS = [
    Fault("500", "PUT"),
    Fault("lost", "POST", "/metadata/"),
    Fault("500-applied", "PUT", "/data/"),
    Fault("cut", "PUT", ".avro"),
    Fault("slow", "GET", times=10),
    Fault("503", "GET"),
]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers_below(tmp_path_factory.mktemp("stores")) as found:
        yield found


def job_of(tmp_path: Path, store: Store) -> Job:
    properties = {"type": "sql", "uri": f"sqlite:///{tmp_path / 'c.db'}?timeout=30", **store.properties(tmp_path.name)}
    listed = "".join(f'"{key}" = "{value}"\n' for key, value in properties.items())
    (tmp_path / "conveyord.toml").write_text(f"[catalogs.tried]\n{listed}", encoding="utf-8")
    source = {"type": "file_jsonl", "path": "in/*", "block_bytes": 65536}
    sink = {"catalog": "tried", "partition_by": ["bucket(2, id)"], "commit": {"rows": 250}, "provenance": True}
    job = Job(tmp_path, source=source, sink=sink)
    (job.input / "a.jsonl").write_bytes(lines(range(RECORDS)))
    return job


def table_of(tmp_path: Path, store: Store) -> Table:
    """The table as somebody else finds it, past the proxy, with pyiceberg's own FileIO."""
    files = store.server.properties(tmp_path.name)
    return SqlCatalog("tried", uri=f"sqlite:///{tmp_path / 'c.db'}", **files).load_table("ns.t")


def stored(table: Table) -> set[str]:
    """Every object below the table's location."""
    assert isinstance(table.io, PyArrowFileIO)
    scheme, netloc, path = table.io.parse_location(table.location())
    listed = table.io.fs_by_scheme(scheme, netloc).get_file_info(FileSelector(path, recursive=True))
    return {f"{scheme}://{info.path}" for info in listed if info.is_file}


def suspects(data_dir: Path) -> set[str]:
    with closing(sqlite3.connect(data_dir / "runs.db")) as connection:
        return {path for (path,) in connection.execute("SELECT path FROM lake_files")}


@pytest.mark.parametrize("kind", ["moto", "versitygw", "gcs"])
def test_every_row_is_there_once_and_every_object_is_named(tmp_path: Path, servers: Servers, kind: Kind) -> None:
    random = Random(kind)
    with faulty(servers.get(kind)) as store:
        job = job_of(tmp_path, store)
        for number in range(KILLS):
            store.faults[:] = [FAULTS[number % len(FAULTS)]]
            running = job.start()
            running.saw("committed", times=random.randint(0, 2))
            running.killed_after(random.random())
        store.faults.clear()
        job.run().succeeded()
        (job.input / "b.jsonl").write_bytes(lines(range(RECORDS, RECORDS + 500)))
        job.run().succeeded()

        table = table_of(tmp_path, store)
        found = []
        for task in table.scan().plan_files():
            with table.io.new_input(task.file.file_path).open() as stream:
                found += pq.read_table(stream, columns=["id"])["id"].to_pylist()
        assert sorted(found) == list(range(RECORDS + 500))
        audited = conveyord("audit", "ns.t", "--catalog", "tried", "-o", "json", cwd=tmp_path)
        assert json.loads(audited.out)["ok"], audited.out + audited.err
        # What the last commits left for the next maintenance is known to the ledger.
        metadata = {path for path in stored(table) if path.endswith(".metadata.json")}
        assert stored(table) - metadata <= files_reachable(table) | suspects(job.data_dir)
        assert files_reachable(table) <= stored(table)
        assert all(path.startswith(f"{store.server.scheme}://{BUCKET}/") for path in stored(table))
        query = "SELECT count(*) AS n, count(DISTINCT id) AS d FROM ns.t"
        answered = conveyord("query", query, "--catalog", "tried", "-o", "json", cwd=tmp_path)
        assert json.loads(answered.out) == [{"n": RECORDS + 500, "d": RECORDS + 500}], answered.err
