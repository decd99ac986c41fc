"""What flows between operators: `Batch | Watermark | Eos`, in order, over one bounded channel.

A batch carries the spans it covers and the acknowledgement that its last consumer must settle. The
Arrow buffers in `data` are shared and immutable: an operator makes new columns, never edits old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pyarrow as pa

from conveyord.core.flow.positions import Span
from conveyord.core.flow.tally import Tally


class Ack:
    """Counts the branches that still hold a batch, and calls `on_settled` when none does.

    Used from the trio thread only. `fork` before handing the same batch to another branch, `settle`
    once a branch has it durably (written, filtered, or dead-lettered: all of these count as done).
    """

    __slots__ = ("_branches", "_on_settled")

    def __init__(self, on_settled: Callable[[], None]) -> None:
        self._branches = 1
        self._on_settled = on_settled

    def fork(self) -> Ack:
        assert self._branches > 0, "forked an acknowledgement that was already settled"
        self._branches += 1
        return self

    def settle(self) -> None:
        assert self._branches > 0, "settled an acknowledgement twice"
        self._branches -= 1
        if self._branches == 0:
            self._on_settled()


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Rows, the spans of source records they stand for, and the accounting of those records.

    `data` may have no rows: a batch whose rows were all filtered still moves positions.
    """

    data: pa.RecordBatch
    spans: tuple[Span, ...]
    tally: Tally
    ack: Ack
    states: Mapping[str, str] = field(default_factory=dict)
    """By source, what is to be stored with the end of `spans` (see `Positions.states`)."""

    def with_data(self, data: pa.RecordBatch) -> Batch:
        """The same records after a stage made `data` of them."""
        return replace(self, data=data, tally=self.tally.through(data.num_rows))


@dataclass(frozen=True, slots=True)
class Watermark:
    """No record with an event time below `micros` (since the epoch) will follow on this channel."""

    micros: int


@dataclass(frozen=True, slots=True)
class Eos:
    """Nothing follows. Always the last message, also when the stage before it failed."""


Message = Batch | Watermark | Eos
