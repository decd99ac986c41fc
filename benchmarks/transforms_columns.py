"""Rows per second of `map`, `project`, `rename`, `cast` and `clean_data` on one thread, on 64 k-row batches.

Every round runs all candidates in turn; medians of CPU time of the whole process. The ratio is against `copy`,
which reads and writes every buffer once, as in `benchmarks.transforms`, from which the records come.

    python -m benchmarks.transforms_columns --rounds 15 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import trio

from benchmarks.transforms import BASELINE, Row, records
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import OperatorContext
from conveyord.operators.transform_cast import CastTransform
from conveyord.operators.transform_clean_data import CleanDataTransform
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from conveyord.operators.transform_map import MapTransform
from conveyord.operators.transform_project import ProjectTransform
from conveyord.operators.transform_rename import RenameTransform

DAY_FORMATS = ["%d.%m.%Y %H:%M:%S", "%Y/%m/%d"]


def typed_texts(rows: int) -> pa.RecordBatch:
    """Columns as a CSV file has them: numbers, decimals and times in text, padded or not."""
    return pa.record_batch(
        {
            "n": pa.array([str(977 * row) for row in range(rows)]),
            "price": pa.array([f"{row % 1000}.{row % 100:02}" for row in range(rows)]),
            "at": pa.array([f"2024-05-{row % 28 + 1:02}T13:{row % 60:02}:00.5Z" for row in range(rows)]),
            "day": pa.array([f"{row % 28 + 1}.5.2024 1:{row % 60:02}:00" for row in range(rows)]),
            "name": pa.array([f" {row} Main Street " if row % 2 else "" for row in range(rows)]),
            "ratio": pa.array([row % 997 / 8 for row in range(rows)]),
        }
    )


def candidates(rows: int) -> dict[str, Callable[[], object]]:
    """What is timed, by name. Each call takes one batch through."""
    context = OperatorContext(pipeline="bench", stage="stage", data_dir=Path(), threads=trio.CapacityLimiter(1))
    nested, text = records(rows), typed_texts(rows)
    flat = JsonFlattenTransform(JsonFlattenTransform.Config(), context).apply(nested)
    indices = pa.array(range(rows))

    def made(operator: type[BatchTransform], data: pa.RecordBatch, **options: Any) -> Callable[[], object]:
        work = operator(operator.Config(**options), context)
        return lambda: work.apply(data)

    arithmetic = {"mag2": "properties_mag * 2", "at": "to_timestamp_millis(properties_time)"}
    return {
        BASELINE: lambda: flat.take(indices),
        "map, two numbers": made(MapTransform, flat, columns=arithmetic),
        "map, two texts joined": made(MapTransform, flat, columns={"x": "id || ' ' || properties_place"}),
        "project, three columns": made(ProjectTransform, flat, columns=["id", "properties_mag", "properties_time"]),
        "project, a field dropped": made(ProjectTransform, nested, drop=["properties.place"]),
        "rename, case snake, nested": made(RenameTransform, nested, case="snake", columns={"id": "ID"}),
        "cast, text to long": made(CastTransform, text, columns={"n": "long"}),
        "cast, text to decimal(10,2)": made(CastTransform, text, columns={"price": "decimal(10,2)"}),
        "cast, ISO text to timestamptz": made(CastTransform, text, columns={"at": "timestamptz"}),
        "cast, text in a format to timestamp": made(
            CastTransform, text, columns={"day": "timestamp"}, formats=DAY_FORMATS
        ),
        "cast, double to decimal(10,3)": made(CastTransform, text, columns={"ratio": "decimal(10,3)"}),
        "clean_data, three of nine columns text": made(CleanDataTransform, flat),
        "clean_data, rows with nulls dropped": made(CleanDataTransform, text, remove_nulls=["name"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    work = candidates(arguments.rows)
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(arguments.rounds + 1):
        for name, run in work.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    medians = {name: max(statistics.median(times[1:]), 1e-9) for name, times in seconds.items()}
    table = [Row(name, arguments.rows / median, median / medians[BASELINE]) for name, median in medians.items()]
    print(f"| transform ({arguments.rows} rows a batch) | Mrow/s per core | time, copy = 1 |\n|---|---:|---:|")
    for row in table:
        print(f"| {row.name} | {row.rows_per_second / 1e6:.1f} | {row.times_baseline:.2f} |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rows": arguments.rows, "results": [asdict(row) for row in table]}, indent=2)
        )


if __name__ == "__main__":
    main()
