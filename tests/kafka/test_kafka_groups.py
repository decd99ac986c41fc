"""Two and three runs that share a topic by a consumer group, each with a table of its own: whole processes.

What the tables hold together is what counts: each record once, whoever read it.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import pytest

from tests.e2e.harness import RUN_SECONDS_MAX, Ended, Running
from tests.e2e.test_metrics import PIPELINE, port_of, scrape
from tests.kafka.broker import Broker
from tests.kafka.cluster import Cluster, Record
from tests.kafka.producing import Producing
from tests.kafka.run_rig import KafkaJob, values

pytestmark = [pytest.mark.check, pytest.mark.timeout(600)]

PARTITIONS = 6
SESSION_SECONDS = 3.0
MEMBERS = {"session.timeout.ms": int(SESSION_SECONDS * 1000), "heartbeat.interval.ms": 300}
SHARED = {"assignment": "group", "columns": ["partition", "offset"], "commit_group_every": "0.2s", "client": MEMBERS}
NEVER = {"every": "600s", "rows": 10_000_000}
DEALT_ANEW = 12
DEAL_SECONDS = 0.7
END_SECONDS_MAX = 60.0  # that docs/kafka.md says
COUNTED_MS = 50  # between two looks at what others do


class Group:
    """Members of one group over one topic, by name."""

    def __init__(self, home: Path, kafka: Cluster, *names: str, **source: Any) -> None:
        self.kafka = kafka
        self.topic = kafka.fresh_topic("group", partitions=PARTITIONS)
        options = {**SHARED, "group_id": self.topic, **source}
        self.jobs = {
            name: KafkaJob(home / name, kafka=kafka, topic=self.topic, source=options, name=name, table=f"ns.{name}")
            for name in names
        }
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def __getitem__(self, name: str) -> KafkaJob:
        return self.jobs[name]

    def join(self, name: str) -> Running:
        """A member more. It is one once it has been given something."""
        return self._stack.enter_context(self.jobs[name].following("--metrics-port", "0"))

    def offsets(self) -> dict[int, int]:
        """What the group has committed."""
        return self.kafka.group_offsets(self.topic, self.topic)

    def is_done(self) -> bool:
        """Whether the group's offsets are behind every record that a table has: nobody reads one again.

        Behind the last may be markers of transactions, which who leaves at once has not come to.
        """
        told = self.offsets()
        rows = [row for job in self.jobs.values() for row in job.rows("SELECT kafka_partition, kafka_offset FROM t")]
        return all(told.get(partition, 0) > offset for partition, offset in rows)

    def ids(self) -> Counter[int]:
        """How often each id is in the tables together."""
        return Counter(number for job in self.jobs.values() for (number,) in job.rows("SELECT id FROM t"))

    def hold(self, expected: Iterable[int]) -> None:
        """Assert that the tables together have these ids, each once."""
        found, wanted = self.ids(), set(expected)
        doubled = sorted(number for number, times in found.items() if times > 1)
        assert not doubled, f"{len(doubled)} doubled: {doubled[:5]}"
        assert not wanted - found.keys(), f"{len(wanted - found.keys())} lost: {sorted(wanted - found.keys())[:5]}"
        assert found.keys() == wanted


def spread(numbers: range) -> list[Record]:
    return [Record(value=value, partition=at % PARTITIONS) for at, value in enumerate(values(numbers))]


def eventually(condition: Callable[[], bool], *running: Running) -> None:
    """Wait for something that runs do together, none of which may end."""
    deadline = time.monotonic() + RUN_SECONDS_MAX
    while not condition():
        for one in running:
            assert not one.has_ended(), one.wait().err
        assert time.monotonic() < deadline, "waited in vain:\n" + "\n".join(one.err()[-3000:] for one in running)
        time.sleep(COUNTED_MS / 1000)


def left(running: Running) -> dict[str, Any]:
    """Let a member leave in order, and give its summary."""
    running.send(signal.SIGTERM)
    ended = running.wait()
    ended.orderly(0)
    return ended.summary


def rows_in(running: Running, name: str) -> int:
    """How many records a run with metrics has read."""
    pipeline = tuple((key, f"default/{name}") for key, _ in PIPELINE)
    return int(scrape(port_of(running)).get(("conveyord_rows_in_total", pipeline), 0))


def test_members_that_come_and_go_in_order_land_each_record_once(tmp_path: Path, kafka: Cluster) -> None:
    with Group(tmp_path, kafka, "a", "b", "c") as group:
        producing = Producing(kafka, group.topic, partitions=PARTITIONS, portion=100, seed=1)
        running: dict[str, Running] = {}

        def rows_come_to(*names: str) -> None:
            """Each of these writes more than it had."""
            before = {name: group[name].count() for name in names}

            def has_more() -> bool:
                producing.allow(100)
                return all(group[name].count() > before[name] for name in names)

            eventually(has_more, *running.values())

        with producing.going_on():
            for name in group.jobs:
                running[name] = group.join(name)
                rows_come_to(*running)
            left(running.pop("a"))
            rows_come_to("b", "c")
            left(running.pop("b"))
            rows_come_to("c")
            running["a"] = group.join("a")
            rows_come_to("a", "c")
        eventually(lambda: len(group.ids()) >= producing.written, *running.values())
        for one in running.values():
            left(one)
        group.hold(range(producing.written))
        assert group.is_done()
        for job in group.jobs.values():
            job.audit()


def test_members_that_leave_while_others_join_land_each_record_once(tmp_path: Path, kafka: Cluster) -> None:
    """Found in review: the last commit of a member that leaves meets a group that is dealing anew, and was given up."""
    names, patient = ("a", "b", "c", "d"), {"session.timeout.ms": 30_000, "heartbeat.interval.ms": 300}
    with Group(tmp_path, kafka, *names, commit_group_every="60s", client=patient) as group:
        for job in group.jobs.values():
            job.sink = {"commit": NEVER}
        producing = Producing(kafka, group.topic, partitions=PARTITIONS, portion=100, seed=2)
        with producing.going_on():
            running = {name: group.join(name) for name in names[:3]}

            def all_have_read() -> bool:
                producing.allow(100)
                return all(rows_in(one, name) for name, one in running.items())

            eventually(all_have_read, *running.values())
            for number in range(DEALT_ANEW):
                leaves, joins = names[number % 4], names[(number + 3) % 4]
                running[joins] = group.join(joins)
                time.sleep(DEAL_SECONDS * (number % 5))  # so that it leaves at one moment of the deal or another
                producing.allow(1_000)
                left(running.pop(leaves))
        for one in running.values():
            left(one)
        group["a"].sink = {}
        group["a"].source = {**group["a"].source, "commit_group_every": "0.2s"}
        last = group.join("a")
        # Those that left may have read everything; and one that has not joined yet does not heed signals.
        eventually(lambda: kafka.group_members(group.topic) == 1 and len(group.ids()) >= producing.written, last)
        left(last)
        group.hold(range(producing.written))


def test_partitions_are_handed_over_with_what_was_read_of_them_committed(tmp_path: Path, kafka: Cluster) -> None:
    with Group(tmp_path, kafka, "a", "b") as group:
        # What asks for a commit at the hand-over goes through every stage, and has to have the columns that they name.
        query = "SELECT id, kafka_partition, kafka_offset, _source, _partition, _offset FROM input_data"
        for job in group.jobs.values():
            job.sink = {"commit": NEVER, "provenance": True}
            job.steps = [{"type": "sql_transform", "query": query}]
        kafka.produce(group.topic, spread(range(6_000)))
        first = group.join("a")
        eventually(lambda: rows_in(first, "a") == 6_000, first)
        assert group["a"].count() == 0, "nothing asked for a commit yet"
        second = group.join("b")
        eventually(lambda: kafka.group_members(group.topic) == 2 and len(group.offsets()) > 0, first, second)
        kafka.produce(group.topic, spread(range(6_000, 12_000)))
        eventually(lambda: rows_in(first, "a") + rows_in(second, "b") == 12_000, first, second)
        for one in (first, second):
            left(one)
        assert group["b"].count()
        assert min(number for (number,) in group["b"].rows("SELECT id FROM t")) >= 6_000
        group.hold(range(12_000))
        assert group.is_done()
        for job in group.jobs.values():
            job.audit()


def test_of_a_member_that_is_killed_nothing_is_lost_and_only_what_the_group_was_not_told_is_doubled(
    tmp_path: Path, kafka: Cluster
) -> None:
    # A table is told at once and the group hardly ever, so that something must be doubled.
    with Group(tmp_path, kafka, "a", "b", commit_group_every="600s") as group:
        kafka.produce(group.topic, spread(range(3_000)))
        killed, other = group.join("a"), group.join("b")
        eventually(lambda: kafka.group_members(group.topic) == 2 and len(group.ids()) == 3_000, killed, other)
        kafka.produce(group.topic, spread(range(3_000, 6_000)))
        eventually(lambda: len(group.ids()) == 6_000, killed, other)
        assert killed.killed_after(0)
        untold = untold_of(group, "a")
        kafka.produce(group.topic, spread(range(6_000, 9_000)))
        eventually(lambda: len(group.ids()) == 9_000, other)
        left(other)
        times = group.ids()
        assert set(times) == set(range(9_000))
        doubled = {number for number, count in times.items() if count > 1}
        assert doubled == untold, f"{len(doubled)} doubled, the group was not told of {len(untold)}"
        assert max(times.values()) <= 2
        print(f"doubled: {len(doubled)}")
        # It comes back behind what the other has read meanwhile, and reads on without doubling more.
        back = group.join("a")
        eventually(lambda: kafka.group_members(group.topic) == 1, back)
        kafka.produce(group.topic, spread(range(9_000, 12_000)))
        eventually(lambda: len(group.ids()) == 12_000, back)
        left(back)
        assert {number for number, count in group.ids().items() if count > 1} == doubled


@pytest.mark.parametrize(
    ("commit", "due"),
    [
        pytest.param(NEVER, set(), id="nothing-due"),
        pytest.param({"every": "4s"}, set(range(3_000, 6_000)), id="a-commit-is-due"),
    ],
)
def test_a_member_that_was_frozen_for_too_long_loses_nothing_and_doubles_at_most_what_was_due(
    tmp_path: Path, kafka: Cluster, commit: dict[str, Any], due: set[int]
) -> None:
    """A commit that came due meanwhile may go before it hears that it is no member any more (docs/kafka.md)."""
    with Group(tmp_path, kafka, "a", "b") as group:
        group["a"].sink = {"commit": commit}
        count = 3_000 if commit is NEVER else 6_000
        kafka.produce(group.topic, spread(range(3_000)))
        frozen = group.join("a")
        if commit is not NEVER:
            eventually(lambda: sum(group.offsets().values()) == 3_000, frozen)
            kafka.produce(group.topic, spread(range(3_000, 6_000)))
        eventually(lambda: rows_in(frozen, "a") == count, frozen)
        frozen.send(signal.SIGSTOP)
        untold = untold_of(group, "a")  # as if it had died now
        other = group.join("b")
        kafka.produce(group.topic, spread(range(count, count + 3_000)))
        eventually(lambda: len(group.ids()) == count + 3_000, other)
        frozen.send(signal.SIGCONT)
        kafka.produce(group.topic, spread(range(count + 3_000, count + 6_000)))
        eventually(lambda: frozen.has_ended() or len(group.ids()) == count + 6_000, other)
        if frozen.has_ended():
            superseded(frozen.wait())
            eventually(lambda: len(group.ids()) == count + 6_000, other)
        else:
            left(frozen)
        left(other)
        times = group.ids()
        assert set(times) == set(range(count + 6_000))
        doubled = {number for number, found in times.items() if found > 1}
        assert doubled <= untold | due, f"{len(doubled - untold - due)} were committed by one that was no member"
        assert max(times.values()) <= 2


AWAY_SECONDS = 3 * SESSION_SECONDS


def read_and_untold(group: Group, *names: str) -> list[Running]:
    """Members that have committed to their tables what the group is not told of."""
    members = [group.join(name) for name in names]
    group.kafka.produce(group.topic, spread(range(3_000)))
    eventually(lambda: len(group.ids()) == 3_000 and group.kafka.group_members(group.topic) == len(names), *members)
    return members


def test_the_only_member_outlives_brokers_that_are_away_for_longer_than_its_session(
    tmp_path: Path, broker: Broker
) -> None:
    with Group(tmp_path, broker, "a", commit_group_every="600s") as group:
        (alone,) = read_and_untold(group, "a")
        broker.kill()
        time.sleep(AWAY_SECONDS)
        broker.start()
        broker.produce(group.topic, spread(range(3_000, 6_000)))
        eventually(lambda: len(group.ids()) == 6_000, alone)
        left(alone)
        group.hold(range(6_000))
        assert group.is_done()


def test_members_that_lose_their_brokers_double_nothing_in_silence(tmp_path: Path, broker: Broker) -> None:
    with Group(tmp_path, broker, "a", "b", commit_group_every="600s") as group:
        members = read_and_untold(group, "a", "b")
        broker.kill()
        time.sleep(AWAY_SECONDS)
        broker.start()
        broker.produce(group.topic, spread(range(3_000, 6_000)))
        eventually(lambda: set(group.ids()) == set(range(6_000)) or all(one.has_ended() for one in members))
        time.sleep(SESSION_SECONDS)  # for what is read a second time
        ended = [one.wait() for one in members if one.has_ended()]
        for one in members:
            if not one.has_ended():
                left(one)
        assert {end.summary["error"]["code"] for end in ended} <= {"SUPERSEDED"}
        doubled = sum(count > 1 for count in group.ids().values())
        print(f"doubled: {doubled}, ended: {len(ended)}")
        assert not doubled or ended
        again = [group.join(name) for name in group.jobs]
        eventually(lambda: set(group.ids()) == set(range(6_000)), *again)
        for one in again:
            left(one)
        assert max(group.ids().values()) <= 2


@pytest.mark.parametrize("fault", ["pause", "kill"])
@pytest.mark.parametrize("assignment", ["all", "group"])
def test_a_broker_that_goes_while_commits_are_sent_keeps_nobody_from_ending(
    tmp_path: Path, broker: Broker, assignment: str, fault: str
) -> None:
    # With the session that is usual, or it is taken for dead with work in hand.
    options = {"commit_group_every": "0.1s", "assignment": assignment, "batch_rows": 20, "client": {}}
    with Group(tmp_path, broker, "a", **options) as group:
        group["a"].sink = {"commit": {"every": "0.1s"}}
        broker.produce(group.topic, spread(range(100_000)))
        running = group.join("a")
        eventually(lambda: sum(group.offsets().values()) > 1_000, running)
        {"pause": broker.pause, "kill": broker.kill}[fault]()
        told = sum(group["a"].rows("SELECT count(*) FROM t")[0])
        time.sleep(5)
        assert rows_in(running, "a") > told, "nothing was read after the broker went"
        running.send(signal.SIGTERM)
        began = time.monotonic()
        ended, seconds = running.wait(), time.monotonic() - began
        print(f"ended within {seconds:.0f} s: {(ended.summary.get('error') or {}).get('code')}")
        assert seconds < END_SECONDS_MAX


def untold_of(group: Group, name: str) -> set[int]:
    """What a member has in its table and the group was not told of: another reads it again if it dies."""
    told = group.offsets()
    rows = group[name].rows("SELECT id, kafka_partition, kafka_offset FROM t")
    return {number for number, partition, offset in rows if offset >= told.get(partition, 0)}


def superseded(ended: Ended) -> None:
    ended.orderly(1)
    assert ended.summary["error"]["code"] == "SUPERSEDED"
    assert "run again to go on" in ended.error
