"""Transforms that map one batch to one batch, and what becomes of batches that fail."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from threading import Lock
from typing import ClassVar, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import trio

from conveyord.core.errors import BatchError, ConveyordError, Retryable
from conveyord.core.pipeline.graph import MAIN
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Outbound, Rejected, Transform
from conveyord.engine.messages import Batch, Eos, Watermark
from conveyord.engine.origin import Origin, Place, RecordRef, Reshaped, Selection
from conveyord.engine.poison import SUSPECT, Poison, Salvaged, salvage
from conveyord.engine.schema import fit, merge

T = TypeVar("T")

Mapped = tuple[pa.RecordBatch, Mapping[str, pa.RecordBatch]]
"""What a transform made of a batch: the main output's rows, and those of its other outputs by name."""

NOTHING_ELSE: Mapping[str, pa.RecordBatch] = {}

LETTERS_AT_A_TIME = 1_000  # made and stored together: each takes some tenths of a millisecond, of the event loop too


class BadRows(BatchError):
    """Some rows of a batch are at fault, and the stage itself knows which: nobody needs to search for them.

    poison: they, by row, ascending; there may be any number. good: what the stage made of all others.
    """

    def __init__(self, message: str, poison: Sequence[Poison], good: Mapped) -> None:
        super().__init__(message)
        self.poison = poison
        self.good = good


def bad_rows(data: pa.RecordBatch, bad: pa.BooleanArray, errors: Sequence[ConveyordError], good: Mapped) -> BadRows:
    """The exception for the rows of `data` that are `bad`, with one of `errors` for each of them, in order."""
    numbers = pc.indices_nonzero(bad).to_pylist()
    poison = [Poison(row, error) for row, error in zip(numbers, errors, strict=True)]
    first = getattr(errors[0], "reason", None) or str(errors[0])
    message = f"{len(poison)} of {data.num_rows} rows are bad; the first is row {numbers[0]} of the batch: {first}"
    return BadRows(message, poison, good)


class BatchTransform(Transform):
    """A transform that maps one batch to one batch, computed in a thread.

    What may pass is tried again. With dead letters, the rows that fail for ever are found and set aside,
    if each row of the result depends on one row alone.
    """

    same_count_same_rows: ClassVar[bool] = False
    """As many rows as before are the same rows, one for one: it drops rows or repeats them, never both. Where a
    row came from is then found sooner."""

    @abstractmethod
    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """Transform one batch. Blocking, called from one thread at a time, no side effects.

        Raises BatchError if the values are at fault, `BadRows` if it knows those of which rows, Retryable if
        trying again may help.
        """

    def apply_all(self, data: pa.RecordBatch) -> Mapped:
        """`apply`, with the rows of the other outputs that `context.listened` names. Override where there are some."""
        return self.apply(data), NOTHING_ELSE

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - for those who override it
        """Whether every row of the result for `data` depends on one row alone, and rows keep their order. Blocking.

        Without that a batch cannot be divided to find the rows that make it fail, and stops the run.
        """
        return False

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._one_at_a_time = Lock()
        self._known_row_wise: tuple[pa.Schema, bool] | None = None

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """See `Transform.run`."""
        async for message in inbound:
            match message:
                case Batch():
                    (data, extra), bad = await self._mapped(message)
                    traced = message.origin is not None and await self._is_row_wise(message.data)

                    def left_by(output: str, rows: pa.RecordBatch) -> Batch:  # called at once, below
                        origin = self._origin(message, output, bad, rows) if traced else None  # noqa: B023
                        dead, stage = len(bad), self.context.stage  # noqa: B023
                        return message.with_data(rows, origin=origin, dead=dead, stage=stage)  # noqa: B023

                    others = {name: left_by(name, rows) for name, rows in extra.items()}
                    await outbound.send(left_by(MAIN, data), others)
                case Watermark():
                    await outbound.send(message)
                case Eos():
                    return

    async def _mapped(self, batch: Batch) -> tuple[Mapped, frozenset[int]]:
        """What becomes of a batch, and which of its rows became dead letters."""
        retries, letters = self.context.retries, self.context.dead_letters
        try:
            mapped, _ = await retries.run(lambda: self.context.in_thread(self._applied, batch.data))
        except SUSPECT as error:
            failure = error
        else:
            return mapped, frozenset()
        is_outage = isinstance(failure, Retryable)
        if letters is None or not await self._is_row_wise(batch.data):
            if is_outage:
                raise failure
            raise BatchError(f"{place_of(batch)}: {failure}") from failure
        salvaged = await self.context.in_thread(_salvaged, self._cancellable, batch.data, failure)
        attempts = 1 + retries.count_max if is_outage else 1
        for first in range(0, len(salvaged.poison), LETTERS_AT_A_TIME):
            some = Salvaged[Mapped](poison=salvaged.poison[first : first + LETTERS_AT_A_TIME])
            await letters.put(await rejections(self.context, batch, some, attempts=attempts))
        bad = frozenset(poison.row for poison in salvaged.poison)
        return await self.context.in_thread(self._joined, salvaged, batch.data), bad

    def _applied(self, data: pa.RecordBatch) -> Mapped:
        """`apply_all`, which stages after this one also call, to find out where a row came from."""
        with self._one_at_a_time:
            return self.apply_all(data)

    def _cancellable(self, data: pa.RecordBatch) -> Mapped:
        """`_applied`, unless the run was cancelled: a search for poison may take a thousand runs."""
        trio.from_thread.check_cancelled()
        return self._applied(data)

    async def _is_row_wise(self, data: pa.RecordBatch) -> bool:
        if self._known_row_wise is None or not self._known_row_wise[0].equals(data.schema):
            self._known_row_wise = (data.schema, await self.context.in_thread(self.row_wise, data))
        return self._known_row_wise[1]

    def _joined(self, salvaged: Salvaged[Mapped], data: pa.RecordBatch) -> Mapped:
        pieces = salvaged.pieces or [self._applied(data.slice(0, 0))]
        names = pieces[0][1]
        extra = {name: together([more[name] for _, more in pieces]) for name in names}
        return together([main for main, _ in pieces]), extra

    def _origin(self, batch: Batch, output: str, bad: frozenset[int], rows: pa.RecordBatch) -> Origin | None:
        """Where `rows` came from, which left by `output` for those of `batch` that are not `bad`."""
        origin = batch.origin
        if origin is not None and bad:
            origin = origin.through(Selection(kept(batch.data.num_rows, bad)))
        if origin is None:
            return None
        step = partial(self._step, output)
        is_same = self.same_count_same_rows and rows.num_rows == batch.data.num_rows - len(bad)
        return origin.through(Reshaped(step) if is_same else step)

    def _step(self, output: str, data: pa.RecordBatch) -> pa.RecordBatch:
        """What leaves this stage by `output` for rows, those that fail left out."""
        try:
            main, extra = self._applied(data)
        except SUSPECT as error:
            main, extra = self._joined(_salvaged(self._applied, data, error), data)
        return main if output == MAIN else extra[output]


