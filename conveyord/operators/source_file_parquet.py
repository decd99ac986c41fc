"""Source `file_parquet`: the rows of Parquet files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import structlog
import trio
from pydantic import Field

from conveyord.core.errors import ConfigError, RecordError
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Rejected, Source
from conveyord.engine.ordered import ordered_map
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.provenance import with_provenance
from conveyord.engine.schema import fit, grow
from conveyord.engine.schema_memory import remembered_schema, schema_to_remember
from conveyord.storage.files import discover
from conveyord.storage.parquet_files import ParquetReader, Piece, rows_of_mark

log = structlog.get_logger(__name__)


class FileParquetConfig(OperatorConfig):
    """Reads the rows of Parquet files. Files whose columns differ become rows of one widening schema.

    Types are those a table has: unsigned numbers become signed ones, nanoseconds microseconds; a value that this
    would change goes to a sibling column instead. INT96 times are read to the microsecond. Damage costs the rest of
    its row group: the run stops there, or with `--skip-bad` counts those rows as skipped. Encrypted files are
    refused.
    """

    path: str = Field(
        description="A file or a glob (`**` crosses folders), relative to the working directory.",
        examples=["data/*.parquet"],
    )
    columns: tuple[str, ...] = Field(
        default=(),
        description="Read only these top-level columns; none given: all. The first file must have each of them, in "
        "another it may be missing and is null.",
    )
    batch_rows: int = Field(
        default=65_536, ge=1, le=10_000_000, description="Rows in one batch, at most; fewer where 8 MiB are reached."
    )


@dataclass(frozen=True, slots=True)
class _File:
    """What must be known of the file that a piece is of. size_bytes and rows: of all of it."""

    path: Path
    partition: Partition
    mark: str
    size_bytes: int
    rows: int

    def bytes_before(self, row: int) -> int:
        """The share of the file's bytes that its first rows take, so that all of them come to its size."""
        return self.size_bytes * row // self.rows if self.rows else 0


@dataclass(frozen=True, slots=True)
class _Job:
    """One piece and the schema it is first fitted to."""

    file: _File
    piece: Piece
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class _Fitted:
    """The good rows of a piece under `schema`, which they may have grown; as they were; and the bad ones."""

    data: pa.RecordBatch
    schema: pa.Schema
    raw: pa.RecordBatch
    rows: pa.Int64Array
    bad: tuple[tuple[int, RecordError], ...] = ()


