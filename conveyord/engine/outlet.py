"""Where batches get their acknowledgement: the source's side of the accounting."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import pyarrow as pa
import trio

from conveyord.core.flow.acks import AckLedger, Ticket
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.messages import Ack, Batch, Message, Watermark
from conveyord.engine.summary import RunProgress


class TrackedOutlet:
    """Sends a source's batches on, tracks them until every sink has settled them, and counts them."""

    def __init__(self, progress: RunProgress) -> None:
        self._ledger = AckLedger()
        self._progress = progress
        self._sent_at: dict[int, float] = {}
        self._channel: trio.MemorySendChannel[Message] | None = None

    def over(self, channel: trio.MemorySendChannel[Message]) -> TrackedOutlet:
        """This outlet, sending over `channel`."""
        self._channel = channel
        return self

    def expects(self, raw_bytes: int | None) -> None:
        """See `Outlet.expects`."""
        self._progress.bytes_total = raw_bytes

    async def send(
        self,
        data: pa.RecordBatch,
        spans: tuple[Span, ...],
        tally: Tally,
        *,
        raw_bytes: int,
        states: Mapping[str, str] | None = None,
    ) -> None:
        """See `Outlet.send`."""
        assert self._channel is not None, "the graph gives the outlet its channel before the source runs"
        ticket = self._ledger.track(spans)
        self._sent_at[ticket.number] = trio.current_time()
        await self._channel.send(Batch(data, spans, tally, Ack(partial(self._settled, ticket)), states or {}))
        self._progress.rows_in += tally.read
        self._progress.skipped += tally.skipped
        self._progress.bytes_in += raw_bytes

    async def watermark(self, watermark: Watermark) -> None:
        """See `Outlet.watermark`."""
        assert self._channel is not None, "the graph gives the outlet its channel before the source runs"
        await self._channel.send(watermark)

    def _settled(self, ticket: Ticket) -> None:
        self._ledger.settle(ticket)
        del self._sent_at[ticket.number]

    @property
    def floor(self) -> Positions:
        """How far every partition is settled without a hole."""
        return self._ledger.floor

    def oldest_age_seconds(self, now: float) -> float | None:
        """The age of the oldest batch that is not settled, or None. `now` is trio's clock."""
        oldest = self._ledger.oldest_in_flight
        return None if oldest is None else now - self._sent_at[oldest]
