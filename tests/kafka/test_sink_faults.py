"""The sink `kafka` while its broker is killed, paused or shut, and while its process is killed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from json import dumps
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import trio

from conveyord.core.errors import ConfigError, Retryable
from conveyord.core.flow.positions import Position
from conveyord.core.retry import Backoff
from conveyord.engine.contracts import Retries
from conveyord.engine.messages import Eos
from conveyord.storage.kafka.producer import QUEUE_BYTES
from tests.kafka.broker import PASSWORD, ROOT, USER, Broker
from tests.kafka.certificates import Authority
from tests.kafka.cluster import Cluster
from tests.kafka.sink_rig import FILE, Reading, committed, held_by, paused, ran, sink_to
from tests.kafka.test_sink_transactions import running

CHILD_SECONDS_MAX = 120
SECONDS = 20  # in which what is wrong must be told; the limit of the test, not what it takes
MODES = pytest.mark.parametrize("mode", ["plain", "transactional"])


def options_of(mode: str, topic: str) -> dict[str, Any]:
    own = {"transactional_id": topic} if mode == "transactional" else {}
    return {"commit": {"rows": 1_000, "every": "50ms"}, **own}


def is_delivered(found: Sequence[int], count: int, mode: str) -> None:
    """Nothing is missing and nothing overtakes; in transactions nothing comes twice either."""
    if mode == "transactional":
        assert found == list(range(count))
        return
    assert set(found) == set(range(count))
    highest = -1
    for number in found:
        assert number <= highest + 1, f"{number} came after {highest}"
        highest = max(highest, number)


@pytest.mark.check
@MODES
@pytest.mark.parametrize("orderly", [True, False], ids=["stopped", "killed"])
async def test_a_broker_that_restarts_under_load_costs_nothing(
    broker: Broker, data_dir: Path, mode: str, orderly: bool
) -> None:
    topic, reading = broker.fresh_topic(partitions=1), Reading()
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        one = await running(nursery, stack, sink_to(broker, topic, data_dir, **options_of(mode, topic)))

        async def feed() -> None:
            for first in range(0, 40_000, 250):
                await one.give(reading.numbers(*range(first, first + 250)))
            await one.give(Eos())

        nursery.start_soon(feed)
        for commits in (3, 15):
            await one.committed(commits)
            await trio.to_thread.run_sync(broker.stop if orderly else broker.kill)
            await trio.to_thread.run_sync(broker.start)
        assert await one.ended() is None
    assert reading.settled == 160
    is_delivered(committed(broker, topic), 40_000, mode)


@MODES
async def test_a_broker_that_stays_away_ends_the_run_and_the_next_goes_on(
    broker: Broker, data_dir: Path, mode: str
) -> None:
    topic, reading = broker.fresh_topic(partitions=1), Reading()
    options = options_of(mode, topic) | {"delivery_timeout": "1s", "connect_timeout": "1s"}
    once = Retries(count_max=1, backoff=Backoff(base_seconds=0.01, cap_seconds=0.05), random=Random(1))
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        one = await running(nursery, stack, sink_to(broker, topic, data_dir, retries=once, **options))
        await one.give(reading.numbers(0, 1))
        await one.committed(1)
        with paused(broker):
            await one.give(reading.numbers(2, 3))
            error = await one.ended()
        assert isinstance(error, Retryable), error
        assert broker.bootstrap in str(error)
    assert reading.settled == 1
    held = await ran(sink_to(broker, topic, data_dir, **options), Reading(10).numbers(2, 3, 4))
    assert dict(held) == {FILE: Position(10)}
    is_delivered(committed(broker, topic), 5, mode)


@MODES
async def test_what_waits_for_a_paused_broker_is_bounded(broker: Broker, data_dir: Path, mode: str) -> None:
    topic, reading = broker.fresh_topic(partitions=1), Reading()
    options = options_of(mode, topic) | {"commit": {"bytes": "8MiB", "every": "1h"}}
    given = 0
    async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
        one = await running(nursery, stack, sink_to(broker, topic, data_dir, **options))
        await one.give(reading.batch({"n": [0], "text": ["x"]}))
        with paused(broker):
            with trio.move_on_after(5):
                for number in range(1, 200):  # 200 MiB
                    rows = {"n": pa.array([number] * 1024), "text": ["x" * 1024] * 1024}
                    await one.give(reading.batch(rows))
                    given += 1
            # The queue, what makes a commit due, and what the channel before the sink holds.
            assert given * 1024 * 1024 < QUEUE_BYTES + 8 * 1024 * 1024 + 8 * 1024 * 1024
        await one.give(Eos())
        assert await one.ended() is None
    assert set(committed(broker, topic)) == set(range(given + 1))


@MODES
async def test_it_lets_go_at_once_while_it_waits_for_a_broker(broker: Broker, data_dir: Path, mode: str) -> None:
    topic, reading = broker.fresh_topic(partitions=1), Reading()
    async with AsyncExitStack() as outer:
        with trio.fail_after(SECONDS):
            async with AsyncExitStack() as stack, trio.open_nursery() as nursery:
                one = await running(nursery, stack, sink_to(broker, topic, data_dir, **options_of(mode, topic)))
                await one.give(reading.numbers(0))
                await one.committed(1)
                outer.enter_context(paused(broker))
                await one.give(reading.numbers(1))
                await trio.sleep(0.2)  # it may have begun to wait; if not, this proves less
                nursery.cancel_scope.cancel()
    assert reading.settled == 1


# ---------------------------------------------------------------------------- at the door


def secured(broker: Broker, listener: Any, **security: Any) -> dict[str, Any]:
    known = {"username": USER, "password": PASSWORD, "mechanism": "SCRAM-SHA-512"} if "SASL" in listener else {}
    trusted = {"ca_file": str(broker.authority.path)} if listener.endswith("SSL") else {}
    return {
        "brokers": broker.address(listener),
        "security": {"protocol": listener.lower(), **known, **trusted, **security},
    }


@MODES
@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SSL", "SASL_SSL"])
async def test_who_may_come_in_can_write(broker: Broker, data_dir: Path, mode: str, listener: str) -> None:
    topic = broker.fresh_topic(partitions=1)
    await ran(sink_to(broker, topic, data_dir, **options_of(mode, topic), **secured(broker, listener)), _numbers(1, 2))
    assert committed(broker, topic) == [1, 2]


@MODES
@pytest.mark.parametrize(
    ("listener", "wrong", "told"),
    [
        ("SASL_PLAINTEXT", {"password": "guessed"}, "check username, password"),
        ("SASL_SSL", {"password": "guessed"}, "check username, password"),
        ("SSL", {"ca_file": "another"}, "check security.ca_file"),
    ],
)
async def test_who_may_not_is_told_why_within_seconds(
    broker: Broker, data_dir: Path, tmp_path: Path, mode: str, listener: str, wrong: dict[str, Any], told: str
) -> None:
    topic = broker.fresh_topic(partitions=1)
    if "ca_file" in wrong:
        wrong = {"ca_file": str(Authority(tmp_path, "another").path)}
    options = options_of(mode, topic) | secured(broker, listener, **wrong)
    with trio.fail_after(SECONDS), pytest.raises(ConfigError, match=told) as caught:
        await held_by(sink_to(broker, topic, data_dir, **options))
    assert "guessed" not in str(caught.value)


@MODES
async def test_a_broker_that_is_silent_is_told_within_seconds(broker: Broker, data_dir: Path, mode: str) -> None:
    topic = broker.fresh_topic(partitions=1)
    with paused(broker), trio.fail_after(SECONDS), pytest.raises(Retryable, match=broker.bootstrap):
        await held_by(sink_to(broker, topic, data_dir, connect_timeout="1s", **options_of(mode, topic)))


def _numbers(*given: int) -> Any:
    return Reading().numbers(*given)


# ---------------------------------------------------------------------------- killed


@pytest.mark.check
@MODES
def test_a_process_that_is_killed_again_and_again_loses_nothing(kafka: Cluster, data_dir: Path, mode: str) -> None:
    kill_loop(kafka, data_dir, mode, kills=4, count=30_000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@MODES
def test_a_process_that_is_killed_fifty_times_loses_nothing(kafka: Cluster, data_dir: Path, mode: str) -> None:
    kill_loop(kafka, data_dir, mode, kills=50, count=600_000)


def kill_loop(kafka: Cluster, data_dir: Path, mode: str, *, kills: int, count: int) -> None:
    topic, random = kafka.fresh_topic(partitions=1), Random(kills)
    options = options_of(mode, topic)
    command = [sys.executable, "-m", "tests.kafka.sink_child", kafka.bootstrap, topic, str(data_dir)]
    for number in range(kills):
        # The share that each may get through ends before the last number, so that there is something to kill.
        end = count * (number + 1) // (kills + 1)
        with subprocess.Popen(
            [*command, str(end), dumps(options)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            for _ in range(random.choice([0, 1, 1, 5, 20])):
                child.stdout.readline()
            time.sleep(random.random() * 0.05)
            child.kill()
    ended = subprocess.run(
        [*command, str(count), dumps(options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS_MAX,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    is_delivered(committed(kafka, topic), count, mode)
