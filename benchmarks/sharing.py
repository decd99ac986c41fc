"""What fifty pipelines cost that share `file_jsonl -> json_flatten -> sql_transform`, against one of them.

Whole processes on one core, interleaved and measured from outside: definitions are loaded, prepared, run and
reported. The sinks count rows and keep nothing, so that what is measured is all before them and what the engine
adds for each; once in a process that runs the engine with a registry of its own, and once through the command line
with `stdout_pretty`, which then shows no row. A process costs the same start-up for one pipeline and for fifty, which
hides what fifty cost: so the ratio is also given without what one pipeline costs over a single record.

Beside them, without a target, one source to three Iceberg tables against one table.

    python -m benchmarks.sharing --records 1000000 --rounds 5 --json out.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import trio

from benchmarks.graph import CAPACITY, Waiting
from benchmarks.jsonl_to_iceberg import Sample, timed
from benchmarks.records import make
from conveyord.config import DEAD_LETTERS_BUDGET_BYTES, SPILL_BUDGET_BYTES
from conveyord.engine.contracts import OperatorConfig, OperatorContext
from conveyord.engine.definitions import load_pipelines
from conveyord.engine.local_run import RunRequest, progress_of, run_pipelines
from conveyord.engine.preparation import Limits
from conveyord.engine.registry import GROUP, Registry

MANY = 50
Command = Callable[[str, str], list[str]]
"""The command that runs a definition with a data directory."""

COUNTING, SHOWING = "{type: counting}", "{type: stdout_pretty, limit: 0}"
PIPELINE = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: trips-%(number)d}
spec:
  source: {type: file_jsonl, path: %(path)s}
  steps:
    - {type: json_flatten}
    - {type: sql_transform, query: "SELECT id, country, price * qty AS total FROM input_data WHERE qty > 2"}
  sink: %(sink)s
"""
TABLES = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: tables}
spec:
  sources: [{name: in, type: file_jsonl, path: %(path)s}]
  sinks: [%(sinks)s]
  edges: [%(edges)s]
"""


class CountingSink(Waiting):
    """As an operator that a registry can construct."""

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:  # noqa: ARG002 - the contract's
        super().__init__(context)


def pipelines(count: int, path: Path, sink: str) -> str:
    """`count` pipelines that differ in nothing but their names."""
    return "---".join(PIPELINE % {"number": number, "path": path, "sink": sink} for number in range(count))


def tables(count: int, path: Path) -> str:
    """One source to `count` tables."""
    sinks = ", ".join(f"{{name: table-{number}, type: iceberg, table: bench.t{number}}}" for number in range(count))
    edges = ", ".join(f"[in, table-{number}]" for number in range(count))
    return TABLES % {"path": path, "sinks": sinks, "edges": edges}


def run_counting(definition: Path, data_dir: Path) -> None:
    """Run pipelines that end in the counting sink, in this process, and see that all got the same."""
    points = [point for point in entry_points(group=GROUP) if point.dist is not None and point.dist.name == "conveyord"]
    registry = Registry.of([*points, EntryPoint("sink.counting", "benchmarks.sharing:CountingSink", GROUP)])
    request = RunRequest(
        pipelines=tuple(load_pipelines([definition], registry=registry)),
        data_dir=data_dir,
        channel_capacity=CAPACITY,
        threads=len(os.sched_getaffinity(0)),
        limits=Limits(DEAD_LETTERS_BUDGET_BYTES, None, SPILL_BUDGET_BYTES),
    )
    run = partial(run_pipelines, request, registry, progress=progress_of(request, registry))

    async def go() -> None:
        summaries = await run(drain=trio.Event())
        assert all(summary.status == "succeeded" for summary in summaries), summaries
        assert len({(summary.rows_in, summary.rows_out) for summary in summaries}) == 1, summaries

    trio.run(go)


@dataclass(frozen=True, slots=True)
class Bench:
    """Where processes run: their folder and their core."""

    work: Path
    core: str

    def process(self, text: str, command: Command) -> Sample:
        """One process over the definition `text`, with an empty data directory."""
        definition, data_dir = self.work / "pipelines.yaml", self.work / "data"
        definition.write_text(text)
        shutil.rmtree(data_dir, ignore_errors=True)
        return timed(command(str(definition), str(data_dir)), cores=self.core)


def engine(definition: str, data_dir: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.sharing", "--run", definition, data_dir]


def command_line(definition: str, data_dir: str) -> list[str]:
    program = str(Path(sys.executable).with_name("conveyord"))
    quiet = 'exec "$0" "$@" 2> /dev/null'  # where stdout_pretty prints rows, summaries go to standard error
    return ["sh", "-c", quiet, program, "run", definition, "--data-dir", data_dir]


def compared(many: Sequence[Sample], one: Sequence[Sample], none: Sequence[Sample]) -> dict[str, float]:
    """Medians of CPU and wall, and of the ratios round by round; `beyond` is without the start-up."""
    figures: dict[str, float] = {}
    for field in ("cpu_seconds", "wall_seconds"):
        rounds = [tuple(getattr(sample, field) for sample in samples) for samples in zip(many, one, none, strict=True)]
        short = field.removesuffix("_seconds")
        figures |= {
            f"{short}_one_seconds": statistics.median(one for _, one, _ in rounds),
            f"{short}_many_seconds": statistics.median(many for many, _, _ in rounds),
            f"{short}_ratio": statistics.median(many / one for many, one, _ in rounds),
            f"{short}_ratio_beyond_start": statistics.median((m - none) / (one - none) for m, one, none in rounds),
        }
    return {name: round(value, 3) for name, value in figures.items()}


def measure(bench: Bench, path: Path, single: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Every comparison, all processes of a round after each other."""
    sizes = ((MANY, path), (1, path), (1, single))
    kinds: dict[str, tuple[Command, list[str]]] = {
        f"{MANY} pipelines, a sink that counts": (engine, [pipelines(*size, COUNTING) for size in sizes]),
        f"{MANY} pipelines, stdout_pretty": (command_line, [pipelines(*size, SHOWING) for size in sizes]),
        "3 Iceberg tables of one source": (command_line, [tables(min(count, 3), file) for count, file in sizes]),
    }
    found: dict[str, list[tuple[Sample, ...]]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, (command, texts) in kinds.items():
            found[name].append(tuple(bench.process(text, command) for text in texts))
    return {name: compared(*zip(*samples, strict=True)) for name, samples in found.items()}


def compare(records: int, work: Path, rounds: int) -> dict[str, Any]:
    path = make(work / f"trips-{records}.jsonl", records)
    single = make(work / "trips-1.jsonl", 1)
    with tempfile.TemporaryDirectory(prefix="conveyord-sharing-") as scratch:
        bench = Bench(Path(scratch), str(max(os.sched_getaffinity(0))))
        return {"records": records, "rounds": rounds, "results": measure(bench, path, single, rounds)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conveyord-bench")
    parser.add_argument("--run", nargs=2, type=Path, metavar=("DEFINITION", "DATA_DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run_counting(*arguments.run)
        return
    result = compare(arguments.records, arguments.work, arguments.rounds)
    print("| against one | CPU s | one: CPU s | CPU | beyond start-up | wall | beyond start-up |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in result["results"].items():
        ratios = " | ".join(
            f"{row[f'{kind}_{ratio}']:.2f}" for kind in ("cpu", "wall") for ratio in ("ratio", "ratio_beyond_start")
        )
        print(f"| {name} | {row['cpu_many_seconds']:.2f} | {row['cpu_one_seconds']:.2f} | {ratios} |")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
