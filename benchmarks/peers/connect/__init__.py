"""Iceberg's own sink in Kafka Connect's stand-alone worker: one process, to be run until its table has all rows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from pathlib import Path

from benchmarks.jsonl_to_iceberg import Sample

POM = Path(__file__).with_name("pom.xml")
LIBS = Path(__file__).resolve().parents[3] / ".cache" / "connect" / "libs"
CLASS = "org.apache.kafka.connect.cli.ConnectStandalone"
SECONDS_MAX = 900

WORKER = """\
bootstrap.servers={brokers}
key.converter=org.apache.kafka.connect.storage.StringConverter
value.converter=org.apache.kafka.connect.json.JsonConverter
value.converter.schemas.enable=false
offset.storage.file.filename={work}/offsets
offset.flush.interval.ms=1000
listeners=http://127.0.0.1:0
"""
SINK = """\
name={name}
connector.class=org.apache.iceberg.connect.IcebergSinkConnector
tasks.max=1
topics={topic}
consumer.override.auto.offset.reset=earliest
iceberg.tables=bench.trips
iceberg.tables.auto-create-enabled=true
iceberg.tables.evolve-schema-enabled=true
iceberg.tables.write-props.write.parquet.compression-codec=zstd
iceberg.catalog.catalog-impl=org.apache.iceberg.jdbc.JdbcCatalog
iceberg.catalog.uri=jdbc:sqlite:{work}/catalog.db
iceberg.catalog.warehouse=file://{work}/warehouse
iceberg.control.topic={name}
iceberg.control.commit.interval-ms=5000
iceberg.control.commit.timeout-ms=30000
"""
LOGGING = """\
status = error
appender.out.type = Console
appender.out.name = out
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d{HH:mm:ss} %p %c{1} %m%n
rootLogger.level = warn
rootLogger.appenderRef.out.ref = out
"""


def fetch() -> None:
    """Get the jars by Maven, once."""
    if LIBS.is_dir():
        return
    command = ["mvn", "--quiet", "--batch-mode", "--file", str(POM), "dependency:copy-dependencies"]
    subprocess.run([*command, "-DincludeScope=runtime", f"-DoutputDirectory={LIBS}"], check=True, timeout=SECONDS_MAX)


def run(brokers: str, topic: str, records: int, work: Path, *, name: str) -> Sample:
    """Load a topic into a new table. CPU and memory are of the whole process, from its start until all rows are there.

    name: of the connector and of its control topic, which must be there.
    """
    shutil.rmtree(work, ignore_errors=True)
    (work / "warehouse").mkdir(parents=True)
    for file, text in (("worker.properties", WORKER), ("sink.properties", SINK)):
        (work / file).write_text(text.format(brokers=brokers, topic=topic, work=work, name=name))
    (work / "log4j2.properties").write_text(LOGGING)
    java = ["java", "-Xmx1g", f"-Dlog4j2.configurationFile={work}/log4j2.properties", "-cp", f"{LIBS}/*", CLASS]
    with (work / "log").open("wb") as log:
        started = time.perf_counter()
        child = subprocess.Popen(
            ["taskset", "-c", "0", *java, str(work / "worker.properties"), str(work / "sink.properties")],
            stdout=log,
            stderr=log,
        )
        while (rows := rows_of(work)) < records:
            if child.poll() is not None or time.perf_counter() - started > SECONDS_MAX:
                child.kill()
                raise SystemExit(f"Kafka Connect has {rows} of {records} rows: see {work}/log")
            time.sleep(0.2)
        wall = time.perf_counter() - started
        child.send_signal(signal.SIGKILL)
        _, _, usage = os.wait4(child.pid, 0)
        child.returncode = 0
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def rows_of(work: Path) -> int:
    """How many rows the table has by its own metadata."""
    try:
        catalog = sqlite3.connect(f"file:{work}/catalog.db?mode=ro", uri=True)
        found = catalog.execute("SELECT metadata_location FROM iceberg_tables WHERE table_name = 'trips'").fetchone()
        catalog.close()
    except sqlite3.OperationalError:
        return 0
    if found is None:
        return 0
    metadata = json.loads(Path(found[0].removeprefix("file:")).read_text())
    newest = metadata.get("current-snapshot-id")
    snapshots = [one for one in metadata.get("snapshots", []) if one["snapshot-id"] == newest]
    return int(snapshots[0]["summary"]["total-records"]) if snapshots else 0
