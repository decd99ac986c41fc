"""A world of flaws that come and go, and runs, replays and edits in it that may be cut short."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import pyarrow as pa
import trio

from conveyord.core.errors import BatchError, RecordError, Refused
from conveyord.core.flow.dead_letters import DeadLetter
from conveyord.core.flow.positions import Positions
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine import local_run
from conveyord.engine.batch_transform import BatchTransform, rejections
from conveyord.engine.contracts import Inbound
from conveyord.engine.dead_lettering import row_bytes, row_of
from conveyord.engine.messages import Batch, Message
from conveyord.engine.poison import Poison, Salvaged
from conveyord.engine.preparation import Limits
from conveyord.engine.registry import Registry
from conveyord.engine.replay import ReplayReport, replay
from conveyord.storage.dead_letters.index import DIRECTORY
from conveyord.storage.dead_letters.letters import Selection, StoredLetter
from conveyord.storage.dead_letters.segments import segment_path
from tests.engine.graph_rig import (
    GIGABYTE,
    RECORD_BYTES,
    RIG,
    SCHEMA,
    Keep,
    KeepConfig,
    RepeatConfig,
    RigRegistry,
    RowsSource,
    World,
    fast_clock,
    numbered,
    raw_of,
)
from tests.storage.dead_letters_rig import opened

ROWS, PARTS = 14, 3
COPIES = "rejected"
"""What a `dlq.sink` is called, and where it keeps its copies."""
EVERY_ROW = [(n, i) for n in range(ROWS) for i in range(PARTS)]
HASTE = 0.1  # of the delays that other tests have: an example consists of up to ten runs


@dataclass
class Flawed(World):
    """A world in which definitions can be mended and broken: what fails for ever is decided here, by stage."""

    bad: dict[str, set[Any]] = field(default_factory=dict)

    def registry(self) -> Registry:
        own = {
            ("source", "rows"): Readable,
            ("transform", "fussy"): Fussy,
            ("transform", "split"): Split,
            ("sink", "picky"): Picky,
        }
        made = {f"{k}.{n}": type(o.__name__, (o,), {"world": self}) for (k, n), o in {**RIG, **own}.items()}
        return RigRegistry(super().registry().by_name, made)


class Readable(RowsSource):
    """Its letters can be read once more. A record is bad if the world says so."""

    world: ClassVar[Flawed]

    async def _send(self, out: Any, partition: Any, rows: list[Any], at: int, end: int) -> None:
        bad = self.world.bad.get("in", set())
        marked = [{**row, "bad": row["n"] in bad} for row in rows]
        await super()._send(out, partition, marked, at, end)

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:
        rows = [json.loads(raw)] if raw != b"[]" else []
        if rows and rows[0]["n"] in self.world.bad.get("in", set()):
            raise RecordError("the record", "bad")
        return pa.RecordBatch.from_pylist(rows, SCHEMA)


class Split(BatchTransform):
    """Makes rows of each, told apart by `i`. Every other row of the source gets a column more."""

    Config = RepeatConfig
    pure = True

    def row_wise(self, data: pa.RecordBatch) -> bool:
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        rows = data.take(pa.array([row for row in range(data.num_rows) for _ in range(PARTS)], pa.int64()))
        return rows.append_column("i", pa.array(list(range(PARTS)) * data.num_rows, pa.int64()))


class Fussy(BatchTransform):
    """Fails on the rows that the world names for its stage: by `n`, or by `(n, i)` where there is an `i`."""

    Config = RepeatConfig
    pure = True
    world: ClassVar[Flawed]

    def row_wise(self, data: pa.RecordBatch) -> bool:
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        bad = self.world.bad.get(self.context.stage, set())
        for row in data.to_pylist():
            if _is_among(row, bad):
                raise BatchError(f"{self.context.stage} does not like {row['n']}")
        return data


class PickyConfig(KeepConfig):
    """What it keeps is found under `place`, by which it is known whatever the stage is called."""

    place: str


class Picky(Keep):
    """Refuses the rows that the world names for its place."""

    Config = PickyConfig
    world: ClassVar[Flawed]

    @property
    def destination(self) -> str:
        return f"place {self.config.place}"

    async def open(self) -> Positions:
        self._taken, self._rows, self._commits = [], 0, 0
        self._key = (self.context.pipeline, self.config.place)
        self._kept = self.world.kept(*self._key)
        return self._kept.positions

    async def run(self, inbound: Inbound) -> None:
        async with aclosing(self._taken_of(inbound)) as messages:
            await super().run(messages)  # type: ignore[arg-type]

    async def _taken_of(self, inbound: Inbound) -> AsyncGenerator[Message, None]:
        bad = self.world.bad.get(self.config.place, set())
        async for message in inbound:
            if isinstance(message, Batch) and bad:
                rows = message.data.to_pylist()
                refused = [number for number, row in enumerate(rows) if _is_among(row, bad)]
                yield await self._without(message, refused) if refused else message
            else:
                yield message

    async def _without(self, batch: Batch, refused: list[int]) -> Batch:
        poison = [Poison(number, BatchError(f"{self.config.place} refuses it")) for number in refused]
        assert self.context.dead_letters is not None
        await self.context.dead_letters.put(await rejections(self.context, batch, Salvaged([], poison)))
        others = [number for number in range(batch.data.num_rows) if number not in refused]
        data = batch.data.take(pa.array(others, pa.int64()))
        return batch.with_data(data, dead=len(refused), stage=self.context.stage)


def _is_among(row: dict[str, Any], bad: set[Any]) -> bool:
    return row["n"] in bad or (row["n"], row.get("i")) in bad


def arrived(world: World, pipe: str = "default/p") -> dict[str, Counter[Any]]:
    """What is in each sink, by `(n, i)`; of those only that keep rows of the source."""
    return {
        name: Counter((row["n"], row.get("i")) for row in kept.rows)
        for (owner, name), kept in world.sinks.items()
        if owner == pipe and name != COPIES
    }


class Cut:
    """Stands in for a world's delays: after so many of them something happens, as if a signal had come."""

    def __init__(self, pauses: int | None, signal: Callable[[], None], seed: int) -> None:
        self._left, self._signal, self._random = pauses, signal, Random(seed)

    def choice(self, options: list[float]) -> float:
        if self._left is not None:
            self._left -= 1
            if self._left < 0:
                self._signal()
        return self._random.choice(options) * HASTE


