"""The sink `kafka`: what rows become, that none is lost, and what a broker's refusals do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from conveyord.core.errors import BatchError, ConfigError, Retryable
from conveyord.core.flow.positions import Position
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import Rejected
from conveyord.operators.sink_kafka import KafkaSink, KafkaSinkConfig
from tests.kafka.cluster import Cluster
from tests.kafka.mock import Beyond
from tests.kafka.sink_rig import FILE, Letters, Reading, by_key, held_by, numbers, ran, sink_to, values


async def test_rows_become_records_in_order_and_their_positions_are_stored(cluster: Cluster, data_dir: Path) -> None:
    topic, reading = cluster.fresh_topic(partitions=1), Reading()
    sink = sink_to(cluster, topic, data_dir)
    before = await ran(sink, reading.numbers(1, 2, 3), reading.numbers(), reading.numbers(4))
    assert dict(before) == {}
    assert values(cluster, topic) == [{"n": 1}, {"n": 2}, {"n": 3}, {"n": 4}]
    assert reading.settled == 3
    assert (sink.report().rows, sink.taken) == (4, Tally(read=4))
    held = await held_by(sink_to(cluster, topic, data_dir))
    assert (dict(held), held.states) == ({FILE: Position(30)}, {"in": "at 30"})


async def test_positions_are_of_one_topic_one_sink_and_one_pipeline(cluster: Cluster, data_dir: Path) -> None:
    topic, other = cluster.fresh_topic(partitions=1), cluster.fresh_topic(partitions=1)
    await ran(sink_to(cluster, topic, data_dir), Reading().numbers(1))
    assert not await held_by(sink_to(cluster, other, data_dir))
    assert not await held_by(sink_to(cluster, topic, data_dir, stage="b"))
    assert not await held_by(sink_to(cluster, topic, data_dir, pipeline="default/q"))
    assert await held_by(sink_to(cluster, topic, data_dir, pipeline="default/q", adopt_from="default/p"))


async def test_key_headers_time_and_tombstone_are_what_the_expressions_give(cluster: Cluster, data_dir: Path) -> None:
    topic = cluster.fresh_topic(partitions=1)
    at = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
    rows = {
        "id": pa.array([7, 8, None], pa.int64()),
        "who": ["Zoë", "Ann", None],
        "at": pa.array([at, at, None], pa.timestamp("us", "UTC")),
        "gone": [False, True, None],
    }
    sink = sink_to(
        cluster,
        topic,
        data_dir,
        key="id",
        headers={"name": "who", "twice": "id * 2", "fixed": "'x'"},
        timestamp="at",
        tombstone_when="gone",
        exclude=["who", "gone", "at", "nowhere"],
    )
    await ran(sink, Reading().batch(rows))
    first, second, third = cluster.read(topic)
    assert (first.key, second.key, third.key) == (b"7", b"8", None)
    assert (first.value, second.value, third.value) == (b'{"id":7}', None, b'{"id":null}')
    assert first.headers == (("name", "Zoë".encode()), ("twice", b"14"), ("fixed", b"x"))
    assert third.headers == (("fixed", b"x"),)
    assert first.timestamp_ms == second.timestamp_ms == int(at.timestamp() * 1000)
    assert third.timestamp_ms is not None
    assert third.timestamp_ms > int(at.timestamp() * 1000)


@pytest.mark.parametrize(
    ("column", "key"),
    [
        (pa.array(["é"]), "é".encode()),
        (pa.array([b"\x00\xff"]), b"\x00\xff"),
        (pa.array([-5], pa.int32()), b"-5"),
        (pa.array([1.5]), b"1.5"),
        (pa.array([True]), b"true"),
        (pa.array([None], pa.string()), None),
    ],
)
async def test_keys_are_these_bytes(cluster: Cluster, data_dir: Path, column: pa.Array, key: bytes | None) -> None:
    topic = cluster.fresh_topic(partitions=1)
    await ran(sink_to(cluster, topic, data_dir, key="k"), Reading().batch({"k": column}))
    assert [found.key for found in cluster.read(topic)] == [key]


async def test_raw_values_are_sent_as_they_are(cluster: Cluster, data_dir: Path) -> None:
    topic = cluster.fresh_topic(partitions=1)
    rows = {"payload": pa.array([b"\x00a", None, b""], pa.binary())}
    await ran(sink_to(cluster, topic, data_dir, format="raw", value_column="payload"), Reading().batch(rows))
    assert [found.value for found in cluster.read(topic)] == [b"\x00a", None, b""]


async def test_a_key_goes_where_javas_clients_send_it(cluster: Cluster, data_dir: Path) -> None:
    """Kafka's own examples of murmur2, as its client computes them: positive hash modulo partitions."""
    topic = cluster.fresh_topic(partitions=7)
    hashes = {"21": -973932308, "foobar": -790332482, "a-little-bit-long-string": -985981536}
    await ran(sink_to(cluster, topic, data_dir, key="k"), Reading().batch({"k": list(hashes)}))
    found = {found.key: found.partition for found in cluster.read(topic)}
    assert found == {key.encode(): (value & 0x7FFFFFFF) % 7 for key, value in hashes.items()}


