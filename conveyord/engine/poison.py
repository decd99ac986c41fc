"""Finding the rows that make a stage fail, and what the stage makes of all others.

A stage that fails on a batch and does not say for which rows is run on parts of it. The search halves what is known to
fail, and keeps what succeeded on the way, so that one poison row among n costs log2(n) + 2 runs of the stage: the rest
behind it is tried in one piece. Behind further ones a piece is about as long as the rows between poison ones were
lately, and longer as long as that succeeds. So k of them among n cost about k * log2(n / k) runs, and where every
second row is poison, or every one, rows are run one by one. However many there are and wherever they stand, the search
never takes more than `RUNS_PER_ROW_MAX` runs per row and `SPARE_RUNS` more, nor longer than `SEARCH_SECONDS_MAX`.

There is no limit to how many rows of a batch may be poison, up to all of them. Whoever gives a pipeline a `dlq` asks
that it go on without what fails, as with `errors.tolerance=all` of Kafka Connect; what becomes of a row must not depend
on how many others its batch happens to hold; and where the stage was wrong and not its rows, nothing is lost: once it
is mended, a replay brings them back. What bounds them is the budget of the dead-letter store, at which the run stops.
Not taken for a fault of rows at all are a stage that cannot work whatever the values (ConfigError: no such column, a
query that does not plan), for which the run stops at once, and something outside that is away (Retryable on row after
row).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pyarrow as pa
import structlog

from conveyord.core.errors import BatchError, ConveyordError, RecordError, Retryable
from conveyord.core.units import format_seconds

R = TypeVar("R")

RUNS_PER_ROW_MAX = 1.25  # one to try each row alone, and a quarter to find out again and again that pieces would do
SPARE_RUNS = 64  # beyond that, so that the few poison rows of any batch are found by halves
LONG_SEARCH_RUNS = 1_000  # a second or so; whoever waits for the batch is told why
SEARCH_SECONDS_MAX = 1_800  # SQL takes 1.3 ms for a row, two minutes for 65,536: this is no search any more but a hang

AWAY_ROWS = 16  # failing in turn with what may pass: one run more then asks whether what the stage needs is still there

PIECE_SHARE = 0.7  # of the rows between poison ones lately: such a piece succeeds every second time
FINDS_REMEMBERED = 8  # how many make "lately"; poison often comes in bursts

SUSPECT = (BatchError, RecordError, Retryable)
"""What may be the fault of a row. Anything else says that the stage itself cannot work."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Poison:
    """One row of the batch that fails by itself, and how."""

    row: int
    error: ConveyordError


@dataclass(slots=True)
class Salvaged(Generic[R]):
    """What the stage made of the good rows, in order, and the bad ones. `pieces` is empty if none was good."""

    pieces: list[R] = field(default_factory=list)
    poison: list[Poison] = field(default_factory=list)


