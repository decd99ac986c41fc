"""The main job against the bare loop and DuckDB: JSON lines to an Iceberg table, whole processes, interleaved.

The bare loop is what a user would write by hand with pyarrow alone: `open_json` into a
`ParquetWriter` with zstd, on the same bytes; no table, no commit, no recovery. DuckDB copies `read_ndjson` to
one Parquet file with zstd. Processes are pinned, so "one core" is one core for every thread of the process.

    python -m benchmarks.jsonl_to_iceberg --records 5000000 --rounds 3 --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.records import make

BARE_LOOP = """
import sys, pyarrow as pa, pyarrow.json as pj, pyarrow.parquet as pq
source, target = sys.argv[1:]
writer = None
for batch in pj.open_json(source):
    if writer is None:
        writer = pq.ParquetWriter(target, batch.schema, compression="zstd")
    writer.write_batch(batch)
writer.close()
"""

DUCKDB = """
import sys, duckdb
source, target, cores = sys.argv[1:]
duckdb.sql(f"SET threads = {len(cores.split(','))}")
duckdb.sql(f"COPY (SELECT * FROM read_ndjson('{source}')) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
"""

PIPELINE = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {{name: trips}}
spec:
  source: {{type: file_jsonl, path: {path}}}
  sink: {{type: iceberg, table: bench.trips}}
"""


CORES = {"1_core": "0", "2_cores": "0,1"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One process: wall and CPU seconds, peak memory."""

    wall_seconds: float
    cpu_seconds: float
    peak_rss_mib: float


def timed(command: Sequence[str], *, cores: str) -> Sample:
    """Run `command` pinned to `cores` and measure it from outside. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    child = subprocess.Popen(["taskset", "-c", cores, *command], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - started
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def bare(path: Path, work: Path, *, cores: str) -> Sample:
    return timed([sys.executable, "-c", BARE_LOOP, str(path), str(work / "bare.parquet")], cores=cores)


def duckdb(path: Path, work: Path, *, cores: str) -> Sample:
    return timed([sys.executable, "-c", DUCKDB, str(path), str(work / "duckdb.parquet"), cores], cores=cores)


def conveyord(path: Path, work: Path, *, cores: str) -> Sample:
    definition = work / "trips.yaml"
    definition.write_text(PIPELINE.format(path=path))
    data_dir = work / "data"
    shutil.rmtree(data_dir, ignore_errors=True)
    program = str(Path(sys.executable).with_name("conveyord"))
    return timed([program, "run", str(definition), "--data-dir", str(data_dir), "-o", "json"], cores=cores)


def median_of(samples: Sequence[Sample], field: str) -> float:
    return statistics.median(getattr(sample, field) for sample in samples)


def compare(path: Path, work: Path, rounds: int) -> dict[str, object]:
    """Interleaved rounds of all on one core and on two, and the medians of the ratios pair by pair."""
    runs: dict[str, list[Sample]] = {f"{name}_{many}": [] for many in CORES for name in ("bare", "duckdb", "conveyord")}
    for _ in range(rounds):
        for many, cores in CORES.items():
            runs[f"bare_{many}"].append(bare(path, work, cores=cores))
            runs[f"duckdb_{many}"].append(duckdb(path, work, cores=cores))
            runs[f"conveyord_{many}"].append(conveyord(path, work, cores=cores))

    def ratio(over: str, under: str, field: str) -> float:
        pairs = zip(runs[over], runs[under], strict=True)
        return round(statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs), 3)

    return {
        "one core: bare wall / conveyord wall": ratio("bare_1_core", "conveyord_1_core", "wall_seconds"),
        "one core: bare CPU / conveyord CPU": ratio("bare_1_core", "conveyord_1_core", "cpu_seconds"),
        "one core: DuckDB CPU / conveyord CPU": ratio("duckdb_1_core", "conveyord_1_core", "cpu_seconds"),
        "two cores: bare wall / conveyord wall": ratio("bare_2_cores", "conveyord_2_cores", "wall_seconds"),
        "two cores: bare CPU / conveyord CPU": ratio("bare_2_cores", "conveyord_2_cores", "cpu_seconds"),
        "two cores: DuckDB CPU / conveyord CPU": ratio("duckdb_2_cores", "conveyord_2_cores", "cpu_seconds"),
        "two cores: speed-up over one (wall)": ratio("conveyord_1_core", "conveyord_2_cores", "wall_seconds"),
        "peak RSS MiB, two cores": round(max(sample.peak_rss_mib for sample in runs["conveyord_2_cores"])),
        "samples": {name: [asdict(sample) for sample in samples] for name, samples in runs.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conveyord-bench")
    arguments = parser.parse_args()
    path = make(arguments.work / f"trips-{arguments.records}.jsonl", arguments.records)
    ratios = compare(path, arguments.work, arguments.rounds)
    result = {"records": arguments.records, "bytes": path.stat().st_size, **ratios}
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
