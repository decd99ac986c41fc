"""How soon a record that was produced can be queried: Kafka to an Iceberg table at a steady rate.

Each record has the time at which it was produced as its timestamp. A reader looks at the table's metadata again and
again; when a snapshot is new, it reads the timestamps in that snapshot's files and takes their ages. Nothing of
conveyord is asked but what its table says. Needs `make kafka`.

    python -m benchmarks.kafka_freshness --rate 10000 --seconds 60 --commit-every 5s --json out.json
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from tests.e2e.harness import TableFiles, local
from tests.kafka.broker import Broker
from tests.kafka.run_rig import KafkaJob, values

TOPIC, PARTITIONS = "fresh", 8
LOOK_SECONDS = 0.05
SETTLE_SECONDS_MAX = 60.0  # for the last records to be seen

PRODUCE = """
import json, sys, time
from confluent_kafka import Producer
brokers, topic, partitions, rate, seconds = sys.argv[1:]
partitions, rate, total = int(partitions), float(rate), int(float(rate) * float(seconds))
producer = Producer({"bootstrap.servers": brokers, "linger.ms": 5, "log_level": 0})
began, sent = time.monotonic(), 0
while sent < total:
    for number in range(sent, min(total, int((time.monotonic() - began) * rate) + 1)):
        value = json.dumps({"id": number, "name": f"n{number % 1000}"})
        producer.produce(topic, value, partition=number % partitions)
        sent = number + 1
    producer.poll(0)
    time.sleep(0.002)
assert not producer.flush(60)
print(time.monotonic() - began)
"""


@dataclass(frozen=True, slots=True)
class Result:
    """Seconds from produced to queryable, over all records. produced_seconds: what producing took in fact."""

    records: int
    rate: float
    commit_every: str
    produced_seconds: float
    p50_seconds: float
    p90_seconds: float
    p99_seconds: float
    max_seconds: float
    commits: int
    cpu_seconds: float
    rss_bytes_max: int
    lost: int
    doubled: int


def ages_in(files: list[str], seen_ms: float) -> tuple[list[float], list[int]]:
    """The ages in seconds of the rows of new files, seen at `seen_ms` since the epoch, and their ids."""
    with duckdb.connect() as connection:
        rows = connection.sql(
            "SELECT epoch_ms(kafka_timestamp), id FROM read_parquet(?, hive_partitioning=false)", params=[files]
        ).fetchnumpy()
    return ((seen_ms - rows["epoch_ms(kafka_timestamp)"]) / 1000).tolist(), rows["id"].tolist()


def measure(broker: Broker, home: Path, *, rate: float, seconds: float, commit_every: str) -> Result:
    """Produce at `rate` for so long while a run commits, and look."""
    broker.create_topic(TOPIC, partitions=PARTITIONS)
    source = {"columns": ["timestamp"], "start": "earliest", "linger": "0.25s"}
    job = KafkaJob(home, kafka=broker, topic=TOPIC, source=source, sink={"commit": {"every": commit_every}})
    total = int(rate * seconds)
    ages, ids, snapshots = list[float](), list[int](), 0
    broker.produce(TOPIC, values([-1]))  # the run is up once this is there
    with job.following() as running:
        assert running.until(lambda: job.count() > 0), running.err()
        known = live_files(job)
        command = [sys.executable, "-c", PRODUCE, broker.bootstrap, TOPIC, str(PARTITIONS), str(rate), str(seconds)]
        producer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        head, deadline = None, time.monotonic() + seconds * 3 + SETTLE_SECONDS_MAX
        while len(ids) < total and time.monotonic() < deadline and not running.has_ended():
            now = job.metadata_location()
            if now is None or now == head:
                time.sleep(LOOK_SECONDS)
                continue
            head, seen_ms = now, time.time() * 1000
            files = live_files(job) - known
            if files:
                snapshots += 1
                known |= files
                found, numbers = ages_in(sorted(files), seen_ms)
                ages += found
                ids += numbers
        produced_seconds = float(producer.communicate(timeout=SETTLE_SECONDS_MAX)[0])
        cpu_seconds = cpu_of(running.pid)
        running.send(signal.SIGTERM)
        ended = running.wait()
    assert ended.code == 0, ended.err
    p50, p90, p99 = np.percentile(ages, [50, 90, 99]).tolist()
    return Result(
        records=total,
        rate=rate,
        commit_every=commit_every,
        produced_seconds=produced_seconds,
        p50_seconds=p50,
        p90_seconds=p90,
        p99_seconds=p99,
        max_seconds=max(ages),
        commits=snapshots,
        cpu_seconds=cpu_seconds,
        rss_bytes_max=ended.rss_bytes,
        lost=total - len(set(ids)),
        doubled=len(ids) - len(set(ids)),
    )


def live_files(table: TableFiles) -> set[str]:
    """The data files of the current snapshot."""
    return {local(task.file.file_path) for task in table.static_table().scan().plan_files()}


def cpu_of(pid: int) -> float:
    """The CPU seconds that a process has used, as Linux tells."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=10_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--commit-every", default="5s")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        home = Path(directory)
        (home / "broker").mkdir()
        broker = Broker(home / "broker")
        broker.start()
        try:
            result = measure(
                broker, home / "run", rate=given.rate, seconds=given.seconds, commit_every=given.commit_every
            )
        finally:
            broker.kill()
    report: dict[str, Any] = asdict(result)
    print(json.dumps(report, indent=2))
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
