"""Seconds to load and check 1,000 pipelines of ten stages, against libyaml parsing the same bytes and no more.

Half of the pipelines are linear and half are graphs with a condition on every tenth edge. Once as one file, once
as a directory of one file each. Rounds are interleaved; medians of CPU time, and the wall time that users wait.

    python -m benchmarks.validation --rounds 9 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from yaml.cyaml import CParser
from yaml.events import StreamEndEvent

from conveyord.engine.definitions import load_pipelines

BASELINE = "libyaml's events"
LINEAR = """apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: line-%d, labels: {team: seismology}}
spec:
  source: {type: file_jsonl, path: "data/%d/*.jsonl"}
  steps:
    - {type: json_flatten, separator: _, max_depth: 5}
    - {type: sql_transform, query: "SELECT id, properties_mag AS mag FROM input_data WHERE properties_mag >= 2.5"}
    - {type: filter, when: "mag > 1 AND place IS NOT NULL"}
    - {type: filter, when: "mag > 2"}
    - {type: filter, when: "mag > 3"}
    - {type: filter, when: "mag > 4"}
    - {type: passthrough}
    - {type: passthrough}
  sink: {type: iceberg, table: seismic.quakes_%d, partition_by: ["day(at)"], commit: {rows: 1_000_000, every: 60s}}
"""
GRAPH = """apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: graph-%d}
spec:
  sources:
    - {name: a, type: file_jsonl, path: "data/%d/*.jsonl"}
    - {name: b, type: file_csv, path: "data/*.csv", header: true}
  transforms:
    - {name: flat, type: json_flatten, separator: _}
    - {name: c, type: filter, when: "mag > 1"}
    - {name: d, type: filter, when: "mag > 2"}
    - {name: e, type: passthrough}
    - {name: f, type: passthrough}
    - {name: g, type: passthrough}
  sinks:
    - {name: strong, type: iceberg, table: seismic.strong_%d}
    - {name: weak, type: stdout_pretty}
  edges:
    - [a, flat]
    - [flat, c]
    - [b, d]
    - [c, e]
    - [d, e]
    - [e, f]
    - [f, g]
    - {from: g, to: strong, when: "mag > 5", on_slow: spill}
    - {from: g, to: weak, otherwise: true}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One way to load: median seconds, and its CPU time relative to the baseline."""

    name: str
    wall_seconds: float
    cpu_seconds: float
    times_baseline: float


def write_pipelines(directory: Path, count: int) -> tuple[Path, Path]:
    """One file with `count` pipelines, and a directory with one file for each."""
    texts = [(LINEAR if index % 2 else GRAPH).replace("%d", str(index)) for index in range(count)]
    single, many = directory / "all.yaml", directory / "many"
    single.write_text("---\n".join(texts))
    many.mkdir()
    for index, text in enumerate(texts):
        (many / f"{index:05}.yaml").write_text(text)
    return single, many


def parse_only(path: Path) -> None:
    """All events of a file, thrown away."""
    parser = CParser(path.read_text())
    while not isinstance(parser.get_event(), StreamEndEvent):
        pass


def measure(pipelines: int, rounds: int) -> list[Row]:
    """Both sides, interleaved. The first round, which imports operators, is not counted."""
    with tempfile.TemporaryDirectory() as name:
        single, many = write_pipelines(Path(name), pipelines)
        work: dict[str, Callable[[], object]] = {
            BASELINE: lambda: parse_only(single),
            "one file": lambda: load_pipelines([single]),
            "a file each": lambda: load_pipelines([many]),
        }
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
        for _ in range(rounds + 1):
            for label, run in work.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                seconds[label].append((time.perf_counter() - wall, time.process_time() - cpu))
    walls = {label: statistics.median(wall for wall, _ in times[1:]) for label, times in seconds.items()}
    cpus = {label: statistics.median(cpu for _, cpu in times[1:]) for label, times in seconds.items()}
    return [Row(label, walls[label], cpus[label], cpus[label] / cpus[BASELINE]) for label in work]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--pipelines", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = measure(arguments.pipelines, arguments.rounds)
    print(f"| {arguments.pipelines} pipelines of ten stages | wall s | CPU s | times libyaml |\n|---|---:|---:|---:|")
    for row in table:
        print(f"| {row.name} | {row.wall_seconds:.3f} | {row.cpu_seconds:.3f} | {row.times_baseline:.1f} |")
    if arguments.json:
        result = {"pipelines": arguments.pipelines, "results": [asdict(row) for row in table]}
        arguments.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