class FileParquetSource(Source):
    """See docs/operators.md."""

    Config = FileParquetConfig
    pure = True
    unit = "rows"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._schema = pa.schema([])
        self._stored: tuple[pa.Schema, str] | None = None

    async def check(self) -> None:
        """See `Operator.check`: the files are there, and the first of them can be understood."""
        paths = await self.context.in_thread(discover, self.config.path)
        await self.context.in_thread(self._check_columns, paths[0])

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`. Files are read one after the other in the order of their paths."""
        paths = await self.context.in_thread(discover, self.config.path)
        await self.context.in_thread(self._check_columns, paths[0])
        remembered = remembered_schema(self.config, [fence.states.get(self.context.stage) for fence in fences])
        self._schema = pa.schema([]) if remembered is None else remembered
        out.expects(await self.context.in_thread(self._bytes_left, paths, fences))
        jobs = self._jobs(paths, fences, drain)

        async def fitted(job: _Job) -> _Fitted:
            return await self.context.in_thread(_fitted, job)

        async with ordered_map(jobs, fitted, width=int(self.context.threads.total_tokens) + 1) as results:
            async for job, result in results:
                await self._emit(out, job, await self._current(job, result))

    async def _jobs(
        self, paths: list[Path], fences: tuple[Positions, ...], drain: trio.Event
    ) -> AsyncGenerator[_Job, None]:
        for path in paths:
            if drain.is_set():
                return
            partition, start, cuts = self._places(path, fences)
            try:
                reader = await self.context.in_thread(self._open, path, start, cuts)
            except RecordError as error:
                if not self.context.skip_bad:
                    raise
                at, mark = (start.offset, start.mark) if start else (0, "")
                yield _Job(_File(path, partition, mark, 0, 0), Piece(at, at, None, error), self._schema)
                continue
            try:
                file = _File(path, partition, reader.mark, reader.size_bytes, reader.rows)
                pieces = reader.pieces()
                while not drain.is_set() and (piece := await self.context.in_thread(next, pieces, None)) is not None:
                    yield _Job(file, piece, self._schema)
            finally:
                reader.close()

    def _places(self, path: Path, fences: tuple[Positions, ...]) -> tuple[Partition, Position | None, tuple[int, ...]]:
        """What a file is called in positions, from where it is read, and where pieces of it must end."""
        partition = Partition(self.context.stage, str(path))
        held = [fence.get(partition) for fence in fences]
        known = [position for position in held if position is not None]
        start = min(known, key=lambda position: position.offset) if known and None not in held else None
        return partition, start, tuple(position.offset for position in known)

    def _open(self, path: Path, start: Position | None = None, cuts: tuple[int, ...] = ()) -> ParquetReader:
        """Blocking."""
        columns = self.config.columns or None
        return ParquetReader(path, position=start, columns=columns, batch_rows=self.config.batch_rows, cuts=cuts)

    def _check_columns(self, path: Path) -> None:
        """Refuse a column that the first file lacks. Blocking. A damaged file is told of when it is read."""
        try:
            reader = self._open(path)
        except RecordError:
            return
        names = reader.names
        reader.close()
        for name in self.config.columns:
            if name not in names:
                close = get_close_matches(name, names, n=1)
                remedy = f"did you mean {close[0]!r}?" if close else f"its columns are {', '.join(names)}"
                raise ConfigError(f"stage {self.context.stage!r}: columns names {name!r}, which {path} lacks; {remedy}")

    async def _current(self, job: _Job, fitted: _Fitted) -> _Fitted:
        """`fitted` under the newest schema of this source, which it may grow."""
        if not fitted.schema.equals(job.schema):
            if job.schema is not self._schema:
                fitted = await self.context.in_thread(_grown, job.file, fitted, self._schema)
            self._schema = fitted.schema
        elif job.schema is not self._schema:
            data = await self.context.in_thread(fit, fitted.raw, self._schema)
            fitted = _Fitted(data, self._schema, fitted.raw, fitted.rows, fitted.bad)
        return fitted

    async def _emit(self, out: Outlet, job: _Job, fitted: _Fitted) -> None:
        """Send the rows of one piece; at a bad one, stop behind the rows before it or count it."""
        file, piece, end, data, rows = job.file, job.piece, job.piece.end, fitted.data, fitted.rows
        letters, skip_bad, error = self.context.dead_letters, self.context.skip_bad, piece.damage
        dead = skipped = 0
        if error is not None and skip_bad:
            log.warning("passing over rows of a file", place=error.place, code=error.code, reason=error.reason)
            # What cannot even be opened counts as one record.
            error, skipped = None, max(1, piece.end - piece.first)
        elif error is not None:
            end = piece.first
        elif fitted.bad and letters is not None:
            refs = [(RecordRef(file.partition, row), bad) for row, bad in fitted.bad]
            await letters.put([Rejected(Place(ref), bad) for ref, bad in refs])
            dead = len(refs)
        elif fitted.bad and skip_bad:
            for _, bad in fitted.bad:
                log.warning("passing over a bad record", place=bad.place, code=bad.code, reason=bad.reason)
            skipped = len(fitted.bad)
        elif fitted.bad:
            end, error = fitted.bad[0]
            data = data.slice(0, end - piece.first)
        rows = rows.slice(0, data.num_rows)
        if self.context.provenance:
            data = with_provenance(data, file.partition, rows)
        if end > piece.first or skipped:
            span = Span(file.partition, piece.first, end, file.mark)
            tally = Tally(read=data.num_rows + dead + skipped, skipped=skipped, dead=dead)
            raw_bytes = file.bytes_before(end) - file.bytes_before(piece.first)
            states = {self.context.stage: self._state()}
            place_of = None if letters is None else _Records(file.partition, rows)
            await out.send(data, (span,), tally, raw_bytes=raw_bytes, states=states, place_of=place_of)
        if error is not None:
            raise error

    def _state(self) -> str:
        """The present schema as text, made anew only when it has grown."""
        if self._stored is None or self._stored[0] is not self._schema:
            self._stored = (self._schema, schema_to_remember(self.config, self._schema))
        return self._stored[1]

    def _bytes_left(self, paths: list[Path], fences: tuple[Positions, ...]) -> int:
        """Bytes there are to read, those of rows that were read left out. Blocking."""
        left = 0
        for path in paths:
            size, partition = path.stat().st_size, Partition(self.context.stage, str(path))
            held = [fence[partition] for fence in fences if partition in fence]
            if len(held) == len(fences) and (rows := rows_of_mark(held[0].mark)):
                size -= size * min(position.offset for position in held) // rows
            left += size
        return left


@dataclass(frozen=True, slots=True)
class _Records:
    """Which rows of a file the rows of one batch are. There are no bytes of one row by itself."""

    partition: Partition
    rows: pa.Int64Array

    def __call__(self, row: int) -> Place:
        """The place of row `row` of the batch."""
        return Place(RecordRef(self.partition, self.rows[row].as_py()))


def _fitted(job: _Job) -> _Fitted:
    """The rows of a piece under its schema, grown by what it lacks. Blocking."""
    data, first = job.piece.data, job.piece.first
    if data is None:
        nothing = pa.RecordBatch.from_pylist([], job.schema)
        return _Fitted(nothing, job.schema, nothing, pa.array([], pa.int64()))
    rows = np.arange(first, first + data.num_rows, dtype=np.int64)
    invalid = tuple(_invalid(data))
    if invalid:
        keep = np.ones(data.num_rows, np.bool_)
        keep[[row for row, _ in invalid]] = False
        data, rows = data.filter(pa.array(keep)), rows[keep]
    bad = tuple((first + row, _error(job.file, first + row, reason)) for row, reason in invalid)
    return _grown(job.file, _Fitted(data, job.schema, data, pa.array(rows), bad), job.schema)


def _grown(file: _File, fitted: _Fitted, schema: pa.Schema) -> _Fitted:
    try:
        schema, data = grow(schema, fitted.raw)
    except ConfigError as error:
        raise ConfigError(f"{file.path}: {error}") from error
    return _Fitted(data, schema, fitted.raw, fitted.rows, fitted.bad)


def _invalid(data: pa.RecordBatch, first: int = 0) -> Iterator[tuple[int, str]]:
    """Rows with values that no reader may be given, such as text that is not UTF-8, and what is wrong."""
    try:
        data.validate(full=True)
    except pa.ArrowInvalid as error:
        if data.num_rows == 1:
            yield first, str(error)
            return
        half = data.num_rows // 2
        yield from _invalid(data.slice(0, half), first)
        yield from _invalid(data.slice(half), first + half)


def _error(file: _File, row: int, reason: str) -> RecordError:
    code = "INVALID_UTF8" if "UTF8" in reason else "MALFORMED_RECORD"
    return RecordError(f"{file.path} (row {row})", reason, code=code)
