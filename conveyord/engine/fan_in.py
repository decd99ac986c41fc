"""Where several edges enter one stage.

Batches of different sources go on as they come. Where branches of one source come together again, the
pieces of a batch wait for each other and go on as one, rows in the order of the edges: a sink that had
committed one piece and not the other could not say where it is.

No piece waits for ever: a stage hands a batch to all of its branches before it takes up the next, and every
stage sends one batch on for each, in order, so the piece that an input lacks is under way on it. An input
that is far ahead waits, at `capacity` pieces. Once the pipeline has failed pieces may be missing for good, so
nobody waits any more: an input that is far ahead is told that nobody listens, and so the stages before it stop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import trio

from conveyord.core.flow.watermarks import WatermarkMerge
from conveyord.engine.batch_transform import together
from conveyord.engine.fan_out import Way
from conveyord.engine.messages import Ack, Batch, Message, Watermark
from conveyord.engine.origin import joined

IDLE_SECONDS = 30.0  # an input that is silent for so long does not hold watermarks back


@dataclass(slots=True, eq=False)
class _Waiting:
    """The pieces of one batch that have come, by input."""

    wanted: frozenset[int]
    pieces: dict[int, Batch] = field(default_factory=dict)

    @property
    def lacks(self) -> frozenset[int]:
        return self.wanted - self.pieces.keys()


class FanIn:
    """Joins the inputs of one stage into its channel."""

    def __init__(
        self,
        channel: Way,
        *,
        inputs: int,
        wanted: Mapping[str, frozenset[int]],
        capacity: int,
        threads: trio.CapacityLimiter,
        has_failed: Callable[[], bool] = lambda: False,
    ) -> None:
        """wanted: by source, the inputs that its batches come in by. has_failed: whether every pipeline that the stage
        is part of has; call `wake` when that changes.
        """
        self._channel = channel
        self._wanted = wanted
        self._capacity = capacity
        self._threads = threads
        self._has_failed = has_failed
        self._waiting: dict[Ack, _Waiting] = {}
        self._pending = [0] * inputs
        self._ended = [False] * inputs
        self._room = trio.lowlevel.ParkingLot()
        self._watermarks = WatermarkMerge(inputs, idle_seconds=IDLE_SECONDS, now=trio.current_time())
        self._due: int | None = None  # a watermark that the end of an input set free

    def entry(self, number: int) -> Entry:
        """The way in for input `number`."""
        return Entry(self, number)

    async def offer(self, number: int, message: Message) -> None:
        """Take one message of an input. Waits for room. Raises trio.BrokenResourceError if nobody listens."""
        now = trio.current_time()
        if isinstance(message, Watermark):
            for waiting in self._waiting.values():
                for late in waiting.lacks:  # no watermark may pass a batch that waits for its pieces
                    self._watermarks.heard(late, now)
            merged = self._watermarks.advance(number, message.micros, now)
            self._due = self._due if merged is None else merged
        if self._due is not None:
            due, self._due = self._due, None
            await self._channel.send(Watermark(due))
        if isinstance(message, Watermark):
            return
        assert isinstance(message, Batch)
        self._watermarks.heard(number, now)
        wanted = self._wanted.get(message.spans[0].partition.source, frozenset())
        if len(wanted) <= 1:
            await self._channel.send(message)
            return
        await self._gather(number, message, wanted)

    async def _gather(self, number: int, piece: Batch, wanted: frozenset[int]) -> None:
        waiting = self._waiting.setdefault(piece.ack.root, _Waiting(wanted))
        waiting.pieces[number] = piece
        self._pending[number] += 1
        if not waiting.lacks:
            self._forget(piece.ack.root)
            await self._channel.send(await self._joined(waiting))
            return
        self._give_up()
        while self._pending[number] > self._capacity:
            if self._has_failed():
                raise trio.BrokenResourceError
            await self._room.park()
        await trio.lowlevel.checkpoint()

    def wake(self) -> None:
        """Let inputs that wait look again whether they must."""
        self._room.unpark_all()

    def _forget(self, root: Ack) -> None:
        for one in self._waiting.pop(root).pieces:
            self._pending[one] -= 1
        self._room.unpark_all()

    def _give_up(self) -> None:
        """Let go of batches that lack a piece of an input that ended.

        A branch failed; such a batch will never be whole, and half of it must not be committed.
        """
        ended = {number for number, has_ended in enumerate(self._ended) if has_ended}
        for root in [root for root, waiting in self._waiting.items() if waiting.lacks & ended]:
            self._forget(root)

    async def _joined(self, waiting: _Waiting) -> Batch:
        """The pieces of one batch as one."""
        pieces = [waiting.pieces[number] for number in sorted(waiting.pieces)]
        first = pieces[0]

        def settle_all() -> None:
            for piece in pieces:
                piece.ack.settle()

        data = await trio.to_thread.run_sync(together, [piece.data for piece in pieces], limiter=self._threads)
        deaths = {stage: dead for piece in pieces for stage, dead in piece.deaths.items()}
        at_source = min(piece.tally.dead - sum(piece.deaths.values()) for piece in pieces)
        tally = replace(first.tally, filtered=0, added=0, dead=at_source + sum(deaths.values()))
        tally = tally.through(data.num_rows)
        origin = joined([(piece.data, piece.origin) for piece in pieces], data)
        ack = Ack(settle_all, root=first.ack.root)
        return replace(first, data=data, tally=tally, ack=ack, arrived=tally, origin=origin, deaths=deaths)

    def end(self, number: int) -> None:
        """An input ended. After the last of them so does the stage's channel.

        The pieces that it sent still wait for those of the other inputs.
        """
        if self._ended[number]:
            return
        self._ended[number] = True
        self._give_up()
        merged = self._watermarks.end(number, trio.current_time())
        self._due = self._due if merged is None else merged
        if all(self._ended):
            self._channel.close()


@dataclass(frozen=True, slots=True)
class Entry:
    """One input of a stage, as a `Way`."""

    fan_in: FanIn
    number: int

    def send_nowait(self, message: Message) -> None:  # noqa: ARG002 - the protocol's
        """There is always something to wait for here."""
        raise trio.WouldBlock

    async def send(self, message: Message) -> None:
        """See `Way.send`."""
        await self.fan_in.offer(self.number, message)

    def close(self) -> None:
        """See `Way.close`."""
        self.fan_in.end(self.number)