async def test_partition_is_what_the_expression_gives_and_by_key_without(cluster: Cluster, data_dir: Path) -> None:
    topic = cluster.fresh_topic(partitions=3)
    rows = {"n": [0, 1, 2, 3], "k": ["same"] * 4, "p": pa.array([2, 0, None, None], pa.int64())}
    await ran(sink_to(cluster, topic, data_dir, key="k", partition="p"), Reading().batch(rows))
    places = {json.loads(found.value or b"")["n"]: found.partition for found in cluster.read(topic)}
    assert (places[0], places[1]) == (2, 0)
    assert places[2] == places[3]


async def test_rows_of_a_key_keep_their_order(cluster: Cluster, data_dir: Path) -> None:
    topic, reading = cluster.fresh_topic(partitions=3), Reading()
    batches = [reading.numbers(*range(first, first + 500)) for first in range(0, 5_000, 500)]
    await ran(sink_to(cluster, topic, data_dir, key="n % 10", commit={"rows": 1200}), *batches)
    found = by_key(cluster.read(topic))
    assert len(found) == 10
    for records in found.values():
        order = [json.loads(record.value or b"")["n"] for record in records]
        assert order == sorted(order)
        assert len(order) == 500


# ---------------------------------------------------------------------------- what cannot be sent


async def test_a_row_that_is_too_large_becomes_a_dead_letter(cluster: Cluster, data_dir: Path) -> None:
    topic, letters, reading = cluster.fresh_topic(partitions=1), Letters(), Reading()
    rows = reading.batch({"n": [1, 2, 3], "text": ["a", "x" * 20_000, "b"]})
    sink = sink_to(cluster, topic, data_dir, letters=letters, max_record_bytes=10_000)
    await ran(sink, rows, reading.numbers(4))
    assert numbers(cluster, topic) == [1, 3, 4]
    assert letters.codes == {2: "RECORD_TOO_LARGE"}
    assert sink.taken == Tally(read=4, dead=1)
    assert sink.report().rows == 3


async def test_without_dead_letters_it_stops_the_run_and_says_where(cluster: Cluster, data_dir: Path) -> None:
    topic = cluster.fresh_topic(partitions=1)
    rows = Reading().batch({"n": [1, 2], "text": ["a", "x" * 20_000]})
    with pytest.raises(BatchError, match=r"a\.jsonl bytes 0 to 10, row 1: topic .* max_record_bytes"):
        await ran(sink_to(cluster, topic, data_dir, max_record_bytes=10_000), rows)
    assert not await held_by(sink_to(cluster, topic, data_dir))


async def test_rows_on_which_an_expression_fails_become_dead_letters(cluster: Cluster, data_dir: Path) -> None:
    topic, letters = cluster.fresh_topic(partitions=3), Letters()
    sink = sink_to(cluster, topic, data_dir, letters=letters, partition="10 / n - 5")
    await ran(sink, Reading().numbers(2, 0, 1, 5, -3))  # partitions 0, a division by zero, 5, -3, and -8
    assert numbers(cluster, topic) == [2]
    assert letters.codes == {0: "BATCH_FAILED", 1: "REFUSED_BY_TOPIC", 5: "BATCH_FAILED", -3: "BATCH_FAILED"}


