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
from conveyord.engine.origin import MARKS, Origin, Place, RecordRef, Reshaped, Selection, Stateless, Step
from conveyord.engine.poison import SUSPECT, Poison, Salvaged, salvage
from conveyord.engine.schema import fit, merge

T = TypeVar("T")

Mapped = tuple[pa.RecordBatch, Mapping[str, pa.RecordBatch]]
"""What a transform made of a batch: the main output's rows, and those of its other outputs by name."""

NOTHING_ELSE: Mapping[str, pa.RecordBatch] = {}

PLACES_MAX = 3  # files that a message about one batch names


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

    def passing_on(self, data: pa.RecordBatch, columns: Sequence[str]) -> Mapped:  # noqa: ARG002 - likewise
        """`apply_all` with the columns of `data` named `columns`, which are always the same, passed on beside the rest.

        Asked of stages that are row-wise and stateless only. Override where columns that nobody names are left out; a
        stage that leaves these out all the same makes it slower to find where its rows came from, no more.
        """
        return self.apply_all(data)

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - for those who override it
        """Whether every row of the result for `data` depends on one row alone, and rows keep their order. Blocking.

        Without that a batch cannot be divided to find the rows that make it fail, and stops the run.
        """
        return False

    def is_stateless(self) -> bool:
        """Whether it keeps nothing of the rows that it is given.

        Such a stage may be given columns that are none of its batch's, to see in which rows they come out.
        """
        return self.is_pure(self.config)

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
        rejected = await rejections(self.context, batch, salvaged, attempts=1 + retries.count_max if is_outage else 1)
        await letters.put(rejected)  # at once: where rows cannot be told apart, that keeps their letters apart
        bad = frozenset(poison.row for poison in salvaged.poison)
        return await self.context.in_thread(self._joined, salvaged, batch.data), bad

    def _applied(self, data: pa.RecordBatch, beside: Sequence[str] = ()) -> Mapped:
        """`apply_all`, which stages after this one also call, to find out where a row came from.

        beside: columns to pass on, for the same purpose.
        """
        if _is_nothing(data):
            return data, dict.fromkeys(self.context.listened, data)
        with self._one_at_a_time:
            return self.passing_on(data, beside) if beside else self.apply_all(data)

    def _cancellable(self, data: pa.RecordBatch) -> Mapped:
        """`_applied`, unless the run was cancelled: a search for poison may take a run for each row."""
        trio.from_thread.check_cancelled()
        return self._applied(data)

    async def _is_row_wise(self, data: pa.RecordBatch) -> bool:
        if _is_nothing(data):
            return True
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
        step: Step = partial(self._step, output)
        if self.same_count_same_rows and rows.num_rows == batch.data.num_rows - len(bad):
            step = Reshaped(step)
        elif self.is_stateless():
            step = Stateless(step, partial(self._step, output, beside=MARKS))
        return origin.through(step)

    def _step(self, output: str, data: pa.RecordBatch, *, beside: Sequence[str] = ()) -> pa.RecordBatch:
        """What leaves this stage by `output` for rows, those that fail left out. See `_applied` for the rest."""
        try:
            main, extra = self._applied(data, beside)
        except SUSPECT as error:
            main, extra = self._joined(_salvaged(partial(self._applied, beside=beside), data, error), data)
        return main if output == MAIN else extra[output]


def _is_nothing(data: pa.RecordBatch) -> bool:
    """Whether no record has told yet what columns there are: all were bad. No option can name one wrongly then."""
    return not data.num_rows and not data.schema.names


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
        places = row_places(batch, [poison.row for poison in salvaged.poison])
        return [
            Rejected(place, poison.error, batch.data.slice(poison.row, 1), attempts, output, members)
            for place, poison in zip(places, salvaged.poison, strict=True)
        ]

    return await context.in_thread(find)


def row_places(batch: Batch, rows: Sequence[int]) -> list[Place]:
    """Where rows of `batch` came from. Blocking, within a thread of trio.

    Where that cannot be told any more, it is the beginning of the batch and the row's number in it.
    """
    if batch.origin is not None:
        return batch.origin.places(rows, between=trio.from_thread.check_cancelled)
    first = batch.spans[0]
    return [Place(RecordRef(first.partition, first.first), row) for row in rows]


def kept(rows: int, bad: Collection[int]) -> pa.BooleanArray:
    """For each of so many rows whether it is not `bad`."""
    return pa.array([row not in bad for row in range(rows)], pa.bool_())


def together(pieces: list[pa.RecordBatch]) -> pa.RecordBatch:
    """Batches that one stage made of parts of one batch, as one. Blocking.

    Raises BatchError if they are more than one batch can hold.
    """
    if len(pieces) == 1:
        return pieces[0]
    schema = pieces[0].schema
    for piece in pieces[1:]:
        if not piece.schema.equals(schema):
            schema = merge(schema, piece.schema)
    try:
        return pa.concat_batches([fit(piece, schema) for piece in pieces])
    except (pa.ArrowInvalid, pa.ArrowCapacityError) as error:
        raise BatchError(
            f"{len(pieces)} parts of one batch are more than one batch can hold, 2 GiB in a column ({error}); lower "
            "block_bytes or batch_rows of the source"
        ) from error


def place_of(batch: Batch) -> str:
    """Where the records of a batch stand, for a message."""
    spans = [f"{span.partition.name} {batch.unit} {span.first} to {span.end}" for span in batch.spans[:PLACES_MAX]]
    return ", ".join(spans) + (", ..." if len(batch.spans) > PLACES_MAX else "")