def _salvaged(
    work: Callable[[pa.RecordBatch], Mapped], data: pa.RecordBatch, error: ConveyordError
) -> Salvaged[Mapped]:
    """`salvage`, but without a search where the stage has named the rows that are at fault. Blocking."""
    if isinstance(error, BadRows):
        return Salvaged([error.good], list(error.poison))
    return salvage(work, data, error)


async def rejections(
    context: OperatorContext,
    batch: Batch,
    salvaged: Salvaged[T],
    *,
    attempts: int = 1,
    output: str | None = None,
    members: frozenset[str] | None = None,
) -> list[Rejected]:
    """The poison rows of a batch, with where each came from. See `Rejected` for the rest."""

    def find() -> list[Rejected]:
        found = []
        for poison in salvaged.poison:
            trio.from_thread.check_cancelled()
            place, row = row_place(batch, poison.row), batch.data.slice(poison.row, 1)
            found.append(Rejected(place, poison.error, row, attempts, output, members))
        return found

    return await context.in_thread(find)


def row_place(batch: Batch, row: int) -> Place:
    """Where a row of `batch` came from. Blocking.

    Where that cannot be told any more, it is the beginning of the batch and the row's number in it.
    """
    if batch.origin is not None:
        return batch.origin.place(row)
    first = batch.spans[0]
    return Place(RecordRef(first.partition, first.first), row)


def kept(rows: int, bad: Collection[int]) -> pa.BooleanArray:
    """For each of so many rows whether it is not `bad`."""
    return pa.array([row not in bad for row in range(rows)], pa.bool_())


def together(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches that one stage made of parts of one batch, as one. Blocking."""
    if len(pieces) == 1:
        return pieces[0]
    schema = pieces[0].schema
    for piece in pieces[1:]:
        if not piece.schema.equals(schema):
            schema = merge(schema, piece.schema)
    return pa.concat_batches([fit(piece, schema) for piece in pieces])


def place_of(batch: Batch) -> str:
    """Where the records of a batch stand, for a message."""
    spans = [f"{span.partition.name} bytes {span.first} to {span.end}" for span in batch.spans]
    return ", ".join(spans[:3]) + (", ..." if len(spans) > 3 else "")