async def test_rows_that_fail_for_their_company_alone_are_sent(cluster: Cluster, data_dir: Path) -> None:
    """What was left of a batch was encoded once more as a whole, which fails again, and the run stopped."""
    topic, letters = cluster.fresh_topic(partitions=1), Letters()
    guarded = {"key": "n", "tombstone_when": "n <> 0 AND 10 / n > 2", "headers": {"h": "10 / (n - 7)"}}
    sink = sink_to(cluster, topic, data_dir, letters=letters, **guarded)
    await ran(sink, Reading().numbers(0, 2, 0, 5, 7, 8, 0))
    assert letters.codes == {7: "BATCH_FAILED"}
    sent = cluster.read(topic)
    assert [(record.key, record.value is None) for record in sent] == [
        (b"0", False),
        (b"2", True),
        (b"0", False),
        (b"5", False),
        (b"8", False),
        (b"0", False),
    ]
    assert [record.headers for record in sent][:2] == [(("h", b"-1"),), (("h", b"-2"),)]


async def test_however_many_rows_are_too_large_each_is_a_dead_letter(mock: Cluster, data_dir: Path) -> None:
    """More than a thousand stopped the run, although the client itself names each of them."""
    topic, letters = mock.fresh_topic(partitions=1), Letters()
    sink = sink_to(mock, topic, data_dir, letters=letters, max_record_bytes=1_000)
    texts = pa.array(["x" * (1_500 if n % 2 else 5) for n in range(2_100)])
    await ran(sink, Reading().batch({"n": pa.array(range(2_100)), "text": texts}))
    assert letters.codes == dict.fromkeys(range(1, 2_100, 2), "RECORD_TOO_LARGE")
    assert numbers(mock, topic) == [*range(0, 2_100, 2)]


async def test_the_letters_of_a_batch_come_together_however_many_they_are(mock: Cluster, data_dir: Path) -> None:
    """Rows of a query that gives others each time share a place: one put keeps their letters apart, two do not."""
    puts: list[int] = []

    class Counted(Letters):
        async def put(self, rejected: Sequence[Rejected]) -> None:
            puts.append(len(rejected))

    sink = sink_to(mock, mock.fresh_topic(partitions=1), data_dir, letters=Counted(), partition="10 / n")
    await ran(sink, Reading().numbers(*[0] * 1_001))
    assert puts == [1_001]


@pytest.mark.beyond_mock(Beyond.ADMIN)
@pytest.mark.parametrize("transactional", [False, True])
async def test_the_limit_of_the_topic_is_asked_for(cluster: Cluster, data_dir: Path, transactional: bool) -> None:
    topic = cluster.fresh_topic(partitions=1, config={"max.message.bytes": "20000"})
    letters = Letters()
    rows = Reading().batch({"n": [1, 2, 3, 4], "text": ["a", "x" * 15_000, "y" * 25_000, "b"]})
    options: dict[str, Any] = {"transactional_id": topic} if transactional else {}
    await ran(sink_to(cluster, topic, data_dir, letters=letters, max_record_bytes=None, **options), rows)
    assert numbers(cluster, topic) == [1, 2, 4]
    assert letters.codes == {3: "RECORD_TOO_LARGE"}


@pytest.mark.beyond_mock(Beyond.ADMIN)
@pytest.mark.parametrize("transactional", [False, True])
async def test_rows_that_a_broker_refuses_with_others_are_found(
    cluster: Cluster, data_dir: Path, transactional: bool
) -> None:
    """The client is told a limit that the topic has not got, so the broker refuses whole batches."""
    topic = cluster.fresh_topic(partitions=1, config={"max.message.bytes": "60000"})
    letters, reading = Letters(), Reading()
    texts = ["x" * 65_000 if number in {123, 124, 700} else "y" for number in range(1_000)]
    rows = reading.batch({"n": list(range(1_000)), "text": texts})
    options: dict[str, Any] = {"transactional_id": topic} if transactional else {}
    sink = sink_to(cluster, topic, data_dir, letters=letters, compression="none", **options)
    await ran(sink, rows, reading.numbers(1_000))
    assert letters.codes == dict.fromkeys([123, 124, 700], "RECORD_TOO_LARGE")
    found = numbers(cluster, topic)
    assert set(found) == set(range(1_001)) - {123, 124, 700}
    if transactional:
        assert found == sorted(found)
        assert len(found) == 998


