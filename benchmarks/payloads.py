"""Message values to Arrow, by format, against a bare loop over the library of each; interleaved in one process.

The baseline of each format is what a script does: decode each value with the usual library and make a record batch of
the results (`from_pylist`); for Arrow IPC, read each stream and join the batches; for JSON, `pyarrow.json` on the
joined values, which is bulk too but infers types and guards nothing. CPU time of the whole process, medians; the ratio
is what to compare. Schemas come from a registry on this machine that was asked before.

    python -m benchmarks.payloads --records 20000 --rounds 7 --json out.json
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fastavro
import orjson
import pyarrow as pa
import pyarrow.json as arrow_json

from benchmarks.records import lines
from conveyord.engine.payloads.contract import PayloadDecoder
from conveyord.engine.payloads.options import FormatConfig, RegistryConfig, payload_decoder
from tests.storage.schema_registry_rig import Registry, running_registry

BATCH_VALUES = 5_000  # decoded at a time, about what a consumer hands over at once
IPC_ROWS = 100  # of one stream; as many streams are made as that takes

TRIP = [("device", "string"), ("x", "double"), ("y", "double"), ("ok", "boolean")]
EVENT = [
    ("id", "long"),
    ("at", {"type": "long", "logicalType": "timestamp-micros"}),
    ("user", "string"),
    ("country", "string"),
    ("price", "double"),
    ("qty", "int"),
    ("status", ["null", "string"]),
]
AVRO = {
    "type": "record",
    "name": "Event",
    "fields": [
        *({"name": name, "type": kind} for name, kind in EVENT),
        {
            "name": "trip",
            "type": {"type": "record", "name": "Trip", "fields": [{"name": name, "type": kind} for name, kind in TRIP]},
        },
    ],
}
JSON_SCHEMA = {
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "at": {"type": "string", "format": "date-time"},
        "price": {"type": "number"},
    },
}
PROTO = """syntax = "proto3";
import "google/protobuf/timestamp.proto";
message Event {
  int64 id = 1; google.protobuf.Timestamp at = 2; string user = 3; string country = 4; double price = 5; int32 qty = 6;
  optional string status = 7;
  message Trip { string device = 1; double x = 2; double y = 3; bool ok = 4; }
  Trip trip = 8;
}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One format. ratio: how many times faster than its baseline."""

    name: str
    records_per_second: int
    baseline_per_second: int
    ratio: float


@dataclass(frozen=True, slots=True)
class Race:
    """Values of one format, and the two ways to decode them. rows: of one value."""

    values: list[bytes]
    decoder: PayloadDecoder
    baseline: Callable[[Sequence[bytes], pa.Schema], Any]
    rows: int = 1


def records(count: int) -> list[dict[str, Any]]:
    """The benchmarks' records, their times as microseconds since the epoch."""
    made = JSON_TIMES.decode([line.encode() for line in lines(count)], None).data
    column = made.column("at").cast(pa.int64())
    return made.set_column(made.schema.get_field_index("at"), "at", column).to_pylist()


JSON_TIMES = payload_decoder("json")


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + body


def json_race(count: int) -> Race:
    def bare(values: Sequence[bytes], _: pa.Schema) -> pa.Table:
        data = b"\n".join(values)
        options = arrow_json.ReadOptions(use_threads=False, block_size=len(data) + 1)
        return arrow_json.read_json(pa.BufferReader(data), options)

    return Race([line.rstrip().encode() for line in lines(count)], JSON_TIMES, bare)


def raw_race(count: int) -> Race:
    values = [line.encode() for line in lines(count)]
    return Race(values, payload_decoder("raw"), lambda values, _: pa.array(values, pa.binary()))


def ipc_race(count: int, rows: int) -> Race:
    whole = JSON_TIMES.decode([line.encode() for line in lines(count)], None).data
    values = []
    for first in range(0, count, rows):
        out = io.BytesIO()
        with pa.ipc.new_stream(out, whole.schema) as writer:
            writer.write_batch(whole.slice(first, rows))
        values.append(out.getvalue())

    def bare(values: Sequence[bytes], _: pa.Schema) -> pa.RecordBatch:
        return pa.concat_batches([batch for value in values for batch in pa.ipc.open_stream(value)])

    return Race(values, payload_decoder("arrow_ipc"), bare, rows)


