"""What a catalog must do before docs/catalogs.md calls it supported, asked of the real process.

To try another catalog: add it to `CASES`, with its properties as conveyord.toml would have them, and how its
tables are found without our code.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.table import Table
from pyiceberg.types import LongType

from tests.e2e.harness import Job, conveyord, lines
from tests.storage.object_stores import Servers, servers_below
from tests.storage.rest_catalog import serving

# The REST server's handlers keep their sockets until it goes away.
pytestmark = [
    pytest.mark.usefixtures("unclosed_files"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RECORDS = 2_000
SNAPSHOTS_MAX = 40  # that maintenance leaves
STORES = ["moto", "versitygw", "gcs"]
CASES = [
    "sql",
    "sql-moto-encrypted",
    "rest",
    *(f"{catalog}-{store}" for catalog in ("sql", "rest") for store in STORES),
]
QUICK = {"rest"}


@dataclass
class Case:
    """A catalog, and the job that writes to it."""

    properties: dict[str, str]
    other: Catalog
    """The same catalog for somebody else: pyiceberg as it comes."""
    job: Job

    def table(self) -> Table:
        return self.other.load_table(self.job.table)

    def rows(self) -> pa.Table:
        """All rows, by DuckDB over the files that the metadata names."""
        table = self.table()
        read = []
        for task in table.scan().plan_files():
            with table.io.new_input(task.file.file_path).open() as stream:
                read.append(pq.read_table(stream))
        with duckdb.connect() as connection:
            connection.register("found", pa.concat_tables(read, promote_options="default"))
            return connection.sql("SELECT * FROM found ORDER BY id").to_arrow_table()

    def holds(self, end: int) -> None:
        assert self.rows()["id"].to_pylist() == list(range(end))

    def verb(self, *arguments: str) -> Any:
        ended = conveyord(*arguments, "--catalog", "tried", "-o", "json", cwd=self.job.home)
        assert ended.code == 0, ended.out + ended.err
        return ended.summary


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers_below(tmp_path_factory.mktemp("stores")) as found:
        yield found


@pytest.fixture(params=[pytest.param(case, marks=[] if case in QUICK else pytest.mark.check) for case in CASES])
def case(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> Iterator[Case]:
    with ExitStack() as stack:
        files = {"warehouse": f"file://{tmp_path / 'warehouse'}"}
        for store in STORES:
            if store in request.param:
                files = servers.get(store).properties(tmp_path.name)
        if "encrypted" in request.param:
            files["s3.server-side-encryption"] = "AES256"
        sql = {"type": "sql", "uri": f"sqlite:///{tmp_path / 'tried.db'}?timeout=30", **files}
        other: Catalog = load_catalog("tried", **sql)
        properties = sql
        if request.param.startswith("rest"):
            backing = stack.enter_context(closing(other))
            properties = {"type": "rest", "uri": stack.enter_context(serving(backing)).uri, **files}
        listed = "".join(f'"{key}" = "{value}"\n' for key, value in properties.items())
        (tmp_path / "conveyord.toml").write_text(f"[catalogs.tried]\n{listed}", encoding="utf-8")
        sink = {"catalog": "tried", "partition_by": ["day(at)"], "commit": {"rows": 500}, "provenance": True}
        source = {"type": "file_jsonl", "path": "in/*", "block_bytes": 65536}
        job = Job(tmp_path, source=source, sink=sink, table="some.place.t")
        (job.input / "a.jsonl").write_bytes(lines(range(RECORDS)))
        yield Case(properties, other, job)


def test_a_catalog_keeps_what_is_asked_of_it(case: Case) -> None:
    """Created tables, commits that are killed, other writers, columns that come later, maintenance, reading."""
    job = case.job
    running = job.start()
    assert running.saw("committed", times=2)
    running.send(signal.SIGKILL)
    running.wait()
    job.run().succeeded()
    case.holds(RECORDS)
    spec = case.table().spec()
    assert [field.name for field in spec.fields] == ["at_day"]

    # Somebody else writes; it is kept, and the pipeline goes on. A column comes that nobody knew.
    foreign = case.table()
    foreign.update_schema().add_column("theirs", LongType()).commit()
    (job.input / "b.jsonl").write_bytes(lines(range(RECORDS, 2 * RECORDS), extra="new"))
    job.run().succeeded()
    case.holds(2 * RECORDS)
    rows = case.rows()
    assert rows["extra"].to_pylist() == [None] * RECORDS + ["new"] * RECORDS
    assert "theirs" in case.table().schema().column_names

    assert job.run().succeeded()["rows_in"] == 0
    assert len(case.table().metadata.snapshots) <= SNAPSHOTS_MAX
    assert case.verb("audit", job.table)["ok"]
    found = case.verb("query", 'SELECT count(*) AS n, max(id) AS last FROM "some.place".t')
    assert found == [{"n": 2 * RECORDS, "last": 2 * RECORDS - 1}]
