"""CSV to Parquet with a filter and a computed column, by conveyord and by others: whole processes, one core, in turn.

The others need an environment of their own, made once by

    python -m venv /tmp/peers && /tmp/peers/bin/pip install -r benchmarks/peers/requirements.txt

    python -m benchmarks.peers --python /tmp/peers/bin/python --rounds 3 --json out.json

Every run must give as many rows as the bare pyarrow loop, or the comparison fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.jsonl_to_iceberg import Sample, timed
from benchmarks.parquet_dir import bare, conveyord, make
from conveyord.storage.files import open_chunks

JOBS = Path(__file__).parent
TARGETS = {"bytewax": "bytewax.parquet", "pathway": "pathway.csv", "dlt": "dlt"}
WRITTEN = {
    "bare": "bare.parquet",
    "conveyord": "out/**/*.parquet",
    "bytewax": TARGETS["bytewax"],
    "dlt": "dlt/bench/trips/*.parquet",
}
"""Where the Parquet files of a job are."""


def peer(name: str, python: Path, path: Path, work: Path) -> Sample:
    target = work / TARGETS[name]
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    return timed([str(python), str(JOBS / f"{name}_job.py"), str(path), str(target)], cores="0")


def rows_of(name: str, work: Path) -> int:
    """How many rows a job has written."""
    if name == "pathway":
        return sum(block.count(b"\n") for block in open_chunks(work / TARGETS[name])) - 1
    return sum(pq.read_metadata(path).num_rows for path in work.glob(WRITTEN[name]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", type=Path, default=Path("/tmp/peers/bin/python"), help="the peers' interpreter")
    parser.add_argument("--records", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conveyord-bench")
    arguments = parser.parse_args()
    if not arguments.python.exists():
        parser.error(f"--python: {arguments.python} is not there; this module's docstring says how to make it")
    os.environ["RUNTIME__DLTHUB_TELEMETRY"] = "false"
    path, work = make(arguments.work / f"trips-{arguments.records}.csv", arguments.records), arguments.work
    jobs: dict[str, Callable[[], Sample]] = {
        "bare": lambda: bare(path, work),
        "conveyord": lambda: conveyord(path, work),
    }
    for name in TARGETS:
        jobs[name] = lambda name=name: peer(name, arguments.python.absolute(), path, work)  # type: ignore[misc]
    runs: dict[str, list[Sample]] = {name: [] for name in jobs}
    for _ in range(arguments.rounds):
        for name, run in jobs.items():
            runs[name].append(run())
    rows = {name: rows_of(name, work) for name in jobs}
    if len(set(rows.values())) > 1:
        raise SystemExit(f"the jobs do not agree on the rows: {rows}")

    def ratio(name: str, field: str) -> float:
        pairs = zip(runs[name], runs["conveyord"], strict=True)
        return round(statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs), 2)

    result = {
        "records": arguments.records,
        "rows": rows["bare"],
        **{f"{name} CPU / conveyord CPU": ratio(name, "cpu_seconds") for name in jobs if name != "conveyord"},
        **{f"{name} wall / conveyord wall": ratio(name, "wall_seconds") for name in jobs if name != "conveyord"},
        "samples": {name: [asdict(sample) for sample in samples] for name, samples in runs.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
