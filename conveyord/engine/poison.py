"""Finding the rows that make a stage fail, and what the stage makes of all others.

The search halves what is known to fail, and keeps what succeeded on the way, so that one poison row among
n costs log2(n) + 2 runs of the stage: the rest behind it is tried in one piece. Behind further ones as much is
tried as lay between poison rows so far, and more as long as that succeeds. So k of them among n cost about
k * log2(n / k) runs, and the stage works on few rows several times instead of on the rest k times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pyarrow as pa

from conveyord.core.errors import BatchError, ConveyordError, RecordError, Retryable

R = TypeVar("R")

POISON_ROWS_MAX = 1_000  # of one batch; beyond it the stage or its input is wrong, not some rows

AWAY_ROWS = 16  # failing in turn with what may pass, and none good before them: that is no matter of rows

REACH_GROWTH = 4  # a piece that succeeds is followed by one so much larger, so that the end is soon reached

SUSPECT = (BatchError, RecordError, Retryable)
"""What may be the fault of a row. Anything else says that the stage itself cannot work."""


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


def salvage(work: Callable[[pa.RecordBatch], R], data: pa.RecordBatch, error: ConveyordError) -> Salvaged[R]:
    """Run `work`, which failed on all of `data` with `error`, on as large pieces as succeed. Blocking.

    Each row of the result of `work` must depend on one row alone, in order. Raises `error` if `data` has
    no rows, or if nothing succeeds, of `AWAY_ROWS` rows or all, and trying again may help; BatchError if more
    than `POISON_ROWS_MAX` rows fail.
    """
    found: Salvaged[R] = Salvaged()
    if data.num_rows == 0:
        raise error
    first, end, fails = 0, data.num_rows, True  # [first, end) comes next; whether it is known to fail as a whole
    while first < data.num_rows:
        if not fails:
            tried = _try(work, data.slice(first, end - first))
            if not isinstance(tried, _Failed):
                found.pieces.append(tried.result)
                first, end = end, min(data.num_rows, end + REACH_GROWTH * (end - first))
                continue
            error = tried.error
        if len(found.poison) >= AWAY_ROWS:
            _raise_if_away(found, error)
        if len(found.poison) == POISON_ROWS_MAX:
            raise BatchError(
                f"more than {POISON_ROWS_MAX} of {data.num_rows} rows fail, which is no matter of single rows; the "
                f"last: {error}. Mend the stage or what comes before it"
            ) from error
        row, error = _first_poison(work, data, first, end, error, found.pieces)
        found.poison.append(Poison(row, error))
        first, fails = row + 1, False
        apart = first // len(found.poison) if len(found.poison) > 1 else data.num_rows
        end = min(data.num_rows, first + apart)
    if data.num_rows > 1:
        _raise_if_away(found, error)
    return found


def _raise_if_away(found: Salvaged[R], error: ConveyordError) -> None:
    """Raise `error` if not one row has passed and trying again may help: what the stage needs is away."""
    if not found.pieces and isinstance(error, Retryable):
        raise error


def _first_poison(
    work: Callable[[pa.RecordBatch], R],
    data: pa.RecordBatch,
    first: int,
    end: int,
    error: ConveyordError,
    pieces: list[R],
) -> tuple[int, ConveyordError]:
    """The first failing row of `[first, end)`, which fails as a whole. Adds what it found good to `pieces`."""
    while end - first > 1:
        middle = (first + end) // 2
        tried = _try(work, data.slice(first, middle - first))
        if isinstance(tried, _Failed):
            end, error = middle, tried.error
        else:
            pieces.append(tried.result)
            first = middle
    return first, error


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
