"""How stages end: Eos drains what follows, a failure stops what precedes, nothing hangs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import trio
from trio.testing import MockClock

from conveyord.core.errors import BatchError, RecordError, StorageFull
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import (
    BatchTransform,
    OperatorConfig,
    OperatorContext,
    Outlet,
    Sink,
    SinkReport,
    Source,
)
from conveyord.engine.graph import LinearGraph, run_linear
from conveyord.engine.messages import Batch, Eos, Message, Watermark
from conveyord.engine.outlet import TrackedOutlet
from conveyord.engine.summary import RunProgress

A = Partition("source", "a")


class Counting(Source):
    """Sends `batches` batches of one row and a watermark after each, then fails if told to."""

    Config = OperatorConfig
    batches = 10
    error: Exception | None = None
    sent = 0

    async def run(self, out: Outlet, *, fences: tuple[Positions, ...], drain: trio.Event) -> None:
        while self.sent < self.batches and not drain.is_set():
            data = pa.record_batch({"n": [self.sent]})
            await out.send(data, (Span(A, self.sent, self.sent + 1),), Tally(read=1), raw_bytes=1)
            await out.watermark(Watermark(self.sent))
            self.sent += 1
        if self.error:
            raise self.error


class FailingAt(BatchTransform):
    """Passes batches on until one holds `at`."""

    Config = OperatorConfig
    at: int | None = None

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        if data["n"][0].as_py() == self.at:
            raise BatchError("cannot go on")
        return data


class Keeping(Sink):
    """Keeps everything, settles at once, and fails when it holds `full_at` rows."""

    Config = OperatorConfig
    delivery = "at-least-once"
    full_at: int | None = None

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self.rows: list[int] = []
        self.fifth_row = trio.Event()
        self.watermarks: list[int] = []
        self.ended = False

    async def open(self) -> Positions:
        return Positions()

    async def run(self, inbound: trio.MemoryReceiveChannel[Message]) -> None:
        async for message in inbound:
            match message:
                case Batch():
                    self.taken += message.tally
                    self.rows.append(message.data["n"][0].as_py())
                    if len(self.rows) == 5:
                        self.fifth_row.set()
                    if len(self.rows) == self.full_at:
                        raise StorageFull("disk full")
                    message.ack.settle()
                case Watermark():
                    self.watermarks.append(message.micros)
                case Eos():
                    self.ended = True
                    return

    def report(self) -> SinkReport:
        return SinkReport(self.context.stage, len(self.rows), 0, 0)


class Run:
    """One graph of the operators above, and what came of it."""

    def __init__(self, tmp_path: Path) -> None:
        def context(stage: str) -> OperatorContext:
            return OperatorContext("default/p", stage, tmp_path, trio.CapacityLimiter(2))

        self.source = Counting(OperatorConfig(), context("source"))
        self.transform = FailingAt(OperatorConfig(), context("transform"))
        self.sink = Keeping(OperatorConfig(), context("sink"))
        self.drain = trio.Event()
        self.outlet = TrackedOutlet(RunProgress())

    async def go(self, capacity: int = 2) -> list[tuple[str, str]]:
        graph = LinearGraph(self.source, (self.transform,), self.sink)
        with trio.fail_after(5):
            failures = await run_linear(
                graph, fences=(Positions(),), outlet=self.outlet.over, channel_capacity=capacity, drain=self.drain
            )
        return [(stage, str(error)) for stage, error in failures.by_stage]


@pytest.mark.parametrize("capacity", [1, 8])
async def test_everything_arrives_in_order_and_is_settled(tmp_path: Path, capacity: int) -> None:
    run = Run(tmp_path)
    assert await run.go(capacity) == []
    assert run.sink.rows == run.sink.watermarks == list(range(10))
    assert run.sink.ended
    assert run.outlet.floor[A].offset == 10
    assert run.outlet.oldest_age_seconds(0) is None


async def test_a_failed_source_still_delivers_what_it_sent(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.source.error = RecordError("file:11", "not JSON")
    assert await run.go() == [("source", "file:11: not JSON")]
    assert run.sink.rows == list(range(10))
    assert run.sink.ended


async def test_a_failed_stage_delivers_what_came_before_and_stops_the_source(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.source.batches = 1_000_000
    run.transform.at = 5
    assert await run.go() == [("transform", "a bytes 5 to 6: cannot go on")]
    assert run.sink.rows == list(range(5))
    assert run.sink.ended
    assert run.source.sent < 20


async def test_a_failed_sink_stops_everything_before_it(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.source.batches = 1_000_000
    run.sink.full_at = 3
    assert await run.go() == [("sink", "disk full")]
    assert run.source.sent < 20
    assert run.outlet.floor[A].offset == 2


async def test_a_bug_is_not_swallowed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.source.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        await run.go()
    assert not run.sink.ended


async def test_drain_ends_the_run_and_keeps_what_was_read(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.source.batches = 1_000_000
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run.go)
        await run.sink.fifth_row.wait()
        run.drain.set()
    assert run.sink.ended
    assert run.sink.rows == list(range(run.source.sent))


async def test_a_slow_sink_holds_the_source_back(tmp_path: Path, autojump_clock: MockClock) -> None:
    run = Run(tmp_path)
    run.source.batches = 1_000_000
    send, receive = trio.open_memory_channel[Message](2)
    async with trio.open_nursery() as nursery:

        async def feed() -> None:
            await run.source.run(run.outlet.over(send), fences=(), drain=run.drain)

        nursery.start_soon(feed)
        await trio.testing.wait_all_tasks_blocked()
        assert run.source.sent <= 2
        nursery.cancel_scope.cancel()
    receive.close()
