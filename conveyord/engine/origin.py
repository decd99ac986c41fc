"""Which record of the source a row came from, worked out only when somebody asks.

Rows carry no hidden column: SQL would drop it, and it would cost every batch what only poison needs. A
batch keeps what its source read and the steps taken since. As every step gives each row from one row, in
order, the record of row `r` is the last of the shortest beginning of the source's rows that yields more than `r`.

To find it, the steps are run again on the source's rows, some thousands at a time, until enough of the result has
been counted. Where one of the rows asked for is among what came of a piece, the steps that keep no state are given
numbers beside its rows, and most pass those on. Where one does not, the piece is halved until single rows are
left: what halves are made into is counted, not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.flow.dead_letters import PARTS_PER_LETTER, ROWS_PER_WAY
from conveyord.core.flow.positions import Partition
from conveyord.engine.sql import without_views

Step = Callable[[pa.RecordBatch], pa.RecordBatch]
Rows = npt.NDArray[np.int64]
"""Numbers of rows."""

PIECE_ROWS = 16_384  # run at a time: a quarter of a batch, usually, so that what is made of it stays small beside it
MARKS = (NUMBER, SQUARE) = ("_conveyord_row", "_conveyord_row_squared")
"""The columns that a step may pass on. Two that agree after it were not changed by it."""
APART = 1_000_003  # beyond all numbers of a piece, so that no sum or product of both agrees with itself


class Selection:
    """A step that keeps the rows of a batch for which `mask` is true, as they are."""

    __slots__ = ("_kept", "_mask")

    def __init__(self, mask: pa.BooleanArray) -> None:
        self._mask = mask
        self._kept: Rows | None = None  # threads that find it at the same time find the same

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Those of `data`, which is the beginning of the batch."""
        return self.among(data, first=0)

    def among(self, data: pa.RecordBatch, *, first: int) -> pa.RecordBatch:
        """Those of `data`, which are the rows of the batch from row `first` on."""
        mask = self._mask.slice(first, data.num_rows)
        return without_views(data).slice(0, len(mask)).filter(mask)  # a step before may make more rows than it did

    def before(self, rows: Rows) -> Rows:
        """The numbers that these rows of the result had in the batch."""
        kept = self._kept
        if kept is None:
            kept = self._kept = pc.indices_nonzero(self._mask).to_numpy().astype(np.int64)
        return kept[rows]


@dataclass(frozen=True, slots=True, eq=False)
class Reshaped:
    """A step that made one row of each row."""

    step: Step

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """What the step makes of `data`, which are some rows of the batch."""
        return self.step(data)

    def before(self, rows: Rows) -> Rows:
        """The numbers that these rows of the result had in the batch."""
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Appended:
    """A step that puts a column beside those of a batch. values: one for each of its rows."""

    name: str
    values: pa.Array

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """`data`, which is the beginning of the batch, with the column."""
        return self.among(data, first=0)

    def among(self, data: pa.RecordBatch, *, first: int) -> pa.RecordBatch:
        """`data`, which are the rows of the batch from row `first` on, with the column."""
        values = self.values.slice(first, data.num_rows)
        return data.slice(0, len(values)).append_column(self.name, values)

    def before(self, rows: Rows) -> Rows:
        """The numbers that these rows of the result had in the batch."""
        return rows


@dataclass(frozen=True, slots=True, eq=False)
class Stateless:
    """A step that keeps nothing of the rows it is given, so that it may be given columns beside theirs.

    marked: the same step, given rows with `MARKS`, which it passes on if it can.
    """

    step: Step
    marked: Step

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """What the step makes of `data`, which are some rows of the batch."""
        return self.step(data)


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


