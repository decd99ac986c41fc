"""The main job against the bare loop: JSON lines to an Iceberg table, whole processes, interleaved.

The bare loop is what a user would write by hand with pyarrow alone: `open_json` into a
`ParquetWriter` with zstd, on the same bytes; no table, no commit, no recovery. Processes are pinned,
so "one core" is one core for every thread of the process.

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

PIPELINE = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {{name: trips}}
spec:
  source: {{type: file_jsonl, path: {path}}}
  sink: {{type: iceberg, table: bench.trips}}
"""


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
    """Interleaved rounds of the three, and the ratios of their medians and pair by pair."""
    runs: dict[str, list[Sample]] = {"bare_1_core": [], "conveyord_1_core": [], "conveyord_2_cores": []}
    for _ in range(rounds):
        runs["bare_1_core"].append(bare(path, work, cores="0"))
        runs["conveyord_1_core"].append(conveyord(path, work, cores="0"))
        runs["conveyord_2_cores"].append(conveyord(path, work, cores="0,1"))
    one, two, loop = runs["conveyord_1_core"], runs["conveyord_2_cores"], runs["bare_1_core"]

    def ratio(over: list[Sample], under: list[Sample], field: str) -> float:
        pairs = zip(over, under, strict=True)
        return round(statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs), 3)

    return {
        "one core: bare wall / conveyord wall": ratio(loop, one, "wall_seconds"),
        "one core: bare CPU / conveyord CPU": ratio(loop, one, "cpu_seconds"),
        "two cores: speed-up over one (wall)": ratio(one, two, "wall_seconds"),
        "peak RSS MiB, two cores": round(max(sample.peak_rss_mib for sample in two)),
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
