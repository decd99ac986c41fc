"""An edge that spills: order is kept, nothing is lost, and the disk forgets only what sinks have."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from conveyord.core.errors import StorageFull
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Edge, Pipeline
from conveyord.engine.contracts import Inbound, Outbound
from conveyord.engine.leftovers import followed
from conveyord.engine.messages import Eos
from conveyord.engine.preparation import Prepared
from conveyord.storage.spill.frames import FrameMeta
from conveyord.storage.spill.queue import SpillQueue
from tests.engine.graph_rig import Slow, World, numbered, pipeline, run, run_now, sink, source, transform
from tests.storage.spill_rig import flip

P0 = Partition("in", "p0")


def two_speeds(**slow: int) -> Pipeline:
    """A quick sink, and one behind a slow stage and an edge that spills."""
    stages = [source(batch_rows=4), transform("a", "slow"), sink("quick"), sink("slow", **slow)]
    return pipeline(stages, [("in", "quick"), Edge("in", "a", on_slow="spill"), ("a", "slow")])


def arrived(world: World, name: str, pipe: str = "default/p") -> list[int]:
    return [row["n"] for row in world.kept(pipe, name).rows]


def end(world: World, name: str) -> int:
    position = world.kept("default/p", name).positions.get(P0)
    return 0 if position is None else position.offset // 10


def frames(outcome_prepared: Prepared) -> SpillQueue:
    (queue,) = [link.queue for link in outcome_prepared.graph.links if link.queue is not None]
    return queue


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("capacity", [1, 3])
@pytest.mark.parametrize("spill_bytes", [4_000, 20_000, 10**9])
def test_order_is_kept_and_nothing_lost_however_little_fits(
    tmp_path: Path, seed: int, capacity: int, spill_bytes: int
) -> None:
    world = World({"t": numbered(160)}, delays=Random(seed))
    outcome = run_now(world, two_speeds(commit_batches=3), tmp_path, capacity=capacity, spill_bytes=spill_bytes)
    assert outcome.failed() == []
    assert arrived(world, "quick") == arrived(world, "slow") == list(range(160))
    assert world.kept("default/p", "slow").positions.states == {"in": "at 160"}
    assert frames(outcome.prepared).frames == 0


async def test_the_quick_sink_does_not_wait_for_the_slow_one(
    tmp_path: Path, hasty_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow stage lets nothing pass before the quick sink has a hundred rows: it never has without the disk."""

    async def waiting(self: Slow, inbound: Inbound, outbound: Outbound) -> None:
        async for message in inbound:
            if isinstance(message, Eos):
                return
            while end(self.world, "quick") < 100:
                await trio.sleep(0.1)
            await outbound.send(message)

    monkeypatch.setattr(Slow, "run", waiting)
    pipe, world, blocked = two_speeds(), World({"t": numbered(400)}), World({"t": numbered(400)})
    await run(world, pipe, tmp_path / "spill", capacity=1)
    assert arrived(world, "quick") == arrived(world, "slow") == list(range(400))
    edges = [Edge(edge.source, edge.target) for edge in pipe.edges]
    with trio.move_on_after(20) as scope:
        await run(blocked, pipeline(pipe.stages, edges), tmp_path / "block", capacity=1)
    assert scope.cancelled_caught
    assert 0 < end(blocked, "quick") <= 4 * 8
    assert arrived(blocked, "slow") == []


