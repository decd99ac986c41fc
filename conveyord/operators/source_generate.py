"""Source `generate`: made-up rows, to try pipelines with and to measure them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import structlog
import trio
from pydantic import Field

from conveyord.core.errors import RecordError, Refused
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Rejected, Source
from conveyord.engine.generating.declared import DeclaredColumn
from conveyord.engine.generating.draws import Numbers
from conveyord.engine.generating.generator import Generated, Generator, Spoiled
from conveyord.engine.generating.shapes import SHAPES
from conveyord.engine.ordered import ordered_map
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.provenance import with_provenance

log = structlog.get_logger(__name__)

VERSION = "1"  # of what rows look like; positions taken under another one are refused
BATCH_BYTES = 8 * 1024 * 1024  # as much as file sources decode at a time
BATCH_ROWS_MAX = 65_536
BATCHES_PER_SECOND = 10  # of a source whose pace is limited, so that rows do not come by the minute
LAG_SECONDS_MAX = 1.0  # how far a limited pace may be caught up with after the pipeline was full


class GenerateConfig(OperatorConfig):
    """Makes rows up: always the same for the same seed, wherever a run goes on.

    A row follows from `seed` and its number alone, so `rows`, `partitions`, `batch_rows` and the pace change
    nothing in it. Sinks that keep positions go on where they were; with other options that decide what the rows
    are (`seed`, `shape`, `columns`, `broken_share`, `partitions`) their positions are refused.
    """

    rows: int | None = Field(default=None, ge=0, description="How many rows there are in all; none: endless.")
    seed: int = Field(default=1, description="Another seed gives other rows.")
    shape: Literal["trips", "events", "metrics", "wide"] = Field(
        default="trips",
        description="What rows look like: `trips` are flat with one nested object and a time, `events` nested with "
        "lists of objects, `metrics` four numbers, `wide` 200 columns of all kinds.",
    )
    columns: dict[str, DeclaredColumn] = Field(
        default_factory=dict,
        description="Columns of your own instead of a shape, by name. Each has a `type` and options that depend on it: "
        "`row_number` (min), `long` (min, max, distinct, values), `double` (the same, and digits), `string` (length, "
        "prefix, distinct, values), `boolean` (true_share), `timestamp` (min, max, distinct, or every: a duration "
        "between rows), `date` (min, max, distinct); and `null_share`.",
        examples=[{"id": {"type": "row_number"}, "city": {"type": "string", "distinct": 500, "null_share": 0.1}}],
    )
    rows_per_second: float | None = Field(
        default=None, gt=0.0, le=1e9, description="At most so many rows a second; none: as fast as can be."
    )
    partitions: int = Field(
        default=1, ge=1, le=1024, description="Rows are dealt out to so many partitions, one each in turn."
    )
    batch_rows: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="Rows in one batch, at most; none: what makes about 8 MiB, at most 65,536.",
    )
    broken_share: float = Field(
        default=0.0,
        ge=0.0,
        le=1.0,
        description="About this share of the records is bad: JSON that is cut, is no object, is not UTF-8, or has a "
        "key twice.",
    )


@dataclass(frozen=True, slots=True)
class _Job:
    """Rows `[first, end)` of one partition."""

    partition: Partition
    index: int
    first: int
    end: int


class GenerateSource(Source):
    """See docs/operators.md. Row `offset` of partition `p` is the row with number `offset * partitions + p`."""

    Config = GenerateConfig
    pure = True
    unit = "rows"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        options: GenerateConfig = self.config
        declared = {name: column.column() for name, column in options.columns.items()}
        self._generator = Generator(declared or SHAPES[options.shape], options.seed, options.broken_share)
        self._mark = _mark(options)

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, GenerateConfig)
        if config.columns and "shape" in config.model_fields_set:
            return {"columns": "these would replace the shape; leave out one of shape and columns"}
        return {}

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`. Partitions take turns, a batch each."""
        self._recognise(fences)
        row_bytes = await self.context.in_thread(self._generator.row_bytes)
        lanes = self._lanes(fences, self._batch_rows(row_bytes))
        if self.config.rows is not None:
            out.expects(row_bytes * max(0, self.config.rows - sum(lane.first for lane in lanes)))

        async def generate(job: _Job) -> Generated:
            return await self.context.in_thread(self._generate, job)

        jobs = self._jobs(lanes, drain)
        async with ordered_map(jobs, generate, width=int(self.context.threads.total_tokens) + 1) as results:
            async for job, generated in results:
                await self._send(out, job, generated, row_bytes)

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:  # noqa: ARG002 - columns never change
        """See `Source.decode`."""
        return self._generator.decode(raw)

    def _recognise(self, fences: tuple[Positions, ...]) -> None:
        """Refuse positions in rows other than these."""
        for fence in fences:
            for name, position in fence.of_source(self.context.stage).items():
                if position.mark != self._mark:
                    raise Refused(
                        f"stage {self.context.stage!r}: position {position.offset} of partition {name} was taken in "
                        "other rows than these options make; restore seed, shape, columns, broken_share and "
                        "partitions, or load into another table under another name of the pipeline"
                    )

    def _batch_rows(self, row_bytes: int) -> int:
        rows = self.config.batch_rows or max(1, min(BATCH_ROWS_MAX, BATCH_BYTES // row_bytes))
        pace = self.config.rows_per_second
        return int(rows if pace is None else max(1, min(rows, pace // BATCHES_PER_SECOND)))

    def _lanes(self, fences: tuple[Positions, ...], batch_rows: int) -> list[_Lane]:
        lanes = []
        for index in range(self.config.partitions):
            partition = Partition(self.context.stage, str(index))
            held = [fence[partition].offset if partition in fence else 0 for fence in fences]
            end = None if self.config.rows is None else -(-(self.config.rows - index) // self.config.partitions)
            lanes.append(_Lane(partition, index, min(held, default=0), end, tuple(sorted(set(held))), batch_rows))
        return lanes

    async def _jobs(self, lanes: Sequence[_Lane], drain: trio.Event) -> AsyncGenerator[_Job, None]:
        pace = self.config.rows_per_second
        due = trio.current_time()
        while not drain.is_set():
            jobs = [job for lane in lanes if (job := lane.next_job()) is not None]
            if not jobs:
                return
            for job in jobs:
                if drain.is_set():
                    return
                if pace is not None:
                    with trio.move_on_at(due):
                        await drain.wait()
                        return
                    due = max(due, trio.current_time() - LAG_SECONDS_MAX) + (job.end - job.first) / pace
                yield job

    def _generate(self, job: _Job) -> Generated:
        """Blocking."""
        numbers = np.arange(job.first, job.end, dtype=np.uint64)
        numbers *= np.uint64(self.config.partitions)
        numbers += np.uint64(job.index)
        return self._generator.generate(numbers)

    async def _send(self, out: Outlet, job: _Job, generated: Generated, row_bytes: int) -> None:
        """Send the rows of one job; at a bad record, stop behind the rows before it, or count it."""
        data, numbers, bad, end = generated.data, generated.numbers, generated.spoiled, job.end
        letters, error = self.context.dead_letters, None
        dead = skipped = 0
        if bad and letters is not None:
            await letters.put([self._rejected(job, record) for record in bad])
            dead = len(bad)
        elif bad and self.context.skip_bad:
            first = self._error(job, bad[0])
            log.warning("passing over bad records", count=len(bad), first=first.place, reason=first.reason)
            skipped = len(bad)
        elif bad:
            error, end = self._error(job, bad[0]), self._offset(bad[0].number)
            kept = int(np.searchsorted(numbers, bad[0].number))
            data, numbers = data.slice(0, kept), numbers[:kept]
        if self.context.provenance:
            offsets = pa.array((numbers // np.uint64(self.config.partitions)).view(np.int64))
            data = with_provenance(data, job.partition, offsets)
        if end > job.first:
            span = Span(job.partition, job.first, end, self._mark)
            tally = Tally(read=data.num_rows + dead + skipped, skipped=skipped, dead=dead)
            place_of = None if letters is None else self._records(job, numbers)
            await out.send(data, (span,), tally, raw_bytes=row_bytes * (end - job.first), place_of=place_of)
        if error is not None:
            raise error

    def _records(self, job: _Job, numbers: Numbers) -> _Records:
        return _Records(self._generator, job.partition, numbers, self.config.partitions)

    def _offset(self, number: int) -> int:
        return number // int(self.config.partitions)

    def _rejected(self, job: _Job, record: Spoiled) -> Rejected:
        place = Place(RecordRef(job.partition, self._offset(record.number), record.raw))
        return Rejected(place, self._error(job, record))

    def _error(self, job: _Job, record: Spoiled) -> RecordError:
        where = f"{self.context.stage} (row {self._offset(record.number)} of partition {job.partition.name})"
        return RecordError(where, record.reason, code=record.code)


@dataclass(slots=True)
class _Lane:
    """What is left of one partition. end: None if it has none. cuts: offsets at which a batch must end, ascending."""

    partition: Partition
    index: int
    first: int
    end: int | None
    cuts: tuple[int, ...]
    batch_rows: int

    def next_job(self) -> _Job | None:
        """The next rows, and move on behind them; None at the end."""
        first, end = self.first, self.first + self.batch_rows
        limits = [cut for cut in self.cuts if cut > first] + ([] if self.end is None else [self.end])
        end = min([end, *limits])
        if end <= first:
            return None
        self.first = end
        return _Job(self.partition, self.index, first, end)


@dataclass(frozen=True, slots=True)
class _Records:
    """Which records the rows of one batch are. Their bytes are made when they are asked for."""

    generator: Generator
    partition: Partition
    numbers: Numbers
    partitions: int

    def __call__(self, row: int) -> Place:
        """The place of row `row` of the batch. Blocking."""
        number = int(self.numbers[row])
        return Place(RecordRef(self.partition, number // self.partitions, self.generator.record(number)))


def _mark(options: GenerateConfig) -> str:
    """Tells rows apart from those of other options."""
    deciding = {"seed", "columns", "broken_share", "partitions"} | (set() if options.columns else {"shape"})
    text = json.dumps([VERSION, options.model_dump(mode="json", include=deciding)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
