"""The memory of a run that is under pressure all the time: there is always more to read than it may hold."""

from __future__ import annotations

import re
import signal
import statistics
import time
from pathlib import Path

import pytest

from tests.e2e.harness import Running
from tests.kafka.cluster import Cluster, Record
from tests.kafka.run_rig import KafkaJob, values

PARTITIONS = 4
WARM_SECONDS = 60.0  # arenas and caches come to their sizes: measured, some 80 seconds until nothing grows any more
SAMPLE_SECONDS = 0.25
FLAT_SHARE = 0.10
LOADED = {"prefetch": "16MiB", "batch_rows": 2_000, "group_id": "memory", "columns": ["key", "timestamp"]}


def rss_bytes(running: Running) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{running.pid}/status").read_text())
    assert found is not None, running.wait().err
    return int(found[1]) * 1024


def quarters(home: Path, kafka: Cluster, *, seconds: float, rate: float) -> list[float]:
    """The mean memory of a run in MB in each quarter of `seconds`, while the source is held back to `rate`."""
    topic = kafka.fresh_topic("pressure", partitions=PARTITIONS)
    count = int((WARM_SECONDS + seconds) * rate * 1.3)
    for first in range(0, count, 20_000):
        numbers = range(first, min(first + 20_000, count))
        records = zip(numbers, values(numbers, text="x" * 700), strict=True)
        kafka.produce(topic, [Record(value=value, key=b"%d" % at, partition=at % PARTITIONS) for at, value in records])
    steps = [{"type": "rate_limit", "rows_per_second": rate}]
    job = KafkaJob(home, kafka=kafka, topic=topic, source={**LOADED, "group_id": topic}, steps=steps)
    job.sink = {"commit": {"every": "2s"}}
    samples = list[int]()
    with job.following() as running:
        assert running.saw("committed", times=2), running.wait().err
        began = time.monotonic()
        while (passed := time.monotonic() - began) < WARM_SECONDS + seconds:
            assert not running.has_ended(), running.wait().err
            if passed > WARM_SECONDS:
                samples.append(rss_bytes(running))
            time.sleep(SAMPLE_SECONDS)
        assert sum(kafka.group_offsets(topic, topic).values()) < count, "it was never at the end"
        running.send(signal.SIGTERM)
        ended = running.wait()
    ended.orderly(0)
    (source,) = ended.summary["sources"]
    assert source["pauses"] > 10
    quarter = len(samples) // 4
    return [statistics.fmean(samples[at * quarter : (at + 1) * quarter]) / 1e6 for at in range(4)]


def grows(found: list[float]) -> bool:
    """Whether a later quarter took more than the first. It goes up and down by some percent with what is under way."""
    print("MB by quarter:", [round(one, 1) for one in found])
    return max(found[1:]) > found[0] * (1 + FLAT_SHARE)


@pytest.mark.check
@pytest.mark.timeout(600)
def test_memory_is_flat_under_pressure(tmp_path: Path, kafka: Cluster) -> None:
    assert not grows(quarters(tmp_path, kafka, seconds=40, rate=3_000))


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_memory_is_flat_under_an_hour_of_pressure(tmp_path: Path, kafka: Cluster) -> None:
    assert not grows(quarters(tmp_path, kafka, seconds=3_600, rate=1_000))
