"""Whole runs from Kafka over what goes wrong with records and topics, against the real broker.

Each outcome is read by others: rows by DuckDB in the files that the table names, letters from `conveyord dlq`, and the
summary's accounting has to agree with both.
"""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import KafkaException

from tests.kafka.cluster import COMPACTED, Cluster, Record, eventually
from tests.kafka.run_rig import KafkaJob, values

pytestmark = [pytest.mark.check, pytest.mark.timeout(300)]

TO_THE_END = {"follow": False}
QUICK_LOOKS = {"discover_every": "0.2s"}
POISON = {0: b"", 3: b"\xff\x00\xfe{", 7: b'{"id": 1', 12: b"[1, 2", 19: b"\x00"}
"""What is no JSON, by its offset in partition 0."""
MEBI = 1 << 20
LARGE_TOPIC = {"max.message.bytes": str(32 * MEBI)}
DAY_MS = 86_400_000
FAR_MS = 253_402_300_799_000
"""The last second of the year 9999."""


def drained(job: KafkaJob, *, rows: int, flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Follow the topic until the table has so many rows, stop, and give the summary."""
    with job.following(*flags) as running:
        assert running.until(lambda: job.count() >= rows), running.wait().err
        running.send(signal.SIGTERM)
        ended = running.wait()
    ended.orderly(0)
    return ended.summary


def accounts(summary: dict[str, Any]) -> tuple[int, ...]:
    """Records read, rows written, records filtered, skipped, dead."""
    return tuple(summary[key] for key in ("rows_in", "rows_out", "filtered", "skipped", "dead_letters"))


# ------------------------------------------------------------------ records


def poisoned(kafka: Cluster) -> tuple[str, list[int]]:
    """A topic with POISON between good records, and the ids of those."""
    topic = kafka.fresh_topic("poison", partitions=2)
    good = iter(range(1000))
    kept = [next(good) for _ in range(40)]
    there = iter(values(kept[:20]))
    kafka.produce(topic, [POISON[at] if at in POISON else next(there) for at in range(20 + len(POISON))])
    kafka.produce(topic, [Record(value=value, partition=1) for value in values(kept[20:])])
    return topic, kept


def test_poison_becomes_letters_and_every_good_record_lands(tmp_path: Path, kafka: Cluster) -> None:
    topic, kept = poisoned(kafka)
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=TO_THE_END, dlq=True)
    summary = job.run().succeeded()
    job.holds(kept)
    letters = job.letters()
    assert {letter["offset"] for letter in letters} == set(POISON)
    assert {(letter["partition"], letter["stage"]) for letter in letters} == {(f"{topic}[0]", "source")}
    assert accounts(summary) == (45, 40, 0, 0, 5)
    assert accounts(job.run().succeeded()) == (0, 0, 0, 0, 0)
    assert len(job.letters()) == len(POISON)
    job.audit()


def test_poison_is_passed_over_if_that_is_asked_for(tmp_path: Path, kafka: Cluster) -> None:
    topic, kept = poisoned(kafka)
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=TO_THE_END)
    summary = job.run("--skip-bad").succeeded()
    job.holds(kept)
    assert accounts(summary) == (45, 40, 0, 5, 0)
    job.audit()


def test_poison_stops_a_run_that_was_told_nothing_about_it_behind_the_rows_before(
    tmp_path: Path, kafka: Cluster
) -> None:
    topic, kept = poisoned(kafka)
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source={**TO_THE_END, "start_offsets": {f"{topic}[0]": 1}})
    for _ in range(2):  # it stops there again, and nothing doubles
        job.run().failed(rf"{topic}\[0\] \(offset 3\)", code=1)
        assert [number for number in job.ids() if number < 20] == [0, 1]
    job.source = TO_THE_END
    job.run("--skip-bad").succeeded()
    job.holds(kept)
    job.audit()


@pytest.mark.parametrize("kept", [False, True], ids=["drop", "keep"])
def test_tombstones_are_dropped_or_kept_as_rows_of_nulls(tmp_path: Path, kafka: Cluster, kept: bool) -> None:
    topic = kafka.fresh_topic("tombstones", partitions=1)
    written = [None if number % 3 == 0 else values([number])[0] for number in range(30)]
    kafka.produce(topic, [Record(value=value, key=f"k{at}".encode(), partition=0) for at, value in enumerate(written)])
    source = {**TO_THE_END, "columns": ["key", "offset"], "tombstones": "keep" if kept else "drop"}
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=source)
    summary = job.run().succeeded()
    expected = [
        (f"k{number}", number, None if number % 3 == 0 else number) for number in range(30) if kept or number % 3
    ]
    assert job.sql("SELECT kafka_key, kafka_offset, id FROM t ORDER BY 2") == expected
    assert accounts(summary) == ((30, 30, 0, 0, 0) if kept else (30, 20, 10, 0, 0))
    job.audit()


def test_a_topic_of_tombstones_alone_is_read_to_its_end(tmp_path: Path, kafka: Cluster) -> None:
    topic = kafka.fresh_topic("tombstones", partitions=1)
    kafka.produce(topic, [Record(value=None, key=b"k", partition=0) for _ in range(10)])
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=TO_THE_END)
    assert accounts(job.run().succeeded()) == (10, 0, 10, 0, 0)
    kafka.produce(topic, values([1]))
    # No row, no table, and so nothing that names a position: they are read again.
    assert accounts(job.run().succeeded()) == (11, 1, 10, 0, 0)
    assert accounts(job.run().succeeded()) == (0, 0, 0, 0, 0)
    job.holds([1])


def large(kafka: Cluster) -> str:
    """A topic with a message of 20 MB between small ones."""
    topic = kafka.fresh_topic("large", partitions=1, config=LARGE_TOPIC)
    records = [*values([0]), *values([1], text="x" * 20 * MEBI), *values([2])]
    kafka.produce(topic, records, message_max_bytes=32 * MEBI)
    return topic


def test_a_message_of_20_mb_lands_if_it_may_be_so_large(tmp_path: Path, kafka: Cluster) -> None:
    source = {**TO_THE_END, "max_record_bytes": "32MiB"}
    job = KafkaJob(tmp_path, kafka=kafka, topic=large(kafka), source=source, dlq=True)
    assert accounts(job.run().succeeded()) == (3, 3, 0, 0, 0)
    assert job.sql("SELECT id, length(text) FROM t ORDER BY 1") == [(0, None), (1, 20 * MEBI), (2, None)]
    assert not job.letters()


def test_a_message_of_20_mb_is_a_letter_if_it_may_not_be_so_large(tmp_path: Path, kafka: Cluster) -> None:
    job = KafkaJob(tmp_path, kafka=kafka, topic=large(kafka), source=TO_THE_END, dlq=True)
    assert accounts(job.run().succeeded()) == (3, 2, 0, 0, 1)
    job.holds([0, 2])
    (letter,) = job.letters()
    assert (letter["offset"], letter["code"]) == (1, "RECORD_TOO_LARGE")
    assert "max_record_bytes" in letter["message"]


def test_timestamps_from_the_ends_of_time_harm_nothing(tmp_path: Path, kafka: Cluster) -> None:
    limits = {f"message.timestamp.{side}.max.ms": str(2**63 - 1) for side in ("before", "after")}
    topic = kafka.fresh_topic("skew", partitions=2, config=limits)
    now_ms = time.time_ns() // 1_000_000
    times = [1, now_ms - 3650 * DAY_MS, now_ms, now_ms + 3650 * DAY_MS, FAR_MS]
    kafka.produce(
        topic,
        [
            Record(value=values([number])[0], timestamp_ms=at, partition=number % 2)
            for number, at in enumerate(times * 20)
        ],
    )
    source = {"columns": ["timestamp"], "event_time": "kafka_timestamp"}
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=source)
    summary = drained(job, rows=len(times) * 20)
    job.holds(range(len(times) * 20))
    found = job.sql("SELECT DISTINCT epoch_ms(kafka_timestamp) FROM t ORDER BY 1")
    assert [at for (at,) in found] == sorted(times)
    (source,) = summary["sources"]
    assert source["lag_records"] == 0
    assert source["lag_seconds"] == 0.0


# ------------------------------------------------------------------ holes


def test_what_was_aborted_is_no_record_at_either_end(tmp_path: Path, kafka: Cluster) -> None:
    topic = kafka.fresh_topic("aborted", partitions=2)
    lost = iter(range(10_000, 20_000))

    def both(numbers: list[int]) -> list[Record]:
        return [Record(value=value, partition=at % 2) for at, value in enumerate(values(numbers))]

    def aborted() -> list[Record]:
        return both([next(lost) for _ in range(10)])

    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=TO_THE_END)
    kafka.produce_aborted(topic, aborted())
    assert accounts(job.run().succeeded()) == (0, 0, 0, 0, 0)
    for first in (0, 20):
        kafka.produce_aborted(topic, aborted())
        kafka.produce_committed(topic, both(list(range(first, first + 10))))
        kafka.produce(topic, both(list(range(first + 10, first + 20))))
        kafka.produce_aborted(topic, aborted())
        assert accounts(job.run().succeeded()) == (20, 20, 0, 0, 0)
        job.holds(range(first + 20))
    # One that is still open holds its followers back, and its end lets them come.
    undecided = kafka.begin(topic, both(list(range(40, 50))))
    kafka.produce(topic, both(list(range(50, 60))))
    assert accounts(job.run().succeeded()) == (0, 0, 0, 0, 0)
    undecided.commit_transaction(30)
    assert accounts(job.run().succeeded()) == (20, 20, 0, 0, 0)
    job.holds(range(60))
    job.audit()


def test_holes_that_compaction_leaves_are_passed_wherever_reading_begins_and_ends(
    tmp_path: Path, kafka: Cluster
) -> None:
    topic = kafka.fresh_topic("compacted", partitions=1, config=COMPACTED)

    def keyed(numbers: range) -> list[Record]:
        with_numbers = zip(numbers, values(numbers), strict=True)
        return [Record(value=value, key=b"k%d" % (number % 5), partition=0) for number, value in with_numbers]

    kafka.produce(topic, keyed(range(50)))
    first = KafkaJob(tmp_path / "a", kafka=kafka, topic=topic, source=TO_THE_END, dlq=True)
    first.run().succeeded()
    first.holds(range(50))  # nothing was compacted yet, most likely; what was is checked by the second below
    kafka.compact(topic)
    left = [record for record in kafka.read(topic) if record.value]
    assert len(left) == 5
    kafka.produce(topic, keyed(range(50, 60)))
    # Before the hole, in it, and a fence in it.
    for at in (0, 20):
        source = {**TO_THE_END, "start_offsets": {f"{topic}[0]": at}}
        job = KafkaJob(tmp_path / f"b{at}", kafka=kafka, topic=topic, source=source, dlq=True)
        job.run().succeeded()
        assert [number for number in job.ids() if number is not None] == list(range(45, 60))
    first.run().succeeded()
    assert [number for number in first.ids() if number is not None] == list(range(60))
    first.audit()


# ------------------------------------------------------------------ what retention deleted


def test_offsets_that_retention_deleted_before_they_were_read_are_a_letter(tmp_path: Path, kafka: Cluster) -> None:
    job = retained(tmp_path, kafka)
    job.dlq = True
    summary = job.run().succeeded()
    job.holds([*range(10), *range(20, 30)])
    (letter,) = job.letters()
    assert (letter["code"], letter["offset"], letter["partition"]) == ("OFFSETS_GONE", 10, f"{job.topic}[0]")
    assert accounts(summary) == (11, 10, 0, 0, 1)
    assert job.fence() == {f"{job.topic}[0]": 30}
    assert accounts(job.run().succeeded()) == (0, 0, 0, 0, 0)
    assert len(job.letters()) == 1
    job.audit()


def test_offsets_that_retention_deleted_stop_a_run_unless_it_may_pass_over_them(tmp_path: Path, kafka: Cluster) -> None:
    job = retained(tmp_path, kafka)
    for _ in range(2):
        job.run().failed(rf"{job.topic}\[0\]", "10 offsets from 10 on were deleted before they were read", code=1)
        job.holds(range(10))
        assert job.fence() == {f"{job.topic}[0]": 10}
    assert accounts(job.run("--skip-bad").succeeded()) == (11, 10, 0, 1, 0)
    job.holds([*range(10), *range(20, 30)])
    assert job.fence() == {f"{job.topic}[0]": 30}
    job.audit()


def retained(home: Path, kafka: Cluster) -> KafkaJob:
    """A job whose table has offsets up to 10, of a topic that begins at 20 now and ends at 30."""
    topic = kafka.fresh_topic("retained", partitions=1)
    source = {**TO_THE_END, "columns": ["offset"], "group_id": topic}
    steps = [
        {"type": "sql_transform", "query": "SELECT id, kafka_offset, _source, _partition, _offset FROM input_data"}
    ]
    job = KafkaJob(home, kafka=kafka, topic=topic, source=source, steps=steps, sink={"provenance": True})
    kafka.produce(topic, values(range(10)))
    job.run().succeeded()
    kafka.produce(topic, values(range(10, 30)))
    kafka.delete_records(topic, 0, before=20)
    return job


def test_offsets_that_are_deleted_while_a_run_is_slow_are_a_letter_and_the_rest_lands(
    tmp_path: Path, kafka: Cluster
) -> None:
    topic = kafka.fresh_topic("retained", partitions=2)
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, dlq=True)
    kafka.produce(topic, [Record(value=value, partition=0) for value in values(range(10))])
    kafka.produce(topic, [Record(value=value, partition=1) for value in values(range(100, 110))])
    with job.following() as running:
        assert running.until(lambda: job.count() == 20), running.wait().err
        running.send(signal.SIGSTOP)
        kafka.produce(topic, values(range(10, 30)))
        kafka.delete_records(topic, 0, before=20)
        running.send(signal.SIGCONT)
        # What was on its way already may have come through: the letter tells what did not.
        assert running.until(lambda: job.fence().get(f"{topic}[0]") == 30), running.wait().err
        running.send(signal.SIGTERM)
        ended = running.wait()
    ended.orderly(0)
    found, letters = set(job.ids()), job.letters()
    assert {*range(10), *range(20, 30), *range(100, 110)} <= found
    if missing := set(range(10, 20)) - found:
        assert [(letter["code"], letter["offset"]) for letter in letters] == [("OFFSETS_GONE", min(missing))]
    job.audit()


# ------------------------------------------------------------------ topics


def spread(numbers: range, partitions: int) -> list[Record]:
    """A record for each id, dealt out over partitions."""
    return [Record(value=value, partition=at % partitions) for at, value in enumerate(values(numbers))]


def test_a_topic_that_is_deleted_while_it_is_read_ends_the_run_with_a_sentence_and_all_its_rows(
    tmp_path: Path, kafka: Cluster
) -> None:
    topic = kafka.fresh_topic("deleted", partitions=3)
    kafka.produce(topic, spread(range(300), 3))
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=QUICK_LOOKS)
    with job.following() as running:
        assert running.until(lambda: job.count() == 300), running.wait().err
        kafka.delete_topic(topic)
        running.wait().failed(f"topic '{topic}' was deleted while it was read", "create it again", code=1)
    job.holds(range(300))
    job.audit()
    job.run().failed(f"topic '{topic}' is not there; create it", code=1)
    job.holds(range(300))


def test_a_topic_of_a_pattern_that_is_deleted_leaves_the_others_to_be_read(tmp_path: Path, kafka: Cluster) -> None:
    stem = kafka.fresh_topic("many", partitions=1)
    first, second = f"{stem}.first", f"{stem}.second"
    kafka.create_topic(first, partitions=1)
    kafka.produce(first, values(range(10)))
    job = KafkaJob(tmp_path, kafka=kafka, topic=rf"^{stem}\..*", source=QUICK_LOOKS)
    with job.following() as running:
        assert running.until(lambda: job.count() == 10), running.wait().err
        kafka.create_topic(second, partitions=2)
        kafka.produce(second, spread(range(10, 20), 2))
        assert running.until(lambda: job.count() == 20), running.wait().err
        kafka.delete_topic(first)
        assert running.saw("a topic is gone"), running.wait().err
        kafka.produce(second, spread(range(20, 30), 2))
        assert running.until(lambda: job.count() == 30), running.wait().err
        running.send(signal.SIGTERM)
        running.wait().orderly(0)
    job.holds(range(30))
    job.audit()


def made_anew(kafka: Cluster, topic: str, records: list[Record], *, partitions: int = 2) -> None:
    """Delete a topic and make another of its name with these records."""
    kafka.delete_topic(topic)
    eventually(lambda: is_made(kafka, topic, partitions), f"{topic} could not be made anew")
    kafka.produce(topic, records)


def is_made(kafka: Cluster, topic: str, partitions: int) -> bool:
    try:
        kafka.create_topic(topic, partitions=partitions)
    except KafkaException:  # the old one is not quite gone
        return False
    return True


@pytest.mark.parametrize("more", [4, 40], ids=["shorter", "longer"])
def test_a_topic_made_anew_between_runs_is_refused_and_begun_at_its_start_on_request(
    tmp_path: Path, kafka: Cluster, more: int
) -> None:
    topic = kafka.fresh_topic("anew", partitions=2)
    kafka.produce(topic, spread(range(20), 2))
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source=TO_THE_END)
    job.run().succeeded()
    made_anew(kafka, topic, spread(range(100, 100 + more), 2))
    job.run().failed("it was deleted and made anew", "on_recreated", code=1)
    job.holds(range(20))
    job.source = {**TO_THE_END, "on_recreated": "restart"}
    job.run().succeeded()
    job.holds([*range(20), *range(100, 100 + more)])
    kafka.produce(topic, spread(range(200, 210), 2))
    assert accounts(job.run().succeeded()) == (10, 10, 0, 0, 0)
    job.holds([*range(20), *range(100, 100 + more), *range(200, 210)])
    job.audit()


@pytest.mark.parametrize("on_recreated", ["fail", "restart"])
@pytest.mark.parametrize(
    "looks",
    [
        QUICK_LOOKS,
        {"discover_every": "600s"},
    ],
    ids=["looks-often", "hardly-looks"],
)
def test_a_topic_made_anew_while_it_is_read_loses_and_doubles_nothing(
    tmp_path: Path, kafka: Cluster, on_recreated: str, looks: dict[str, str]
) -> None:
    """The new one is longer than the old: an offset of the old one is there, too, and means another record."""
    topic = kafka.fresh_topic("anew", partitions=2)
    kafka.produce(topic, spread(range(20), 2))
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source={**looks, "on_recreated": on_recreated})
    with job.following() as running:
        assert running.until(lambda: job.count() == 20), running.wait().err
        made_anew(kafka, topic, spread(range(100, 160), 2))
        if on_recreated == "fail":
            running.wait().failed("was deleted", code=1)
            job.holds(range(20))
            job.source = {**looks, "on_recreated": "restart"}
            drained(job, rows=80)
        else:
            assert running.until(lambda: job.count() >= 80), running.wait().err
            running.send(signal.SIGTERM)
            running.wait().orderly(0)
    job.holds([*range(20), *range(100, 160)])
    job.audit()


def test_partitions_that_are_added_while_a_topic_is_read_are_read_from_their_start(
    tmp_path: Path, kafka: Cluster
) -> None:
    topic = kafka.fresh_topic("wider", partitions=1)
    job = KafkaJob(tmp_path, kafka=kafka, topic=topic, source={**QUICK_LOOKS, "start": "latest"})
    early = itertools.count(1000)

    def has_begun() -> bool:
        kafka.produce(topic, values([next(early)]))
        return job.count() > 0

    with job.following() as running:
        assert running.until(has_begun), running.wait().err
        kafka.add_partitions(topic, 4)
        kafka.produce(topic, spread(range(60), 4))
        assert running.until(lambda: set(range(60)) <= set(job.ids())), running.wait().err
        running.send(signal.SIGTERM)
        running.wait().orderly(0)
    found = job.ids()
    assert len(found) == len(set(found))
    assert {number for number in found if number >= 1000} == set(range(min(found[60:]), next(early)))
    job.audit()
