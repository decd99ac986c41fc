"""Parquet writer against a default `pq.ParquetWriter(compression="zstd")` fed row groups of 64k rows.

    python benchmarks/parquet_writer.py [--rows 1000000] [--rounds 5] [--json]

Both sides write the same batches to a local file without fsync, alternately, on one core; the figures are
medians of CPU time. Data: eight fields, about 230 bytes of JSON per record.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

from conveyord.storage.lake.data_files import DataFileWriter, WriterOptions
from conveyord.storage.lake.schemas import create_table

BATCH_ROWS = 65_536
COUNTRIES = ("DE", "FR", "US", "BR", "JP", "IN", "GB", "IT", "ES", "NL", "PL", "SE")
STATES = ("created", "paid", "shipped", "returned", "cancelled")


def batches(rows: int) -> list[pa.RecordBatch]:
    """Records as a shop would emit them; the same for the same `rows`."""
    rng = random.Random(7)
    made = []
    for first in range(0, rows, BATCH_ROWS):
        n = min(BATCH_ROWS, rows - first)
        device = pa.array([f"device-{rng.randrange(400):04d}" for _ in range(n)])
        meta = pa.StructArray.from_arrays(
            [
                device,
                pa.array([rng.uniform(-180, 180) for _ in range(n)]),
                pa.array([rng.uniform(-90, 90) for _ in range(n)]),
                pa.array([rng.random() < 0.97 for _ in range(n)]),
            ],
            names=["device", "x", "y", "ok"],
        )
        at = [1_760_000_000_000_000 + (first + i) * 1_500_000 + rng.randrange(1_500) * 1000 for i in range(n)]
        made.append(
            pa.record_batch(
                {
                    "id": pa.array(range(first, first + n), pa.int64()),
                    "ts": pa.array(at, pa.timestamp("us", "UTC")),
                    "user": pa.array([f"user-{rng.randrange(200_000):08d}" for _ in range(n)]),
                    "country": pa.array([rng.choice(COUNTRIES) for _ in range(n)]),
                    "price": pa.array([round(rng.uniform(1, 999), 2) for _ in range(n)]),
                    "qty": pa.array([rng.randrange(1, 20) for _ in range(n)], pa.int64()),
                    "status": pa.array([rng.choice(STATES) for _ in range(n)]),
                    "meta": meta,
                }
            )
        )
    return made


def write_default(data: list[pa.RecordBatch], folder: Path) -> tuple[float, int]:
    path = folder / "default.parquet"
    start = time.process_time()
    with pq.ParquetWriter(path, data[0].schema, compression="zstd") as writer:
        for batch in data:
            writer.write_batch(batch, row_group_size=BATCH_ROWS)
    return time.process_time() - start, path.stat().st_size


def write_ours(data: list[pa.RecordBatch], writer: DataFileWriter) -> tuple[float, int]:
    start = time.process_time()
    for batch in data:
        writer.write(batch)
    files = writer.finish()
    seconds = time.process_time() - start
    return seconds, sum(file.file_size_in_bytes for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    data = batches(arguments.rows)
    with tempfile.TemporaryDirectory() as folder:
        catalog = SqlCatalog("bench", uri=f"sqlite:///{folder}/catalog.db", warehouse=folder)
        table = create_table(catalog, "bench.orders", data[0].schema, [], {})
        by_user = create_table(catalog, "bench.by_user", data[0].schema, ["bucket(16, user)"], {})
        times: dict[str, list[float]] = {"default": [], "ours": [], "ours_16_partitions": []}
        sizes: dict[str, int] = {}
        writers = {
            "ours": DataFileWriter(table, WriterOptions(), lambda _: None),
            "ours_16_partitions": DataFileWriter(by_user, WriterOptions(), lambda _: None),
        }
        for _ in range(arguments.rounds):
            seconds, sizes["default"] = write_default(data, Path(folder))
            times["default"].append(seconds)
            for name, writer in writers.items():
                seconds, sizes[name] = write_ours(data, writer)
                times[name].append(seconds)
    base = statistics.median(times["default"])
    result = {
        name: {
            "rows_per_second": round(arguments.rows / statistics.median(runs)),
            "speed_ratio": round(base / statistics.median(runs), 2),
            "bytes": sizes[name],
            "size_ratio": round(sizes[name] / sizes["default"], 3),
        }
        for name, runs in times.items()
    }
    if arguments.json:
        figures = {"rows": arguments.rows, "rounds": arguments.rounds, "writers": result}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    for name, row in result.items():
        speed, ratio = row["rows_per_second"], row["speed_ratio"]
        print(f"{name:20} {speed:>9,} rows/s  x{ratio:<5}  size x{row['size_ratio']}")


if __name__ == "__main__":
    main()