class Search:
    """Which rows to run next, of at least two that fail together. Runs nothing: ask for a `piece`, tell how it went.

    Rows are settled in order. One is poison only if it failed when it was run alone: DataFusion's AND, OR and CASE
    compute both sides for all rows of a batch, unless one side settles it for every row, so rows may fail for their
    company.
    """

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._suspects_end = rows  # those from `settled` up to here fail together; none if it is not beyond `settled`
        self._end = 0  # of the piece being run
        self._finds = 0
        self._apart = 0.0  # rows from one find to the next, lately
        self._since = 0  # rows that have passed since the last
        self.settled = 0
        """Of the rows before this it is known whether they are poison."""
        self.runs = 0

    def piece(self) -> tuple[int, int] | None:
        """The rows to run next, from the first to before the second; None if all are settled."""
        if self.settled == self._rows:
            return None
        self._end = self.settled + self._size()
        return self.settled, self._end

    def passed(self) -> None:
        """The piece succeeded."""
        self.runs += 1
        self._since += self._end - self.settled
        self.settled = self._end
        if self.settled == self._suspects_end:  # it failed with those before it, and passes without them
            self._find()

    def failed(self) -> bool:
        """The piece failed. Returns whether it was one row, which is poison then, and settled."""
        self.runs += 1
        if self._end - self.settled > 1:
            self._suspects_end = self._end
            return False
        self._since += 1
        self.settled = self._suspects_end = self._end
        self._find()
        return True

    def _size(self) -> int:
        # A piece of several rows may settle none, so it is run only where there are runs to spare. One row alone is
        # always settled. That is what bounds the runs.
        if self.runs > SPARE_RUNS + RUNS_PER_ROW_MAX * self.settled:
            return 1
        suspects = self._suspects_end - self.settled
        if suspects > 0:
            return max(1, suspects // 2)
        left = self._rows - self.settled
        if self._finds < 2:
            return left
        return min(left, max(1, int(PIECE_SHARE * self._apart), self._since // 2))

    def _find(self) -> None:
        self._finds += 1
        self._apart += (self._since - self._apart) / min(self._finds, FINDS_REMEMBERED)
        self._since = 0


def salvage(
    work: Callable[[pa.RecordBatch], R],
    data: pa.RecordBatch,
    error: ConveyordError,
    *,
    clock: Callable[[], float] = time.monotonic,
) -> Salvaged[R]:
    """Run `work`, which failed on all of `data` with `error`, on as large pieces as succeed. Blocking.

    Each row of the result of `work` must depend on one row alone, in order. See the top of this file for how often it
    is run. Raises `error` if `data` has no rows; Retryable if nothing succeeds, of `AWAY_ROWS` rows or all, or nothing
    any more, and trying again may help; BatchError if it takes longer than `SEARCH_SECONDS_MAX`. clock: in seconds.
    """
    found: Salvaged[R] = Salvaged()
    if data.num_rows == 0:
        raise error
    if data.num_rows == 1:
        found.poison.append(Poison(0, error))
        return found
    search, until = Search(data.num_rows), clock() + SEARCH_SECONDS_MAX
    good: int | None = None  # a row that passed
    away = 0  # how many failed since with what may pass
    while (piece := search.piece()) is not None:
        first, end = piece
        tried = _try(work, data.slice(first, end - first))
        if isinstance(tried, _Done):
            search.passed()
            found.pieces.append(tried.result)
            good, away = first, 0
        elif search.failed():
            error = _bare(tried.error)
            found.poison.append(Poison(first, error))
            away = away + 1 if isinstance(error, Retryable) else 0
            if away and (away % AWAY_ROWS == 0 or (good is None and len(found.poison) >= AWAY_ROWS)):
                _raise_if_away(work, data, good, error)
        if clock() > until:
            raise BatchError(
                f"the search for the rows of a batch that fail took more than {format_seconds(SEARCH_SECONDS_MAX)}, "
                f"{search.runs:,} runs of the stage; of the first {search.settled:,} of {data.num_rows:,} rows "
                f"{len(found.poison):,} fail, the last: {error}. Mend the stage or what comes before it, or give the "
                "source smaller batches"
            ) from error
        if search.runs == LONG_SEARCH_RUNS:
            log.warning(
                "many rows of a batch fail, and the search for them takes long",
                rows=data.num_rows,
                searched=search.settled,
                failed=len(found.poison),
                reason=str(error),
            )
    if away:
        _raise_if_away(work, data, good, error)
    return found


def _raise_if_away(
    work: Callable[[pa.RecordBatch], R], data: pa.RecordBatch, good: int | None, error: ConveyordError
) -> None:
    """Raise `error` if not even row `good`, which passed before, passes now: what the stage needs is away."""
    if good is not None:
        tried = _try(work, data.slice(good, 1))
        if isinstance(tried, _Done) or not isinstance(tried.error, Retryable):
            return
    raise error


def _bare(error: ConveyordError) -> ConveyordError:
    """`error` without the frames it came through, each of which would keep the rows of its run in memory."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


@dataclass(frozen=True, slots=True)
class _Done(Generic[R]):
    result: R


@dataclass(frozen=True, slots=True)
class _Failed:
    error: ConveyordError


def _try(work: Callable[[pa.RecordBatch], R], data: pa.RecordBatch) -> _Done[R] | _Failed:
    try:
        return _Done(work(data))
    except SUSPECT as error:
        return _Failed(error)
