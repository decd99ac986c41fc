"""What it costs to find the records that poison rows came from, behind a stage that drops or multiplies rows.

For each stage, over one batch of 65,536 rows: one run of the stage, which everything is compared with; the places of
1, 100 and 5,000 rows of its result, evenly spread; and, as it once was done, a search of the whole batch for each row
by itself, of which some are timed and the rest reckoned. All are interleaved, on one thread.

    python -m benchmarks.origins --rounds 7 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import trio

from benchmarks.transforms import records
from benchmarks.transforms_rows import made
from conveyord.core.flow.positions import Partition
from conveyord.core.flow.tally import Tally
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.engine.origin import Origin, Place, RecordRef
from conveyord.operators.transform_filter import FilterTransform
from conveyord.operators.transform_flat_map import FlatMapTransform
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from conveyord.operators.transform_sql_transform import SqlTransform

ROWS = 65_536
ASKED = (1, 100, 5_000)
SEARCHED = 4  # by themselves; each is some seventeen runs
PARTITION = Partition("source", "generated")
HALF = "properties_mag > 3"
STAGES: dict[str, tuple[type[BatchTransform], dict[str, Any]]] = {
    "flat_map": (FlatMapTransform, {"each": "tags"}),
    "json_flatten, explode": (JsonFlattenTransform, {"lists": "explode"}),
    "filter": (FilterTransform, {"when": HALF}),
    "SELECT *": (SqlTransform, {"query": f"SELECT * FROM input_data WHERE {HALF}"}),
    "SELECT of columns": (SqlTransform, {"query": f"SELECT id, properties_mag FROM input_data WHERE {HALF}"}),
}


def place_of(row: int) -> Place:
    """The record of a row of the source."""
    return Place(RecordRef(PARTITION, row, b"{}"))


def alone(origin: Origin, row: int) -> int:
    """The record of `row`, by halving the beginnings of the batch."""

    def made_of(count: int) -> int:
        data = origin.data.slice(0, count)
        for step in origin.steps:
            data = step(data)
        return int(data.num_rows)

    low, high = 0, origin.data.num_rows
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if made_of(middle) > row else (middle, high)
    assert made_of(low) <= row
    return low


class Caught:
    """`Outbound` that keeps the last batch."""

    batch: Batch

    async def send(self, message: Message, extra: object = None) -> None:  # noqa: ARG002 - the protocol's
        assert isinstance(message, Batch)
        self.batch = message
        await trio.lowlevel.checkpoint()


async def behind(stage: BatchTransform, data: pa.RecordBatch) -> Batch:
    """What `stage` sends on for `data`."""
    caught = Caught()
    send, receive = trio.open_memory_channel[Message](2)
    origin = Origin(data, place_of)
    send.send_nowait(Batch(data, (), Tally(read=ROWS), Ack(lambda: None), origin=origin))
    send.send_nowait(Eos())
    await stage.run(receive, caught)
    return caught.batch


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def batch() -> pa.RecordBatch:
    """Flat records of about 225 bytes, with a list of no, one, two or three elements each."""
    flat = made(JsonFlattenTransform).apply(records(ROWS))
    lengths = [row % 4 for row in range(ROWS)]
    ends = pa.array([0, *pc.cumulative_sum(pa.array(lengths)).to_pylist()], pa.int32())
    return flat.append_column("tags", pa.ListArray.from_arrays(ends, pa.array(range(ends[-1].as_py()))))


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """By stage, medians in milliseconds, and the median ratios to one run of the stage in the same round."""
    data, table = batch(), {}
    for name, (operator, options) in STAGES.items():
        stage = made(operator, **options)
        left = trio.run(behind, stage, data)
        origin, count = left.origin, left.data.num_rows
        assert origin is not None
        spread = {asked: range(count // (2 * asked), count, count // asked)[:asked] for asked in ASKED}
        found: list[dict[str, float]] = []
        for _ in range(rounds):
            sample = {"one run": seconds(lambda: stage.apply(data))}  # noqa: B023 - called at once
            for asked, rows in spread.items():
                sample[f"{asked} rows"] = seconds(lambda: origin.places(rows))  # noqa: B023 - likewise
            some = spread[ASKED[-1]][:: ASKED[-1] // SEARCHED]
            each = seconds(lambda: [alone(origin, row) for row in some]) / len(some)  # noqa: B023 - likewise
            sample[f"{ASKED[-1]} rows, each alone"] = each * ASKED[-1]
            found.append(sample)
        last = found[-1]
        table[name] = {f"{key}, ms": statistics.median(one[key] for one in found) * 1e3 for key in last}
        table[name] |= {f"{key}, runs": statistics.median(one[key] / one["one run"] for one in found) for key in last}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    table = measure(arguments.rounds)
    keys = [*(f"{asked} rows" for asked in ASKED), f"{ASKED[-1]} rows, each alone"]
    print("| stage | one run, ms | " + " | ".join(f"{key}, in runs" for key in keys) + " |")
    print("|---" + "|---:" * (len(keys) + 1) + "|")
    for name, row in table.items():
        runs = " | ".join(f"{row[f'{key}, runs']:.1f}" for key in keys)
        print(f"| {name} | {row['one run, ms']:.1f} | {runs} |")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": ROWS, "results": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
