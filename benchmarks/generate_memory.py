"""Peak memory, open files and threads of a long run: rows made up, filtered, and written, on all cores.

The run is looked at from outside, twenty times a second. Memory is flat if the last
quarter of the time needs no more than the second.

    python -m benchmarks.generate_memory --gigabytes 20 --sink iceberg --json out.json
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from conveyord.engine.generating.generator import Generator
from conveyord.engine.generating.shapes import SHAPES

GIGABYTES = 20.0
LOOK_SECONDS = 0.05
QUARTERS = 4
SINKS = {"iceberg": "{type: iceberg, table: bench.made}", "parquet_dir": "{type: parquet_dir, path: %s}"}
PIPELINE = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: made}
spec:
  source: {type: generate, shape: %s, rows: %d}
  steps: [{type: filter, when: "%s"}]
  sink: %s
"""
CONDITIONS = {
    "trips": "qty > 3",
    "events": "kind <> 'view'",
    "metrics": "value > -60",
    "wide": "long_005 > 150000000000",
}


@dataclass(frozen=True, slots=True)
class Look:
    """The process at one moment."""

    at_seconds: float
    rss_mib: float
    open_files: int
    threads: int


def look(pid: int, started: float) -> Look | None:
    """The process as it is now; None if it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        files = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return None
    values = {key: re.search(rf"^{key}:\s+(\d+)", status, re.MULTILINE) for key in ("VmRSS", "Threads")}
    if values["VmRSS"] is None or values["Threads"] is None:  # a zombie has no memory
        return None
    return Look(time.perf_counter() - started, int(values["VmRSS"][1]) / 1024, files, int(values["Threads"][1]))


def watched(command: list[str]) -> list[Look]:
    """Run `command` to its end and look at it all the while. Raises CalledProcessError if it fails."""
    started = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    looks = []
    while child.poll() is None:
        seen = look(child.pid, started)
        if seen is not None:
            looks.append(seen)
        time.sleep(LOOK_SECONDS)
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return looks


def quarters(looks: list[Look]) -> list[list[Look]]:
    """The looks by quarters of the time."""
    span = looks[-1].at_seconds / QUARTERS
    return [
        [one for one in looks if span * number <= one.at_seconds < span * (number + 1)] or looks[-1:]
        for number in range(QUARTERS)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=GIGABYTES, help="of rows, as they are in memory")
    parser.add_argument("--shape", choices=sorted(CONDITIONS), default="trips")
    parser.add_argument("--sink", choices=sorted(SINKS), default="iceberg")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conveyord-bench")
    arguments = parser.parse_args()
    work = arguments.work / "generate_memory"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    rows = int(arguments.gigabytes * 1e9) // Generator(SHAPES[arguments.shape], seed=1).row_bytes()
    sink = SINKS[arguments.sink].replace("%s", str(work / "out"))
    definition = work / "made.yaml"
    definition.write_text(PIPELINE % (arguments.shape, rows, CONDITIONS[arguments.shape], sink))
    program = str(Path(sys.executable).with_name("conveyord"))
    looks = watched([program, "run", str(definition), "--data-dir", str(work / "data"), "-o", "json"])
    shutil.rmtree(work)
    result = {
        "bytes": int(arguments.gigabytes * 1e9),
        "rows": rows,
        "shape": arguments.shape,
        "sink": arguments.sink,
        "seconds": round(looks[-1].at_seconds, 1),
        "peak RSS MiB": round(max(one.rss_mib for one in looks)),
        "peak RSS MiB by quarters of the time": [round(max(one.rss_mib for one in part)) for part in quarters(looks)],
        "open files, max": max(one.open_files for one in looks),
        "threads, max": max(one.threads for one in looks),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
