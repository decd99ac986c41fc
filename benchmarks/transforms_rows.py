"""Rows per second of `mask`, `validate`, `partition`, `flat_map` and `split` on one thread, as `transforms` measures.

For comparison, HMAC in a Python loop and a bare loop of jsonschema over rows that are Python objects already.

    python -m benchmarks.transforms_rows --rounds 9 --json out.json
"""

from __future__ import annotations

import argparse
import hmac
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import trio
from jsonschema import Draft202012Validator

from benchmarks.transforms import BASELINE, Row, records
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.registry import stage_config
from conveyord.operators.transform_flat_map import FlatMapTransform
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from conveyord.operators.transform_mask import MaskTransform
from conveyord.operators.transform_partition import PartitionTransform
from conveyord.operators.transform_split import SplitTransform
from conveyord.operators.transform_validate import ValidateTransform

KEY = "a key of more than 16 bytes"
ROWS_IN_PYTHON = 4_096  # of the candidates that take a row at a time; their time is scaled
SCHEMA = {
    "type": "object",
    "required": ["id", "properties_mag"],
    "properties": {
        "id": {"type": "string"},
        "properties_mag": {"type": "number", "minimum": 0, "maximum": 10},
        "properties_status": {"enum": ["automatic", "reviewed"]},
        "properties_felt": {"type": "integer"},
    },
}
RULES = {
    "id": {"type": "string", "nullable": False, "pattern": "^ci[0-9]+$"},
    "properties_mag": {"type": "double", "min": 0, "max": 10},
    "properties_status": {"one_of": ["automatic", "reviewed"]},
    "properties_felt": {"type": "long"},
    "properties_place": {"length_min": 1, "length_max": 100},
}
LISTENED = frozenset({"low", "high"})


def made(operator: type[BatchTransform], **options: Any) -> BatchTransform:
    threads = trio.CapacityLimiter(1)
    context = OperatorContext(pipeline="bench", stage="stage", data_dir=Path(), threads=threads, listened=LISTENED)
    return operator(stage_config(operator, options, stage="stage"), context)


def candidates(nested: pa.RecordBatch) -> dict[str, tuple[int, Callable[[], object]]]:
    """What is timed, by name: how many rows each call takes, and the call."""
    flat = made(JsonFlattenTransform).apply(nested)
    moments = flat["properties_time"].cast(pa.timestamp("ms")).cast(pa.timestamp("us"))
    flat = flat.append_column("at", moments)
    count, few = flat.num_rows, flat.slice(0, ROWS_IN_PYTHON)
    objects = few.drop_columns(["at"]).to_pylist()
    ids = flat["id"].to_pylist()
    bare = Draft202012Validator(SCHEMA)
    indices = pa.array(range(count))
    tags = pa.record_batch({"id": flat["id"], "tags": pc.binary_join_element_wise(flat["id"], flat["id"], "b", ",")})

    def run(operator: type[BatchTransform], data: pa.RecordBatch = flat, **options: Any) -> tuple[int, Any]:
        transform = made(operator, **options)
        return data.num_rows, lambda: transform.apply_all(data)

    def mask(column: str, method: object) -> tuple[int, Any]:
        return run(MaskTransform, columns={column: method}, key=KEY)

    low_and_high = {"low": "properties_mag < 2.5", "high": "properties_mag > 6"}
    return {
        BASELINE: (count, lambda: flat.take(indices)),
        "mask, redact": mask("id", "redact"),
        "mask, partial": mask("id", {"method": "partial", "keep_first": 2, "keep_last": 2}),
        "mask, nullify": mask("id", "nullify"),
        "mask, hash, all distinct": mask("id", "hash"),
        "mask, hash, two values": mask("properties_status", "hash"),
        "mask, tokenize, all distinct": mask("id", "tokenize"),
        "(HMAC of each in Python, all distinct)": (
            count,
            lambda: pa.array([hmac.digest(KEY.encode(), value.encode(), "sha256").hex() for value in ids]),
        ),
        "validate, 5 columns, all valid": run(ValidateTransform, columns=RULES),
        "validate, 5 columns, tag": run(ValidateTransform, columns=RULES, on_invalid="tag"),
        "validate, 13 % dropped": run(ValidateTransform, columns={"properties_mag": {"max": 7}}, on_invalid="drop"),
        "validate, JSON Schema": run(ValidateTransform, few.drop_columns(["at"]), schema=SCHEMA),
        "(jsonschema on Python objects)": (ROWS_IN_PYTHON, lambda: [bare.is_valid(row) for row in objects]),
        "partition, day(at) and a column": run(PartitionTransform, partition_by=["day(at)", "properties_status"]),
        "partition, a format to the minute": run(
            PartitionTransform, partition_by=["at"], partition_format="dt={at:%Y-%m-%d}/{at:%H-%M}"
        ),
        "flat_map, a list of 3": run(FlatMapTransform, each="geometry_coordinates"),
        "flat_map, string_to_array, 2 elements": run(FlatMapTransform, tags, each="string_to_array(tags, ',')"),
        "split, two outputs, first": run(SplitTransform, outputs=low_and_high),
        "split, two outputs, all": run(SplitTransform, outputs=low_and_high, mode="all"),
    }


def measure(rows: int, rounds: int) -> list[Row]:
    """CPU seconds of every candidate, interleaved."""
    work = candidates(records(rows))
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds + 1):
        for name, (count, run) in work.items():
            start = time.process_time()
            run()
            seconds[name].append((time.process_time() - start) / count)
    medians = {name: max(statistics.median(times[1:]), 1e-12) for name, times in seconds.items()}
    return [Row(name, 1 / median, median / medians[BASELINE]) for name, median in medians.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--rows", type=int, default=65_536)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = measure(arguments.rows, arguments.rounds)
    print(f"| transform ({arguments.rows} rows a batch) | Mrow/s per core | time, copy = 1 |\n|---|---:|---:|")
    for row in table:
        print(f"| {row.name} | {row.rows_per_second / 1e6:.2f} | {row.times_baseline:.2f} |")
    if arguments.json:
        content = {"rows": arguments.rows, "results": [asdict(row) for row in table]}
        arguments.json.write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