def avro_race(count: int, registry: Registry) -> Race:
    parsed = fastavro.parse_schema(AVRO)
    schema_id = registry.register("avro", json.dumps(AVRO))
    values = []
    for record in records(count):
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, record)
        values.append(framed(schema_id, out.getvalue()))

    def bare(values: Sequence[bytes], schema: pa.Schema) -> pa.RecordBatch:
        read = [fastavro.schemaless_reader(io.BytesIO(value[5:]), parsed) for value in values]
        return pa.RecordBatch.from_pylist(read, schema)

    config = FormatConfig(type="avro", registry=RegistryConfig(url=registry.url))
    return Race(values, payload_decoder(config), bare)


def json_schema_race(count: int, registry: Registry) -> Race:
    schema_id = registry.register("json", json.dumps(JSON_SCHEMA), "JSON")

    def bare(values: Sequence[bytes], _: pa.Schema) -> pa.RecordBatch:
        return pa.RecordBatch.from_pylist([orjson.loads(value[5:]) for value in values])

    config = FormatConfig(type="json_schema", registry=RegistryConfig(url=registry.url))
    values = [framed(schema_id, line.rstrip().encode()) for line in lines(count)]
    return Race(values, payload_decoder(config), bare)


def protobuf_race(count: int, registry: Registry) -> Race:
    from google.protobuf.json_format import MessageToDict
    from google.protobuf.message_factory import GetMessageClass

    from conveyord.engine.payloads.protobuf.descriptors import Descriptors

    schema_id = registry.register("protobuf", PROTO, "PROTOBUF")
    event = GetMessageClass(Descriptors(PROTO, ()).message((0,)))
    values = []
    for record in records(count):
        micros = record.pop("at")
        made = event(**record)
        made.at.FromMicroseconds(micros)
        values.append(framed(schema_id, b"\0" + made.SerializeToString()))

    def bare(values: Sequence[bytes], _: pa.Schema) -> pa.RecordBatch:
        read = [MessageToDict(event.FromString(value[6:]), preserving_proto_field_name=True) for value in values]
        return pa.RecordBatch.from_pylist(read)

    config = FormatConfig(type="protobuf", registry=RegistryConfig(url=registry.url))
    return Race(values, payload_decoder(config), bare)


def run(name: str, race: Race, rounds: int) -> Row:
    """Both ways in turn, `rounds` times, over all values in batches."""
    schema = race.decoder.decode(race.values[:BATCH_VALUES], None).schema
    batches = [race.values[first : first + BATCH_VALUES] for first in range(0, len(race.values), BATCH_VALUES)]

    def ours() -> None:
        for values in batches:
            found = race.decoder.decode(values, schema)
            assert found.data.num_rows == len(values) * race.rows

    def baseline() -> None:
        for values in batches:
            race.baseline(values, schema)

    taken: dict[Callable[[], None], list[float]] = {ours: [], baseline: []}
    for _ in range(rounds):
        for work, seconds in taken.items():
            started = time.process_time()
            work()
            seconds.append(time.process_time() - started)
    count = len(race.values) * race.rows
    own, other = (count / statistics.median(taken[work]) for work in (ours, baseline))
    return Row(name, round(own), round(other), own / other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()
    count = arguments.records
    with running_registry() as registry:
        races = {
            "json": lambda: json_race(count),
            "raw": lambda: raw_race(count),
            "arrow_ipc, 1 row": lambda: ipc_race(count // 10, 1),
            f"arrow_ipc, {IPC_ROWS} rows": lambda: ipc_race(count, IPC_ROWS),
            "avro": lambda: avro_race(count, registry),
            "json_schema": lambda: json_schema_race(count, registry),
            "protobuf": lambda: protobuf_race(count, registry),
        }
        table = []
        for name, make in races.items():
            table.append(run(name, make(), arguments.rounds))
            row = table[-1]
            own, other = row.records_per_second, row.baseline_per_second
            print(f"{name:22} {own:>12,} records/s  baseline {other:>12,}  x{row.ratio:.2f}")
    if arguments.json:
        found = {"records": count, "rounds": arguments.rounds, "formats": [asdict(row) for row in table]}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
