"""The letters of one stage on their way to one sink: how they are sent, and what fails of them again."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pyarrow as pa
import trio

from conveyord.core.errors import RecordError
from conveyord.core.flow.dead_letters import PARTS_PER_LETTER, DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.flow.topics import SHARE_MARK
from conveyord.engine.contracts import (
    Inbound,
    OperatorConfig,
    OperatorContext,
    Outlet,
    Rejected,
    Sink,
    SinkReport,
    Source,
)
from conveyord.engine.copies import SOURCE
from conveyord.engine.dead_lettering import LetterBox, row_of
from conveyord.engine.leftovers import Point
from conveyord.engine.messages import Batch, Eos
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.provenance import with_provenance
from conveyord.storage.dead_letters.letters import Claim, Lane, StoredLetter

LETTERS_PER_BATCH = 1_000


def partition_of(point: Point, share: str | None) -> Partition:
    """By which a sink remembers how many of the letters that go on from `point`, for a share of it, it has."""
    name = point.stage if point.output is None else f"{point.stage}.{point.output}"
    return Partition(SOURCE, name if share is None else f"{name}{SHARE_MARK}{share}")


class _NoConfig(OperatorConfig):
    """There is nothing to configure."""


class QueuedLetters(Source):
    """The queued letters of one lane, by sequence number."""

    Config = _NoConfig

    def __init__(
        self,
        context: OperatorContext,
        *,
        lane: Lane,
        partition: Partition,
        reader: Source | None,
        box: LetterBox,
        copied_to: int,
    ) -> None:
        """partition: the lane's. reader: the source itself, for letters that never became rows. copied_to: see
        `ClaimStore.give_up`.
        """
        super().__init__(_NoConfig(), context)
        self._lane = lane
        self._partition = partition
        self._reader = reader
        self._box = box
        self._copied_to = copied_to
        self._keys: dict[int, LetterKey] = {}  # of the letters that were sent
        self.sent_up_to = 0
        self.unusable: set[int] = set()
        """The ids of letters that hold nothing that could be sent."""
        self.failed: set[LetterKey] = set()
        """The keys of the letters that failures of this replay are kept under."""
        self.failed_ids: set[int] = set()
        """The ids of letters of which something failed again, here or in a later stage."""

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`. Rows of one shape go together."""
        (fence,) = fences
        first = fence[self._partition].offset if self._partition in fence else 0
        group = _Group(first, first)
        async with aclosing(self._queued(first)) as queued:
            async for number, stored in queued:
                if drain.is_set():
                    break
                self._keys[stored.id] = stored.letter.key
                row = await self._row(stored, fence)
                if row is None:
                    continue
                if group.rows and (not row.schema.equals(group.rows[0].schema) or len(group.rows) == LETTERS_PER_BATCH):
                    group = await self._send(out, group)
                group.rows.append(row)
                group.places.append(_place(stored))
                group.end = number
        if group.rows:
            await self._send(out, group)

    async def _queued(self, at: int) -> AsyncGenerator[tuple[int, StoredLetter], None]:
        """The lane's letters beyond `at` that can be sent, a page of the queue at a time."""
        while page := await self._box.ask(self._page, at):
            for number, stored in page:
                if _can_be_sent(stored):
                    yield number, stored
            at = page[-1][0]

    def _page(self, at: int) -> list[tuple[int, StoredLetter]]:
        """The next letters of the queue. What became of them on an earlier way to the sink is forgotten. Blocking."""
        store, sink = self._box.store, self._lane.sink
        page = store.queued(self._lane, at, LETTERS_PER_BATCH)
        unusable = {stored.id for _, stored in page if not _can_be_sent(stored)}
        store.withdraw([Claim(letter, sink) for letter in sorted(unusable)])
        self.unusable |= unusable
        if again := store.successors(sink, [stored.id for _, stored in page if stored.id not in unusable]):
            store.give_up(self._lane.pipeline, again, copied_to=self._copied_to)
        return page

    async def _send(self, out: Outlet, group: _Group) -> _Group:
        """Send a group. Returns the one that follows."""
        span = Span(self._partition, group.first, group.end)
        data = await self.context.in_thread(pa.concat_batches, group.rows)
        tally = Tally(read=len(group.rows))
        await out.send(data, (span,), tally, raw_bytes=0, place_of=group.places.__getitem__)
        self.sent_up_to = group.end
        return _Group(group.end, group.end)

    async def _row(self, stored: StoredLetter, fence: Positions) -> pa.RecordBatch | None:
        """A letter's row; None if its record still cannot be read, and then it is a dead letter again."""
        letter = stored.letter
        if letter.row is not None:
            return await self.context.in_thread(row_of, letter.row)
        assert self._reader is not None
        assert letter.raw is not None
        state = fence.states.get(letter.key.partition.source)
        try:
            row = await self.context.in_thread(self._reader.decode, letter.raw, state)
            if row.num_rows != 1:
                reason = f"it holds {row.num_rows} records, and a dead letter is one; edit it"
                raise RecordError("the record", reason, code="MALFORMED_RECORD")
        except RecordError as error:
            assert self.context.dead_letters is not None
            await self.context.dead_letters.put([Rejected(_place(stored), error)])
            return None
        if self.context.provenance:
            row = with_provenance(row, letter.key.partition, pa.array([letter.key.offset], pa.int64()))
        return row

    def admit(self, letter: DeadLetter) -> DeadLetter:
        """See `Admission`. What fails is for the lane's sink; a letter that fails where it did before keeps its key."""
        letter = replace(letter, sinks=frozenset([self._lane.sink]))
        sent = letter.key.part // PARTS_PER_LETTER
        # A stage on the way may not tell its rows apart, and then it is not known of which letter this came.
        if (own := self._keys.get(sent)) is not None:
            self.failed_ids.add(sent)
            if own.stage == letter.key.stage:
                letter = replace(letter, key=own)
        self.failed.add(letter.key)
        return letter


class Discard(Sink):
    """Stands where an edge leaves the way to a lane's sink: who is there lacks nothing."""

    Config = _NoConfig
    delivery = "exactly-once"

    def __init__(self, context: OperatorContext) -> None:
        super().__init__(_NoConfig(), context)

    async def open(self) -> None:
        """See `Sink.open`."""

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`."""
        while not isinstance(message := await inbound.receive(), Eos):
            if isinstance(message, Batch):
                message.ack.settle()

    def report(self) -> SinkReport:
        """See `Sink.report`."""
        return SinkReport(self.context.stage, rows=0, files=0, commits=0)


@dataclass(slots=True)
class _Group:
    """Rows that will be one batch: those of the sequence numbers beyond `first`, up to `end`."""

    first: int
    end: int
    rows: list[pa.RecordBatch] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


def _can_be_sent(stored: StoredLetter) -> bool:
    return stored.damage is None and (stored.letter.row is not None or stored.letter.raw is not None)


def _place(stored: StoredLetter) -> Place:
    """The record of a letter, with a part that no other row has: see `PARTS_PER_LETTER`."""
    key = stored.letter.key
    return Place(RecordRef(key.partition, key.offset, stored.letter.raw), stored.id * PARTS_PER_LETTER)
