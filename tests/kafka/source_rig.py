"""A `kafka` source over the ports of `Logs`, with sinks behind it that tests hold back, fill and look into."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from conveyord.core.errors import ConveyordError, Retryable
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.record_log import Meta, PartitionReader, Tail
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.messages import Batch, Eos, Message, Watermark
from conveyord.engine.outlet import TrackedOutlet
from conveyord.operators.source_kafka import KafkaSource
from tests.engine.source_rig import Letters
from tests.kafka.cluster import Record
from tests.kafka.log_rig import Logs

STAGE = "in"
AT_MS = 1_750_000_000_000
LIMIT_SECONDS = 600  # of the fast clock: thirty of ours
NOTHING = Positions()


@dataclass
class Sinks:
    """What is behind the source. It checks the books of every batch."""

    batches: list[Batch] = field(default_factory=list)
    watermarks: list[int] = field(default_factory=list)
    settles: bool = True
    """Settle batches as they come; otherwise tests do, with `settle`."""
    unsettled: list[Batch] = field(default_factory=list)
    is_full: bool = False
    """Batches wait while it is."""
    _changed: trio.Event = field(default_factory=trio.Event)

    async def send(self, message: Message, extra: Mapping[str, Batch] | None = None) -> None:
        """See `Outbound.send`."""
        while self.is_full:
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        match message:
            case Watermark(micros):
                self.watermarks.append(micros)
            case Batch():
                assert message.tally.rows == message.data.num_rows, message
                self.batches.append(message)
                self.unsettled.append(message)
                if self.settles:
                    self.settle()
            case Eos():
                raise AssertionError("a source sent Eos")
        self._note()

    def settle(self, count: int | None = None) -> None:
        """Settle the first so many batches, or all."""
        some = self.unsettled[:count]
        del self.unsettled[: len(some)]
        for batch in some:
            batch.ack.settle()

    def let(self) -> None:
        """Be full no longer."""
        self.is_full = False
        self._note()

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.data.to_pylist()]

    @property
    def spans(self) -> list[Span]:
        return [span for batch in self.batches for span in batch.spans if span.first < span.end]

    @property
    def tally(self) -> Tally:
        return sum((batch.tally for batch in self.batches), Tally())

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.rows]

    def positions(self) -> Positions:
        """What a fence behind all of it holds."""
        return fence_after(NOTHING, self.batches)


def fence_after(fence: Positions, batches: Sequence[Batch]) -> Positions:
    """A fence after batches of which it has not got anything, or all of each."""
    for batch in batches:
        new = [span for span in batch.spans if not fence.covers(span)]
        assert new == list(batch.spans) or not new
        fence = Positions(fence.advanced(new), {**fence.states, **batch.states})
    return fence


@dataclass(frozen=True)
class RigPorts:
    """The ports of a source, over `logs`."""

    logs: Logs
    group: str | None
    wants: frozenset[Meta]
    tails: list[Tail] = field(default_factory=list)

    def open_reader(self) -> PartitionReader:
        return self.logs.open_reader()

    def open_tail(self) -> Tail:
        tail = self.logs.open_tail(self.group, self.wants)
        self.tails.append(tail)
        return tail


@dataclass
class Run:
    """A source that runs. error: that ended it."""

    source: KafkaSource
    sinks: Sinks
    letters: Letters
    ports: RigPorts
    outlet: TrackedOutlet
    drain: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)
    error: ConveyordError | None = None
    calls: int = 0

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something holds; fails if it does not, or the source ends before."""
        with trio.move_on_after(LIMIT_SECONDS):
            while not holds():
                assert not self.ended.is_set() or holds(), f"it ended: {self.error!r}; rows {self.sinks.rows[-20:]}"
                await trio.sleep(0.1)
        assert holds(), f"{len(self.sinks.rows)} rows: {self.sinks.rows[-20:]}, {self.source.health}"

    async def until_rows(self, count: int) -> None:
        await self.until(lambda: len(self.sinks.rows) >= count)

    async def end(self) -> None:
        """Wait for the end."""
        with trio.move_on_after(LIMIT_SECONDS):
            await self.ended.wait()
        assert self.ended.is_set(), f"it did not end; {len(self.sinks.rows)} rows, {self.source.health}"

    async def stop(self) -> None:
        """Have it drain, and wait for the end. Raises what it raised."""
        self.drain.set()
        await self.end()
        if self.error is not None:
            raise self.error


def kafka_source(
    logs: Logs, options: Mapping[str, Any], *, letters: Letters | None = None, skip_bad: bool = False, **context: Any
) -> tuple[KafkaSource, RigPorts]:
    """A source, and the ports that it will use."""
    made = {
        "brokers": "127.0.0.1:9",
        "linger": "10ms",
        "discover_every": "500ms",
        "commit_group_every": "1s",
        **options,
    }
    surroundings = OperatorContext(
        "default/p",
        STAGE,
        Path("/nowhere"),
        trio.CapacityLimiter(2),
        skip_bad=skip_bad,
        dead_letters=letters,
        **context,
    )
    config = KafkaSource.Config.model_validate(made)
    assert not KafkaSource.mistakes(config), KafkaSource.mistakes(config)
    source = KafkaSource(config, surroundings)
    ports = RigPorts(logs, options.get("group_id"), source._options.wants)
    source._ports = lambda: ports  # type: ignore[method-assign, assignment, return-value]
    return source, ports


@asynccontextmanager
async def running(
    logs: Logs,
    *,
    fences: tuple[Positions, ...] = (NOTHING,),
    sinks: Sinks | None = None,
    letters: Letters | None = None,
    skip_bad: bool = False,
    again: bool = False,
    context: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Run]:
    """A source that runs beside the block, and is cancelled at its end. again: run once more after a Retryable."""
    source, ports = kafka_source(logs, options, letters=letters, skip_bad=skip_bad, **(context or {}))
    sinks = sinks or Sinks()
    run = Run(source, sinks, letters or Letters(), ports, TrackedOutlet([]).over(sinks, unit="offsets"))

    async def work() -> None:
        while run.calls == 0 or (again and isinstance(run.error, Retryable)):
            run.error, run.calls = None, run.calls + 1
            held = tuple(run.outlet.passed(fence) for fence in fences)
            try:
                await source.run(run.outlet, fences=held, drain=run.drain)
            except ConveyordError as error:
                run.error = error
                await trio.sleep(0.1)
        run.ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        yield run
        nursery.cancel_scope.cancel()


async def ran(logs: Logs, **options: Any) -> Run:
    """A source that has run to its end. Raises what it raised."""
    async with running(logs, follow=False, **options) as run:
        await run.end()
    if run.error is not None:
        raise run.error
    return run


def partition(topic: str, number: int = 0) -> Partition:
    """As sinks know it."""
    return Partition(STAGE, f"{topic}[{number}]")


def numbered(count: int, *, first: int = 0, partition: int = 0) -> list[Record]:
    """Records of rows `{"n": ...}`, a second apart from AT_MS on."""
    return [
        Record(value=b'{"n": %d}' % n, key=b"k%d" % n, timestamp_ms=AT_MS + 1000 * n, partition=partition)
        for n in range(first, first + count)
    ]


def one_by_one(logs: Logs, topic: str, records: list[Record]) -> None:
    """Write each as a batch of its own: the mock deletes whole batches only."""
    for record in records:
        logs.cluster.produce(topic, [record])
