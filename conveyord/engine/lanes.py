"""The letters of one stage on their way through a replay: how they are sent, and what fails of them again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace

import pyarrow as pa
import trio

from conveyord.core.errors import RecordError
from conveyord.core.flow.dead_letters import PARTS_PER_LETTER, DeadLetter
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Rejected, Source
from conveyord.engine.copies import SOURCE
from conveyord.engine.dead_lettering import LetterBox, row_of
from conveyord.engine.gate import Gate
from conveyord.engine.leftovers import Lacks, Point, only_for
from conveyord.engine.messages import Batch
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.provenance import with_provenance
from conveyord.storage.dead_letters.letters import Selection, StoredLetter
from conveyord.storage.dead_letters.store import DeadLetterStore

LETTERS_PER_BATCH = 1_000


@dataclass(frozen=True, slots=True)
class Lane:
    """Where letters go on, and for which sinks of the pipeline. No sinks: none behind the stage keeps positions."""

    point: Point
    sinks: frozenset[str]

    @property
    def partition(self) -> Partition:
        """By which the sinks remember how far they are."""
        output = self.point.output
        return Partition(SOURCE, self.point.stage if output is None else f"{self.point.stage}.{output}")


class _NoConfig(OperatorConfig):
    """There is nothing to configure."""


class QueuedLetters(Source):
    """The queued letters of one lane, by sequence number."""

    Config = _NoConfig

    def __init__(
        self,
        context: OperatorContext,
        *,
        reader: Source | None,
        partition: Partition,
        box: LetterBox,
        numbers: Mapping[int, int],
    ) -> None:
        """reader: the source itself, for letters that never became rows. partition: the lane's. numbers: of the
        lane's letters, by id.
        """
        super().__init__(_NoConfig(), context)
        self._reader = reader
        self._partition = partition
        self._box = box
        self._numbers = numbers
        self.sent_up_to = 0
        self.unusable = 0

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`. Rows of one shape go together; where a sink is, a batch ends."""
        ends = sorted({fence[self._partition].offset if self._partition in fence else 0 for fence in fences})
        group = _Group(ends[0], ends[0])
        async with aclosing(self._queued(group.first)) as queued:
            async for number, stored in queued:
                if drain.is_set():
                    break
                if stored.damage or (stored.letter.row is None and stored.letter.raw is None):
                    await self._box.ask(self._box.store.withdraw, [stored.id])
                    self.unusable += 1
                    continue
                row = await self._row(stored, fences)
                if row is None:
                    continue
                # The letter with the number at which a sink is may have left the queue since.
                for end in ends:
                    if group.first < end < number:
                        group.end = end
                        group = await self._send(out, group, row)
                if group.rows and (not row.schema.equals(group.rows[0].schema) or len(group.rows) == LETTERS_PER_BATCH):
                    group = await self._send(out, group, row)
                group.rows.append(row)
                group.places.append(_place(stored))
                group.end = number
        if group.rows:
            await self._send(out, group, group.rows[0])

    async def _queued(self, at: int) -> AsyncGenerator[tuple[int, StoredLetter], None]:
        """The lane's letters beyond `at`, a page of the queue at a time."""
        while page := await self._box.ask(self._box.store.queued, self.context.pipeline, at, LETTERS_PER_BATCH):
            for number, stored in page:
                if stored.id in self._numbers:
                    yield number, stored
            at = page[-1][0]

    async def _send(self, out: Outlet, group: _Group, like: pa.RecordBatch) -> _Group:
        """Send a group, of the columns of `like` if it has no rows. Returns the one that follows."""
        span = Span(self._partition, group.first, group.end)
        tally = Tally(read=len(group.rows))
        rows = group.rows or [like.slice(0, 0)]
        data = await self.context.in_thread(pa.concat_batches, rows)
        await out.send(data, (span,), tally, raw_bytes=0, place_of=group.places.__getitem__)
        self.sent_up_to = group.end
        return _Group(group.end, group.end)

    async def _row(self, stored: StoredLetter, fences: Sequence[Positions]) -> pa.RecordBatch | None:
        """A letter's row; None if its record still cannot be read, and then it is a dead letter again."""
        letter = stored.letter
        if letter.row is not None:
            return await self.context.in_thread(row_of, letter.row)
        assert self._reader is not None
        assert letter.raw is not None
        states = [fence.states.get(letter.key.partition.source) for fence in fences]
        state = next((state for state in states if state is not None), None)
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


