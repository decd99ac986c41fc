"""CSV into a directory of Parquet files against the bare loop: whole processes, one core, interleaved.

Both filter rows and compute a column. The bare loop is what a user would write by hand with pyarrow alone:
`open_csv`, `filter`, `multiply`, a `ParquetWriter` with zstd; no commit, no recovery, no sync.

    python -m benchmarks.parquet_dir --records 3000000 --rounds 5 --json out.json
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from benchmarks.jsonl_to_iceberg import Sample, median_of, timed
from benchmarks.records import CHUNK_RECORDS, COUNTRIES, STATUSES

BARE_LOOP = """
import sys, pyarrow.compute as pc, pyarrow.csv as csv, pyarrow.parquet as pq
source, target = sys.argv[1:]
writer = None
for batch in csv.open_csv(source):
    batch = batch.filter(pc.greater_equal(batch["qty"], 5))
    batch = batch.append_column("total", pc.multiply(batch["price"], batch["qty"]))
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
  source: {{type: file_csv, path: {path}}}
  steps:
    - {{type: filter, when: qty >= 5}}
    - {{type: sql_transform, query: "SELECT *, price * qty AS total FROM input_data"}}
  sink: {sink}
"""


def make(path: Path, count: int) -> Path:
    """Write `count` trips as CSV to `path` unless it is there already."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = random.Random(7)
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="ascii") as out:
        out.write("id,at,user,country,price,qty,status\n")
        for first in range(0, count, CHUNK_RECORDS):
            out.write(
                "".join(
                    f"{number},2026-01-{number * 28 // count + 1:02d}T{number % 24:02d}:{number % 60:02d}:00Z,"
                    f"u{rng.randrange(10**9):09d}@riders.example.com,{COUNTRIES[rng.randrange(8)]},"
                    f"{rng.randrange(100, 99_999) / 100},{rng.randrange(1, 20)},{STATUSES[rng.randrange(4)]}\n"
                    for number in range(first, min(first + CHUNK_RECORDS, count))
                )
            )
    partial.rename(path)
    return path


def bare(path: Path, work: Path) -> Sample:
    return timed([sys.executable, "-c", BARE_LOOP, str(path), str(work / "bare.parquet")], cores="0")


def conveyord(path: Path, work: Path, sink: str = "{type: parquet_dir, path: %s}") -> Sample:
    definition, out, data_dir = work / "parquet_dir.yaml", work / "out", work / "data"
    definition.write_text(PIPELINE.format(path=path, sink=sink.replace("%s", str(out))))
    for directory in (out, data_dir):
        shutil.rmtree(directory, ignore_errors=True)
    program = str(Path(sys.executable).with_name("conveyord"))
    return timed([program, "run", str(definition), "--data-dir", str(data_dir), "-o", "text"], cores="0")


def size_of(work: Path) -> int:
    return sum(path.stat().st_size for path in (work / "out").rglob("*.parquet"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conveyord-bench")
    arguments = parser.parse_args()
    path, work = make(arguments.work / f"trips-{arguments.records}.csv", arguments.records), arguments.work
    partitioned = '{type: parquet_dir, path: %s, partition_by: [country, "day(at)"]}'
    nothing = "{type: stdout_pretty, limit: 0}"
    runs: dict[str, list[Sample]] = {"bare": [], "conveyord, nothing written": [], "partitioned": [], "conveyord": []}
    for _ in range(arguments.rounds):
        runs["bare"].append(bare(path, work))
        runs["conveyord, nothing written"].append(conveyord(path, work, nothing))
        runs["partitioned"].append(conveyord(path, work, partitioned))
        runs["conveyord"].append(conveyord(path, work))

    def ratio(field: str, of: str = "conveyord") -> float:
        return round(median_of(runs["bare"], field) / median_of(runs[of], field), 3)

    share = 1 - median_of(runs["conveyord, nothing written"], "cpu_seconds") / median_of(
        runs["conveyord"], "cpu_seconds"
    )
    result = {
        "records": arguments.records,
        "bytes": path.stat().st_size,
        "bare CPU / conveyord CPU": ratio("cpu_seconds"),
        "bare wall / conveyord wall": ratio("wall_seconds"),
        "bare CPU / conveyord CPU with 224 partitions": ratio("cpu_seconds", "partitioned"),
        "share of the sink in conveyord's CPU": round(share, 3),
        "file bytes: conveyord / bare": round(size_of(work) / (work / "bare.parquet").stat().st_size, 3),
        "samples": {name: [asdict(sample) for sample in samples] for name, samples in runs.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
