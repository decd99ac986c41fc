"""The spill queue against a bare Arrow IPC file with LZ4: the same batches written and read back.

    python -m benchmarks.spill [--rows 1000000] [--rounds 7] [--json PATH]

Both sides run on one core without fsync per batch, interleaved; the figures are medians of CPU and of wall
time. The queue does more: checksums of all bytes on both ways, and a ledger that is synced as segments are settled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from benchmarks.parquet_writer import batches
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage.spill.budget import SpillBudget
from conveyord.storage.spill.frames import FrameMeta
from conveyord.storage.spill.queue import SpillQueue

BUDGET_BYTES = 4 * 1024**3
SETTLE_FRAMES = 8  # frames that a sink commits at once


def bare_write(data: list[pa.RecordBatch], folder: Path) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    path = str(folder / "bare.arrow")
    with pa.OSFile(path, "wb") as file, pa.ipc.new_stream(file, data[0].schema, options=options) as writer:
        for batch in data:
            writer.write_batch(batch)


def bare_read(data: list[pa.RecordBatch], folder: Path) -> None:
    with pa.OSFile(str(folder / "bare.arrow")) as file, pa.ipc.open_stream(file) as reader:
        assert sum(batch.num_rows for batch in reader) == sum(batch.num_rows for batch in data)


def spill_write(data: list[pa.RecordBatch], folder: Path) -> None:
    at = 0
    with SpillQueue.open(folder / "queue", digest="x", budget=SpillBudget(BUDGET_BYTES)) as queue:
        for batch in data:
            span = Span(Partition("orders", "/in/orders.jsonl"), at, at + batch.nbytes, "mark")
            queue.append(FrameMeta((span,), Tally(read=batch.num_rows)), batch)
            at = span.end


def spill_recover(data: list[pa.RecordBatch], folder: Path) -> SpillQueue:
    queue = SpillQueue.open(folder / "queue", digest="x", budget=SpillBudget(BUDGET_BYTES))
    assert queue.recovered.frames == len(data)
    return queue


def spill_read(data: list[pa.RecordBatch], queue: SpillQueue) -> None:
    rows = 0
    with queue:
        while (read := queue.read()) is not None:
            rows += read[2].num_rows
            if read[0] % SETTLE_FRAMES == 0:
                queue.settle(read[0])
        queue.settle(queue.last)
    assert rows == sum(batch.num_rows for batch in data)


def measure(steps: dict[str, Callable[[], object]], times: dict[str, list[tuple[float, float]]]) -> None:
    for name, step in steps.items():
        cpu, wall = time.process_time(), time.perf_counter()
        step()
        times.setdefault(name, []).append((time.process_time() - cpu, time.perf_counter() - wall))


def one_round(data: list[pa.RecordBatch], times: dict[str, list[tuple[float, float]]]) -> None:
    with tempfile.TemporaryDirectory(prefix="conveyord-spill-") as name:
        folder = Path(name)
        held: list[SpillQueue] = []
        steps: dict[str, Callable[[], object]] = {
            "bare_write": lambda: bare_write(data, folder),
            "spill_write": lambda: spill_write(data, folder),
            "bare_read": lambda: bare_read(data, folder),
            "spill_recover": lambda: held.append(spill_recover(data, folder)),
            "spill_read": lambda: spill_read(data, held[0]),
        }
        measure(steps, times)
        shutil.rmtree(folder / "queue")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    data = batches(arguments.rows)
    times: dict[str, list[tuple[float, float]]] = {}
    for _ in range(arguments.rounds):
        one_round(data, times)
    size = sum(batch.nbytes for batch in data)
    result = {
        name: {
            "cpu_seconds": round(statistics.median(cpu for cpu, _ in runs), 4),
            "mb_per_second": round(size / 1e6 / statistics.median(wall for _, wall in runs)),
        }
        for name, runs in times.items()
    }
    ratios = {
        f"{way}_{kind}_ratio": round(
            statistics.median(
                ours[index] / theirs[index]
                for ours, theirs in zip(times[f"spill_{way}"], times[f"bare_{way}"], strict=True)
            ),
            2,
        )
        for way in ("write", "read")
        for index, kind in enumerate(("cpu", "wall"))
    }
    figures = {"rows": arguments.rows, "rounds": arguments.rounds, "arrow_bytes": size, **ratios, "steps": result}
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
