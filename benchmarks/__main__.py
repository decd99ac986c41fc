"""Runs benchmarks and keeps the results in docs/benchmarks/, one JSON file each: all of them by `make bench`.

The figures mean something only as ratios of one run on an otherwise idle machine.

    python -m benchmarks [NAME ...]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "docs" / "benchmarks"
BENCHMARKS = (
    "jsonl_to_iceberg",
    "memory",
    "commits",
    "decoders",
    "parquet_writer",
    "parquet_dir",
    "transforms",
    "transforms_columns",
    "transforms_rows",
    "transforms_lookup",
    "generate_memory",
    "graph",
    "poison",
    "origins",
    "sharing",
    "spill",
    "dead_letters",
    "http_push",
    "payloads",
    "validation",
    "raft_core",
    "raft_log",
    "raft_snapshots",
    "raft_cluster",
    "rpc",
    "daemon_start",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which ones: {', '.join(BENCHMARKS)}; default: all")
    names = parser.parse_args().names
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no such benchmark: {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    RESULTS.mkdir(exist_ok=True)
    for name in names or BENCHMARKS:
        print(f"== {name}", flush=True)
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", str(RESULTS / f"{name}.json")]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