def request_of(world: World, pipelines: tuple[Pipeline, ...], data_dir: Path) -> local_run.RunRequest:
    return local_run.RunRequest(pipelines, data_dir, 1, 2, Limits(GIGABYTE, None, GIGABYTE))


Work = Callable[[trio.Event], Awaitable[Any]]


def acted(world: Flawed, work: Work, *, pauses: int | None = None, drains: bool = False, seed: int = 0) -> Any:
    """Do `work`, which is given what tells it to drain.

    pauses: after so many it is cut short. drains: then it is told to drain; else it ends at once, as if killed.
    """

    async def main() -> Any:
        drain = trio.Event()
        with trio.CancelScope() as scope:
            world.delays = Cut(pauses, drain.set if drains else scope.cancel, seed)  # type: ignore[assignment]
            return await work(drain)

    return trio.run(main, clock=fast_clock())


def run(world: Flawed, data_dir: Path, *pipelines: Pipeline, **cut: Any) -> Any:
    request = request_of(world, pipelines, data_dir)

    async def work(drain: trio.Event) -> Any:
        progress = local_run.progress_of(request, world.registry())
        return await local_run.run_pipelines(request, world.registry(), drain=drain, progress=progress)

    return acted(world, work, **cut)


def replayed(
    world: Flawed, data_dir: Path, pipe: Pipeline, selection: Selection | None = None, **cut: Any
) -> ReplayReport | None:
    request = request_of(world, (pipe,), data_dir)

    async def work(drain: trio.Event) -> ReplayReport:
        chosen = Selection() if selection is None else selection
        (report,) = await replay(request, world.registry(), chosen, drain=drain)
        return report

    return acted(world, work, **cut)


def edited(data_dir: Path, value: int, wanted: Callable[[StoredLetter], bool]) -> None:
    """Somebody gives those of the dead letters that are `wanted` another `v`, unless that is refused.

    A damaged one of the source is typed anew for that.
    """
    with opened(data_dir) as store:
        for stored in list(store.select()):
            if wanted(stored) and (change := _changed(stored.letter, value)):
                with suppress(Refused):  # it may be in a table already
                    store.edit(stored.id, **change)


def _changed(letter: DeadLetter, value: int) -> dict[str, bytes]:
    if letter.row is None and letter.key.stage == letter.key.partition.source:
        (record,) = numbered(letter.key.offset // RECORD_BYTES + 1)[-1:]
        return {"raw": raw_of({**record, "v": value})}
    if letter.row is None:
        return {}
    row = row_of(letter.row)
    at = row.schema.names.index("v")
    return {"row": row_bytes(row.set_column(at, row.schema.field(at), pa.array([value], pa.int64())))}


Bytes = frozenset[tuple[Path, int]]


def bytes_of(data_dir: Path, wanted: Callable[[StoredLetter], bool]) -> Bytes:
    """Where one byte of what each letter holds stands, for those that are `wanted`."""
    with opened(data_dir) as store:
        places = {letter: at for letter, *at in store._fetch(PLACES, {})}
        found = [places[stored.id] for stored in store.select(payloads=False) if wanted(stored)]
    return frozenset((segment_path(data_dir / DIRECTORY, segment), end - 1) for segment, end in found)


PLACES = "SELECT id, segment, position + length FROM letters"


def flip(some: Bytes) -> None:
    """Damage what has these bytes, or mend it again. Where a file is gone, nobody lacks it."""
    for path, at in some:
        if path.is_file():
            content = bytearray(path.read_bytes())
            content[at] ^= 0xFF
            path.write_bytes(content)


def counts(report: ReplayReport) -> tuple[int, int, int, int]:
    assert report.error is None, report.error
    return report.replayed, report.failed_again, report.waiting, report.unusable
