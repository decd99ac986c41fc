"""Kafka to an Iceberg table against the bare loop and others: whole processes on one core, in turn.

The bare loop is what a user would write by hand with the same libraries: `consume(1000)`, values joined by line ends,
`pyarrow.json`, a `ParquetWriter` with zstd; no table, no commit, no recovery. It stops at the ends of the partitions,
as conveyord does with `follow: false`. Needs `make kafka`. The others: quixstreams with its own file sink, by an
interpreter that has quixstreams 3.28 and pyarrow; Iceberg's own sink in Kafka Connect's stand-alone worker, by Maven.

    python -m benchmarks.kafka_to_iceberg --records 2000000 --rounds 3 --connect \\
        --quix /tmp/quix/bin/python --json out.json
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path

from benchmarks.jsonl_to_iceberg import Sample, timed
from benchmarks.peers import connect
from benchmarks.records import make
from tests.kafka.broker import Broker
from tests.kafka.cluster import Record

TOPIC = "trips"
PARTITIONS = 8
BATCH = 65_536
LINES = 5_000_000  # of the file that other benchmarks make as well
QUIX_RECORDS = 200_000  # as many as take it some ten seconds; its start-up counts for little then
CHUNK = 100_000  # records produced before the next are read: the rig keeps each until it is delivered

BARE_LOOP = """
import io, sys, pyarrow.json as pj, pyarrow.parquet as pq
from confluent_kafka import Consumer, KafkaError, TopicPartition
brokers, topic, partitions, batch, target = sys.argv[1:]
consumer = Consumer({"bootstrap.servers": brokers, "group.id": "bare", "enable.partition.eof": True,
                     "enable.auto.commit": False, "fetch.queue.backoff.ms": 10})
consumer.assign([TopicPartition(topic, number, 0) for number in range(int(partitions))])
writer, values, ended = None, [], set()

def write():
    global writer, values
    table = pj.read_json(io.BytesIO(b"\\n".join(values)))
    if writer is None:
        writer = pq.ParquetWriter(target, table.schema, compression="zstd")
    writer.write_table(table)
    values = []

while len(ended) < int(partitions):
    for message in consumer.consume(1000, 0.05):
        error = message.error()
        if error is None:
            values.append(message.value())
        elif error.code() == KafkaError._PARTITION_EOF:
            ended.add(message.partition())
    if len(values) >= int(batch):
        write()
if values:
    write()
writer.close()
"""

PIPELINE = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {{name: trips}}
spec:
  source: {{type: kafka, brokers: "{brokers}", topics: [{topic}], follow: false}}
  sink: {{type: iceberg, table: bench.trips}}
"""


def fill(broker: Broker, path: Path, records: int) -> None:
    """Produce the first lines of a file, dealt out to the partitions."""
    broker.create_topic(TOPIC, partitions=PARTITIONS)
    with path.open("rb") as file:
        lines = (Record(value=line.rstrip(b"\n"), partition=number % PARTITIONS) for number, line in enumerate(file))
        for _ in range(0, records, CHUNK):
            broker.produce(TOPIC, islice(lines, CHUNK), linger_ms=20)


def bare(broker: Broker, work: Path) -> Sample:
    options = [broker.bootstrap, TOPIC, str(PARTITIONS), str(BATCH), str(work / "bare.parquet")]
    return timed([sys.executable, "-c", BARE_LOOP, *options], cores="0")


def conveyord(broker: Broker, work: Path) -> Sample:
    definition, data_dir = work / "kafka.yaml", work / "kafka-data"
    definition.write_text(PIPELINE.format(brokers=broker.bootstrap, topic=TOPIC))
    shutil.rmtree(data_dir, ignore_errors=True)
    program = str(Path(sys.executable).with_name("conveyord"))
    return timed([program, "run", str(definition), "--data-dir", str(data_dir), "-o", "json"], cores="0")


def quix(broker: Broker, python: Path, records: int, work: Path) -> Sample:
    target = work / "quix"
    shutil.rmtree(target, ignore_errors=True)
    job = str(Path(__file__).parent / "peers" / "quix_job.py")
    return timed([str(python), job, broker.bootstrap, TOPIC, str(records), str(target)], cores="0")


def connected(broker: Broker, records: int, work: Path) -> Sample:
    # A name of its own each time: the sink keeps its position under that, in the group and in the control topic.
    name = broker.fresh_topic("connect", partitions=1)
    return connect.run(broker.bootstrap, TOPIC, records, work / "connect", name=name)


def ratios(runs: dict[str, list[Sample]], records: dict[str, int]) -> dict[str, float]:
    """The medians, pair by pair, of what each of the others takes for a record over what conveyord takes."""

    def ratio(name: str, field: str) -> float:
        pairs = zip(runs[name], runs["conveyord"], strict=True)
        scale = records["conveyord"] / records[name]
        return round(statistics.median(getattr(a, field) / getattr(b, field) for a, b in pairs) * scale, 3)

    fields = {"CPU": "cpu_seconds", "wall": "wall_seconds"}
    return {
        f"{name} {word} / conveyord {word}": ratio(name, field)
        for name in runs
        if name != "conveyord"
        for word, field in fields.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connect", action="store_true", help="run Kafka Connect as well")
    parser.add_argument("--quix", type=Path, help="an interpreter that has quixstreams: run it as well")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "conveyord-bench")
    arguments = parser.parse_args()
    work, count = arguments.work, arguments.records
    path = make(work / f"trips-{max(count, LINES)}.jsonl", max(count, LINES))
    broker = Broker(Path(tempfile.mkdtemp(dir=work)))
    jobs: dict[str, Callable[[], Sample]] = {
        "bare": lambda: bare(broker, work),
        "conveyord": lambda: conveyord(broker, work),
    }
    records = dict.fromkeys(("bare", "conveyord", "connect"), count)
    if arguments.connect:
        connect.fetch()
        jobs["connect"] = lambda: connected(broker, count, work)
    if arguments.quix is not None:
        records["quix"] = min(count, QUIX_RECORDS)
        jobs["quix"] = lambda: quix(broker, arguments.quix.absolute(), records["quix"], work)
    runs: dict[str, list[Sample]] = {name: [] for name in jobs}
    try:
        broker.start()
        fill(broker, path, count)
        for _ in range(arguments.rounds):
            for name, run in jobs.items():
                runs[name].append(run())
    finally:
        broker.kill()
    result = {
        "records": count,
        **ratios(runs, records),
        "peak RSS MiB": round(max(sample.peak_rss_mib for sample in runs["conveyord"])),
        "samples": {name: [asdict(sample) for sample in samples] for name, samples in runs.items()},
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
