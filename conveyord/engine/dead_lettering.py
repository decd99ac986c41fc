"""The engine's way to the dead-letter store: one store per run, one door to it per stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pyarrow as pa
import structlog
import trio

from conveyord.core.flow.dead_letters import DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition
from conveyord.engine.contracts import Rejected
from conveyord.engine.provenance import with_own_source
from conveyord.storage.calendar import in_numbers
from conveyord.storage.dead_letters.store import DeadLetterStore

T = TypeVar("T")

Admission = Callable[[DeadLetter], DeadLetter | None]
"""What becomes of a letter before it is kept: for which sinks it is, or None if nobody lacks it."""

log = structlog.get_logger(__name__)

LETTERS_AT_A_TIME = 1_000  # written and stored together: each takes some tenths of a millisecond, and the lock

BEHIND = "/edges"
"""Marks the stage of a letter whose row had left it: a condition of an edge behind the stage failed."""


def behind(stage: str, output: str) -> str:
    """The stage in the key of a letter whose row had left `stage` by `output`."""
    return f"{stage}.{output}{BEHIND}" if output else f"{stage}{BEHIND}"


@dataclass(frozen=True, slots=True)
class Draft:
    """A letter that lacks its row yet. names: the run's names of sources to the pipeline's own, where they differ."""

    letter: DeadLetter
    row: pa.RecordBatch | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    def written(self) -> DeadLetter:
        """The letter with its row. Blocking."""
        if self.row is None:
            return self.letter
        return replace(self.letter, row=row_bytes(with_own_source(self.row, self.names)))


def _portions(groups: Iterable[Sequence[Draft]]) -> Iterator[list[Draft]]:
    """All drafts, about `LETTERS_AT_A_TIME` at a time. A group is never divided.

    The store keeps letters that come together under one key apart; what comes after it takes their place.
    """
    some: list[Draft] = []
    for group in groups:
        if some and len(some) + len(group) > LETTERS_AT_A_TIME:
            yield some
            some = []
        some += group
    if some:
        yield some


class LetterBox:
    """The dead letters of one run, of all its pipelines."""

    def __init__(self, store: DeadLetterStore, threads: trio.CapacityLimiter) -> None:
        self.store = store
        self._threads = threads
        self._one_at_a_time = trio.Lock()
        self._arrived = trio.Event()
        self.arrivals = 0
        self.counts: Counter[str] = Counter()
        """How many letters each pipeline has put in this run."""
        self.admissions: dict[str, Admission] = {}
        """By pipeline; where there is none a letter is kept as it is."""

    async def put(self, drafts: Iterable[Draft]) -> None:
        """Keep those letters that some sink lacks, however many; durable on return. Raises what the store raises.

        They are written and stored some at a time, in threads: a batch may be all poison. If that fails on the way,
        those before are kept.
        """
        by_key: dict[LetterKey, list[Draft]] = {}
        for number, draft in enumerate(drafts, 1):
            if number % LETTERS_AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
            if (letter := self._admitted(draft.letter)) is not None:
                by_key.setdefault(letter.key, []).append(replace(draft, letter=letter))
        if any(len(same) > 1 for same in by_key.values()):
            stages = sorted({key.stage for key in by_key})
            log.warning("rows of one record cannot be told apart; all are kept; please report it", stages=stages)
        for some in _portions(by_key.values()):
            await self.ask(self._keep, some)
            self.counts.update(draft.letter.key.pipeline for draft in some)
            self.arrivals += 1
            self._arrived.set()
            self._arrived = trio.Event()
            for key, code in ((draft.letter.key, draft.letter.code) for draft in some):
                log.debug("a dead letter", stage=key.stage, place=key.partition.name, offset=key.offset, code=code)

    def _keep(self, drafts: Sequence[Draft]) -> None:
        self.store.put([draft.written() for draft in drafts], now_micros())

    def _admitted(self, letter: DeadLetter) -> DeadLetter | None:
        admission = self.admissions.get(letter.key.pipeline)
        return letter if admission is None else admission(letter)

    async def ask(self, work: Callable[..., T], *args: Any) -> T:
        """Run a blocking method of `store`, which takes one thread at a time."""
        async with self._one_at_a_time:
            return await trio.to_thread.run_sync(work, *args, limiter=self._threads)

    async def arrival(self, since: int) -> None:
        """Wait until `arrivals` is beyond `since`."""
        while self.arrivals == since:
            await self._arrived.wait()


@dataclass(frozen=True, slots=True)
class StageLetters:
    """`DeadLetters` of one stage.

    members: the stage's name in every pipeline that runs it. names: by pipeline, the run's names of
    sources to the pipeline's own.
    """

    box: LetterBox
    members: Mapping[str, str]
    names: Mapping[str, Mapping[str, str]]

    async def put(self, rejected: Sequence[Rejected]) -> None:
        """See `DeadLetters.put`."""
        await self.box.put(
            self._draft(pipeline, one)
            for one in rejected
            for pipeline in self.members
            if one.members is None or pipeline in one.members
        )

    def _draft(self, pipeline: str, rejected: Rejected) -> Draft:
        record, stage = rejected.place.record, self.members[pipeline]
        renamed = {run: own for run, own in self.names[pipeline].items() if run != own}
        source = renamed.get(record.partition.source, record.partition.source)
        key = LetterKey(
            pipeline=pipeline,
            partition=Partition(source, record.partition.name),
            offset=record.offset,
            stage=stage if rejected.output is None else behind(stage, rejected.output),
            part=rejected.place.part,
        )
        letter = DeadLetter(
            key=key,
            code=rejected.error.code,
            message=getattr(rejected.error, "reason", None) or str(rejected.error),
            attempts=rejected.attempts,
            raw=record.raw,
        )
        return Draft(letter, rejected.row, renamed)


def row_bytes(row: pa.RecordBatch) -> bytes:
    """One row as an Arrow IPC stream, the same for the same row whatever stood beside it in its batch."""
    # A slice is written with bytes of its neighbours, and taken rows with room to spare, so each value is made anew.
    columns = [_anew(column) for column in row.columns]
    alone = pa.RecordBatch.from_arrays(columns, schema=row.schema) if columns else row
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, alone.schema) as writer:
        writer.write_batch(alone)
    return bytes(sink.getvalue())


def _anew(column: pa.Array) -> pa.Array:
    try:
        return pa.array(column.to_pylist(), column.type)
    except (OverflowError, ValueError):  # a date or time that Python has none for, or not to the nanosecond
        numbers = column.cast(in_numbers(column.type))
        return pa.array(numbers.to_pylist(), numbers.type).cast(column.type)


def row_of(content: bytes) -> pa.RecordBatch:
    """The row that `row_bytes` wrote."""
    return pa.ipc.open_stream(pa.py_buffer(content)).read_next_batch()


def now_micros() -> int:
    """Wall time, microseconds since the epoch: it only dates letters."""
    return time.time_ns() // 1000
