"""How stages end: Eos drains what follows, a failure stops what precedes, others go on, nothing hangs."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from conveyord.core.flow.positions import Partition
from conveyord.core.pipeline.graph import DeadLetterPolicy, Edge, Pipeline
from conveyord.engine.preparation import Prepared
from tests.engine.graph_rig import (
    DLQ,
    RETRY,
    World,
    line,
    numbered,
    pipeline,
    run,
    run_now,
    sink,
    source,
    transform,
)

P0 = Partition("in", "p0")


def arrived(world: World, name: str = "out", pipe: str = "default/p") -> list[int]:
    return [row["n"] for row in world.kept(pipe, name).rows]


def end(world: World, name: str = "out", pipe: str = "default/p") -> int:
    """How far a sink has got, in records of 10 bytes."""
    position = world.kept(pipe, name).positions.get(P0)
    return 0 if position is None else position.offset // 10


@pytest.mark.parametrize("capacity", [1, 8])
def test_everything_arrives_in_order_and_is_settled(tmp_path: Path, capacity: int) -> None:
    world = World({"t": numbered(50)})
    outcome = run_now(world, line(source(), transform("a", "passthrough"), sink()), tmp_path, capacity=capacity)
    assert outcome.failed() == []
    assert arrived(world) == list(range(50))
    outlet = outcome.node("in").outlet
    assert outlet is not None
    assert outlet.floor[P0].offset == 500
    assert outlet.oldest_age_seconds(0) is None
    assert world.kept("default/p", "out").positions.states == {"in": "at 50"}


def test_a_failed_source_still_delivers_what_it_sent(tmp_path: Path) -> None:
    table = numbered(20)
    table[10]["bad"] = True
    world = World({"t": table})
    outcome = run_now(world, line(source(), sink(commit_batches=99), dlq=None), tmp_path)
    assert outcome.failed() == [("in", "p0:10: bad")]
    assert arrived(world) == list(range(10))


def test_a_failed_stage_delivers_what_came_before_and_stops_the_source(tmp_path: Path) -> None:
    world = World({"t": numbered(10_000)})
    pipe = line(source(batch_rows=1), transform("a", "brittle", column="n", poison=[5]), sink(), dlq=None)
    outcome = run_now(world, pipe, tmp_path)
    assert outcome.failed() == [("a", "p0 bytes 50 to 60: a value is poison")]
    assert arrived(world) == list(range(5))
    assert outcome.progress["default/p"].rows_in < 20


def test_a_failed_sink_stops_everything_before_it(tmp_path: Path) -> None:
    world = World({"t": numbered(10_000)}, sink_faults={("default/p", "out"): 3})
    outcome = run_now(world, line(source(batch_rows=1), transform("a", "passthrough"), sink()), tmp_path)
    assert outcome.failed() == [("out", "disk full")]
    assert end(world) == 3
    assert outcome.progress["default/p"].rows_in < 20


def test_a_bug_is_not_swallowed_and_nothing_more_is_committed(tmp_path: Path) -> None:
    world = World({"t": numbered(100)})
    brittle = transform("a", "brittle", column="n", poison=[50], bug=True)
    with pytest.RaisesGroup(ZeroDivisionError, allow_unwrapped=True, flatten_subgroups=False):
        run_now(world, line(source(), brittle, sink(commit_batches=999)), tmp_path)
    assert arrived(world) == []


async def test_drain_ends_the_run_and_keeps_what_was_read(tmp_path: Path, hasty_clock: MockClock) -> None:
    world, drain = World({"t": numbered(100_000)}, delays=Random(0)), trio.Event()

    async def stop_soon(prepared: Prepared) -> None:
        while len(arrived(world)) < 5:
            await trio.sleep(0.1)
        drain.set()

    outcome = await run(world, line(source(), sink()), tmp_path, drain=drain, watch=stop_soon)
    assert outcome.failed() == []
    assert 5 <= len(arrived(world)) == outcome.progress["default/p"].rows_in < 1_000
    assert arrived(world) == list(range(end(world)))


async def test_a_cancelled_run_commits_nothing_more_and_the_next_goes_on(
    tmp_path: Path, hasty_clock: MockClock
) -> None:
    world = World({"t": numbered(200)}, delays=Random(1))
    pipe = pipeline(
        [source(), transform("a", "slow"), sink(), sink("other")], [("in", "a"), ("a", "out"), ("a", "other")]
    )

    async def cancel_after(scope: trio.CancelScope, rows: int) -> None:
        # By progress and not by time: the test's clock jumps while threads work.
        while len(arrived(world)) < rows:
            await trio.sleep(0.01)
        scope.cancel()

    rounds = 0
    while end(world) < 200 or end(world, "other") < 200:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cancel_after, nursery.cancel_scope, end(world) + 30)
            await run(world, pipe, tmp_path)
            nursery.cancel_scope.cancel()
        assert arrived(world) == list(range(end(world)))
        assert arrived(world, "other") == list(range(end(world, "other")))
        rounds += 1
        assert rounds < 100
    assert rounds > 2


# ---------------------------------------------------------------------------- several branches and pipelines


def forked(name: str = "p", dlq: DeadLetterPolicy | None = None, **brittle: object) -> Pipeline:
    stages = [source(batch_rows=2), transform("a", "brittle", column="n", **brittle), sink("left"), sink("right")]
    return pipeline(stages, [("in", "a"), ("a", "left"), ("in", "right")], name=name, dlq=dlq)


def test_where_one_branch_fails_the_others_finish_what_they_have(tmp_path: Path) -> None:
    world = World({"t": numbered(1_000)})
    outcome = run_now(world, forked(poison=[20]), tmp_path)
    assert [stage for stage, _ in outcome.failed()] == ["a"]
    assert arrived(world, "left") == list(range(20))
    right = arrived(world, "right")
    assert right == list(range(len(right)))
    assert 20 <= len(right) < 60


def test_a_sink_that_fails_leaves_the_other_sink_with_whole_batches(tmp_path: Path) -> None:
    world = World({"t": numbered(1_000)}, sink_faults={("default/p", "left"): 9}, delays=Random(3))
    outcome = run_now(world, forked(), tmp_path)
    assert outcome.failed() == [("left", "disk full")]
    assert arrived(world, "left") == list(range(8))
    assert end(world, "right") == len(arrived(world, "right")) >= 8


@pytest.mark.parametrize("seed", range(3))
def test_a_pipeline_that_fails_leaves_the_one_it_shares_a_source_with_unharmed(tmp_path: Path, seed: int) -> None:
    world = World({"t": numbered(200)}, delays=Random(seed))
    outcome = run_now(world, [forked("bad", poison=[20]), forked("good")], tmp_path)
    assert world.reads == {"in": 1}
    assert [stage for stage, _ in outcome.failed("default/bad")] == ["a"]
    assert outcome.failed("default/good") == []
    for name in ("left", "right"):
        assert arrived(world, name, "default/good") == list(range(200))
    assert arrived(world, "left", "default/bad") == list(range(20))


@pytest.mark.parametrize("when", ["1 / (n - 20) > -9", "nowhere = 1"])
def test_a_condition_that_fails_ends_its_own_pipeline_only(tmp_path: Path, when: str) -> None:
    """It ended every pipeline that reads the same source."""
    world = World({"t": numbered(100)})
    bad = pipeline([source(), sink()], [Edge("in", "out", when=when)], name="bad", dlq=None)
    good = pipeline([source(), sink()], [("in", "out")], name="good", dlq=None)
    outcome = run_now(world, [bad, good], tmp_path)
    assert [stage for stage, _ in outcome.failed("default/bad")] == ["in"]
    assert outcome.failed("default/good") == []
    assert arrived(world, pipe="default/good") == list(range(100))
    assert len(arrived(world, pipe="default/bad")) <= 20


# ---------------------------------------------------------------------------- what may pass is tried again


def test_a_source_goes_on_where_it_was_after_each_failure(tmp_path: Path) -> None:
    """Neither a gap nor a row twice: a sink would refuse both."""
    world = World({"t": numbered(30)}, source_faults={"in": [2, 9, 9, 9, 12]}, delays=Random(0))
    outcome = run_now(world, line(source(partitions=2), sink(commit_batches=2)), tmp_path)
    assert outcome.failed() == []
    assert sorted(arrived(world)) == list(range(30))
    assert world.reads["in"] == 6


@pytest.mark.parametrize(("failures", "passes"), [(3, True), (4, False)])
def test_a_source_is_tried_again_as_often_as_its_pipeline_says(tmp_path: Path, failures: int, passes: bool) -> None:
    world = World({"t": numbered(30)}, source_faults={"in": [8] * failures})
    outcome = run_now(world, line(source(), sink(), dlq=DeadLetterPolicy(max_retries=3, retry=RETRY)), tmp_path)
    assert outcome.failed() == ([] if passes else [("in", "record 8 is away")])
    assert arrived(world) == list(range(30 if passes else 8))


@pytest.mark.parametrize(("failures", "passes"), [(3, True), (4, False)])
@pytest.mark.parametrize("dlq", [DLQ, None])
def test_a_transform_is_tried_again_as_often_as_its_pipeline_says(
    tmp_path: Path, failures: int, passes: bool, dlq: DeadLetterPolicy | None
) -> None:
    world = World({"t": numbered(30)})
    away = transform("a", "brittle", column="n", away=list(range(8, 12)), away_times=failures if passes else 999)
    outcome = run_now(world, line(source(), away, sink(), dlq=dlq), tmp_path)
    assert outcome.failed() == ([] if passes else [("a", "what the stage needs is away")])
    assert arrived(world) == list(range(30 if passes else 8))
    assert outcome.letters == []


async def test_waits_between_attempts_grow_and_are_bounded(tmp_path: Path, hasty_clock: MockClock) -> None:
    policy = DeadLetterPolicy(max_retries=60, retry=RETRY)
    world = World({"t": numbered(4)}, source_faults={"in": [0] * 60})
    before = trio.current_time()
    outcome = await run(world, line(source(), sink(), dlq=policy), tmp_path)
    assert outcome.failed() == []
    assert 6 < trio.current_time() - before < 60 * RETRY.cap_seconds


async def test_drain_ends_the_wait_for_the_next_attempt(tmp_path: Path, hasty_clock: MockClock) -> None:
    policy = DeadLetterPolicy(max_retries=10**6, retry=RETRY)
    world, drain = World({"t": numbered(4)}, source_faults={"in": [0] * 10**5}), trio.Event()

    async def stop_soon(prepared: Prepared) -> None:
        await trio.sleep(5)
        drain.set()

    outcome = await run(world, line(source(), sink(), dlq=policy), tmp_path, drain=drain, watch=stop_soon)
    assert len(outcome.failed()) <= 1
