"""What was fetched and not yet sent on, between the thread that polls and the task that sends.

It is bounded in bytes, in this way: who fetches looks at `is_full` and then pauses, but goes on polling. Records leave
as jobs, of one partition each, when there are enough of them or when they have waited long enough.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

import trio

from conveyord.core.flow.record_log import Records, TopicPartition, total_bytes

LOOK_SECONDS = 0.1
LOW_SHARE = 2  # fetching goes on when no more than a half is left: neither idle nor paused for every record
RECORD_BYTES = 64
"""What a record takes beside its value and key: tombstones, and values of a byte, must fill the hopper as well."""


@dataclass(frozen=True, slots=True)
class Job:
    """Everything in `[first, end)` of one partition, up to the size of a batch.

    lost: nothing of it is there any more, although it was to be read.
    """

    partition: TopicPartition
    first: int
    end: int
    pieces: tuple[Records, ...] = ()
    lost: bool = False

    @property
    def value_bytes(self) -> int:
        """Of all values together."""
        return sum(piece.value_bytes for piece in self.pieces)


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """Partitions that are to be given up: `done` is set once every sink has all that was sent of them."""

    partitions: tuple[TopicPartition, ...]
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class Batching:
    """When records leave: so many bytes or records of one partition, or the oldest has waited so long.

    held_bytes: of all partitions together; at that, whatever is there leaves, and no more should be fetched.
    """

    job_bytes: int
    job_records: int
    linger_seconds: float
    held_bytes: int


@dataclass(slots=True)
class _Lane:
    """One partition. at: where the next job begins. tip: where what is confirmed ends, and fetched_to: what is here.
    cuts: where a job must end. lost_from, lost_to: what lies between is gone. waiting: what is not confirmed, with the
    moments at which it came. pieces: what lies from `at` to `tip`, holes included, with the moments since when it may
    leave. weight: what the records here take in memory.
    """

    at: int
    tip: int
    fetched_to: int
    cuts: deque[int]
    lost_from: int
    lost_to: int
    waiting: deque[tuple[float, Records]] = field(default_factory=deque)
    pieces: deque[tuple[float, Records]] = field(default_factory=deque)
    value_bytes: int = 0
    records: int = 0
    weight: int = 0


class Hopper:
    """Thread-safe where it says so; everything else is for the trio thread."""

    def __init__(
        self, batching: Batching, *, confirms: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """confirms: records leave only after `confirm` said that they are what they seem."""
        self._batching = batching
        self._confirms = confirms
        self._clock = clock
        self._lock = threading.Lock()
        self._lanes: dict[TopicPartition, _Lane] = {}
        self._order: deque[TopicPartition] = deque()
        self._releases: deque[Release] = deque()
        self._held_bytes = 0
        self._token = trio.lowlevel.current_trio_token()
        self._moved = trio.Event()

    # -------------------------------------------------------------------------- by any thread

    def open(
        self,
        partition: TopicPartition,
        at: int,
        *,
        cuts: Collection[int] = (),
        skip_to: int | None = None,
        lost_to: int | None = None,
    ) -> None:
        """Take records of a partition from now on, beginning at `at`.

        cuts: offsets where jobs must end. skip_to: another has read what lies before it. lost_to: what lies before it,
        and was not read by another, is gone.
        """
        with self._lock:
            self._forget(partition)  # what is here of an earlier opening is not of this one
            lost_from = max(at, skip_to or 0)
            tip = max(lost_from, lost_to or 0)
            lane = _Lane(at, tip, tip, deque(sorted(cut for cut in cuts if cut > at)), lost_from, tip)
            if tip > at:
                lane.pieces.append((self._clock(), Records(partition, (), (), tip)))
            self._lanes[partition] = lane
            self._order.append(partition)
        self._wake()

    def close(self, partitions: Iterable[TopicPartition]) -> None:
        """Forget partitions and what is here of them."""
        with self._lock:
            for partition in partitions:
                self._forget(partition)

    def _forget(self, partition: TopicPartition) -> None:
        lane = self._lanes.pop(partition, None)
        if lane is not None:
            self._held_bytes -= lane.weight
            self._order.remove(partition)

    def put(self, records: Records) -> None:
        """Take records. Those of partitions that are not open, and those that were here before, are dropped."""
        with self._lock:
            lane = self._lanes.get(records.partition)
            if lane is None or records.end <= lane.fetched_to:
                return
            if records.offsets and records.offsets[0] < lane.fetched_to:
                records = records.split(lane.fetched_to)[1]
            lane.fetched_to = records.end
            if self._confirms:
                lane.waiting.append((self._clock(), records))
                self._burden(lane, records, 1)
            else:
                self._admit(lane, records)
        self._wake()

    def confirm(self, topics: Collection[str], moment: float) -> None:
        """Let out what came of `topics` until `moment`, which `until_unconfirmed` told."""
        with self._lock:
            for partition, lane in self._lanes.items():
                if partition.topic not in topics:
                    continue
                while lane.waiting and lane.waiting[0][0] <= moment:
                    _, records = lane.waiting.popleft()
                    self._burden(lane, records, -1)
                    self._admit(lane, records)
        self._wake()

    def _admit(self, lane: _Lane, records: Records) -> None:
        lane.tip = records.end
        if not records.offsets and lane.pieces:  # holes weigh nothing, so they must not become many
            since, before = lane.pieces[-1]
            lane.pieces[-1] = since, replace(before, end=records.end)
            return
        lane.pieces.append((self._clock(), records))
        self._weigh(lane, records, 1)

    def _weigh(self, lane: _Lane, piece: Records, sign: int) -> None:
        """Count a piece that was put into a lane (1), or taken out of it (-1)."""
        lane.value_bytes += sign * piece.value_bytes
        lane.records += sign * len(piece.offsets)
        self._burden(lane, piece, sign)

    def _burden(self, lane: _Lane, piece: Records, sign: int) -> None:
        weight = sign * _weight(piece)
        lane.weight += weight
        self._held_bytes += weight

    def release(self, partitions: Collection[TopicPartition]) -> Release:
        """Drop what is here of partitions, and have the sender finish what it has of them."""
        with self._lock:
            release = Release(tuple(partitions))
            self._releases.append(release)
        self.close(partitions)
        self._wake()
        return release

    @property
    def is_full(self) -> bool:
        """Whether fetching should pause."""
        return self._held_bytes >= self._batching.held_bytes

    @property
    def is_low(self) -> bool:
        """Whether fetching may go on."""
        return self._held_bytes <= self._batching.held_bytes // LOW_SHARE

    def tips(self) -> dict[TopicPartition, int]:
        """By partition, up to where records have come."""
        with self._lock:
            return {partition: lane.fetched_to for partition, lane in self._lanes.items()}

    def taken(self) -> dict[TopicPartition, int]:
        """By partition, up to where the sender has taken it."""
        with self._lock:
            return {partition: lane.at for partition, lane in self._lanes.items()}

    async def until_unconfirmed(self) -> tuple[frozenset[str], float]:
        """Wait for records that are not confirmed. Returns their topics, and a moment that all that are here came
        before.
        """
        while True:
            moved = self._moved
            with self._lock:
                topics = frozenset(partition.topic for partition, lane in self._lanes.items() if lane.waiting)
                if topics:
                    return topics, self._clock()
            await moved.wait()

    def nudge(self) -> None:
        """Have whoever waits look again."""
        self._wake()

    def _wake(self) -> None:
        try:
            self._token.run_sync_soon(self._notify, idempotent=True)
        except trio.RunFinishedError:
            return  # nobody is left who could wait

    def _notify(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    # -------------------------------------------------------------------------- by the sender

    async def take(self, stop: trio.Event) -> Job | Release | None:
        """The next job that is due, waiting for one; None once `stop` is set."""
        while not stop.is_set():
            moved = self._moved
            job, due_at = self._due()
            if job is not None:
                return job
            with trio.move_on_after(max(0.0, due_at - self._clock())):
                await moved.wait()
        return None

    def sample(self, topic: str, *, taken: Job | None = None) -> list[bytes]:
        """The values that are here of a topic, as they are now, by partition and in order; `taken` left before them."""
        with self._lock:
            held = {
                partition: [piece for _, piece in (*lane.pieces, *lane.waiting)]
                for partition, lane in self._lanes.items()
                if partition.topic == topic
            }
        if taken is not None:
            held[taken.partition] = [*taken.pieces, *held.get(taken.partition, ())]
        pieces = [piece for partition in sorted(held) for piece in held[partition]]
        return [value for piece in pieces for value in piece.values if value is not None]

    async def gather(self, enough: Callable[[], bool], *, seconds: float, stop: trio.Event) -> None:
        """Wait until there is `enough` here, or no room for more, or for `seconds`."""
        with trio.move_on_after(seconds):
            while not enough() and not self.is_full and not stop.is_set():
                with trio.move_on_after(LOOK_SECONDS):  # that the end is reached moves nothing here
                    await self._moved.wait()

    def value_bytes(self) -> dict[str, int]:
        """By topic, how many bytes of values are here."""
        found = dict[str, int]()
        with self._lock:
            for (topic, _), lane in self._lanes.items():
                waiting = sum(records.value_bytes for _, records in lane.waiting)
                found[topic] = found.get(topic, 0) + lane.value_bytes + waiting
        return found

    def _due(self) -> tuple[Job | Release | None, float]:
        """A job that is due, or when to look again."""
        now, batching = self._clock(), self._batching
        with self._lock:
            if self._releases:
                return self._releases.popleft(), 0.0
            due_at = float("inf")
            for _ in range(len(self._order)):
                partition = self._order[0]
                self._order.rotate(-1)
                lane = self._lanes[partition]
                if not lane.pieces:
                    continue
                oldest, _ = lane.pieces[0]
                waited_at = oldest + batching.linger_seconds
                is_due = (
                    lane.value_bytes >= batching.job_bytes
                    or lane.records >= batching.job_records
                    or now >= waited_at
                    or (self.is_full and lane.records > 0)
                )
                if is_due:
                    return self._job(partition, lane), 0.0
                due_at = min(due_at, waited_at)
            return None, due_at

    def _job(self, partition: TopicPartition, lane: _Lane) -> Job:
        """Take a job out of a lane that has something."""
        limits = [*list(lane.cuts)[:1], lane.tip]
        if lane.lost_from < lane.lost_to:
            limits += [offset for offset in (lane.lost_from, lane.lost_to) if lane.at < offset]
        first, is_lost = lane.at, lane.lost_from <= lane.at < lane.lost_to
        lane.at, pieces = self._pieces(lane, min(limits))
        while lane.cuts and lane.cuts[0] <= lane.at:
            lane.cuts.popleft()
        return Job(partition, first, lane.at, pieces, lost=is_lost)

    def _pieces(self, lane: _Lane, limit: int) -> tuple[int, tuple[Records, ...]]:
        """Where a job ends, at `limit` at the latest, and its records."""
        batching, taken = self._batching, list[Records]()
        at, size, room = lane.at, 0, batching.job_records
        while at < limit and size < batching.job_bytes and room > 0:
            since, piece = lane.pieces.popleft()
            self._weigh(lane, piece, -1)
            at = min(piece.end, limit)
            if len(piece.offsets) > room:
                at = min(at, piece.offsets[room])
            if at < piece.end:
                piece, rest = piece.split(at)
                lane.pieces.appendleft((since, rest))
                self._weigh(lane, rest, 1)
            if piece.offsets:
                taken.append(piece)
            size += piece.value_bytes
            room -= len(piece.offsets)
        return at, tuple(taken)


def _weight(records: Records) -> int:
    """What records take in memory, about."""
    found = records.value_bytes + RECORD_BYTES * len(records.offsets)
    if records.keys is not None:
        found += total_bytes(records.keys)
    if records.headers is not None:
        found += sum(len(name) + len(value or b"") for one in records.headers for name, value in one)
    return found


def values_of(pieces: Sequence[Records]) -> list[bytes | None]:
    """The values of all `pieces`, in order."""
    return [value for piece in pieces for value in piece.values]
