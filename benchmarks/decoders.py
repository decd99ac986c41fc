"""JSON decoders on the same bytes, interleaved in one process, and how the chosen one scales over threads.

The baseline is the bare `pyarrow.json.open_json`, which infers types and guards nothing. Only the row
"conveyord" has the guarantees of conveyord/engine/json; what the others let pass is in
docs/decisions/0001-json-decoder.md. CPU time of the whole process, medians; the ratio is what to compare.

    python -m benchmarks.decoders --records 150000 --rounds 7 --json out.json
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.json as arrow_json

from benchmarks.records import lines
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.json.lines import lines_are_objects
from conveyord.engine.json.shape import shape_of_schema
from conveyord.engine.json.strict import finish, reading_type

BLOCK_BYTES = 8 * 1024 * 1024
ARRO3_CALL_BYTES = 1024 * 1024  # 2-8 k records per call is where arro3 is fastest
BASELINE = "pyarrow open_json"

Work = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Row:
    """One candidate: CPU microseconds per record, and its speed relative to the baseline."""

    name: str
    micros_per_record: float
    ratio: float


def blocks(data: bytes, block_bytes: int) -> Iterator[bytes]:
    """`data` in blocks of whole lines."""
    first = 0
    while first < len(data):
        end = data.rfind(b"\n", first, first + block_bytes) + 1
        yield data[first:end]
        first = end


def open_json(data: bytes) -> int:
    options = arrow_json.ReadOptions(use_threads=False)
    with arrow_json.open_json(pa.BufferReader(data), read_options=options) as reader:
        return sum(batch.num_rows for batch in reader)


def explicit(data: bytes, schema: pa.Schema, unexpected: str) -> int:
    """pyarrow with a schema, timestamps as text, no guards: what the strict path is built on."""
    parse = arrow_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected)
    rows = 0
    for block in blocks(data, BLOCK_BYTES):
        read = arrow_json.ReadOptions(use_threads=False, block_size=len(block) + 1)
        rows += arrow_json.read_json(pa.BufferReader(block), read, parse).num_rows
    return rows


def arro3(data: bytes, schema: pa.Schema) -> int:
    from arro3.io import read_json

    return sum(
        batch.num_rows
        for call in blocks(data, ARRO3_CALL_BYTES)
        for batch in read_json(io.BytesIO(call), schema, batch_size=1024)
    )


def polars(data: bytes) -> int:
    import polars as pl

    return sum(pl.read_ndjson(block).height for block in blocks(data, BLOCK_BYTES))


def duckdb(tables: list[pa.Table], transform: str) -> int:
    """`json_transform` over lines that were cut beforehand: cutting them costs about a fifth more."""
    import duckdb as engine

    connection = engine.connect()
    connection.execute("SET threads=1")
    rows = 0
    for table in tables:
        connection.register("records", table)
        rows += connection.sql(f"SELECT json_transform(line, '{transform}') FROM records").to_arrow_table().num_rows
    return rows


def conveyord(data: bytes, schema: pa.Schema) -> int:
    decoder = JsonLinesDecoder()
    return sum(decoder.decode(block, schema, None).data.num_rows for block in blocks(data, BLOCK_BYTES))


def candidates(data: bytes) -> dict[str, Work]:
    """Every decoder by name, ready to run on `data`."""
    schema = JsonLinesDecoder().infer(data, None)
    shape = shape_of_schema(schema)
    as_text = pa.schema(list(reading_type(shape)))
    tables = [pa.table({"line": block.decode().splitlines()}) for block in blocks(data, BLOCK_BYTES)]
    first = next(blocks(data, BLOCK_BYTES))
    read_options = arrow_json.ReadOptions(use_threads=False, block_size=len(first) + 1)
    parse_options = arrow_json.ParseOptions(explicit_schema=as_text)
    table = arrow_json.read_json(pa.BufferReader(first), read_options, parse_options)
    read = table.to_struct_array().chunk(0)
    first_rows = len(read)

    def lines_guard() -> int:
        assert lines_are_objects(first) == first_rows
        return first_rows

    def values_guard() -> int:
        assert finish(read, shape) is not None
        return first_rows

    return {
        BASELINE: partial(open_json, data),
        "conveyord": partial(conveyord, data, schema),
        "  of it: lines guard": lines_guard,
        "  of it: values and timestamps": values_guard,
        "pyarrow explicit, error": partial(explicit, data, as_text, "error"),
        "pyarrow explicit, infer": partial(explicit, data, as_text, "infer"),
        "arro3, no guards": partial(arro3, data, schema),
        "polars, inferred": partial(polars, data),
        "duckdb, lines given": partial(duckdb, tables, json.dumps(duckdb_types(shape_type=reading_type(shape)))),
    }


def duckdb_types(shape_type: pa.DataType) -> object:
    """DuckDB's way to write a struct type as JSON."""
    if pa.types.is_struct(shape_type):
        return {field.name: duckdb_types(field.type) for field in shape_type}
    words = {pa.int64(): "BIGINT", pa.float64(): "DOUBLE", pa.bool_(): "BOOLEAN"}
    return words.get(shape_type, "VARCHAR")


def race(works: dict[str, Work], rounds: int) -> list[Row]:
    """Run all candidates in turn, `rounds` times, and take medians."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            started = time.process_time()
            rows = work()
            taken[name].append((time.process_time() - started) / rows * 1e6)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    return [Row(name, micros, medians[BASELINE] / micros) for name, micros in medians.items()]


def two_threads(data: bytes, rounds: int) -> tuple[float, float]:
    """How many times faster two threads decode the same blocks than one, by the wall.

    First ours, then bare pyarrow, which holds no lock: on a busy machine only their quotient counts.
    """
    decoder = JsonLinesDecoder()
    schema = decoder.infer(data, None)
    as_text = pa.schema(list(reading_type(shape_of_schema(schema))))
    work = list(blocks(data, BLOCK_BYTES // 4))

    def speedup(decode: Callable[[bytes], object]) -> float:
        def seconds(threads: int) -> float:
            with ThreadPoolExecutor(threads) as pool:
                started = time.perf_counter()
                list(pool.map(decode, work))
                return time.perf_counter() - started

        return statistics.median(seconds(1) / seconds(2) for _ in range(rounds))

    ours = speedup(lambda block: decoder.decode(block, schema, None))
    return ours, speedup(lambda block: explicit(block, as_text, "error"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=150_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["POLARS_MAX_THREADS"] = "1"
    data = "".join(lines(arguments.records)).encode()
    ours, bare = two_threads(data, arguments.rounds)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    table = race(candidates(data), arguments.rounds)
    for row in table:
        print(f"{row.name:32} {row.micros_per_record:7.3f} us/record  x{row.ratio:.2f}")
    print(f"two threads against one (wall, {len(cores)} cores): conveyord x{ours:.2f}, bare pyarrow x{bare:.2f}")
    figures = {
        "bytes_per_record": len(data) / arguments.records,
        "two_threads": {"conveyord": ours, "bare pyarrow": bare},
        "candidates": [asdict(row) for row in table],
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
