"""What sources are given in tests: an outlet and a place for dead letters that keep what they get."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import trio

from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import Rejected
from conveyord.engine.messages import Watermark
from conveyord.engine.origin import Place


class Collector:
    """An outlet that keeps what it is given."""

    def __init__(self, drain_after: int | None = None) -> None:
        self.batches: list[tuple[pa.RecordBatch, tuple[Span, ...], Tally]] = []
        self.states: list[dict[str, str]] = []
        self.places: list[Callable[[int], Place] | None] = []
        self.expected_bytes: int | None = None
        self.drain = trio.Event()
        self._drain_after = drain_after

    def expects(self, raw_bytes: int | None) -> None:
        self.expected_bytes = raw_bytes

    async def send(
        self,
        data: pa.RecordBatch,
        spans: tuple[Span, ...],
        tally: Tally,
        *,
        raw_bytes: int,
        states: Mapping[str, str] | None = None,
        place_of: Callable[[int], Place] | None = None,
    ) -> None:
        self.places.append(place_of)
        await trio.lowlevel.checkpoint()
        self.states.append(dict(states or {}))
        self.batches.append((data, spans, tally))
        if len(self.batches) == self._drain_after:
            self.drain.set()

    async def watermark(self, watermark: Watermark) -> None:
        raise AssertionError("no source has event time yet")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for data, _, _ in self.batches for row in data.to_pylist()]

    @property
    def positions(self) -> Positions:
        return self.positions_after(len(self.batches))

    def positions_after(self, batches: int) -> Positions:
        """What a fence after the first `batches` batches holds."""
        moved = Positions().advanced(span for _, spans, _ in self.batches[:batches] for span in spans)
        return Positions(moved, {k: v for states in self.states[:batches] for k, v in states.items()})


class Letters:
    """Dead letters that stay in memory."""

    def __init__(self) -> None:
        self.rejected: list[Rejected] = []

    async def put(self, rejected: Sequence[Rejected]) -> None:
        self.rejected += rejected


def records_of(out: Collector) -> list[tuple[int, bytes | None]]:
    """Offset and bytes of the record of every row, asked of every batch once more than sources are asked."""
    found = []
    for (data, _, _), place_of in zip(out.batches, out.places, strict=True):
        assert place_of is not None
        places = [place_of(row) for row in range(data.num_rows)]
        found += [(place.record.offset, place.record.raw) for place in places]
    return found
