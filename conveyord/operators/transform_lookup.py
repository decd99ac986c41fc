"""Transform `lookup`: columns of a reference beside the rows whose key it has."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import pyarrow as pa
import structlog
import trio

from conveyord.core.errors import ConveyordError, Refused
from conveyord.core.units import format_seconds
from conveyord.engine.batch_transform import NOTHING_ELSE, BatchTransform, Mapped, bad_rows
from conveyord.engine.committing import finish
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Outbound, Transform
from conveyord.engine.lookup.enrichment import Enrichment, Reference, select
from conveyord.engine.lookup.integers import MISS
from conveyord.engine.lookup.options import CacheOptions, LookupConfig, ReferenceOptions
from conveyord.engine.messages import Batch, Eos, Message
from conveyord.storage.lookup.databases import SqliteReader
from conveyord.storage.lookup.files import CsvReader, ParquetReader
from conveyord.storage.lookup.reading import ReferenceReader, Wanted
from conveyord.storage.lookup.tables import IcebergReader

log = structlog.get_logger(__name__)

MISSED = "missed"


class LookupTransform(Transform):
    """See docs/operators.md. Not pure: the reference may change while it runs, or between two runs.

    Between two reloads a `BatchTransform` over one state of the reference does the work. So batches on their way keep
    the state they met, and where a row came from can be worked out however often the reference changes.
    """

    Config = LookupConfig
    outputs = (MISSED,)

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._reader = self._opened(self.config.reference)
        self._enrichment = self._enrichment_of(self.config)
        self._reference: Reference | None = None
        self._mark: Hashable = None
        self._checked_at = self._fresh_at = 0.0  # when it was last asked for, and last known to be up to date

    async def check(self) -> None:
        """See `Operator.check`: reads the reference, and finds keys that stand there twice."""
        reference = await self._load()
        await self.context.in_thread(reference.prepare)

    async def close(self) -> None:
        """See `Operator.close`."""
        await finish(self._reader.close)

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        """See `Transform.run`."""
        self._reference = await self._load()
        stretch = _Stretch(inbound, self._is_current)
        while not stretch.ended:
            await _Enriching(self.config, self.context, self._reference).run(stretch, outbound)

    async def _load(self) -> Reference:
        """The reference as it is now. What may pass is tried again."""
        reference, _ = await self.context.retries.run(lambda: self.context.in_thread(self._read))
        self._checked_at = self._fresh_at = trio.current_time()
        return reference

    async def _is_current(self) -> bool:
        """Whether the next batch may meet the reference at hand; if not, there is another one now.

        Raises Refused if it cannot be known for longer than `cache.ttl`.
        """
        cache: CacheOptions = self.config.cache
        now, before = trio.current_time(), self._reference
        is_old = cache.ttl is not None and now > self._fresh_at + cache.ttl
        if now < self._checked_at + cache.check_every and not is_old:
            return True
        self._checked_at = now
        try:
            if is_old:  # it cannot be kept, so what may pass is tried again
                self._reference, _ = await self.context.retries.run(lambda: self.context.in_thread(self._reread))
            else:
                self._reference = await self.context.in_thread(self._reread)
        except ConveyordError as error:
            self._keep(error)
            return True
        self._fresh_at = trio.current_time()
        return self._reference is before

    def _keep(self, error: ConveyordError) -> None:
        """Go on with the old reference, unless that is too old."""
        age, ttl = trio.current_time() - self._fresh_at, self.config.cache.ttl
        if ttl is not None and age > ttl:
            raise Refused(
                f"lookup: {error}. It was last known to be up to date {format_seconds(age)} ago, "
                f"longer than cache.ttl ({format_seconds(ttl)}); mend it and run again"
            ) from error
        log.warning(
            "reference not reloaded, rows get the old one", stage=self.context.stage, reason=str(error), age_seconds=age
        )

    def _reread(self) -> Reference:
        """Blocking. The reference at hand, or a new one if it has changed."""
        assert self._reference is not None
        return self._reference if self._reader.mark() == self._mark else self._read()

    def _read(self) -> Reference:
        """Blocking. Read it anew, and index it for what is looked up in it."""
        cache: CacheOptions = self.config.cache
        columns = None if self.config.columns is None else tuple(self.config.columns)
        wanted = Wanted(tuple(self.config.key().values()), columns, cache.rows_max, cache.bytes_max)
        loaded = self._reader.read(wanted, trio.from_thread.check_cancelled)
        reference = Reference(self._enrichment, loaded.table, name=self._reader.name)
        if self._reference is not None:
            reference.prepare(self._reference.asked)
        self._mark = loaded.mark
        rows = loaded.table.num_rows
        log.debug("reference read", stage=self.context.stage, rows=rows)
        return reference

    def _opened(self, options: ReferenceOptions) -> ReferenceReader:
        match options.type:
            case "csv":
                return CsvReader(options.path, delimiter=options.delimiter)
            case "parquet":
                return ParquetReader(options.path)
            case "sqlite":
                return SqliteReader(options.path, table=options.table, query=options.query)
            case "iceberg":
                return IcebergReader(
                    options.path,
                    catalog=options.catalog,
                    data_dir=self.context.data_dir,
                    catalogs=self.context.catalogs,
                )

    def _enrichment_of(self, config: LookupConfig) -> Enrichment:
        return Enrichment(
            on=config.key(),
            columns=config.columns,
            prefix=config.prefix,
            nest=config.into,
            defaults=config.default if config.on_miss == "default" else None,
            duplicates=config.duplicates,
            text_keys=self._reader.text_keys,
        )


class _Enriching(BatchTransform):
    """Looks rows up in one state of the reference."""

    Config = LookupConfig
    same_count_same_rows = True

    def __init__(self, config: OperatorConfig, context: OperatorContext, reference: Reference) -> None:
        super().__init__(config, context)
        self._reference = reference

    def row_wise(self, data: pa.RecordBatch) -> bool:  # noqa: ARG002 - the contract's
        """See `BatchTransform.row_wise`."""
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        """See `BatchTransform.apply`."""
        return self.apply_all(data)[0]

    def apply_all(self, data: pa.RecordBatch) -> Mapped:
        """See `BatchTransform.apply_all`. Raises as `Reference.rows_of` and `Reference.enriched`."""
        rows = self._reference.rows_of(data)
        found = rows != MISS
        match self.config.on_miss:
            case "dead_letter" if not found.all():
                good = self._reference.enriched(select(data, found), rows[found]), NOTHING_ELSE
                raise bad_rows(data, pa.array(~found), self._reference.missing(data, rows), good)
            case "drop":
                enriched = self._reference.enriched(select(data, found), rows[found])
                listens = MISSED in self.context.listened
                return enriched, {MISSED: select(data, ~found)} if listens else NOTHING_ELSE
            case _:
                return self._reference.enriched(data, rows), NOTHING_ELSE


class _Stretch(trio.abc.ReceiveChannel[Message]):
    """The messages that meet one state of the reference, then `Eos`; read on, those that meet the next."""

    def __init__(self, inbound: Inbound, is_current: Callable[[], Any]) -> None:
        self._inbound = inbound
        self._is_current = is_current
        self._next: Batch | None = None
        self.ended = False

    async def receive(self) -> Message:
        """See trio.abc.ReceiveChannel."""
        if self._next is not None:
            held, self._next = self._next, None
            return held
        message = await self._inbound.receive()
        if isinstance(message, Eos):
            self.ended = True
        elif isinstance(message, Batch) and not await self._is_current():
            self._next = message
            return Eos()
        return message

    async def aclose(self) -> None:
        """See trio.abc.ReceiveChannel."""
        await self._inbound.aclose()
