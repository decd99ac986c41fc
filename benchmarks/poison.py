"""What poison rows among 65,536 cost: runs of the stage, and time against the same rows without them.

All of the engine is in it: a SQL stage that divides by zero on one row runs in a graph, the row is found and
made durable as a dead letter, and the rest goes on. The other side, round by round, is the same graph over rows
that are all good, where the stage runs once. Where the row stands decides how much is run again. Behind another
stage that stage is run too, on parts of its rows, to find the record that the poison row came from.

Where many rows are poison, at random places, a run takes minutes. These are only counted, in a search without the
engine around it, beside the logarithm of the possible sets of so many rows: on average no search does with fewer runs
where each only fails or not. --many times them too, once.

    python -m benchmarks.poison --rounds 9 --json out.json
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import structlog
import trio

from benchmarks.graph import PIPELINE, Waiting, run
from benchmarks.transforms import records
from conveyord.core.errors import BatchError
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Source
from conveyord.engine.dead_lettering import LetterBox, StageLetters
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.poison import salvage
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from conveyord.operators.transform_sql_transform import SqlTransform
from conveyord.storage.dead_letters.store import DeadLetterStore

ROWS = 65_536
DIVIDING = (
    "SELECT id, 100 / number AS share, to_timestamp_millis(properties_time) AS at, properties_mag AS mag, "
    "properties_place AS place FROM input_data WHERE properties_mag >= 0"
)
BEFORE = "SELECT * FROM input_data WHERE properties_mag >= 0.5"
BUDGET_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Where the poison is, in rows as the source sends them, and whether a SQL stage stands before."""

    name: str
    poison: Sequence[int]
    behind: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the graph. Seconds in the stages and in all; wall time."""

    runs: int
    runs_before: int
    stage_seconds: float
    seconds: float


MIDDLE = ROWS // 2
ALONE, BEHIND = Case("none", []), Case("none, behind a SQL stage", [], behind=True)
CASES = (
    ALONE,
    Case("the first row", [0]),
    Case("one in the middle", [MIDDLE]),
    Case("the last row", [ROWS - 1]),
    Case("sixteen, evenly", range(ROWS // 32, ROWS, ROWS // 16)),
    BEHIND,
    Case("one in the middle, behind a SQL stage", [MIDDLE], behind=True),
)
MANY = tuple(
    Case(f"{percent} % of all rows", sorted(Random(percent).sample(range(ROWS), ROWS * percent // 100)))
    for percent in (1, 10, 50, 100)
)


class Once(Source):
    """Sends one batch, and knows which record each row is."""

    Config = OperatorConfig

    def __init__(self, context: OperatorContext, data: pa.RecordBatch) -> None:
        super().__init__(OperatorConfig(), context)
        self._data = data

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:  # noqa: ARG002
        partition, rows = Partition(self.context.stage, "generated"), self._data.num_rows

        def place_of(row: int) -> Place:
            return Place(RecordRef(partition, row, b"{}"))

        spans = (Span(partition, 0, rows),)
        await out.send(self._data, spans, Tally(read=rows), raw_bytes=0, place_of=place_of)


class Counted(SqlTransform):
    """Counts and times its runs."""

    runs = 0
    seconds = 0.0

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        started = time.perf_counter()
        self.runs += 1
        try:
            return super().apply(data)
        finally:
            self.seconds += time.perf_counter() - started


def rows_with(poison: Sequence[int]) -> pa.RecordBatch:
    """Flat records, with a column of numbers that is 0 in the rows `poison` and in no others."""
    context = OperatorContext(PIPELINE, "flat", Path(), trio.CapacityLimiter(1))
    flat = JsonFlattenTransform(JsonFlattenTransform.Config(), context).apply(records(ROWS))
    mag = pa.array([1.0] * ROWS)  # so that every row passes the stage before
    flat = flat.set_column(flat.schema.get_field_index("properties_mag"), "properties_mag", mag)
    numbers = set(poison)
    return flat.append_column("number", pa.array([int(row not in numbers) for row in range(ROWS)]))


async def run_once(case: Case, data: pa.RecordBatch, home: Path) -> Run:
    """One run over `data`, with dead letters kept in `home`."""
    threads = trio.CapacityLimiter(2)
    with DeadLetterStore(home, budget_bytes=BUDGET_BYTES, retention_seconds=None, at_micros=0) as store:
        letters = StageLetters(LetterBox(store, threads), {PIPELINE: "dividing"}, {PIPELINE: {}})

        def context(stage: str) -> OperatorContext:
            return OperatorContext(PIPELINE, stage, home, threads, dead_letters=letters)

        dividing = Counted(Counted.Config(query=DIVIDING), context("dividing"))
        before = Counted(Counted.Config(query=BEFORE), context("before"))
        sink = Waiting(context("sink"))
        started = time.perf_counter()
        await run(Once(context("source"), data), [before, dividing] if case.behind else [dividing], [sink])
        seconds = time.perf_counter() - started
        assert letters.box.counts[PIPELINE] == sink.taken.dead == len(case.poison), sink.taken
        assert sink.taken.rows == ROWS - len(case.poison), sink.taken
    return Run(dividing.runs, before.runs, dividing.seconds + before.seconds, seconds)


def run_alone(case: Case, data: pa.RecordBatch) -> Run:
    """One run, with a home of its own."""
    with tempfile.TemporaryDirectory(prefix="conveyord-poison-") as home:
        return trio.run(run_once, case, data, Path(home))


def counted(case: Case) -> dict[str, float]:
    """Runs of a stage that fails on the rows of `case`, and the logarithm of the number of sets of so many rows."""
    poison, runs = np.zeros(ROWS, bool), 0
    poison[list(case.poison)] = True

    def work(rows: pa.RecordBatch) -> None:
        nonlocal runs
        runs += 1
        if poison[rows.column(0).to_numpy()].any():
            raise BatchError("poison")

    salvage(work, pa.record_batch({"row": np.arange(ROWS)}), BatchError("poison"))
    count = len(case.poison)
    fewest = (math.lgamma(ROWS + 1) - math.lgamma(count + 1) - math.lgamma(ROWS - count + 1)) / math.log(2)
    return {"runs": runs, "runs_per_row": runs / ROWS, "fewest": fewest}


def measure(rounds: int, *, many: bool) -> dict[str, dict[str, float]]:
    """Every case, interleaved; medians, and ratios to the graph over good rows in the same round."""
    inputs = {case: rows_with(case.poison) for case in CASES}
    found: dict[Case, list[Run]] = {case: [] for case in CASES}
    for _ in range(rounds + 1):  # the first warms up
        for case, data in inputs.items():
            found[case].append(run_alone(case, data))
    for case in MANY if many else ():
        found[case] = [run_alone(case, rows_with(case.poison))]
    table = {}
    for case, runs in found.items():
        good = found[BEHIND if case.behind else ALONE]
        pairs = list(zip(runs[1:] or runs, good[1:], strict=bool(runs[1:])))
        table[case.name] = {
            "runs": runs[-1].runs,
            "runs_before": runs[-1].runs_before,
            "stage_ms": statistics.median(run.stage_seconds for run, _ in pairs) * 1e3,
            "stage_ratio": statistics.median(run.stage_seconds / good.stage_seconds for run, good in pairs),
            "graph_ms": statistics.median(run.seconds for run, _ in pairs) * 1e3,
            "graph_ratio": statistics.median(run.seconds / good.seconds for run, good in pairs),
        }
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--many", action="store_true", help="also time batches of which many rows are poison: minutes")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    table, counts = measure(arguments.rounds, many=arguments.many), {case.name: counted(case) for case in MANY}
    print(f"| poison among {ROWS} rows | runs | of the stage before | ms in stages | good = 1 | ms in all | good = 1 |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, row in table.items():
        figures = f"{row['stage_ms']:.1f} | {row['stage_ratio']:.2f} | {row['graph_ms']:.1f} | {row['graph_ratio']:.2f}"
        print(f"| {name} | {row['runs']} | {row['runs_before']} | {figures} |")
    print(f"\n| poison among {ROWS} rows | runs | per row | log2 of the possible sets |\n|---|---:|---:|---:|")
    for name, row in counts.items():
        print(f"| {name} | {row['runs']} | {row['runs_per_row']:.2f} | {row['fewest']:.0f} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": ROWS, "results": table, "many": counts}, indent=2) + "\n")


if __name__ == "__main__":
    main()
