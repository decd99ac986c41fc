"""Runs every benchmark and keeps the results in docs/benchmarks/, one JSON file each: `make bench`.

The figures mean something only as ratios of one run on an otherwise idle machine.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
BENCHMARKS = ("jsonl_to_iceberg", "memory", "commits", "decoders", "parquet_writer", "transforms")


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(RESULTS / f"{name}.json")]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
