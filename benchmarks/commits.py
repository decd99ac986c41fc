"""What one more small commit costs after thousands of them, and against pyiceberg's `Table.append`.

Both sides turn the same few rows into a data file and commit it to an embedded catalog of their own;
ours also syncs every file, keeps the fence, merges manifests, expires snapshots and deletes files,
theirs does not. The last commits of both are interleaved. CPU time of the whole process is what the
ratios are made of; wall time is given beside it, and depends on the disk.

    python -m benchmarks.commits --commits 2000 --appends 500 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import pyarrow as pa
from pyiceberg.catalog.sql import SqlCatalog

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.commit import TableCommitter
from conveyord.storage.lake.data_files import DataFileWriter, WriterOptions
from conveyord.storage.lake.ledger import Ledger
from conveyord.storage.lake.schemas import arrow_schema

ROWS = 10
HUNDRED = 100
INTERLEAVED = 40
SCHEMA = pa.schema([("id", pa.int64()), ("name", pa.string()), ("value", pa.float64())])
DATA = pa.table({"id": range(ROWS), "name": ["x"] * ROWS, "value": [0.5] * ROWS}, schema=SCHEMA)


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one commit, its data file included."""

    cpu_ms: float
    wall_ms: float


class Ours:
    """The committer as the sink drives it."""

    def __init__(self, home: Path) -> None:
        self.catalog = open_embedded(home)
        self.ledger = Ledger(home).for_table("bench/p")
        self.committer = TableCommitter(self.catalog, "bench.t", "bench/p", self.ledger, random=Random(1))
        self.catalog.create_namespace("bench")
        self.catalog.create_table("bench.t", SCHEMA, properties=self.committer.initial_properties())
        self.committer.open()
        table = self.catalog.load_table("bench.t")
        options = WriterOptions(target_file_bytes=128 * 1024 * 1024)
        self.writer = DataFileWriter(table, options, self.ledger.intend)
        self.batch = DATA.cast(arrow_schema(table)).to_batches()[0]

    def commit(self) -> None:
        self.writer.write(self.batch)
        files = self.writer.finish()
        n = self.committer.fence.n
        span = Span(Partition("source", "file"), n * ROWS, (n + 1) * ROWS, "mark")
        following = self.committer.fence.advanced([span], Tally(read=ROWS), ROWS)
        self.committer.commit(files, following, spec_id=0, schema_id=0)


class Theirs:
    """pyiceberg as its documentation shows it."""

    def __init__(self, home: Path) -> None:
        home.mkdir()
        self.catalog = SqlCatalog("plain", uri=f"sqlite:///{home / 'c.db'}", warehouse=f"file://{home}/warehouse")
        self.catalog.create_namespace("bench")
        self.table = self.catalog.create_table("bench.t", SCHEMA)

    def commit(self) -> None:
        self.table.append(DATA)


def measure(work: Callable[[], None]) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3)


def median(costs: list[Cost]) -> Cost:
    return Cost(statistics.median(c.cpu_ms for c in costs), statistics.median(c.wall_ms for c in costs))


def run(home: Path, commits: int, appends: int) -> dict[str, object]:
    ours, theirs = Ours(home / "ours"), Theirs(home / "theirs")
    series = [measure(ours.commit) for _ in range(commits - INTERLEAVED)]
    for _ in range(appends - INTERLEAVED):
        theirs.commit()
    rival: list[Cost] = []
    for _ in range(INTERLEAVED):
        series.append(measure(ours.commit))
        rival.append(measure(theirs.commit))
    table = ours.catalog.load_table("bench.t")
    assert len(table.scan().to_arrow()) == commits * ROWS, "a benchmark that loses rows measures nothing"
    first, last, append = median(series[:HUNDRED]), median(series[-HUNDRED:]), median(rival)
    beside = median(series[-INTERLEAVED:])
    total_cpu = sum(cost.cpu_ms for cost in series)
    return {
        "commits": commits,
        "appends": appends,
        "p50_first_hundred": asdict(first),
        "p50_last_hundred": asdict(last),
        "growth_cpu": last.cpu_ms / first.cpu_ms,
        "growth_wall": last.wall_ms / first.wall_ms,
        "mean_cpu_ms_with_maintenance": total_cpu / len(series),
        "p50_append": asdict(append),
        "cheaper_cpu": append.cpu_ms / beside.cpu_ms,
        "cheaper_wall": append.wall_ms / beside.wall_ms,
        "snapshots": len(table.metadata.snapshots),
        "manifests": len(table.current_snapshot().manifests(table.io)),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=2_000)
    parser.add_argument("--appends", type=int, default=500)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    if options.commits < 2 * HUNDRED or options.appends < INTERLEAVED:
        parser.error(f"at least {2 * HUNDRED} commits and {INTERLEAVED} appends")
    with tempfile.TemporaryDirectory() as home:
        result = run(Path(home), options.commits, options.appends)
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
