"""Which record of the source a row came from, worked out only when somebody asks.

Rows carry no hidden column: SQL would drop it, and it would cost every batch what only poison needs. A
batch keeps what its source read and the steps taken since. As every step gives each row from one row, in
order, the record of row `r` is the shortest beginning of the source's rows that yields more than `r`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.flow.positions import Partition
from conveyord.engine.sql import without_views

Step = Callable[[pa.RecordBatch], pa.RecordBatch]


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """A step that keeps the rows of a batch for which `mask` is true, as they are."""

    mask: pa.BooleanArray

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Those of `data`, which is the beginning of the batch."""
        return without_views(data).filter(self.mask.slice(0, data.num_rows))

    def before(self, row: int) -> int:
        """The number that row `row` of the result had in the batch."""
        return int(pc.indices_nonzero(self.mask)[row].as_py())


@dataclass(frozen=True, slots=True, eq=False)
class Reshaped:
    """A step that made one row of each row."""

    step: Step

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """What the step makes of `data`, which is the beginning of the batch."""
        return self.step(data)

    def before(self, row: int) -> int:
        """The number that row `row` of the result had in the batch."""
        return row


@dataclass(frozen=True, slots=True)
class RecordRef:
    """One record in its source. `raw` are its own bytes, None where the source does not have them."""

    partition: Partition
    offset: int
    raw: bytes | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """The record that a row came from, and which of that record's rows it is."""

    record: RecordRef
    part: int = 0


@dataclass(frozen=True, slots=True)
class Origin:
    """Rows as they once were, where each of those came from, and the steps since then.

    place_of: the place of a row of `data`; blocking. Steps are blocking too.
    """

    data: pa.RecordBatch
    place_of: Callable[[int], Place]
    steps: tuple[Step, ...] = ()

    def through(self, step: Step) -> Origin:
        """The origin of what `step` makes of these rows."""
        return Origin(self.data, self.place_of, (*self.steps, step))

    def place(self, row: int) -> Place:
        """Where row `row` of the result of all steps came from.

        Blocking. Selections and reshapings at the end are undone at once; what stands before is run some
        twenty times.
        """
        if not self.steps:
            return self.place_of(row)
        *earlier, last = self.steps
        if isinstance(last, Selection | Reshaped):
            return Origin(self.data, self.place_of, tuple(earlier)).place(last.before(row))
        low, high = 0, self.data.num_rows  # the record is one of [low, high)
        while high - low > 1:
            middle = (low + high) // 2
            if self._rows_of(middle) > row:
                high = middle
            else:
                low = middle
        before = self.place_of(low)
        return Place(before.record, before.part + row - self._rows_of(low))

    def _rows_of(self, count: int) -> int:
        """How many rows the first `count` rows of `data` were made into."""
        data = self.data.slice(0, count)
        for step in self.steps:
            data = step(data)
        return int(data.num_rows)


def joined(parts: list[tuple[pa.RecordBatch, Origin | None]], data: pa.RecordBatch) -> Origin | None:
    """The origin of `data`, which is the rows of `parts` one after the other. None if a part has none."""
    if any(origin is None for _, origin in parts):
        return None

    def place_of(row: int) -> Place:
        for part, origin in parts:
            if row < part.num_rows:
                assert origin is not None
                return origin.place(row)
            row -= part.num_rows
        raise IndexError(row)

    return Origin(data, place_of)
