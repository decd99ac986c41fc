"""Reads files through a `BlockDecoder`: blocks decoded in parallel, batches sent in order.

Order and repeatability are what exactly-once rests on, so nothing here depends on which thread was
faster: a block is decoded under the schema known when it was drawn; if an earlier block grew the
schema meanwhile and this one grew it too, it is decoded again under the grown one. The schema as it
stood is stored with the positions, so that a restart types every column as an uninterrupted run would.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Generic, Literal, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import structlog
import trio
from pydantic import Field

from conveyord.core.errors import ConfigError, RecordError
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Outlet, Rejected, Source
from conveyord.engine.decoding import SAMPLE_BYTES, BadRecord, BlockDecoder, Decoded
from conveyord.engine.ordered import ordered_map
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.provenance import with_provenance
from conveyord.engine.schema import fit, merge
from conveyord.engine.schema_memory import remembered_schema, schema_to_remember
from conveyord.storage.files import COMPRESSED_SUFFIXES, Block, BlockReader, discover, head_of, line_number
from conveyord.storage.following import Folder, Followed

log = structlog.get_logger(__name__)

HEAD_BYTES = 1024 * 1024  # a header (a byte order mark, the names of the columns) must end within this

Layout = TypeVar("Layout")


class FileSourceConfig(OperatorConfig):
    """What every file source takes."""

    path: str = Field(
        description="A file or a glob (`**` crosses folders), relative to the working directory.",
        examples=["data/*"],
    )
    block_bytes: Bytes = Field(
        default=8 * 1024 * 1024, ge=64 * 1024, le=256 * 1024 * 1024, description="Bytes decoded at a time."
    )
    batch_rows: int = Field(default=65_536, ge=1, le=10_000_000, description="Rows in one batch, at most.")
    max_record_bytes: Bytes = Field(
        default=16 * 1024 * 1024, ge=1024, le=1024**3, description="A longer record is a bad record."
    )
    follow: bool = Field(
        default=False,
        description="Go on for ever: wait for files to grow and for new ones. Only whole lines are read; one without "
        "its line end stays for later. A file that is renamed is known again by its inode, if `path` matches its new "
        "name too. Compressed files are read as they are found, so move them there when they are whole.",
    )
    poll_every: Seconds = Field(default=1.0, ge=0.01, le=3600.0, description="With `follow`: how often to look.")
    on_replaced: Literal["fail", "restart"] = Field(
        default="fail",
        description="With `follow`, what to do about a file that was truncated, or replaced under its name: `fail`, or "
        "`restart`, which reads the new content from its start. What was written to the old file since the last look "
        "is lost then, unless `path` matches it under its new name.",
    )


@dataclass(frozen=True, slots=True)
class _File(Generic[Layout]):
    """One file to read from where it was left."""

    path: Path
    partition: Partition
    layout: Layout
    reader: BlockReader
    header: bytes
    """What stands before the first record; with it a record can be read by itself."""


@dataclass(frozen=True, slots=True)
class _Job(Generic[Layout]):
    """One block and the schema it is first decoded under, or the damage that ends a file."""

    file: _File[Layout]
    block: Block
    schema: pa.Schema
    damage: RecordError | None = None


class FileSource(Source, Generic[Layout]):
    """Base of the file sources. A subclass gives the decoder; everything else is the same for all formats."""

    pure = True
    unit = "bytes"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._schema = pa.schema([])
        self._stored: tuple[pa.Schema, str] | None = None

    async def check(self) -> None:
        """See `Operator.check`: the files are there and the first of them can be understood."""
        paths = await self.context.in_thread(discover, self.config.path)
        self._check_sampled(await self.context.in_thread(self._sample, self.decoder(), paths))

    @abstractmethod
    def decoder(self) -> BlockDecoder[Layout]:
        """The decoder for this source's configuration."""

    def check_schema(self, schema: pa.Schema) -> None:
        """Refuse a configuration that the sampled `schema` shows to be wrong, by ConfigError."""

    def _check_sampled(self, schema: pa.Schema) -> None:
        if schema.names or not self.config.follow:  # what is followed may not have begun yet
            self.check_schema(schema)

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`. Files are read one after the other in the order of their paths."""
        decoder = self.decoder()
        paths = await self.context.in_thread(discover, self.config.path)
        remembered = remembered_schema(self.config, [fence.states.get(self.context.stage) for fence in fences])
        self._schema = remembered or await self.context.in_thread(self._sample, decoder, paths)
        self._check_sampled(self._schema)
        if self.config.follow:
            jobs = self._jobs_for_ever(decoder, fences, drain)
        else:
            out.expects(await self.context.in_thread(self._bytes_left, paths, fences))
            jobs = self._jobs(decoder, paths, fences, drain)

        async def decode(job: _Job[Layout]) -> Decoded:
            return await self.context.in_thread(decoder.decode, job.block.data, job.schema, job.file.layout)

        async with ordered_map(jobs, decode, width=int(self.context.threads.total_tokens) + 1) as results:
            async for job, decoded in results:
                await self._emit(out, decoder, job, await self._current(decoder, job, decoded))

    def _sample(self, decoder: BlockDecoder[Layout], paths: list[Path]) -> pa.Schema:
        """The schema of the first `SAMPLE_BYTES` of the source. Blocking."""
        samples: list[tuple[Layout, bytearray]] = []
        left = SAMPLE_BYTES
        for path in paths:
            head = head_of(path, max(left, HEAD_BYTES))
            if self.config.follow and _has_just_begun(decoder, head):
                continue
            skip, layout = _begin(decoder, path, head)
            head = head[: max(left, skip)]
            is_cut = len(head) == left or self.config.follow  # a last line without its end may still grow
            whole = decoder.boundary(head) if is_cut else len(head)
            if not samples or samples[-1][0] != layout:
                samples.append((layout, bytearray()))
            samples[-1][1].extend(head[skip:whole])
            if not head.endswith(b"\n"):
                samples[-1][1].extend(b"\n")
            left -= len(head)
            if left <= 0:
                break
        schemas = [decoder.infer(bytes(sample), layout) for layout, sample in samples]
        return reduce(merge, schemas, pa.schema([]))

    async def _jobs(
        self,
        decoder: BlockDecoder[Layout],
        paths: list[Path],
        fences: tuple[Positions, ...],
        drain: trio.Event,
    ) -> AsyncGenerator[_Job[Layout], None]:
        for path in paths:
            partition = Partition(self.context.stage, str(path))
            held = [fence.get(partition) for fence in fences]
            file, blocks = await self.context.in_thread(self._open, decoder, path, partition, held)
            at = file.reader.start
            while not drain.is_set() and (job := await self._draw(file, blocks, at)) is not None:
                yield job
                at = job.block.end

    async def _jobs_for_ever(
        self, decoder: BlockDecoder[Layout], fences: tuple[Positions, ...], drain: trio.Event
    ) -> AsyncGenerator[_Job[Layout], None]:
        tips = [fence.of_source(self.context.stage) for fence in fences]
        folder = Folder(self.config.path, tips, restarts_replaced=self.config.on_replaced == "restart")
        read: dict[Partition, Position] = {}  # in this run; until then the fences say where to go on
        while not drain.is_set():
            for found in await self.context.in_thread(folder.look):
                if found.instead_of is not None:
                    offset = found.instead_of.offset
                    log.warning("reading what replaced a file", path=str(found.path), read_up_to=offset)
                partition = Partition(self.context.stage, found.name)
                held = [read[partition]] if partition in read else [fence.get(partition) for fence in fences]
                opened = await self.context.in_thread(self._open_followed, decoder, found, partition, held)
                if opened is None:
                    continue
                file, blocks = opened
                at = file.reader.start
                while not drain.is_set() and (job := await self._draw(file, blocks, at)) is not None:
                    at = job.block.end
                    read[partition] = Position(at, file.reader.mark(at))
                    folder.read_to(found.name, read[partition])
                    yield job
            with trio.move_on_after(self.config.poll_every):
                await drain.wait()

    async def _draw(self, file: _File[Layout], blocks: Iterator[Block], at: int) -> _Job[Layout] | None:
        """The next block of a file, which was drawn up to `at`; None at its end."""
        try:
            block = await self.context.in_thread(next, blocks, None)
        except RecordError as error:
            if not self.context.skip_bad:
                raise
            return _Job(file, Block(at, at, b"", at), self._schema, error)
        return None if block is None else _Job(file, block, self._schema)

    def _open(
        self,
        decoder: BlockDecoder[Layout],
        path: Path,
        partition: Partition,
        held: Sequence[Position | None],
        followed: Followed | None = None,
    ) -> tuple[_File[Layout], Iterator[Block]]:
        """Open one file at the lowest of the positions `held`. Blocking.

        Refused if it is not the file that was read before.
        """
        head = head_of(path, HEAD_BYTES)
        header_bytes, layout = _begin(decoder, path, head)
        known = [position for position in held if position is not None]
        start = min(known, key=lambda position: position.offset) if known and None not in held else None
        reader = BlockReader(
            path,
            position=start,
            header_bytes=header_bytes,
            boundary=decoder.boundary,
            block_bytes=self.config.block_bytes,
            record_bytes_max=self.config.max_record_bytes,
            cuts=tuple(position.offset for position in known),
            inode=None if followed is None else followed.inode,
            growing=followed is not None and not followed.compressed,
        )
        return _File(path, partition, layout, reader, head[:header_bytes]), reader.blocks()

    def _open_followed(
        self,
        decoder: BlockDecoder[Layout],
        followed: Followed,
        partition: Partition,
        held: Sequence[Position | None],
    ) -> tuple[_File[Layout], Iterator[Block]] | None:
        """Open one file; None if it has no whole record yet, or another file stands under its path by now. Blocking."""
        path = followed.path
        try:
            head = head_of(path, HEAD_BYTES)
            if not followed.compressed and _has_just_begun(decoder, head):
                return None
            file, blocks = self._open(decoder, path, partition, held, followed)
            if followed.compressed:
                return file, blocks
            first = next(blocks, None)  # opens the file, which keeps its inode from here on
            if path.stat().st_ino != followed.inode:
                return None
        except (ConfigError, FileNotFoundError):
            if path.exists():
                raise
            return None
        return file, itertools.chain(() if first is None else (first,), blocks)

    async def _current(self, decoder: BlockDecoder[Layout], job: _Job[Layout], decoded: Decoded) -> Decoded:
        """`decoded` under the newest schema of this source, which it may grow."""
        if decoded.schema is not job.schema and not decoded.schema.equals(job.schema):
            if job.schema is not self._schema:
                work = decoder.decode, job.block.data, self._schema, job.file.layout
                decoded = await self.context.in_thread(*work)
            self._schema = decoded.schema
        elif job.schema is not self._schema:
            decoded = Decoded(fit(decoded.data, self._schema), self._schema, decoded.bad)
        return decoded

    async def _emit(self, out: Outlet, decoder: BlockDecoder[Layout], job: _Job[Layout], decoded: Decoded) -> None:
        """Send the rows of one block; at a bad record, stop behind the rows before it or count it."""
        block, data, bad, end = job.block, decoded.data, decoded.bad, job.block.end
        letters = self.context.dead_letters
        goes_on = self.context.skip_bad or letters is not None
        if block.oversize:
            bad = (self._oversize(block),)
            goes_on = goes_on and decoder.lines_are_records  # else what follows may be the inside of a cell
        error = None
        if bad and not goes_on:
            error = await self.context.in_thread(self._error, job, bad[0])
            data, end, bad = data.slice(0, bad[0].row), block.data_first + bad[0].offset, ()
        if bad and letters is not None:
            await letters.put([self._rejected(job, record) for record in bad])
        elif bad:
            await self._pass_over(job, bad)
        index = _Index(decoder, block, bad)
        ends = [(data.num_rows, end)]
        if self.context.provenance or data.num_rows > self.config.batch_rows:
            starts = (await self.context.in_thread(index.starts)).slice(0, data.num_rows)
            offsets = pc.add(starts, pa.scalar(block.data_first, pa.int64()))
            if self.context.provenance:
                data = with_provenance(data, job.file.partition, offsets)
            inner = range(self.config.batch_rows, data.num_rows, self.config.batch_rows)
            ends = [*((row, offsets[row].as_py()) for row in inner), *ends]
        row, first = 0, block.first
        dead, skipped = (len(bad), 0) if letters is not None else (0, len(bad))
        if job.damage is not None:
            log.warning("passing over the rest of a file", place=job.damage.place, reason=job.damage.reason)
            skipped = 1
        states = {self.context.stage: self._state()}
        for row_end, end in ends:
            if end > first or skipped:
                span = Span(job.file.partition, first, end, job.file.reader.mark(end))
                tally = Tally(read=row_end - row + skipped + dead, skipped=skipped, dead=dead)
                rows = data.slice(row, row_end - row)
                place_of = None if letters is None else _Records(job.file, index, row)
                await out.send(rows, (span,), tally, raw_bytes=end - first, states=states, place_of=place_of)
            row, first, skipped, dead = row_end, end, 0, 0
        if error is not None:
            raise error

    async def _pass_over(self, job: _Job[Layout], bad: Sequence[BadRecord]) -> None:
        for record in bad:
            found = await self.context.in_thread(self._error, job, record)
            log.warning("passing over a bad record", place=found.place, code=found.code, reason=found.reason)

    def _rejected(self, job: _Job[Layout], bad: BadRecord) -> Rejected:
        """A bad record as it goes to the dead letters. One that is too large comes without its bytes."""
        offset = job.block.data_first + bad.offset
        raw = None if job.block.oversize else job.file.header + job.block.data[bad.offset : bad.offset + bad.length]
        place = Place(RecordRef(job.file.partition, offset, raw))
        return Rejected(place, RecordError(f"{job.file.path} (byte {offset})", bad.reason, code=bad.code))

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:
        """See `Source.decode`. Columns have the types of the last run, if that is known."""
        decoder = self.decoder()
        skip, layout = decoder.begin(raw)
        schema = remembered_schema(self.config, [state]) or decoder.infer(raw[skip:], layout)
        decoded = decoder.decode(raw[skip:], schema, layout)
        if decoded.bad:
            raise RecordError("the record", decoded.bad[0].reason, code=decoded.bad[0].code)
        return decoded.data

    def _oversize(self, block: Block) -> BadRecord:
        limit = self.config.max_record_bytes
        reason = f"the record is longer than max_record_bytes ({limit}); raise that option or mend the record"
        return BadRecord(0, block.end - block.first, 0, "RECORD_TOO_LARGE", reason)

    def _state(self) -> str:
        """The present schema as text, made anew only when it has grown."""
        if self._stored is None or self._stored[0] is not self._schema:
            self._stored = (self._schema, schema_to_remember(self.config, self._schema))
        return self._stored[1]

    def _bytes_left(self, paths: list[Path], fences: tuple[Positions, ...]) -> int | None:
        """Bytes there are to read, or None if some are compressed. Blocking."""
        if any(path.suffix in COMPRESSED_SUFFIXES for path in paths):
            return None
        partitions = [Partition(self.context.stage, str(path)) for path in paths]
        read = [min(fence[p].offset if p in fence else 0 for fence in fences) for p in partitions]
        return sum(path.stat().st_size for path in paths) - sum(read)

    def _error(self, job: _Job[Layout], bad: BadRecord) -> RecordError:
        """The error that names the place of a bad record: file, line and byte. Blocking."""
        offset = job.block.data_first + bad.offset
        line = line_number(job.file.path, offset)
        return RecordError(f"{job.file.path}:{line} (byte {offset})", bad.reason, code=bad.code)


class _Index(Generic[Layout]):
    """Where the records of the good rows of one block stand in it: worked out once, when first asked, then kept.

    Threads that ask at the same time may each work it out. They find the same, so none needs to wait.
    """

    def __init__(self, decoder: BlockDecoder[Layout], block: Block, bad: Sequence[BadRecord]) -> None:
        self._decoder = decoder
        self._block = block
        self._bad = bad
        self._found: tuple[pa.Int64Array, pa.Int64Array] | None = None

    def starts(self) -> pa.Int64Array:
        """By row, where its record starts in the block, in bytes. Blocking."""
        return self._bounds()[0]

    def record(self, row: int) -> tuple[int, bytes]:
        """Where the record of a row starts in the file, and its bytes without its line end. Blocking."""
        starts, ends = self._bounds()
        start = starts[row].as_py()
        record = self._block.data[start : ends[row].as_py()].rstrip(b"\r\n")  # as that of one that never became a row
        return self._block.data_first + start, record

    def _bounds(self) -> tuple[pa.Int64Array, pa.Int64Array]:
        if self._found is None:
            starts = self._decoder.starts(self._block.data)
            ends = pa.concat_arrays([starts.slice(1), pa.array([len(self._block.data)], pa.int64())])
            ends = ends.slice(0, len(starts))
            if self._bad:
                dropped = pa.array([record.offset for record in self._bad], pa.int64())
                is_good = pc.invert(pc.is_in(starts, dropped))
                starts, ends = starts.filter(is_good), ends.filter(is_good)
            self._found = starts, ends
        return self._found


@dataclass(frozen=True, slots=True)
class _Records(Generic[Layout]):
    """Which records the rows of one batch are: rows `first_row` and on of a block. Worked out only when asked."""

    file: _File[Layout]
    index: _Index[Layout]
    first_row: int

    def __call__(self, row: int) -> Place:
        """The place of row `row` of the batch. Blocking."""
        offset, record = self.index.record(self.first_row + row)
        return Place(RecordRef(self.file.partition, offset, self.file.header + record))


def _has_just_begun(decoder: BlockDecoder[Layout], head: bytes) -> bool:
    """Whether a file that is being written has no whole record yet, nor a whole header."""
    return len(head) < HEAD_BYTES and decoder.boundary(head) == 0


def _begin(decoder: BlockDecoder[Layout], path: Path, head: bytes) -> tuple[int, Layout]:
    """`decoder.begin`, with the file's name in what it raises."""
    try:
        return decoder.begin(head)
    except RecordError as error:
        raise RecordError(f"{path}: {error.place}", error.reason, code=error.code) from error