@dataclass(slots=True)
class _Group:
    """Rows that will be one batch: those of the sequence numbers beyond `first`, up to `end`."""

    first: int
    end: int
    rows: list[pa.RecordBatch] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)


def _place(stored: StoredLetter) -> Place:
    """The record of a letter, with a part that no other row has: see `PARTS_PER_LETTER`."""
    key = stored.letter.key
    return Place(RecordRef(key.partition, key.offset, stored.letter.raw), stored.id * PARTS_PER_LETTER)


class LaneLetters:
    """What fails while the letters of a lane are replayed: for whom it is, and by which key."""

    def __init__(
        self, lane: Lane, lacks: Lacks, held: Mapping[str, Positions | None], letters: Mapping[int, StoredLetter]
    ) -> None:
        """held: by sink. letters: those of the lane by id, without what they hold."""
        self._lane = lane
        self._lacks = lacks
        self._letters = letters
        self._held = {
            sink: positions[lane.partition].offset if positions is not None and lane.partition in positions else 0
            for sink, positions in held.items()
        }
        self.moved: set[int] = set()
        """The ids of letters of which something failed in a later stage."""

    def has(self, sequence: int, sinks: frozenset[str]) -> frozenset[str]:
        """Those of `sinks` that have got as far as `sequence`."""
        return frozenset(sink for sink in sinks if self._held[sink] >= sequence)

    def admit(self, letter: DeadLetter) -> DeadLetter | None:
        """See `Admission`. A letter that fails where it did before keeps its key."""
        stored = self._letters.get(letter.key.part // PARTS_PER_LETTER)
        below = self._lacks.below(letter.key) or frozenset()
        lane = below & self._lane.sinks
        if stored is None:  # a stage on the way does not tell its rows apart, so nor does the letter
            return letter if not below else only_for(letter, lane)
        assert stored.sequence is not None
        own = stored.letter.key
        if letter.key.stage == own.stage:
            # What stays queued for sinks that are not here keeps its place, and its number.
            others = (stored.letter.sinks or frozenset()) - self._lane.sinks
            letter = replace(letter, key=replace(own, part=stored.id * PARTS_PER_LETTER) if others else own)
        admitted = letter if not below else only_for(letter, lane - self.has(stored.sequence, lane))
        if admitted is not None and admitted.key != own:
            self.moved.add(stored.id)
        return admitted

    def drop_unsent(self, store: DeadLetterStore, pipeline: str, *, copied_to: int) -> None:
        """Take what failed in later stages from the sinks that get the letters it came from once more. Blocking."""
        unsent: list[int] = []
        fewer: dict[int, frozenset[str]] = {}
        for stored in store.select(Selection(pipeline=pipeline), payloads=False):
            ancestor = self._letters.get(stored.letter.key.part // PARTS_PER_LETTER)
            meant = self._lacks.meant(stored.letter)
            if ancestor is None or ancestor.id == stored.id or not meant or stored.state != "dead":
                continue
            assert ancestor.sequence is not None
            again = (meant & self._lane.sinks) - self.has(ancestor.sequence, meant)
            if not again:
                continue
            if left := (stored.letter.sinks or frozenset()) - again:
                fewer[stored.id] = left
            else:
                unsent.append(stored.id)
        store.restrict(fewer)
        store.drop(pipeline, unsent, copied_to=copied_to)


class Shut(Gate):
    """Before a sink that has what a lane's letters stand for."""

    def admit(self, batch: Batch) -> Batch | None:
        """See `Gate.admit`."""
        batch.ack.settle()
        return None
