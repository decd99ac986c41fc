"""The engine's way to the dead-letter store: one store per run, one door to it per stage."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pyarrow as pa
import structlog
import trio

from conveyord.core.flow.dead_letters import DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition
from conveyord.engine.contracts import Rejected
from conveyord.engine.provenance import with_own_source
from conveyord.storage.dead_letters.store import DeadLetterStore

T = TypeVar("T")

Admission = Callable[[DeadLetter], DeadLetter | None]
"""What becomes of a letter before it is kept: for which sinks it is, or None if nobody lacks it."""

log = structlog.get_logger(__name__)

BEHIND = "/edges"
"""Marks the stage of a letter whose row had left it: a condition of an edge behind the stage failed."""


def behind(stage: str, output: str) -> str:
    """The stage in the key of a letter whose row had left `stage` by `output`."""
    return f"{stage}.{output}{BEHIND}" if output else f"{stage}{BEHIND}"


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

    async def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep those of `letters` that some sink lacks; durable on return. Raises what the store raises."""
        letters = [admitted for letter in letters if (admitted := self._admitted(letter)) is not None]
        await self.ask(self.store.put, letters, now_micros())
        self.counts.update(letter.key.pipeline for letter in letters)
        self.arrivals += 1
        self._arrived.set()
        self._arrived = trio.Event()

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
        letters = [
            self._letter(pipeline, one)
            for one in rejected
            for pipeline in self.members
            if one.members is None or pipeline in one.members
        ]
        await self.box.put(letters)
        for letter in letters:
            where = letter.key.partition.name
            log.debug("a dead letter", stage=letter.key.stage, place=where, offset=letter.key.offset, code=letter.code)

    def _letter(self, pipeline: str, rejected: Rejected) -> DeadLetter:
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
        return DeadLetter(
            key=key,
            code=rejected.error.code,
            message=getattr(rejected.error, "reason", None) or str(rejected.error),
            attempts=rejected.attempts,
            raw=record.raw,
            row=None if rejected.row is None else row_bytes(with_own_source(rejected.row, renamed)),
        )


def row_bytes(row: pa.RecordBatch) -> bytes:
    """One row as an Arrow IPC stream, the same for the same row whatever stood beside it in its batch."""
    # A slice is written with bytes of its neighbours, and taken rows with room to spare, so each value is made anew.
    columns = [pa.array(column.to_pylist(), column.type) for column in row.columns]
    alone = pa.RecordBatch.from_arrays(columns, schema=row.schema) if columns else row
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, alone.schema) as writer:
        writer.write_batch(alone)
    return bytes(sink.getvalue())


def row_of(content: bytes) -> pa.RecordBatch:
    """The row that `row_bytes` wrote."""
    return pa.ipc.open_stream(pa.py_buffer(content)).read_next_batch()


def now_micros() -> int:
    """Wall time, microseconds since the epoch: it only dates letters."""
    return time.time_ns() // 1000
