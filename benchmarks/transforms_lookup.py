"""Rows per second of `lookup` on one thread, by kind of key, beside other ways to find keys in a million; `rate_limit`.

Batches of 65,536 rows, nine of ten keys found, in random order. Every round runs all candidates in turn; medians
of CPU time of the whole process. `index` only finds the rows; `lookup` also brings a number and a text of each.

    taskset -c 0 python -m benchmarks.transforms_lookup --rounds 9 --json out.json
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import datafusion
import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import trio

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.lookup.enrichment import Enrichment, Reference
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators.transform_rate_limit import RateLimitTransform

BATCH_ROWS = 65_536
SPREAD = 0x9E3779B97F4A7C15  # odd and without a pattern: keys that share no beginning
Work = Callable[[], object]


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate: which keys, how they are found, rows per second of CPU time."""

    keys: str
    way: str
    rows_per_second: float


def keys_by_kind(count: int) -> dict[str, pa.Array]:
    random = np.random.default_rng(7)
    sparse = random.permutation(np.unique(random.integers(-(2**62), 2**62, count + count // 100))[:count])
    numbers = range(count)
    return {
        "long, dense": pa.array(random.permutation(count) + 1_000),
        "long, sparse": pa.array(sparse),
        "text of 12 bytes": pa.array([f"ci{977 * number:010d}" for number in numbers]),
        "text of 36 bytes": pa.array([f"{number * SPREAD % 2**64:016x}-{number:019d}" for number in numbers]),
    }


def asked(keys: pa.Array) -> pa.Array:
    """A batch of keys, one in ten of which is none."""
    random = np.random.default_rng(8)
    batch = keys.take(pa.array(random.integers(0, len(keys), BATCH_ROWS)))
    wrong = pa.array(random.random(BATCH_ROWS) < 0.1)
    other = pc.add(batch, 1 << 61) if pa.types.is_integer(keys.type) else pc.binary_join_element_wise(batch, "x", "")
    return pc.if_else(wrong, other, batch)


def ours(keys: pa.Array, batch: pa.RecordBatch) -> dict[str, Work]:
    table = pa.table(
        {"k": keys, "n": pa.array(range(len(keys))), "t": pa.array([f"name of {n}" for n in range(len(keys))])}
    )

    enrichment = Enrichment({"k": "k"}, None, "", None, None, "fail", text_keys=False)

    reference = Reference(enrichment, table, name="reference")
    reference.prepare()
    return {
        "index": lambda: reference.rows_of(batch),
        "lookup": lambda: reference.enriched(batch, reference.rows_of(batch)),
    }


def others(keys: pa.Array, batch: pa.RecordBatch) -> dict[str, Work]:
    numbers = pa.array(np.arange(len(keys), dtype=np.int32))
    table, small = pa.table({"k": keys, "i": numbers}), pa.table({"k": batch["k"]})
    query = "SELECT q.k, r.i FROM q LEFT JOIN r ON q.k = r.k"
    database = duckdb.connect()
    database.execute("SET threads = 1")
    database.execute('CREATE TABLE r AS SELECT * FROM "table"')
    database.register("q", small)
    session = datafusion.SessionContext(datafusion.SessionConfig().with_target_partitions(1))
    session.register_record_batches("r", [table.to_batches()])
    session.register_record_batches("q", [small.to_batches()])
    frame, small_frame = pl.from_arrow(table), pl.from_arrow(small)
    assert isinstance(frame, pl.DataFrame)
    assert isinstance(small_frame, pl.DataFrame)
    by_key = dict(zip(keys.to_pylist(), range(len(keys)), strict=True))
    return {
        "pyarrow index_in": lambda: pc.index_in(batch["k"], value_set=keys),
        "pyarrow join": lambda: small.join(table, "k", use_threads=False),
        "polars join": lambda: small_frame.join(frame, on="k", how="left"),
        "duckdb join": lambda: database.sql(query).to_arrow_table(),
        "datafusion join": lambda: session.sql(query).collect(),
        "Python dict": lambda: [by_key.get(key) for key in batch["k"].to_pylist()],
        **(searches(keys, batch) if pa.types.is_integer(keys.type) else {}),
    }


def searches(keys: pa.Array, batch: pa.RecordBatch) -> dict[str, Work]:
    ordered, wanted = np.sort(keys.to_numpy()), batch["k"].to_numpy()

    def in_order() -> object:
        order = np.argsort(wanted)
        return np.searchsorted(ordered, wanted[order])

    return {"numpy searchsorted": lambda: np.searchsorted(ordered, wanted), "numpy searchsorted, sorted": in_order}


def measure(count: int, rounds: int, *, compare: bool) -> list[Row]:
    """CPU seconds of every candidate, interleaved."""
    rows = []
    for kind, keys in keys_by_kind(count).items():
        batch = pa.record_batch({"k": asked(keys)})
        work = {**ours(keys, batch), **(others(keys, batch) if compare else {})}
        seconds: dict[str, list[float]] = {way: [] for way in work}
        for _ in range(rounds + 1):
            for way, run in work.items():
                start = time.process_time()
                run()
                seconds[way].append(time.process_time() - start)
        rows += [Row(kind, way, BATCH_ROWS / statistics.median(times[1:])) for way, times in seconds.items()]
    return rows


def rate_limits(rounds: int) -> list[Row]:
    """Of `rate_limit`, when its limits are far away: what it costs to count and to cut."""
    data = pa.record_batch({"k": pa.array(range(BATCH_ROWS))})
    context = OperatorContext(pipeline="bench", stage="stage", data_dir=Path(), threads=trio.CapacityLimiter(1))
    rows = []
    for on_excess in ("delay", "drop", "tag"):
        config = RateLimitTransform.Config(rows_per_second=1e12, bytes_per_second="1TB", on_excess=on_excess)
        seconds = trio.run(_seconds, RateLimitTransform(config, context), data, 20 * rounds)
        rows.append(Row("none", f"rate_limit, {on_excess}", 20 * rounds * BATCH_ROWS / seconds))
    return rows


async def _seconds(stage: RateLimitTransform, data: pa.RecordBatch, batches: int) -> float:
    into, inbound = trio.open_memory_channel[Message](batches + 1)
    span = Span(Partition("source", "p"), 0, data.num_rows)
    for _ in range(batches):
        into.send_nowait(Batch(data, (span,), Tally(read=data.num_rows), Ack(lambda: None)))
    into.send_nowait(Eos())
    start = time.process_time()
    await stage.run(inbound, _Nowhere())
    return time.process_time() - start


class _Nowhere:
    async def send(self, message: Message, extra: Mapping[str, Batch] | None = None) -> None:  # noqa: ARG002
        await trio.lowlevel.checkpoint()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--ours-only", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = measure(arguments.keys, arguments.rounds, compare=not arguments.ours_only) + rate_limits(arguments.rounds)
    print(f"| keys ({arguments.keys:,}) | way | Mrow/s per core |\n|---|---|---:|")
    for row in table:
        print(f"| {row.keys} | {row.way} | {row.rows_per_second / 1e6:.1f} |")
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"keys": arguments.keys, "results": [asdict(row) for row in table]}, indent=2)
        )


if __name__ == "__main__":
    main()
