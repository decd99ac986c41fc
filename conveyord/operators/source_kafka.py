"""Source `kafka`: the records of topics, from where the sinks are.

Its partitions are called `topic[number]`, its offsets are Kafka's, and with each position goes the incarnation of the
topic. What it does during a run is in engine/kafka/session.py.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import structlog
import trio

from conveyord.core.errors import ConfigError, RecordError
from conveyord.core.flow.positions import Position, Positions, Span
from conveyord.core.flow.record_log import LOG_END, Extent, PartitionReader, Tail, TopicPartition
from conveyord.core.flow.tally import Tally
from conveyord.core.flow.watermarks import PartitionWatermarks
from conveyord.engine.contracts import Mistakes, OperatorConfig, OperatorContext, Outlet, Rejected, Source
from conveyord.engine.health import SourceHealth
from conveyord.engine.kafka.hopper import Batching, Job, Release
from conveyord.engine.kafka.options import connection_of
from conveyord.engine.kafka.partitions import Progress, places_of
from conveyord.engine.kafka.reading import Reading
from conveyord.engine.kafka.rows import RowOptions, Rows, rows_of, with_source
from conveyord.engine.kafka.session import Session
from conveyord.engine.kafka.source_options import KafkaSourceConfig, choice_of, source_mistakes, time_ms_of
from conveyord.engine.kafka.starting import gap_sentence
from conveyord.engine.kafka.typing import Beginnings, TopicTypes
from conveyord.engine.messages import Watermark
from conveyord.engine.ordered import ordered_map
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.payloads.contract import BadPayload, PayloadDecoder
from conveyord.engine.payloads.options import format_config, payload_decoder
from conveyord.engine.schema_memory import remembered_schema
from conveyord.runtime.nurseries import unwrapped
from conveyord.storage.kafka.connection import Connection, Silence
from conveyord.storage.kafka.reader import KafkaReader
from conveyord.storage.kafka.tail import KafkaTail

log = structlog.get_logger(__name__)

OFFSETS_GONE = "OFFSETS_GONE"
NOTHING_KNOWN = pa.RecordBatch.from_arrays([], schema=pa.schema([]))
"""What stages take for a batch of records of which none has told yet what columns there are."""
FLUSH_SECONDS = 30.0  # for the sinks to take what was read, when reading ends and a group is to be told


@dataclass(frozen=True, slots=True)
class _Ports:
    """Connections to a real cluster."""

    connection: Connection
    group: str | None
    options: RowOptions

    def open_reader(self) -> PartitionReader:
        return KafkaReader(self.connection)

    def open_tail(self) -> Tail:
        return KafkaTail(self.connection, group=self.group, wants=self.options.wants)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A job, and the schema of its topic when it was drawn."""

    job: Job | Release
    schema: pa.Schema | None