def _nothing() -> None:
    """Done between runs of steps where nobody has a reason to stop."""


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
        """Where row `row` of the result of all steps came from. Blocking; see `places`."""
        return self.places([row])[0]

    def places(self, rows: Sequence[int], *, between: Callable[[], None] = _nothing) -> list[Place]:
        """Where these rows of the result of all steps came from, in the order of `rows`.

        Blocking. Selections and reshapings at the end are undone at once. What stands before is run on the rows up to
        the last one asked for, and once more on the pieces that rows are asked for of; steps that do not pass
        numbers on are run about log2(n / k) times for each of k rows out of n as well, on fewer rows each time.
        Rows of one record share its bytes. between: called before each run; what it raises ends the search.
        """
        wanted, steps = np.asarray(rows, np.int64), self.steps
        while steps and isinstance(last := steps[-1], Selection | Appended | Reshaped):
            wanted, steps = last.before(wanted), steps[:-1]
        numbers, parts = wanted, np.zeros_like(wanted)
        if steps:
            distinct, back = np.unique(wanted, return_inverse=True)
            numbers, parts = _Search(self.data, steps, between).find(distinct)
            numbers, parts = numbers[back], parts[back]
        distinct, back = np.unique(numbers, return_inverse=True)
        known = self._own_places(distinct.tolist(), between)
        found = zip((known[at] for at in back.tolist()), parts.tolist(), strict=True)
        return [place if part == 0 else Place(place.record, place.part + part) for place, part in found]

    def _own_places(self, rows: list[int], between: Callable[[], None]) -> list[Place]:
        """The places of rows of `data`, which ascend."""
        if isinstance(self.place_of, _Joined):
            return self.place_of.places(rows, between)
        return [self.place_of(row) for row in rows]


class _Search:
    """The search for the rows of `data` that rows behind `steps` were made of. Blocking."""

    def __init__(self, data: pa.RecordBatch, steps: tuple[Step, ...], between: Callable[[], None]) -> None:
        self._data = data
        self._steps = steps
        self._between = between
        self._may_number = all(isinstance(step, Selection | Appended | Reshaped | Stateless) for step in steps)

    def find(self, rows: Rows) -> tuple[Rows, Rows]:
        """For each of `rows`, ascending and distinct, the row of `data`, and which of those made of that it is."""
        numbers, parts = np.zeros_like(rows), np.zeros_like(rows)
        came, done, count = [0] * (len(self._steps) + 1), 0, self._data.num_rows
        for first in range(0, count, PIECE_ROWS):
            end = min(first + PIECE_ROWS, count)
            come = _sums(came, self._counts(first, end, came))
            # A step that looks at more than its rows may have made more rows before than now.
            upto = len(rows) if end == count else int(np.searchsorted(rows, come[-1]))
            own = slice(done, upto)
            if upto > done:
                numbers[own], parts[own] = self._within(first, end, came, come, rows[own])
            came, done = come, upto
            if done == len(rows):
                break
        return numbers, parts

    def _counts(self, first: int, end: int, came: Sequence[int]) -> list[int]:
        """How many rows the rows `[first, end)` of the source are as they come to each step, and at last.

        came: the same of all rows before them.
        """
        self._between()
        data = self._data.slice(first, end - first)
        counts = [data.num_rows]
        for step, before in zip(self._steps, came, strict=False):
            data = _run(step, data, first=before)
            counts.append(data.num_rows)
        return counts

    def _within(self, first: int, end: int, came: Sequence[int], come: Sequence[int], rows: Rows) -> tuple[Rows, Rows]:
        """`find` for rows that came of `[first, end)`. come: as `came`, of all rows before `end`."""
        made_of = self._numbers(first, end, came, come) if self._may_number else None
        if made_of is None or rows[-1] >= come[-1]:
            self._may_number = False
            return self._halved(first, end, came, rows)
        at = rows - came[-1]
        numbers = made_of[at]
        return first + numbers, at - np.searchsorted(made_of, numbers)

    def _numbers(self, first: int, end: int, came: Sequence[int], come: Sequence[int]) -> Rows | None:
        """By row that comes of `[first, end)`, which of those it was made of, from 0; None if a step does not tell."""
        data = self._data.slice(first, end - first)
        numbers = np.arange(end - first)
        for step, before, start, stop in zip(self._steps, came, came[1:], come[1:], strict=False):
            self._between()
            if isinstance(step, Selection | Appended | Reshaped):
                own = step.before(np.arange(start, stop)) - (before if isinstance(step, Selection) else start)
                data = _run(step, data, first=before)
            else:
                numbered = _numbered(step, data)
                if numbered is None:
                    return None
                data, own = numbered
            if data.num_rows != stop - start or len(own) != stop - start:
                return None  # the columns beside theirs make a difference to the step
            numbers = numbers[own]
        return numbers

    def _halved(self, first: int, end: int, came: Sequence[int], rows: Rows) -> tuple[Rows, Rows]:
        """`find` for rows that came of `[first, end)`, for steps that tell only how many rows they make."""
        numbers, parts = np.empty_like(rows), np.empty_like(rows)
        ranges = [(first, end, came, 0, len(rows))]
        while ranges:
            first, end, came, low, high = ranges.pop()
            if end - first == 1:
                numbers[low:high] = first
                parts[low:high] = rows[low:high] - came[-1]
                continue
            middle = (first + end) // 2
            come = _sums(came, self._counts(first, middle, came))
            cut = low + int(np.searchsorted(rows[low:high], come[-1]))
            if cut > low:
                ranges.append((first, middle, came, low, cut))
            if cut < high:
                ranges.append((middle, end, come, cut, high))
        return numbers, parts


