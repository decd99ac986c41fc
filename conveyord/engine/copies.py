"""Copies of dead letters for `dlq.sink`: the store read like any other source, one letter after another."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pyarrow as pa
import trio

from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Source
from conveyord.engine.dead_lettering import LetterBox, row_of
from conveyord.engine.schema.text import to_text
from conveyord.storage.dead_letters.letters import StoredLetter

SOURCE = "dead letters"
"""The source's name in positions. No stage can be called that."""

COPIED = Partition(SOURCE, "/copies")
"""By which a `dlq.sink` remembers how many letters it has. No lane of a replay can be called that."""

COPIES_PER_BATCH = 1_000
SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("pipeline", pa.string()),
        ("stage", pa.string()),
        ("source", pa.string()),
        ("partition", pa.string()),
        ("offset", pa.int64()),
        ("part", pa.int64()),
        ("code", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int64()),
        ("failed_at", pa.timestamp("us", tz="UTC")),
        ("raw", pa.binary()),
        ("row", pa.string()),
    ]
)


class CopiesConfig(OperatorConfig):
    """There is nothing to configure."""


class DeadLetterCopies(Source):
    """Reads the letters of one pipeline by id, until it is told that no more will come.

    A letter that fails again later keeps its id and is not copied again.
    """

    Config = CopiesConfig

    def __init__(self, context: OperatorContext, box: LetterBox) -> None:
        super().__init__(CopiesConfig(), context)
        self._box = box

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`."""
        held = [fence[COPIED].offset for fence in fences if COPIED in fence]
        at = min(held) if len(held) == len(fences) else 0
        while True:
            last_look, arrivals = drain.is_set(), self._box.arrivals
            found = await self._box.ask(self._box.store.newer_than, self.context.pipeline, at, COPIES_PER_BATCH)
            if found:
                end = found[-1].id
                data = await self.context.in_thread(copies, found)
                await out.send(data, (Span(COPIED, at, end),), Tally(read=len(found)), raw_bytes=0)
                at = end
            elif last_look:
                return
            else:
                await _first_of(drain.wait, partial(self._box.arrival, arrivals))


async def _first_of(*waits: Callable[[], Awaitable[None]]) -> None:
    """Wait until one of `waits` is over."""

    async def until(wait: Callable[[], Awaitable[None]]) -> None:
        await wait()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for wait in waits:
            nursery.start_soon(until, wait)


def copies(letters: Sequence[StoredLetter]) -> pa.RecordBatch:
    """Letters as rows. Blocking."""
    return pa.RecordBatch.from_pylist([_copy(letter) for letter in letters], SCHEMA)


def _copy(stored: StoredLetter) -> dict[str, object]:
    letter, key = stored.letter, stored.letter.key
    return {
        "id": stored.id,
        "pipeline": key.pipeline,
        "stage": key.stage,
        "source": key.partition.source,
        "partition": key.partition.name,
        "offset": key.offset,
        "part": key.part,
        "code": letter.code,
        "message": letter.message,
        "attempts": letter.attempts,
        "failed_at": stored.last_micros,
        "raw": letter.raw,
        "row": None if letter.row is None else row_text(letter.row),
    }


def row_text(content: bytes) -> str:
    """A letter's row as JSON text."""
    row = row_of(content)
    if row.num_columns == 0:
        return json.dumps({})
    return str(to_text(pa.StructArray.from_arrays(row.columns, names=row.schema.names))[0])