@pytest.mark.parametrize("seed", range(6))
async def test_a_frame_is_settled_only_once_its_sink_has_it(
    tmp_path: Path, hasty_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    world = World({"t": numbered(120)}, delays=Random(seed))
    ends: dict[int, int] = {}
    append, settle = SpillQueue.append, SpillQueue.settle
    settled = []

    def appending(queue: SpillQueue, meta, data):
        number = append(queue, meta, data)
        ends[number] = meta.spans[-1].end // 10
        return number

    def settling(queue: SpillQueue, number: int) -> None:
        if number in ends:
            assert ends[number] <= end(world, "slow")
            settled.append(number)
        settle(queue, number)

    monkeypatch.setattr(SpillQueue, "append", appending)
    monkeypatch.setattr(SpillQueue, "settle", settling)
    outcome = await run(world, two_speeds(commit_batches=4), tmp_path, capacity=1)
    assert outcome.failed() == []
    assert settled[-1:] == ([max(ends)] if ends else [])
    assert arrived(world, "slow") == list(range(120))


def failing(times: int, real: Callable[..., int]) -> Callable[..., int]:
    """`real`, for which the disk is full `times` times after the third frame."""
    calls = 0

    def append(*args: object) -> int:
        nonlocal calls
        calls += 1
        if 3 < calls <= 3 + times:
            raise StorageFull("the disk is full")
        return real(*args)

    return append


@pytest.mark.parametrize("times", [1, 5, 10**6])
async def test_a_full_disk_slows_the_source_and_the_run_ends_right(
    tmp_path: Path, hasty_clock: MockClock, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    monkeypatch.setattr(SpillQueue, "append", failing(times, SpillQueue.append))
    world = World({"t": numbered(120)}, delays=Random(2))
    outcome = await run(world, two_speeds(), tmp_path, capacity=1)
    assert outcome.failed() == []
    assert arrived(world, "quick") == arrived(world, "slow") == list(range(120))


@pytest.mark.parametrize("seed", range(3))
async def test_a_damaged_frame_fails_its_edge_and_the_others_drain(
    tmp_path: Path, hasty_clock: MockClock, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    world = World({"t": numbered(200)}, delays=Random(seed))
    append = SpillQueue.append

    def damaging(queue: SpillQueue, meta, data):
        number = append(queue, meta, data)
        if number == 1:  # how many come is a matter of how fast the others are
            (path,) = sorted((tmp_path / "spill").rglob("*.seg"))[-1:]
            flip(path, path.stat().st_size - 20)
        return number

    monkeypatch.setattr(SpillQueue, "append", damaging)
    other = pipeline([source(batch_rows=4), sink()], [("in", "out")], name="other")
    outcome = await run(world, [two_speeds(), other], tmp_path, capacity=1)
    ((stage, error),) = outcome.failed()
    assert stage == "in -> a"
    assert "run again" in error
    assert arrived(world, "quick") == list(range(end(world, "quick")))
    assert arrived(world, "slow") == list(range(end(world, "slow")))
    assert end(world, "slow") < 200
    assert arrived(world, "out", "default/other") == list(range(200))
    monkeypatch.undo()
    assert (await run(world, [two_speeds(), other], tmp_path)).failures.all == []
    assert arrived(world, "quick") == arrived(world, "slow") == list(range(200))


@pytest.mark.parametrize("seed", range(4))
async def test_runs_that_are_stopped_anywhere_lose_and_double_nothing(
    tmp_path: Path, hasty_clock: MockClock, seed: int
) -> None:
    world, random = World({"t": numbered(200)}, delays=Random(seed)), Random(seed)
    rounds = 0
    while min(end(world, "quick"), end(world, "slow")) < 200:
        with trio.move_on_after(random.uniform(0.1, 8)):
            assert (await run(world, two_speeds(commit_batches=2), tmp_path, capacity=1)).failed() == []
        assert arrived(world, "quick") == list(range(end(world, "quick")))
        assert arrived(world, "slow") == list(range(end(world, "slow")))
        rounds += 1
        assert rounds < 200


def test_frames_are_gone_on_with_only_if_nothing_is_missing_before_them() -> None:
    """What had gone straight on before the first frame was lost with the run, and then for ever."""

    def frame(first: int, end: int) -> tuple[int, FrameMeta]:
        return first, FrameMeta((Span(P0, first, end),), Tally(read=1), {"in": f"at {end}"})

    nothing, some = Positions(), Positions({P0: Position(80)})
    assert followed([frame(80, 120)], [nothing]) is None
    assert followed([frame(120, 160)], [some]) is None
    assert followed([frame(80, 120), frame(120, 160)], [some, nothing]) is None
    for held, frames in ((nothing, [frame(0, 40), frame(40, 160)]), (some, [frame(40, 80), frame(80, 160)])):
        reached = followed(frames, [held])
        assert reached is not None
        assert (reached[0][P0].offset, reached[0].states) == (160, {"in": "at 160"})


@pytest.mark.parametrize("seed", range(4))
def test_a_sink_that_fails_behind_the_edge_stops_its_pipeline_and_the_next_run_goes_on(
    tmp_path: Path, seed: int
) -> None:
    world = World({"t": numbered(160)}, delays=Random(seed), sink_faults={("default/p", "slow"): 30})
    assert run_now(world, two_speeds(), tmp_path, capacity=1).failed() == [("slow", "disk full")]
    assert run_now(world, two_speeds(), tmp_path, capacity=1).failed() == []
    assert arrived(world, "quick") == arrived(world, "slow") == list(range(160))


def test_branches_that_meet_again_behind_a_spill_stay_whole(tmp_path: Path) -> None:
    world = World({"t": numbered(80)}, delays=Random(0))
    stages = [source(batch_rows=4), transform("a", "slow"), transform("b", "passthrough"), sink()]
    edges = [Edge("in", "a", on_slow="spill"), ("in", "b"), Edge("a", "out", on_slow="spill"), ("b", "out")]
    outcome = run_now(world, pipeline(stages, edges), tmp_path, capacity=1)
    assert outcome.failed() == []
    assert sorted(arrived(world, "out")) == sorted([*range(80), *range(80)])