def _run(step: Step, data: pa.RecordBatch, *, first: int) -> pa.RecordBatch:
    """What a step makes of `data`, the rows that come to it from row `first` on."""
    return step.among(data, first=first) if isinstance(step, Selection | Appended) else step(data)


def _sums(some: Sequence[int], more: Sequence[int]) -> list[int]:
    return [one + other for one, other in zip(some, more, strict=True)]


def _numbered(step: Step, data: pa.RecordBatch) -> tuple[pa.RecordBatch, Rows] | None:
    """What `step` makes of `data`, and of which of its rows each row; None if the step does not pass numbers on."""
    if not isinstance(step, Stateless) or not set(MARKS).isdisjoint(data.schema.names):
        return None
    numbers = np.arange(data.num_rows)
    marks = pa.array(numbers), pa.array(_squares(numbers))
    try:
        made = step.marked(data.append_column(NUMBER, marks[0]).append_column(SQUARE, marks[1]))
    except Exception:  # noqa: BLE001 - about columns that are no business of the step's; it has done its work without
        return None
    if any(made.schema.get_field_index(name) < 0 for name in MARKS):
        return None
    passed, squared = made.column(NUMBER), made.column(SQUARE)
    if any(column.type != pa.int64() or column.null_count for column in (passed, squared)):
        return None
    own, squares = passed.to_numpy(), squared.to_numpy()
    if not np.array_equal(_squares(own), squares) or np.any(np.diff(own) < 0):
        return None
    return made.drop_columns([*MARKS]), own


def _squares(numbers: Rows) -> Rows:
    """What a step that adds to all numbers, scales, rounds or clips them does not make of the changed ones."""
    return (numbers + APART) ** 2


class _Joined:
    """`Origin.place_of` for the rows of several batches one after the other."""

    def __init__(self, parts: Sequence[tuple[int, Origin]]) -> None:
        """parts: how many rows each has, and where they came from."""
        self._parts = parts

    def __call__(self, row: int) -> Place:
        """The place of one row. Blocking."""
        return self.places([row], _nothing)[0]

    def places(self, rows: Sequence[int], between: Callable[[], None]) -> list[Place]:
        """The places of `rows`, which ascend. Blocking."""
        found: list[Place] = []
        first = 0
        for number, (count, origin) in enumerate(self._parts):
            own = [row - first for row in rows if first <= row < first + count]
            found += [self._on_its_way(place, number) for place in (origin.places(own, between=between) if own else ())]
            first += count
        if len(found) < len(rows):
            raise IndexError(rows[-1])
        return found

    def _on_its_way(self, place: Place, number: int) -> Place:
        """`place` with its rows counted in the space of the way of part `number`."""
        letter, own = divmod(place.part, PARTS_PER_LETTER)
        way, counted = divmod(own, ROWS_PER_WAY)
        way = (way * len(self._parts) + number) % (PARTS_PER_LETTER // ROWS_PER_WAY)
        return Place(place.record, letter * PARTS_PER_LETTER + way * ROWS_PER_WAY + counted)


def joined(parts: list[tuple[pa.RecordBatch, Origin | None]], data: pa.RecordBatch) -> Origin | None:
    """The origin of `data`, which is the rows of `parts` one after the other. None if a part has none.

    Rows of one record come by several ways, so each way counts its rows in a space of its own.
    """
    known = [(part.num_rows, origin) for part, origin in parts if origin is not None]
    return Origin(data, _Joined(known)) if len(known) == len(parts) else None
