"""The real process, killed at random while it moves a topic into a table and two producers write to that topic.

Afterwards each record of a committed transaction is in the table once and none of those that were taken back, counted
by DuckDB. At every look in between, no record is between the table's fence and the group's offsets, and these never
went back.
"""

from __future__ import annotations

import faulthandler
import os
import random
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from conveyord.core.flow.record_log import TopicPartition
from conveyord.storage.kafka.connection import Connection
from conveyord.storage.kafka.reader import KafkaReader
from tests.e2e.harness import Running
from tests.e2e.test_kill_loop import AT_ONCE, check_leftovers
from tests.kafka.cluster import ANSWER_SECONDS_MAX, Cluster
from tests.kafka.producing import Producing
from tests.kafka.run_rig import KafkaJob

SEED = int(os.environ.get("CONVEYORD_SEED", "20240601"))
PARTITIONS = 8
EARLY_SHARE = 0.2  # of the kills fall anywhere in the first seconds: imports, opening, the first commit
EARLY_SECONDS_MAX = 1.2
COMMITS_MAX = 4
COMMIT_SECONDS = 0.15  # about one round of reading, writing and committing
WAIT_SECONDS_MAX = 10.0  # for these: there may be nothing left to commit
OFTEN = {"rows": 2_000, "every": "0.1s"}
SOURCE = {"batch_rows": 500, "commit_group_every": "0.1s", "discover_every": "0.5s"}


class Looking:
    """Compares the group's offsets with the table's fence, again and again."""

    def __init__(self, job: KafkaJob) -> None:
        self.job = job
        self.group: dict[str, int] = {}
        self.looks = 0

    def look(self) -> None:
        # The group first: the fence may only have moved on since.
        found = self.job.kafka.group_offsets(self.job.source["group_id"], self.job.topic)
        group = {str(TopicPartition(self.job.topic, number)): offset for number, offset in found.items()}
        fence = self.job.fence()
        for number, offset in found.items():
            place = TopicPartition(self.job.topic, number)
            assert self.is_bare(place, fence.get(str(place), 0), offset), f"{place}: the group is at {offset}, {fence}"
        for name, offset in self.group.items():
            assert group.get(name, 0) >= offset, f"{name}: the group went back from {offset} to {group.get(name)}"
        self.group = group
        self.looks += 1

    def is_bare(self, place: TopicPartition, first: int, end: int) -> bool:
        """Whether no record is from an offset on up to another."""
        with closing(KafkaReader(Connection(self.job.kafka.bootstrap, {}, ANSWER_SECONDS_MAX))) as reader:
            return first >= end or not any(piece.offsets for piece in reader.read(place, first, end))


def kill_loop(home: Path, kafka: Cluster, *, kills: int, records: int, **sink: Any) -> KafkaJob:
    """Kill `kills` runs, finish, and assert that every record is there once."""
    # pytest dumps the threads of a test after some minutes, which is no hang here, and the dump can crash.
    faulthandler.cancel_dump_traceback_later()
    rng, killed, commits = random.Random(SEED), 0, 0
    print(f"seed={SEED}")
    topic = kafka.fresh_topic("kills", partitions=PARTITIONS)
    source = {**SOURCE, "group_id": topic}
    job = KafkaJob(home, kafka=kafka, topic=topic, source=source, sink={"commit": OFTEN, **sink})
    looking = Looking(job)
    share = records // (kills + 1)
    with Producing(kafka, topic, partitions=PARTITIONS, portion=share // 20, seed=SEED).going_on() as producing:
        while killed < kills:
            producing.allow(share)
            running = job.start()
            if rng.random() < EARLY_SHARE:
                pause = rng.uniform(0.0, EARLY_SECONDS_MAX)
            else:
                wait_for_commits(running, rng.randint(1, COMMITS_MAX), looking)
                pause = rng.uniform(0.0, COMMIT_SECONDS)
            commits += "committed" in running.err()
            assert running.killed_after(pause), running.wait().err
            killed += 1
            looking.look()
        producing.allow(records - kills * share)
    job.source, job.sink = {**source, "follow": False}, {**job.sink, "commit": AT_ONCE}  # the rest
    job.run().succeeded()
    looking.look()
    print(f"kills: {killed}, {commits} after a commit, records: {producing.written}, aborted: {producing.aborted}")
    assert producing.written == records
    assert producing.aborted
    assert commits > kills // 3
    found = job.sql("SELECT count(*), count(DISTINCT id), min(id), max(id) FROM t")
    assert found == [(records, records, 0, records - 1)]
    ended = {f"{topic}[{number}]": extent.end for number, extent in kafka.extents(topic).items()}
    assert job.fence() == ended
    assert looking.group == ended
    assert job.run().succeeded()["rows_in"] == 0
    check_leftovers(job)
    job.audit()
    return job


def wait_for_commits(running: Running, count: int, looking: Looking) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX

    def is_enough() -> bool:
        looking.look()
        return running.err().count("committed") >= count or time.monotonic() > deadline

    assert running.until(is_enough), running.wait().err


@pytest.mark.check
@pytest.mark.timeout(600)
def test_every_committed_record_is_there_once_after_10_kills(tmp_path: Path, kafka: Cluster) -> None:
    kill_loop(tmp_path, kafka, kills=10, records=100_000, provenance=True)


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_every_committed_record_of_a_million_is_there_once_after_200_kills(tmp_path: Path, kafka: Cluster) -> None:
    kill_loop(tmp_path, kafka, kills=200, records=1_000_000, partition_by=["bucket(4, id)"])
