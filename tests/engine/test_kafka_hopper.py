"""The hopper between the thread that polls and the task that sends: nothing is lost, doubled or out of order in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import trio
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.record_log import Records, TopicPartition, total_bytes
from conveyord.engine.kafka.hopper import RECORD_BYTES, Batching, Hopper, Job, Release

PLACES = [TopicPartition("t", number) for number in range(3)]
PLACE = PLACES[0]
BATCHING = Batching(job_bytes=40, job_records=4, linger_seconds=1.0, held_bytes=700)


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def pass_linger(self) -> None:
        self.now += BATCHING.linger_seconds


def in_trio(work: Callable[[], Awaitable[None]]) -> None:
    trio.run(work)


async def taken(hopper: Hopper) -> Job | Release | None:
    """What is due now, without waiting."""
    with trio.move_on_after(0):
        return await hopper.take(trio.Event())
    return None


def records(place: TopicPartition, offsets: Sequence[int], end: int, *, size: int = 3) -> Records:
    """Records whose values say where they stand."""
    values = [b"%d:%d" % (place.number, offset) + b"." * size for offset in offsets]
    return Records(place, list(offsets), values, end, total_bytes(values))


# ---------------------------------------------------------------------------- histories

Step = tuple[str, int, Any]

PUTS = st.tuples(st.lists(st.integers(0, 3), max_size=9), st.integers(0, 3), st.integers(0, 60))
STEPS = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 2), PUTS),
    st.tuples(st.just("put"), st.integers(0, 2), PUTS),
    st.tuples(st.just("again"), st.integers(0, 2), st.none()),
    st.tuples(st.just("take"), st.just(0), st.none()),
    st.tuples(st.just("wait"), st.just(0), st.none()),
    st.tuples(st.just("close"), st.integers(0, 2), st.none()),
    st.tuples(st.just("release"), st.integers(0, 2), st.none()),
)
OPENINGS = st.tuples(
    st.integers(0, 20),
    st.lists(st.integers(0, 50), max_size=3),
    st.one_of(
        st.just({}),
        st.builds(lambda to: {"skip_to": to}, st.integers(0, 40)),
        st.builds(lambda to: {"lost_to": to}, st.integers(0, 40)),
        st.builds(lambda to, more: {"skip_to": to, "lost_to": to + more}, st.integers(0, 30), st.integers(-5, 10)),
    ),
)


@dataclass
class Lane:
    """What of a partition is to come out. at: where the next job begins. tip: where what was put ends."""

    at: int
    tip: int
    lost: range
    cuts: list[int]
    waiting: dict[int, bytes | None] = field(default_factory=dict)
    last: Records | None = None


class Model:
    """Beside a hopper: what must be in it."""

    def __init__(self, hopper: Hopper) -> None:
        self.hopper = hopper
        self.lanes: dict[TopicPartition, Lane] = {}
        self.releases: deque[tuple[TopicPartition, ...]] = deque()

    def open(self, place: TopicPartition, at: int, cuts: list[int], more: dict[str, int]) -> None:
        self.hopper.open(place, at, cuts=cuts, **more)
        lost = range(max(at, more.get("skip_to", at)), more.get("lost_to", at))
        self.lanes[place] = Lane(at, max(lost.start, lost.stop), lost, cuts)

    def put(self, place: TopicPartition, gaps: list[int], beyond: int, size: int) -> None:
        lane = self.lanes[place]
        offsets, at = [], lane.tip
        for gap in gaps:
            offsets.append(at + gap)
            at += gap + 1
        lane.last = records(place, offsets, at + beyond, size=size)
        lane.tip = at + beyond
        lane.waiting.update(zip(offsets, lane.last.values, strict=True))
        self.hopper.put(lane.last)

    def took(self, job: Job) -> None:
        lane = self.lanes[job.partition]
        assert job.first == lane.at
        assert job.first < job.end <= lane.tip
        assert not [cut for cut in lane.cuts if job.first < cut < job.end]
        assert {offset in lane.lost for offset in range(job.first, job.end)} == {job.lost}
        found = {at: value for piece in job.pieces for at, value in zip(piece.offsets, piece.values, strict=True)}
        expected = {offset: value for offset, value in lane.waiting.items() if offset < job.end}
        assert list(found.items()) == list(expected.items())
        assert len(found) <= BATCHING.job_records
        assert job.value_bytes == total_bytes(list(found.values()))
        lane.waiting = {offset: value for offset, value in lane.waiting.items() if offset >= job.end}
        lane.at = job.end

    @property
    def weight(self) -> int:
        waiting = [value for lane in self.lanes.values() for value in lane.waiting.values()]
        return total_bytes(waiting) + RECORD_BYTES * len(waiting)

    async def step(self, clock: Clock, name: str, number: int, given: Any) -> None:
        place = PLACES[number]
        match name:
            case "put" if place in self.lanes:
                self.put(place, *given)
            case "again" if place in self.lanes:
                if (last := self.lanes[place].last) is not None:
                    self.hopper.put(last)
            case "put" | "again":
                self.hopper.put(records(place, [1, 2], 3))  # of a partition that is not ours any more
            case "wait":
                clock.pass_linger()
            case "close":
                self.hopper.close([place])
                self.lanes.pop(place, None)
            case "release":
                self.hopper.release([place])
                self.lanes.pop(place, None)
                self.releases.append((place,))
            case _:
                await self.take()

    async def take(self) -> bool:
        match await taken(self.hopper):
            case Job() as job:
                self.took(job)
            case Release(partitions):
                assert partitions == self.releases.popleft()
            case None:
                return False
        return True


@given(st.lists(OPENINGS, min_size=3, max_size=3), st.lists(STEPS, max_size=30))
def test_whatever_is_put_comes_out_once_in_order_and_jobs_tile_the_offsets(
    openings: list[tuple[int, list[int], dict[str, int]]], steps: list[Step]
) -> None:
    async def live() -> None:
        clock = Clock()
        hopper = Hopper(BATCHING, clock=clock)
        model = Model(hopper)
        for place, opening in zip(PLACES, openings, strict=True):
            model.open(place, *opening)
        for step in steps:
            await model.step(clock, *step)
            assert hopper.tips() == {place: lane.tip for place, lane in model.lanes.items()}
            assert hopper.is_full == (model.weight >= BATCHING.held_bytes)
        clock.pass_linger()
        while await model.take():
            pass
        assert [lane for lane in model.lanes.values() if lane.at < lane.tip or lane.waiting] == []
        assert not model.releases
        assert hopper.is_low

    in_trio(live)


# ---------------------------------------------------------------------------- by name


def test_a_gap_ends_where_it_was_said_to_although_records_came_behind_it() -> None:
    async def live() -> None:
        clock = Clock()
        hopper = Hopper(BATCHING, clock=clock)
        hopper.open(PLACE, 5, lost_to=10)
        hopper.put(records(PLACE, [10, 11], 12))
        clock.pass_linger()
        assert await taken(hopper) == Job(PLACE, 5, 10, lost=True)
        job = await taken(hopper)
        assert isinstance(job, Job)
        assert (job.first, job.end, [*job.pieces[0].offsets]) == (10, 12, [10, 11])

    in_trio(live)


def test_what_another_has_read_is_not_told_as_lost() -> None:
    async def live() -> None:
        clock = Clock()
        hopper = Hopper(BATCHING, clock=clock)
        hopper.open(PLACE, 3, skip_to=6, lost_to=9)
        clock.pass_linger()
        assert [await taken(hopper) for _ in range(3)] == [Job(PLACE, 3, 6), Job(PLACE, 6, 9, lost=True), None]
        hopper.open(PLACE, 3, skip_to=9, lost_to=6)
        clock.pass_linger()
        assert [await taken(hopper) for _ in range(2)] == [Job(PLACE, 3, 9), None]

    in_trio(live)


def test_a_partition_that_is_opened_again_begins_anew() -> None:
    async def live() -> None:
        clock = Clock()
        hopper = Hopper(BATCHING, clock=clock)
        hopper.open(PLACE, 0)
        hopper.put(records(PLACE, range(3), 3, size=50))
        hopper.open(PLACE, 1)
        hopper.put(records(PLACE, range(1, 3), 3))
        clock.pass_linger()
        job = await taken(hopper)
        assert isinstance(job, Job)
        assert (job.first, job.end, job.value_bytes) == (1, 3, 12)
        assert hopper.is_low
        hopper.close([PLACE])
        clock.pass_linger()
        assert await taken(hopper) is None

    in_trio(live)


def test_records_wait_for_the_linger_and_a_full_batch_does_not() -> None:
    async def live() -> None:
        clock = Clock()
        hopper = Hopper(BATCHING, clock=clock)
        hopper.open(PLACE, 0)
        hopper.put(records(PLACE, [0], 1))
        assert await taken(hopper) is None
        hopper.put(records(PLACE, [1, 2, 3], 4))
        job = await taken(hopper)
        assert isinstance(job, Job)
        assert (job.first, job.end) == (0, 4)

    in_trio(live)


def test_under_a_steady_load_jobs_are_full_unless_a_record_has_waited_for_the_linger() -> None:
    async def live() -> None:
        clock, random = Clock(), Random(6)
        hopper = Hopper(BATCHING, clock=clock)
        hopper.open(PLACE, 0)
        came, sizes, at = list[float](), list[int](), 0
        for _ in range(300):
            some = range(len(came), len(came) + random.choice([3, 5, 6, 7]))
            came += [clock.now] * len(some)
            hopper.put(records(PLACE, some, some.stop))
            while isinstance(job := await taken(hopper), Job):
                assert job.first == at
                at, size = job.end, job.end - job.first
                sizes.append(size)
                assert size == BATCHING.job_records or clock.now - came[job.first] >= BATCHING.linger_seconds
            assert all(clock.now - moment < BATCHING.linger_seconds for moment in came[at:])
            clock.now += BATCHING.linger_seconds / 4
        assert len(came) - at < BATCHING.job_records
        assert sum(size < BATCHING.job_records for size in sizes) == 0, "under this load none has to wait for so long"

    in_trio(live)


def test_records_without_values_fill_the_hopper_too() -> None:
    async def live() -> None:
        hopper = Hopper(Batching(job_bytes=100, job_records=100, linger_seconds=1.0, held_bytes=100_000))
        hopper.open(PLACE, 0)
        for first in range(0, 100_000, 1000):
            if hopper.is_full:
                return
            hopper.put(Records(PLACE, range(first, first + 1000), [None] * 1000, first + 1000))
        raise AssertionError("a hundred thousand tombstones weigh nothing")

    in_trio(live)


def test_a_full_hopper_gives_what_it_has_by_turns() -> None:
    async def live() -> None:
        hopper = Hopper(Batching(job_bytes=2000, job_records=100, linger_seconds=1.0, held_bytes=1000), clock=Clock())
        for place in PLACES[:2]:
            hopper.open(place, 0)
            hopper.put(records(place, [0], 1, size=300))
        assert not hopper.is_full
        assert await taken(hopper) is None
        hopper.put(records(PLACES[0], [1], 2, size=900))
        assert hopper.is_full
        job = await taken(hopper)
        assert isinstance(job, Job)
        assert (job.partition, job.end) == (PLACES[0], 2)
        assert hopper.is_low
        hopper.put(records(PLACES[0], [2], 3, size=900))
        job = await taken(hopper)
        assert isinstance(job, Job)
        assert job.partition == PLACES[1]

    in_trio(live)


def test_the_sample_is_of_one_topic_and_without_tombstones() -> None:
    async def live() -> None:
        hopper = Hopper(BATCHING, clock=Clock())
        other = TopicPartition("other", 0)
        for place in (PLACE, other):
            hopper.open(place, 0)
        hopper.put(Records(PLACE, [0, 1], [b"a", None], 2, 1))
        hopper.put(Records(other, [0], [b"b"], 1, 1))
        assert hopper.sample("t") == [b"a"]
        assert hopper.value_bytes() == {"t": 1, "other": 1}

    in_trio(live)


def test_the_sample_is_in_the_order_of_partitions_whichever_came_first_or_left() -> None:
    async def live() -> None:
        for first in PLACES[:2]:
            clock = Clock()
            hopper = Hopper(BATCHING, clock=clock)
            for place in PLACES[:2] if first is PLACE else PLACES[1::-1]:
                hopper.open(place, 0)
            hopper.put(records(first, [0, 1], 2))
            clock.pass_linger()
            job = await taken(hopper)
            assert isinstance(job, Job)
            for place in PLACES[1::-1]:
                hopper.put(records(place, [2, 3] if place is first else [0, 1, 2, 3], 4))
            expected = [b"%d:%d..." % (place.number, offset) for place in PLACES[:2] for offset in range(4)]
            assert hopper.sample("t", taken=job) == expected

    in_trio(live)


def test_waiting_ends_when_records_come_from_another_thread_and_when_it_is_stopped() -> None:
    async def live() -> None:
        hopper, stop = Hopper(Batching(1, 1, 60.0, 1000)), trio.Event()
        hopper.open(PLACE, 0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, hopper.put, records(PLACE, [0], 1))
            job = await hopper.take(stop)
        assert isinstance(job, Job)
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await trio.testing.wait_all_tasks_blocked()
                stop.set()
                hopper.nudge()

            nursery.start_soon(end)
            assert await hopper.take(stop) is None

    in_trio(live)
