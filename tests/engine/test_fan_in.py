"""Branches that come together: the pieces of a batch go on as one, or not at all."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.fan_in import IDLE_SECONDS, FanIn
from conveyord.engine.messages import Ack, Batch, Message, Watermark
from tests.engine.graph_rig import World, numbered, pipeline, run_now, sink, source, transform

P = Partition("in", "p0")


def arrived(world: World, name: str = "out") -> list[int]:
    return [row["n"] for row in world.kept("default/p", name).rows]


# ---------------------------------------------------------------------------- by itself


class Rig:
    """A fan-in of two inputs, and the batches of one source that come by both."""

    def __init__(self, *, inputs: int = 2, capacity: int = 2, wanted: dict[str, frozenset[int]] | None = None) -> None:
        send, self.out = trio.open_memory_channel[Message](1_000)
        self.fan_in = FanIn(
            send,
            inputs=inputs,
            wanted=wanted or {"in": frozenset(range(inputs))},
            capacity=capacity,
            threads=trio.CapacityLimiter(1),
        )
        self.roots: list[Ack] = []
        self.settled: list[int] = []

    def root(self, number: int, inputs: int = 2) -> Ack:
        while len(self.roots) <= number:
            ack = Ack(partial(self.settled.append, len(self.roots)))
            for _ in range(inputs - 1):
                ack.fork()
            self.roots.append(ack)
        return self.roots[number]

    def piece(self, number: int, *rows: int, read: int = 3) -> Batch:
        data = pa.record_batch({"n": pa.array(rows, pa.int64())})
        tally = Tally(read=read).through(len(rows))
        return Batch(data, (Span(P, number, number + 1),), tally, self.root(number))

    async def taken(self) -> list[Message]:
        await wait_all_tasks_blocked()
        found = []
        while self.out.statistics().current_buffer_used:
            found.append(self.out.receive_nowait())
        return found


async def offer(rig: Rig, number: int, *messages: Message) -> None:
    for message in messages:
        await rig.fan_in.offer(number, message)


async def test_pieces_go_on_as_one_in_the_order_of_the_edges_and_are_settled_together() -> None:
    rig = Rig()
    await offer(rig, 1, rig.piece(0, 7, 8))
    assert await rig.taken() == []
    await offer(rig, 0, rig.piece(0, 1, 2))
    (whole,) = await rig.taken()
    assert isinstance(whole, Batch)
    assert whole.data["n"].to_pylist() == [1, 2, 7, 8]
    assert whole.spans == (Span(P, 0, 1),)
    assert (whole.tally.read, whole.tally.rows, whole.tally.added) == (3, 4, 1)
    assert rig.settled == []
    whole.ack.settle()
    assert rig.settled == [0]


async def test_what_an_input_had_sent_before_it_ended_still_finds_its_other_half() -> None:
    """The pieces of the faster branch were thrown away when it ended, and its last rows with them."""
    rig = Rig(capacity=5)
    await offer(rig, 0, rig.piece(0, 1), rig.piece(1, 2))
    rig.fan_in.end(0)
    await offer(rig, 1, rig.piece(0, 3), rig.piece(1, 4))
    rig.fan_in.end(1)
    assert [message.data["n"].to_pylist() for message in await rig.taken()] == [[1, 3], [2, 4]]
    with pytest.raises(trio.EndOfChannel):
        await rig.out.receive()


async def test_half_a_batch_never_goes_on_and_nobody_waits_for_it() -> None:
    rig = Rig(capacity=1)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(offer, rig, 0, *(rig.piece(number, number) for number in range(9)))
            await offer(rig, 1, rig.piece(0, 10))
            rig.fan_in.end(1)  # it failed
    rig.fan_in.end(0)
    assert [message.data["n"].to_pylist() for message in await rig.taken()] == [[0, 10]]
    assert rig.settled == []


async def test_an_input_that_is_far_ahead_waits() -> None:
    rig, sent = Rig(capacity=2), []

    async def fast() -> None:
        for number in range(9):
            await rig.fan_in.offer(0, rig.piece(number, number))
            sent.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(fast)
        await wait_all_tasks_blocked()
        assert sent == [0, 1]
        await offer(rig, 1, rig.piece(0, 10))
        await wait_all_tasks_blocked()
        assert sent == [0, 1, 2]
        nursery.cancel_scope.cancel()


async def test_batches_of_other_sources_do_not_wait() -> None:
    rig = Rig(inputs=3, wanted={"in": frozenset({0, 1}), "other": frozenset({2})})
    other = Batch(pa.record_batch({"n": [5]}), (Span(Partition("other", "p"), 0, 1),), Tally(read=1), Ack(lambda: None))
    await offer(rig, 0, rig.piece(0, 1))
    await offer(rig, 2, other)
    assert await rig.taken() == [other]
    rig.fan_in.end(2)
    await offer(rig, 1, rig.piece(0, 2))
    assert len(await rig.taken()) == 1


async def test_different_schemas_merge_without_loss() -> None:
    rig = Rig()
    one, two = rig.piece(0, 1), rig.piece(0, 2)
    one = one.with_data(pa.record_batch({"n": [1], "a": ["x"], "v": [1]}))
    two = two.with_data(pa.record_batch({"b": [True], "v": [1.5], "n": [2]}))
    await offer(rig, 0, one)
    await offer(rig, 1, two)
    (whole,) = await rig.taken()
    assert whole.data.to_pylist() == [
        {"n": 1, "a": "x", "v": 1, "b": None, "v__double": None},
        {"n": 2, "a": None, "v": None, "b": True, "v__double": 1.5},
    ]


# ---------------------------------------------------------------------------- watermarks


async def test_watermarks_merge_and_an_idle_input_holds_nobody_back(autojump_clock: MockClock) -> None:
    rig = Rig(wanted={"in": frozenset({0})})
    await offer(rig, 0, Watermark(50))
    assert await rig.taken() == []
    await offer(rig, 1, Watermark(20))
    assert await rig.taken() == [Watermark(20)]
    await trio.sleep(IDLE_SECONDS)
    await offer(rig, 0, Watermark(60))
    assert await rig.taken() == [Watermark(60)]


async def test_an_input_that_ended_holds_no_watermark_back(autojump_clock: MockClock) -> None:
    rig = Rig(wanted={"in": frozenset({0})})
    await offer(rig, 0, Watermark(50))
    rig.fan_in.end(1)
    await offer(rig, 0, rig.piece(0, 1))
    first, second = await rig.taken()
    assert first == Watermark(50)
    assert isinstance(second, Batch)


async def test_no_watermark_passes_a_batch_that_waits_for_a_slow_branch(autojump_clock: MockClock) -> None:
    rig = Rig()
    await offer(rig, 0, rig.piece(0, 1))
    await trio.sleep(2 * IDLE_SECONDS)
    await offer(rig, 0, Watermark(99))
    assert await rig.taken() == []
    await offer(rig, 1, rig.piece(0, 2), Watermark(99))
    batch, watermark = await rig.taken()
    assert isinstance(batch, Batch)
    assert watermark == Watermark(99)


# ---------------------------------------------------------------------------- in a graph


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("capacity", [1, 8])
def test_a_diamond_delivers_every_piece_however_its_branches_differ_in_speed(
    tmp_path: Path, seed: int, capacity: int
) -> None:
    world = World({"t": numbered(30)}, delays=Random(seed))
    stages = [source(batch_rows=3), transform("a", "slow"), transform("b", "passthrough"), sink()]
    edges = [Edge("in", "b", when="v < 5"), Edge("in", "a", otherwise=True), ("a", "out"), ("b", "out")]
    outcome = run_now(world, pipeline(stages, edges), tmp_path, capacity=capacity)
    assert outcome.failed() == []
    expected = []
    for first in range(0, 30, 3):
        batch = list(range(first, first + 3))
        expected += [n for n in batch if n % 10 >= 5] + [n for n in batch if n % 10 < 5]
    assert arrived(world) == expected


@pytest.mark.parametrize("seed", range(6))
def test_a_failing_branch_of_a_diamond_lets_no_half_batch_through(tmp_path: Path, seed: int) -> None:
    world = World({"t": numbered(60)}, delays=Random(seed))
    stages = [source(batch_rows=4), transform("a", "brittle", column="n", poison=[29]), transform("b", "slow"), sink()]
    pipe = pipeline(stages, [("in", "a"), ("in", "b"), ("a", "out"), ("b", "out")], dlq=None)
    first = run_now(world, pipe, tmp_path)
    assert [stage for stage, _ in first.failed()] == ["a"]
    assert sorted(arrived(world)) == sorted([*range(28), *range(28)])
    good = pipeline([*stages[:1], transform("a", "passthrough"), *stages[2:]], pipe.edges, dlq=None)
    assert run_now(world, good, tmp_path).failed() == []
    assert sorted(arrived(world)) == sorted([*range(60), *range(60)])


@pytest.mark.parametrize("seed", range(4))
def test_a_failure_above_a_place_where_branches_meet_stops_the_run_however_far_the_source_is_ahead(
    tmp_path: Path, seed: int
) -> None:
    """The source waited at `k2` for pieces that never came, and so did not hear that its pipeline had failed."""
    values = [None, 4, 8, None, 0, None, None, 4, 8, 9, None, 9, 7, 7]
    table = [{**row, "v": value} for row, value in zip(numbered(len(values)), values, strict=True)]
    stages = [source("s0", batch_rows=3, partitions=2), transform("t0", "slow"), transform("t1", "passthrough")]
    stages += [transform("t2", "brittle", poison=[8, 9, 7]), transform("t4", "passthrough"), sink("k1"), sink("k2")]
    edges = [("s0", "t0"), ("t0", "t1"), ("t1", "t2"), ("t0", "t4"), ("t2", "t4"), ("t4", "k1"), ("s0", "k2")]
    pipe = pipeline(stages, [*edges, ("t4", "k2")], dlq=None)
    outcome = run_now(World({"t": table}, delays=Random(340 + seed)), pipe, tmp_path)
    assert [stage for stage, _ in outcome.failed()] == ["t2"]