@pytest.mark.beyond_mock(Beyond.ADMIN)
async def test_a_row_without_a_key_is_no_record_of_a_compacted_topic(cluster: Cluster, data_dir: Path) -> None:
    topic = cluster.fresh_topic(partitions=1, config={"cleanup.policy": "compact"})
    letters = Letters()
    rows = Reading().batch({"n": [1, 2, 3], "k": ["a", None, "b"]})
    await ran(sink_to(cluster, topic, data_dir, letters=letters, key="k"), rows)
    assert set(numbers(cluster, topic)) == {1, 3}
    assert letters.codes == {2: "REFUSED_BY_TOPIC"}


# ---------------------------------------------------------------------------- what is wrong before


@pytest.mark.beyond_mock(Beyond.MISSING)
async def test_a_missing_topic_is_an_error_before_anything_is_read(cluster: Cluster, data_dir: Path) -> None:
    with pytest.raises(ConfigError, match="has no topic nobody-made-it.*create_topic"):
        await held_by(sink_to(cluster, "nobody-made-it", data_dir))


@pytest.mark.beyond_mock(Beyond.MISSING)
async def test_a_missing_topic_is_made_if_that_is_wished_when_the_run_begins(cluster: Cluster, data_dir: Path) -> None:
    topic = f"{cluster.fresh_topic(partitions=1)}-made"
    wished: Any = {"partitions": 5, "config": {"cleanup.policy": "compact", "compression.type": "gzip"}}
    sink = sink_to(cluster, topic, data_dir, create_topic=wished, key="n", max_record_bytes=None)
    await held_by(sink)  # what a dry run does
    assert topic not in cluster.admin.list_topics(timeout=10).topics
    await ran(sink_to(cluster, topic, data_dir, create_topic=wished, key="n"), Reading().numbers(1))
    assert len(cluster.extents(topic)) == 5
    assert numbers(cluster, topic) == [1]


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"key": "n +"}, "key"),
        ({"headers": {"a": "max(n)"}}, ("headers", "a")),
        ({"format": "raw"}, "value_column"),
        ({"value_column": "v"}, "value_column"),
        ({"tombstone_when": "true"}, "tombstone_when"),
        ({"positions_topic": "p"}, "positions_topic"),
        ({"transactional_id": "a b"}, "transactional_id"),
        ({"transactional_id": "a", "positions_topic": "t"}, "positions_topic"),
        ({"transactional_id": "a", "idempotent": False}, "idempotent"),
        ({"format": "raw", "value_column": "v", "exclude": ["a"]}, "exclude"),
        ({"client": {"acks": "1"}}, ("client", "acks")),
        ({"client": {"linger.ms": 3}}, ("client", "linger.ms")),
        ({"client": {"transactional.id": "a"}}, ("client", "transactional.id")),
    ],
)
def test_options_that_cannot_work_are_told_by_key(options: dict[str, Any], wrong: Any) -> None:
    config = KafkaSinkConfig.model_validate({"brokers": "localhost:9092", "topic": "t", **options})
    assert wrong in KafkaSink.mistakes(config)


def test_the_promise_depends_on_the_transactional_id() -> None:
    plain = KafkaSinkConfig.model_validate({"brokers": "localhost:9092", "topic": "t"})
    sure = KafkaSinkConfig.model_validate({"brokers": "localhost:9092", "topic": "t", "transactional_id": "a"})
    assert not KafkaSink.mistakes(sure)
    assert (KafkaSink.delivery_of(plain), KafkaSink.delivery_of(sure)) == ("at-least-once", "exactly-once")


async def test_a_setting_that_librdkafka_does_not_know_is_named(cluster: Cluster, data_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"no\.such\.setting"):
        await held_by(sink_to(cluster, "t", data_dir, client={"no.such.setting": 1}))


async def test_an_expression_that_does_not_fit_the_rows_is_an_error_of_the_definition(
    cluster: Cluster, data_dir: Path
) -> None:
    topic, letters = cluster.fresh_topic(partitions=1), Letters()
    for wrong in ({"key": "m"}, {"partition": "'a'"}, {"timestamp": "n"}, {"tombstone_when": "n", "key": "n"}):
        with pytest.raises(ConfigError, match="kafka"):
            await ran(sink_to(cluster, topic, data_dir, letters=letters, **wrong), Reading().numbers(1))
    assert not letters.rejected


async def test_a_host_that_does_not_answer_is_told_within_seconds(data_dir: Path) -> None:
    with pytest.raises(Retryable, match=r"127\.0\.0\.1:9"):
        await held_by(sink_to(Cluster("127.0.0.1:9"), "t", data_dir, connect_timeout="1s"))
