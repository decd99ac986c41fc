"""Where batches get their acknowledgement: the source's side of the accounting."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import pyarrow as pa
import trio

from conveyord.core.flow.acks import AckLedger, Ticket
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import Outbound
from conveyord.engine.messages import Ack, Batch, Watermark
from conveyord.engine.origin import Origin, Place
from conveyord.engine.summary import RunProgress


class TrackedOutlet:
    """Sends a source's batches on, tracks them until every sink has settled them, and counts them."""

    def __init__(
        self,
        progress: Sequence[RunProgress],
        before: Callable[[tuple[Span, ...]], Awaitable[None]] | None = None,
    ) -> None:
        """progress: of every pipeline that reads this source. before: awaited before what was read is sent."""
        self._ledger = AckLedger()
        self._progress = progress
        self._before = before
        self._sent_at: dict[int, float] = {}
        self._tail: dict[Partition, Position] = {}
        self._states: dict[str, str] = {}
        self._outbound: Outbound | None = None
        self._on_settled: Callable[[Mapping[Partition, Position]], None] | None = None
        self._unit = "offsets"
        self.batches = 0
        """How many batches were sent."""
        self.is_sending = False
        """A batch is under way, or failed on the way. What became of it is not known, so it cannot come again."""

    def over(self, outbound: Outbound, *, unit: str) -> TrackedOutlet:
        """This outlet, sending over `outbound` what a source with offsets in `unit` reads."""
        self._outbound, self._unit = outbound, unit
        return self

    def expects(self, raw_bytes: int | None) -> None:
        """See `Outlet.expects`."""
        for progress in self._progress:
            progress.expects(raw_bytes)

    async def send(
        self,
        data: pa.RecordBatch,
        spans: tuple[Span, ...],
        tally: Tally,
        *,
        raw_bytes: int,
        states: Mapping[str, str] | None = None,
        place_of: Callable[[int], Place] | None = None,
        within_seconds: float | None = None,
        lost: bool = False,
    ) -> None:
        """See `Outlet.send`."""
        assert self._outbound is not None, "the graph gives the outlet its outbound before the source runs"
        if self._before is not None and not lost:
            await self._before(spans)
        ticket = self._ledger.track(spans)
        self._sent_at[ticket.number] = trio.current_time()
        origin = None if place_of is None else Origin(data, place_of)
        ack = Ack(partial(self._settled, ticket))
        self.is_sending = True
        batch = Batch(
            data,
            spans,
            tally,
            ack,
            states or {},
            origin,
            unit=self._unit,
            within_seconds=within_seconds,
        )
        await self._outbound.send(batch)
        self.is_sending = False
        self.batches += 1
        self._tail.update((span.partition, span.position) for span in spans)
        self._states.update(states or {})
        for progress in self._progress:
            progress.rows_in += tally.read
            progress.skipped += tally.skipped
            progress.bytes_in += raw_bytes

    def on_settled(self, moved: Callable[[Mapping[Partition, Position]], None]) -> None:
        """See `Outlet.on_settled`."""
        self._on_settled = moved

    async def watermark(self, watermark: Watermark) -> None:
        """See `Outlet.watermark`."""
        assert self._outbound is not None, "the graph gives the outlet its outbound before the source runs"
        await self._outbound.send(watermark)

    def passed(self, fence: Positions) -> Positions:
        """`fence`, or where this outlet got to, whichever is further, partition by partition."""
        further = {
            partition: position
            for partition, position in self._tail.items()
            if partition not in fence or fence[partition].offset < position.offset
        }
        return Positions({**fence, **further}, {**fence.states, **self._states})

    def _settled(self, ticket: Ticket) -> None:
        moved = self._ledger.settle(ticket)
        del self._sent_at[ticket.number]
        if moved and self._on_settled is not None:
            self._on_settled(moved)

    @property
    def floor(self) -> Positions:
        """How far every partition is settled without a hole."""
        return self._ledger.floor

    @property
    def is_settled(self) -> bool:
        """Whether every sink has all that was sent."""
        return self._ledger.in_flight == 0

    def oldest_age_seconds(self, now: float) -> float | None:
        """The age of the oldest batch that is not settled, or None. `now` is trio's clock."""
        oldest = self._ledger.oldest_in_flight
        return None if oldest is None else now - self._sent_at[oldest]
