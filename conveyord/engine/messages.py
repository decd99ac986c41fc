"""What flows between operators: `Batch | Watermark | Eos`, in order, over one bounded channel.

A batch carries the spans it covers and the acknowledgement that its last consumer must settle. The
Arrow buffers in `data` are shared and immutable: an operator makes new columns, never edits old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import pyarrow as pa

from conveyord.core.flow.positions import Span
from conveyord.core.flow.tally import Tally

if TYPE_CHECKING:
    from conveyord.engine.origin import Origin


class Ack:
    """Counts the branches that still hold a batch, and calls `on_settled` when none does.

    Used from the trio thread only. `fork` before handing the same batch to another branch, `settle`
    once a branch has it durably (written, filtered, or dead-lettered: all of these count as done).
    `root` is the same for all pieces of one batch of a source, whatever branches they came by.
    """

    __slots__ = ("_branches", "_on_settled", "root")

    def __init__(self, on_settled: Callable[[], None], *, root: Ack | None = None) -> None:
        self._branches = 1
        self._on_settled = on_settled
        self.root: Ack = self if root is None else root

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
    origin: Origin | None = None
    """Which record each row came from; kept only where dead letters are, and rows can still be told."""
    arrived: Tally = field(default_factory=Tally)
    """The tally with which the batch came to its present stage."""
    deaths: Mapping[str, int] = field(default_factory=dict)
    """By stage, how many rows became dead letters there: what branches that meet again have in common."""
    unit: str = "bytes"
    """What the offsets of `spans` count, for messages (see `Source.unit`)."""
    within_seconds: float | None = None
    """Somebody waits until this is durable: a sink that collects batches commits it within so long, even if its
    own interval is longer. A wish: what goes by the disk loses it, and only the interval bounds that wait."""

    def with_data(self, data: pa.RecordBatch, *, origin: Origin | None = None, dead: int = 0, stage: str = "") -> Batch:
        """The same records after a stage made `data` of them.

        origin: of the rows of `data`, if it can be told. dead: rows that `stage` put into the dead letters.
        """
        tally, deaths = self.tally, self.deaths
        if dead:
            tally, deaths = tally + Tally(dead=dead), {**deaths, stage: dead}
        return replace(self, data=data, tally=tally.through(data.num_rows), origin=origin, deaths=deaths)


@dataclass(frozen=True, slots=True)
class Watermark:
    """No record with an event time below `micros` (since the epoch) will follow on this channel."""

    micros: int


@dataclass(frozen=True, slots=True)
class Eos:
    """Nothing follows. Always the last message, also when the stage before it failed."""


Message = Batch | Watermark | Eos