class KafkaSource(Source):
    """See docs/operators.md."""

    Config = KafkaSourceConfig
    unit = "offsets"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self.health: SourceHealth = SourceHealth()
        self._choice = choice_of(self.config)
        self._progress = Progress()
        self._format = format_config(self.config.format)
        self._types = TopicTypes(self._format, context.stage, is_single=self._choice.is_single)
        self._decoder: PayloadDecoder | None = None
        self._silence = Silence()
        self._options = RowOptions(
            columns=self.config.columns,
            keys_are_text=self.config.key_format == "text",
            keeps_tombstones=self.config.tombstones == "keep",
            value_bytes_max=self.config.max_record_bytes,
        )
        self._watermarks = PartitionWatermarks(
            lateness_micros=round(self.config.lateness * 1_000_000), idle_seconds=self.config.idle
        )

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        """See `Operator.mistakes`."""
        assert isinstance(config, KafkaSourceConfig)
        return source_mistakes(config)

    async def check(self) -> None:
        """See `Operator.check`: the cluster lets us in, and the topics are there."""
        ports = await self.context.in_thread(self._ports)
        reader = await self.context.in_thread(ports.open_reader)
        try:
            there = await self.context.in_thread(reader.topics, self._choice.names)
        finally:
            with trio.CancelScope(shield=True):
                await self.context.in_thread(reader.close)
        missing = [name for name in self._choice.names if name not in there]
        if missing:
            raise ConfigError(f"topic {missing[0]!r} is not there; create it, or mend its name in `topics`")
        known = {str(place) for place in places_of(there.values())}
        for place in self.config.start_offsets:
            name = place.rpartition("[")[0]
            if name in there and place not in known:
                count = len(there[name].partitions)
                raise ConfigError(f"start_offsets: topic {name!r} has {count} partitions, {place} is not one of them")

    def _ports(self) -> _Ports:
        """Blocking. Raises ConfigError if a secret cannot be had."""
        return _Ports(connection_of(self.config, self._silence), self.config.group_id, self._options)

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        """See `Source.run`."""
        out.expects(None)
        ports = await self.context.in_thread(self._ports)
        if self._decoder is None:
            self._decoder = await self.context.in_thread(payload_decoder, self._format)
        self._types.recall(fences)
        session = Session(self._reading(), ports, fences, self._progress, self.health)
        out.on_settled(session.handover.settled)

        async def feed() -> None:
            await self._feed(session, out)

        async def flush() -> None:
            await self._flush(session, out)

        with unwrapped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_stop_at, drain, session)
                await session.run(feed, flush)
                nursery.cancel_scope.cancel()

    def _reading(self) -> Reading:
        config: KafkaSourceConfig = self.config
        return Reading(
            stage=self.context.stage,
            choice=self._choice,
            group=config.group_id,
            shares=config.assignment == "group",
            follow=config.follow,
            batching=Batching(
                job_bytes=config.batch_bytes,
                job_records=config.batch_rows,
                linger_seconds=config.linger,
                held_bytes=config.prefetch,
            ),
            on_recreated=config.on_recreated,
            discover_seconds=config.discover_every,
            outage_seconds=config.outage_timeout,
            release_seconds=config.release_timeout,
            commit_seconds=config.commit_group_every,
            begin_at=self._begin_at,
        )

    def _begin_at(
        self,
        reader: PartitionReader,
        extents: Mapping[TopicPartition, Extent],
        committed: Mapping[TopicPartition, int],
    ) -> Mapping[TopicPartition, int]:
        """See `Reading.begin_at`."""
        config: KafkaSourceConfig = self.config
        firsts = {place: extent.first for place, extent in extents.items()}
        if config.start == "committed":
            firsts |= {place: offset for place, offset in committed.items() if place in extents}
        elif config.start != "earliest":
            time_ms = LOG_END if config.start == "latest" else time_ms_of(config.start)
            assert time_ms is not None
            found = reader.offsets_at(list(extents), time_ms)
            # The end has moved on since `extents`.
            firsts |= {place: min(offset, extents[place].end) for place, offset in found.items()}
        given = {str(place): place for place in extents}
        return firsts | {given[name]: offset for name, offset in config.start_offsets.items() if name in given}

    # -------------------------------------------------------------------------- sending

    async def _feed(self, session: Session, out: Outlet) -> None:
        async def decode(drawn: _Drawn) -> Rows | None:
            if isinstance(drawn.job, Release) or drawn.job.lost:
                return None
            return await self.context.in_thread(self._rows, drawn.job, drawn.schema)

        width = int(self.context.threads.total_tokens) + 1
        async with ordered_map(self._jobs(session), decode, width=width) as results:
            async for drawn, rows in results:
                job = drawn.job
                if isinstance(job, Release):
                    await self._push(session, out, session.handover.releasing(job))
                elif rows is None:
                    await self._send_gap(session, out, job)
                else:
                    await self._emit(session, out, job, await self._current(job, drawn.schema, rows))

    async def _jobs(self, session: Session) -> AsyncGenerator[_Drawn, None]:
        while (job := await session.hopper.take(session.stop)) is not None:
            if isinstance(job, Release):
                yield _Drawn(job, None)
                continue
            target = session.partitions.target(job.partition)
            if target is not None and job.first >= target:
                continue
            topic = job.partition.topic
            if self._types.of(topic) is None and job.pieces:
                assert self._decoder is not None
                beginnings = Beginnings(session.hopper, lambda: session.pump.ends, self._types)
                await beginnings.settle(job, self._decoder, self.context.in_thread, stop=session.stop)
            yield _Drawn(job, self._types.of(topic))

    def _rows(self, job: Job, schema: pa.Schema | None) -> Rows:
        """Blocking."""
        assert self._decoder is not None
        return rows_of(job, self._decoder, schema, self._options)

    async def _current(self, job: Job, drawn: pa.Schema | None, rows: Rows) -> Rows:
        """`rows` under the newest schema of their topic, which they may grow."""
        topic = job.partition.topic
        newest = self._types.of(topic)
        if drawn is None or not rows.schema.equals(drawn):
            if newest is not drawn:
                rows = await self.context.in_thread(self._rows, job, newest)
            if rows.schema.names and (newest is None or not rows.schema.equals(newest)):
                self._types.grow(topic, rows.schema)
        elif newest is not drawn:
            rows = await self.context.in_thread(self._rows, job, newest)
        return rows

    async def _emit(self, session: Session, out: Outlet, job: Job, rows: Rows) -> None:
        """Send the rows of one job; at a bad record, stop behind the rows before it, or count it."""
        found = session.partitions.beginnings[job.partition]
        letters, bad, end = self.context.dead_letters, rows.bad, job.end
        data, count, error = rows.data, len(rows.offsets), None
        if bad and letters is not None:
            await letters.put(
                [Rejected(Place(rows.record(found.partition, one.number)), self._error(job, rows, one)) for one in bad]
            )
        elif bad and self.context.skip_bad:
            for one in bad:
                wrong = self._error(job, rows, one)
                log.warning("passing over a bad record", place=wrong.place, code=wrong.code, reason=wrong.reason)
        elif bad:
            error, count = self._error(job, rows, bad[0]), bad[0].number
            end, bad = rows.offsets[count], ()
            data = data.slice(0, int((rows.numbers < count).sum()))
        if self.context.provenance:
            data = with_source(rows, found.partition).slice(0, data.num_rows)
        if not data.num_rows and not rows.schema.names:
            data = NOTHING_KNOWN
        dead, skipped = (len(bad), 0) if letters is not None else (0, len(bad))
        tally = Tally(read=count, dead=dead, skipped=skipped).through(data.num_rows)
        await self._send(session, out, job, data, end, tally, rows)
        if error is not None:
            raise error
        await self._send_watermark(session, out, job.partition, data)

    async def _send(
        self, session: Session, out: Outlet, job: Job, data: pa.RecordBatch, end: int, tally: Tally, rows: Rows | None
    ) -> None:
        found = session.partitions.beginnings[job.partition]
        place_of = None if self.context.dead_letters is None or rows is None else rows.place_of(found.partition)
        span = Span(found.partition, job.first, end, found.mark)
        await out.send(
            data,
            (span,),
            tally,
            raw_bytes=job.value_bytes,
            states=self._types.states(job.partition.topic),
            place_of=place_of,
            lost=job.lost,
        )
        newest_ms = job.pieces[-1].newest_ms if job.pieces else -1
        has_records = bool(job.pieces) or job.lost
        session.sent(job.partition, Position(end, found.mark), records=has_records, newest_ms=newest_ms)

    async def _send_gap(self, session: Session, out: Outlet, job: Job) -> None:
        """Account for offsets that are gone."""
        found = session.partitions.beginnings[job.partition]
        error = RecordError(
            f"{job.partition} (offset {job.first})",
            gap_sentence(job.partition, job.first, job.end),
            code=OFFSETS_GONE,
        )
        log.error("records were gone before they were read", place=error.place, reason=error.reason)
        self.health.gaps += job.end - job.first
        if self.context.dead_letters is not None:
            gap = Place(RecordRef(found.partition, job.first), part=1)  # no letter of the record that was there
            await self.context.dead_letters.put([Rejected(gap, error)])
            tally = Tally(read=1, dead=1)
        elif self.context.skip_bad:
            tally = Tally(read=1, skipped=1)
        else:
            raise error
        data = await self._no_rows(session, job.partition)
        await self._send(session, out, job, data, job.end, tally, None)

    async def _send_watermark(self, session: Session, out: Outlet, place: TopicPartition, data: pa.RecordBatch) -> None:
        name = self.config.event_time
        if name is None or data.num_rows == 0 or name not in data.schema.names:
            return
        times = data.column(name)
        if not pa.types.is_timestamp(times.type):
            raise ConfigError(
                f"event_time: the column {name!r} is {times.type}, not a time; name one that is, or kafka_timestamp"
            )
        newest = pc.max(times.cast(pa.timestamp("us", times.type.tz), safe=False).cast(pa.int64())).as_py()
        if newest is not None:
            for one, since in list(session.partitions.opened_at.items()):
                self._watermarks.reads(str(one), since)
            micros = self._watermarks.saw(str(place), newest, trio.current_time())
            if micros is not None:
                await out.watermark(Watermark(micros))

    async def _flush(self, session: Session, out: Outlet) -> None:
        """When reading ends and a group is to be told how far: have the sinks commit, and wait for that."""
        if self.config.group_id is None:
            return
        known, handover = session.partitions, session.handover
        places = known.ours
        session.hopper.close(places)
        if self.config.assignment == "group":
            with trio.move_on_after(self.config.release_timeout):
                await self._push(session, out, known.unsettled(places))
                await handover.until_settled(places)
            return
        await self._push(session, out, known.unsettled(places))
        with trio.move_on_after(FLUSH_SECONDS):
            await handover.until_settled(places)

    async def _push(self, session: Session, out: Outlet, places: list[TopicPartition]) -> None:
        """Have every sink commit what it has of partitions: each gets a batch that is wanted at once."""
        for place in places:
            found = session.partitions.beginnings[place]
            position = self._progress.sent[found.partition]
            span = Span(found.partition, position.offset, position.offset, found.mark)
            data, states = await self._no_rows(session, place), self._types.states(place.topic)
            await out.send(data, (span,), Tally(), raw_bytes=0, states=states, within_seconds=0.0)

    async def _no_rows(self, session: Session, place: TopicPartition) -> pa.RecordBatch:
        """A batch without rows, with every column that one with rows has: stages and sinks look for them."""
        schema = self._types.of(place.topic)
        if schema is None:
            return NOTHING_KNOWN
        rows = await self.context.in_thread(self._rows, Job(place, 0, 0), schema)
        partition = session.partitions.beginnings[place].partition
        return with_source(rows, partition) if self.context.provenance else rows.data

    def _error(self, job: Job, rows: Rows, bad: BadPayload) -> RecordError:
        return RecordError(f"{job.partition} (offset {rows.offsets[bad.number]})", bad.reason, code=bad.code)

    def decode(self, raw: bytes, state: str | None) -> pa.RecordBatch:
        """See `Source.decode`. `raw` is the value alone, so columns of what stood beside it are null."""
        decoder = payload_decoder(self._format)
        found = decoder.decode([raw], remembered_schema(self._format, [state]))
        if found.bad:
            raise RecordError("the record", found.bad[0].reason, code=found.bad[0].code)
        return found.data


async def _stop_at(drain: trio.Event, session: Session) -> None:
    await drain.wait()
    session.end()
