"""Rows per second of each transform on one thread, on 64 k-row batches of GeoJSON-like records.

Every round runs all candidates in turn, so that a busy machine slows them alike; medians of CPU time
of the whole process. The ratio is against `copy`, which reads and writes every buffer once: it is what
to compare between machines.

    python -m benchmarks.transforms --rounds 15 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import pyarrow as pa
import trio

from conveyord.core.pipeline.graph import SchemaContract
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.schema import fit, grow, held_to
from conveyord.operators.transform_filter import FilterTransform
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from conveyord.operators.transform_schema_evolution import SchemaEvolutionTransform
from conveyord.operators.transform_sql_transform import SqlTransform

BASELINE = "copy"
SQL = (
    "SELECT id, to_timestamp_millis(properties_time) AS at, properties_mag AS mag, properties_place AS place "
    "FROM input_data WHERE properties_mag >= 2.5"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate: rows in per second of CPU time, and its time relative to the baseline."""

    name: str
    rows_per_second: float
    times_baseline: float


def records(rows: int) -> pa.RecordBatch:
    """`rows` nested records: an object of five fields in an object, and a list of three numbers."""
    random = Random(7)
    properties = pa.StructArray.from_arrays(
        [
            pa.array([random.uniform(0, 8) for _ in range(rows)]),
            pa.array([f"{random.randrange(100)}km N of {random.choice('abcdef') * 12}" for _ in range(rows)]),
            pa.array([1_517_966_773_840 + 977 * row for row in range(rows)]),
            pa.array([None if row % 3 else row for row in range(rows)], pa.int64()),
            pa.array(["automatic" if row % 2 else "reviewed" for row in range(rows)]),
        ],
        names=["mag", "place", "time", "felt", "status"],
    )
    point = pa.array([[random.random(), random.random(), 1.0] for _ in range(rows)])
    geometry = pa.StructArray.from_arrays([pa.array(["Point"] * rows), point], names=["type", "coordinates"])
    ids = pa.array([f"ci{37_868_143 + row}" for row in range(rows)])
    return pa.RecordBatch.from_arrays([ids, properties, geometry], names=["id", "properties", "geometry"])


def candidates(nested: pa.RecordBatch) -> dict[str, Callable[[], object]]:
    """What is timed, by name. Each call takes one batch through."""
    context = OperatorContext(pipeline="bench", stage="stage", data_dir=Path(), threads=trio.CapacityLimiter(1))
    flatten = JsonFlattenTransform(JsonFlattenTransform.Config(), context)
    explode = JsonFlattenTransform(JsonFlattenTransform.Config(lists="explode"), context)
    flat = flatten.apply(nested)

    def condition(when: str) -> BatchTransform:
        return FilterTransform(FilterTransform.Config(when=when), context)

    some, every = condition("properties_mag >= 2.5"), condition("properties_mag >= 0")
    query = SqlTransform(SqlTransform.Config(query=SQL), context)
    everything = SqlTransform(SqlTransform.Config(query="SELECT * FROM input_data"), context)
    indices = pa.array(range(nested.num_rows))
    wider = flat.schema.append(pa.field("new", pa.string()))
    doubles = flat.schema.set(flat.schema.get_field_index("properties_time"), pa.field("properties_time", pa.float64()))
    evolving = SchemaEvolutionTransform(SchemaEvolutionTransform.Config(), context)
    evolving.apply(flat.append_column("more", indices))
    strict = SchemaEvolutionTransform(SchemaEvolutionTransform.Config(strict_mode=True), context)
    strict.apply(doubled := flat.cast(doubles))
    frozen, narrow = SchemaContract(columns="freeze", types="freeze"), nested.schema.remove(2)
    return {
        BASELINE: lambda: flat.take(indices),
        "json_flatten": lambda: flatten.apply(nested),
        "json_flatten, lists exploded (3 rows each)": lambda: explode.apply(nested),
        "filter, 69 % stay": lambda: some.apply(flat),
        "filter, all stay": lambda: every.apply(flat),
        "sql_transform, SELECT *": lambda: everything.apply(flat),
        "sql_transform, project and filter": lambda: query.apply(flat),
        "json_flatten, then that SQL": lambda: query.apply(flatten.apply(nested)),
        "fit, equal schema": lambda: fit(flat, flat.schema),
        "grow, one column missing": lambda: grow(wider, flat),
        "grow, long into double": lambda: grow(doubles, flat),
        "schema_evolution, one column missing": lambda: evolving.apply(flat),
        "schema_evolution, strict, as the law says": lambda: strict.apply(doubled),
        "schema_evolution, strict, long for double": lambda: strict.apply(flat),
        "contract, a struct that every row has is refused": lambda: held_to(frozen, nested, narrow),
    }


def measure(rows: int, rounds: int) -> list[Row]:
    """CPU seconds of every candidate, interleaved."""
    work = candidates(records(rows))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, run in work.items():
            start = time.process_time()
            for _ in range(3):
                run()
            seconds[name].append((time.process_time() - start) / 3)
    medians = {name: max(statistics.median(times[1:]), 1e-9) for name, times in seconds.items()}
    return [Row(name, rows / median, median / medians[BASELINE]) for name, median in medians.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = measure(arguments.rows, arguments.rounds)
    print(f"| transform ({arguments.rows} rows a batch) | Mrow/s per core | time, copy = 1 |\n|---|---:|---:|")
    for row in table:
        print(f"| {row.name} | {row.rows_per_second / 1e6:.1f} | {row.times_baseline:.2f} |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"rows": arguments.rows, "results": [asdict(row) for row in table]}, indent=2)
        )


if __name__ == "__main__":
    main()
