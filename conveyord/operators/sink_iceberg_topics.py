"""Sink `iceberg_topics`: every topic into an Iceberg table of its own, exactly once.

Each table has its own fence and is committed by itself. So a table that is away or slow holds up no other one's
commits, and a restart goes on in each topic from where its own table is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Annotated

import structlog
import trio
from pydantic import AfterValidator, AliasChoices, Field

from conveyord.core.errors import ConfigError, ConveyordError, Refused
from conveyord.core.flow.positions import Partition, Position, Positions
from conveyord.core.flow.topics import share_of_lane, topic_of
from conveyord.core.pipeline.table_template import TableTemplate, check_template
from conveyord.engine.committing import Committing, finish
from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink, SinkReport
from conveyord.engine.copies import SOURCE as DEAD_LETTERS
from conveyord.engine.iceberg_table import IcebergOptions, IcebergTable, Lake, catalog_named
from conveyord.engine.messages import Batch, Eos, Message

log = structlog.get_logger(__name__)

IDLE_SECONDS = 600.0  # a table that gets nothing for so long is closed: what it holds is its metadata, and looks
WAITING_BYTES_MAX = 512 * 1024 * 1024  # of all tables together, as much as one commits at: most of it is memory


class IcebergTopicsConfig(IcebergOptions):
    """Writes each topic of a kafka source into an Iceberg table of its own, exactly once. Tables are created, and
    grow, as rows need it; each is committed by itself, by its own rows, bytes and age.
    """

    table: Annotated[str, AfterValidator(check_template)] = Field(
        validation_alias=AliasChoices("table", "table_name"),
        description="`namespace.table`, where `{topic}` stands for the name of the topic, with `_` for whatever is no "
        "letter, digit or `_`. Both are created if missing. Two topics cannot have one table.",
        examples=["raw.{topic}"],
    )
    tables_max: int = Field(
        default=100,
        ge=1,
        le=10_000,
        description="Tables that are held open at a time. For one more, the one that got nothing for longest is "
        "committed and closed. So is one that got nothing for ten minutes.",
    )


@dataclass(frozen=True, slots=True)
class _Topic:
    """One topic of one source."""

    source: str
    name: str


@dataclass(slots=True, eq=False)
class _Share:
    """What one topic has of the sink: a table, which is open or not.

    held: how far the table was when it was last looked at. used_at: when it last got a batch, on trio's clock.
    failed: nothing more can be committed to it in this run.
    """

    identifier: str
    topic: _Topic
    held: Positions = field(default_factory=Positions)
    table: IcebergTable | None = None
    committing: Committing | None = None
    used_at: float = 0.0
    bytes_waiting: int = 0
    failed: bool = False

    @property
    def due_at(self) -> float:
        """When there is something to do about the table: to commit it, or to close it."""
        if self.committing is None or self.failed:
            return float("inf")
        return self.committing.due_at if self.committing.is_waiting else self.used_at + IDLE_SECONDS


class IcebergTopicsSink(Sink):
    """See docs/operators.md."""

    Config = IcebergTopicsConfig
    delivery = "exactly-once"
    keeps_contract = True
    no_copies = "copies of dead letters are of no topic, so there is no table for them; let dlq.sink be a sink iceberg"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._template = TableTemplate(self.config.table)
        self._lake: Lake | None = None
        self._shares: dict[str, _Share] = {}  # by the name of the table
        self._closed = (0, 0, 0)  # rows, files and commits of tables that were closed again
        self._discarded_values = 0  # of those

    # ------------------------------------------------------------------ the tables that there are

    async def open(self) -> Positions:
        """See `Sink.open`. Raises Refused if one of this pipeline's tables must not be written.

        Only tables that hold a fence of this pipeline are looked at; others when their topic's first batch comes.
        """
        self._lake = await self.context.in_thread(Lake, self.config, self.context)
        former = self.context.adopt_from
        pipelines = [self.context.pipeline, *([] if former is None else [former])]
        fenced = await self.context.in_thread(partial(self._lake.fenced, self._template.parts(), by=pipelines))
        for identifier, holders in fenced.items():
            table = self._lake.table(identifier, adopt_from=former if former in holders else None)
            held = await self.context.in_thread(table.open)
            self.took_over = bool(self.took_over) or table.took_over
            share = self._share_held(identifier, held)
            if share is not None:
                self._shares[share.identifier] = share
                if len(self._opened()) < self.config.tables_max:
                    self._attach(share, table)
        shares = list(self._shares.values())
        return Positions(
            {p: position for share in shares for p, position in share.held.items() if self._is_of(p, share)},
            {key: text for share in shares for key, text in share.held.states.items()},
        )

    def _share_held(self, identifier: str, held: Positions) -> _Share | None:
        """The share whose fence the table `identifier` holds. None if it is another sink's, or nobody's yet.

        Some catalogs list names in lower case, whatever they were given.
        """
        known = {topic for partition in held if (topic := _topic_of(partition)) is not None}
        tables = {topic: self._template.table_of(topic.name) for topic in known}
        topics = [topic for topic in known if tables[topic].lower() == identifier.lower()]
        if not topics:
            return None
        first, *others = sorted(topics, key=lambda topic: (topic.name, topic.source))
        if others:
            raise Refused(
                f"table {identifier}: it holds positions of {_named(first, others[0])}, and this sink gives each topic "
                "a table of its own; write the topics of this table with the sink iceberg"
            )
        return _Share(tables[first], first, held)

    def _is_of(self, partition: Partition, share: _Share) -> bool:
        """Whether a position in the fence of a share's table is about its topic, or about dead letters for it."""
        return _topic_of(partition) == share.topic or self.share_of(partition) == share.topic.name

    def share_of(self, partition: Partition) -> str | None:
        """See `Sink.share_of`: a topic."""
        return share_of_lane(partition) if partition.source == DEAD_LETTERS else topic_of(partition)

    def _share_of(self, batch: Batch) -> _Share:
        """Whose rows these are. Raises ConfigError for what is of no topic, or of one whose table is another's."""
        if batch.spans[0].partition.source == DEAD_LETTERS:
            return self._share_of_letters(batch.spans[0].partition)
        topics = {_topic_of(span.partition) for span in batch.spans}
        topic = topics.pop()
        if topic is None:
            raise ConfigError(self._without_topic(batch.spans[0].partition))
        assert not topics, f"a batch of several topics: {batch.spans}"
        identifier = self._template.table_of(topic.name)
        share = self._shares.setdefault(identifier, _Share(identifier, topic))
        if share.topic != topic:
            raise ConfigError(
                f"sink {self.context.stage!r}: {_named(share.topic, topic)} both come to the table {identifier} "
                f"by {self._template.text}; exclude one of them, or write it to another table with a source and a "
                "sink of its own"
            )
        return share

    def _share_of_letters(self, partition: Partition) -> _Share:
        """Whose the rows of a replay are: of a topic that has a table, or its records would not be behind it."""
        topic = share_of_lane(partition)
        if topic is None:
            raise ConfigError(f"sink {self.context.stage!r}: {self.no_copies}")
        share = self._shares.get(self._template.table_of(topic))
        if share is None or share.topic.name != topic:
            raise Refused(
                f"sink {self.context.stage!r}: the topic {topic!r} of these dead letters has no table; run the "
                "pipeline, which reads its records again"
            )
        return share

    def _without_topic(self, partition: Partition) -> str:
        return (
            f"sink {self.context.stage!r}: {partition.name!r} of {partition.source!r} is no partition of a topic, so "
            "there is no table for it; iceberg_topics takes what a kafka source reads, for others use the sink iceberg"
        )

    # ------------------------------------------------------------------ taking and committing

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`. If one table fails, the others are committed before the failure is raised."""
        failure: ConveyordError | None = None
        try:
            await self._take_all(inbound)
        except ConveyordError as error:
            failure = error
        if failure is None:
            return
        try:
            await self._commit_all("failure of another")
        except ConveyordError as error:
            log.error("another table failed too", reason=str(error))
        raise failure

    async def _take_all(self, inbound: Inbound) -> None:
        while True:
            message: Message | None = None
            with trio.move_on_at(min((share.due_at for share in self._opened()), default=float("inf"))):
                message = await inbound.receive()
            match message:
                case None:
                    await self._do_what_is_due()
                case Batch():
                    await self._take(message)
                case Eos():
                    await self._commit_all("end")
                    return

    async def _take(self, batch: Batch) -> None:
        share = self._share_of(batch)
        if share.table is None:
            await self._open_table(share)
        assert share.committing is not None
        assert share.table is not None
        share.used_at = trio.current_time()
        share.failed = True  # unless it ends well
        await share.committing.take(batch)
        share.failed = False
        share.bytes_waiting = share.table.bytes_staged
        limit = max(WAITING_BYTES_MAX, self.config.commit.bytes)
        while sum(one.bytes_waiting for one in self._opened()) >= limit:
            await self._commit(max(self._opened(), key=lambda one: one.bytes_waiting), "bytes of all tables")
        await self._do_what_is_due()

    async def _do_what_is_due(self) -> None:
        """Commit what has waited for long enough, and close what is idle."""
        now = trio.current_time()
        while (share := min(self._opened(), key=lambda one: one.due_at, default=None)) and share.due_at <= now:
            assert share.committing is not None
            if share.committing.is_waiting:
                await self._commit(share, "age")
            else:
                self._close_table(share)

    async def _commit(self, share: _Share, reason: str) -> None:
        assert share.committing is not None
        share.failed = True  # unless it ends well
        await share.committing.commit(reason)
        share.failed = False
        share.bytes_waiting = 0

    async def _commit_all(self, reason: str) -> None:
        """Commit every table, also those after one that fails. Raises the first failure."""
        first: ConveyordError | None = None
        for share in self._opened():
            if share.failed:
                continue
            try:
                await self._commit(share, reason)
            except ConveyordError as error:
                if first is None:
                    first = error
                else:
                    log.error("another table failed too", table=share.identifier, reason=str(error))
        if first is not None:
            raise first

    # ------------------------------------------------------------------ open tables

    def _opened(self) -> list[_Share]:
        return [share for share in self._shares.values() if share.table is not None]

    async def _open_table(self, share: _Share) -> None:
        """Open a table that is not, after making room for it. Raises Refused if it is not as this sink left it."""
        assert self._lake is not None, "the engine opens a sink before it runs it"
        await self._make_room()
        table = self._lake.table(share.identifier, adopt_from=None)
        held = await self.context.in_thread(table.open)
        if _rows_of(held) != _rows_of(share.held):
            raise Refused(
                f"table {share.identifier}: it is not as this sink left it: it was dropped, rolled back, or written by "
                f"another sink or run of {self.context.pipeline}; let only one write to it, then run again"
            )
        self._attach(share, table)

    def _attach(self, share: _Share, table: IcebergTable) -> None:
        share.table = table
        share.committing = Committing(self, table, self.config.commit)
        share.used_at = trio.current_time()

    async def _make_room(self) -> None:
        """Close the tables that got nothing for longest, so that one more may be open.

        Where no row has had a field yet there is no table: its batches wait, and it does not count.
        """
        counted = [share for share in self._opened() if share.table is not None and share.table.exists]
        counted.sort(key=lambda share: share.used_at)
        for share in counted[: max(0, len(counted) + 1 - self.config.tables_max)]:
            await self._commit(share, "room for another table")
            self._close_table(share)

    def _close_table(self, share: _Share) -> None:
        """Let go of a table without anything that waits. It has no files open then."""
        assert share.table is not None
        assert share.committing is not None
        rows, files, commits = self._closed
        more_rows, more_files, more_commits = share.table.committed
        self._closed = rows + more_rows, files + more_files, commits + more_commits
        self._discarded_values += share.committing.discarded_values
        share.held, share.table, share.committing = share.table.held, None, None

    async def close(self) -> None:
        """See `Operator.close`. What was not committed is deleted."""
        if self._lake is None:
            return
        # What cannot be deleted now stays in the ledger, and a later run deletes it.
        aborts = [share.table.abort for share in self._opened() if share.table is not None]
        await finish(*aborts, self._lake.close)

    @property
    def destination(self) -> str:
        """See `Sink.destination`."""
        return f"tables {self._template.text} of {catalog_named(self.config, self.context)}"

    def report(self) -> SinkReport:
        """See `Sink.report`. The totals of all tables. Rows count once they are committed."""
        rows, files, commits = self._closed
        discarded = self._discarded_values
        for share in self._opened():
            assert share.table is not None
            assert share.committing is not None
            more_rows, more_files, more_commits = share.table.committed
            rows, files, commits = rows + more_rows, files + more_files, commits + more_commits
            discarded += share.committing.discarded_values
        return SinkReport(self.context.stage, rows, files, commits, discarded_values=discarded)


def _topic_of(partition: Partition) -> _Topic | None:
    name = topic_of(partition)
    return None if name is None or partition.source == DEAD_LETTERS else _Topic(partition.source, name)


def _rows_of(held: Positions) -> dict[Partition, Position]:
    """What a fence says of records; letters that were replayed are another matter."""
    return {partition: position for partition, position in held.items() if partition.source != DEAD_LETTERS}


def _named(first: _Topic, second: _Topic) -> str:
    """Both by their names, and by their sources where the names are alike."""
    if first.name != second.name:
        return f"the topics {first.name!r} and {second.name!r}"
    return f"the topic {first.name!r} of {first.source!r} and that of {second.source!r}"
