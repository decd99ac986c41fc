"""From pieces of rows, each under a schema of its own, to the rows of one batch under a schema that they may grow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conveyord.core.errors import ConveyordError
from conveyord.engine.payloads.contract import BadPayload, Payloads
from conveyord.engine.payloads.room import with_room
from conveyord.engine.schema import grow

Numbers = npt.NDArray[np.int64]

DAMAGE = (pa.ArrowException, OSError, ValueError, OverflowError, MemoryError)
"""What Arrow raises for data that is not what it says: its own errors, and Python's for names that are no text."""
UNGROWABLE = (ConveyordError, pa.ArrowException, ValueError, OverflowError, ArithmeticError)
"""What growth raises for values that no type can hold, such as a time of day beyond 24 hours."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows under a schema of their own. numbers: by row, which value it is of, never falling."""

    data: pa.RecordBatch
    numbers: Numbers


def assembled(pieces: Sequence[Piece], schema: pa.Schema | None, bad: Iterable[BadPayload], *, count: int) -> Payloads:
    """All rows in the order of their values, under `schema` grown by what the pieces need.

    count: of the values. A value whose rows cannot be brought to a column is bad too.
    """
    found = list(bad)
    grown, fitted, kept = _grown(pieces, pa.schema([]) if schema is None else schema, found)
    data = pa.concat_batches(fitted) if len(fitted) > 1 else fitted[0] if fitted else _no_rows(grown)
    numbers = np.concatenate([piece.numbers for piece in kept]) if kept else np.empty(0, np.int64)
    if len(kept) > 1 and (numbers[1:] < numbers[:-1]).any():
        order = np.argsort(numbers, kind="stable")
        data, numbers = data.take(pa.array(order)), numbers[order]
    found.sort(key=lambda one: one.number)
    is_plain = not found and len(numbers) == count and bool((numbers == np.arange(count)).all())
    return Payloads(data, grown, None if is_plain else numbers, tuple(found))


def _no_rows(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([], schema)


def _grown(
    pieces: Sequence[Piece], schema: pa.Schema, bad: list[BadPayload]
) -> tuple[pa.Schema, list[pa.RecordBatch], list[Piece]]:
    """The grown schema, the pieces under it, and the pieces as they were, without values that are found to be bad."""
    kept = list(pieces)
    while True:  # ends, because a schema only grows, and by what the pieces can bring
        before, fitted = schema, []
        for index, piece in enumerate(kept):
            try:
                schema, data = grow(with_room(schema, piece.data.schema), piece.data)
            except UNGROWABLE:
                kept[index] = piece = _without_ungrowable(piece, schema, bad)
                schema, data = grow(with_room(schema, piece.data.schema), piece.data)
            fitted.append(data)
        if len(kept) <= 1 or schema.equals(before):
            return schema, fitted, kept


def _without_ungrowable(piece: Piece, schema: pa.Schema, bad: list[BadPayload]) -> Piece:
    """The piece without the values that raise, searched for by halves."""
    keep = np.ones(len(piece.numbers), np.bool_)
    left = [np.unique(piece.numbers)]
    while left:
        numbers = left.pop()
        first, end = np.searchsorted(piece.numbers, [numbers[0], numbers[-1] + 1]).tolist()
        try:
            grow(with_room(schema, piece.data.schema), piece.data.slice(first, end - first))
        except UNGROWABLE as error:
            if len(numbers) > 1:
                left += [numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]]
                continue
            keep[first:end] = False
            bad.append(BadPayload(int(numbers[0]), "MALFORMED_RECORD", sentence(error)))
    return Piece(piece.data.filter(pa.array(keep)), piece.numbers[keep])


def sentence(error: Exception) -> str:
    """What a library says of data, on one line, shortened, and without a full stop."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return text if len(text) <= _SENTENCE_CHARS_MAX else f"{text[:_SENTENCE_CHARS_MAX]}..."


_SENTENCE_CHARS_MAX = 200  # Arrow quotes data in places
