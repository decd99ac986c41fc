"""A source is told how far every sink is, and can ask that they commit soon."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from conveyord.core.flow.positions import Partition, Position, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.engine.outlet import TrackedOutlet
from conveyord.operators.sink_file_jsonl import FileJsonlConfig, FileJsonlSink
from tests.engine.http_rig import context

P = Partition("in", "p")
ROW = pa.RecordBatch.from_pylist([{"n": 1}])


class Kept:
    """An outbound that keeps what it is given."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    async def send(self, message: Message, extra: Mapping[str, Batch] | None = None) -> None:
        assert isinstance(message, Batch)
        self.batches.append(message)
        await trio.lowlevel.checkpoint()


@given(st.permutations(range(6)))
def test_the_source_hears_of_the_floor_alone_in_whatever_order_batches_are_settled(order: list[int]) -> None:
    async def main() -> None:
        outlet, kept, heard = TrackedOutlet([]), Kept(), []
        outlet.over(kept, unit="records")
        outlet.on_settled(lambda moved: heard.append(moved[P].offset))
        for number in range(6):
            await outlet.send(ROW, (Span(P, number, number + 1),), Tally(read=1), raw_bytes=1, within_seconds=2.0)
        assert [batch.within_seconds for batch in kept.batches] == [2.0] * 6
        settled: set[int] = set()
        for number in order:
            kept.batches[number].ack.settle()
            settled.add(number)
            floor = next(n for n in range(7) if n not in settled)
            assert (heard or [0])[-1] == floor
        assert heard == sorted(set(heard))
        assert outlet.floor == {P: Position(6)}

    trio.run(main)


async def test_a_sink_commits_within_the_time_that_a_batch_asks_for(data_dir: Path, mock_clock: MockClock) -> None:
    """Sinks work in threads, whose time is real: a clock that jumps when all tasks wait would be hours ahead."""
    mock_clock.rate = 100.0
    config = FileJsonlConfig.model_validate({"path": str(data_dir / "out"), "commit": {"every": "1h"}})
    sink = FileJsonlSink(config, context(data_dir, "out"))
    await sink.open()
    send, receive = trio.open_memory_channel[Message](8)
    settled: list[float] = []

    def batch(number: int, within: float | None) -> Batch:
        ack = Ack(lambda: settled.append(trio.current_time()))
        return Batch(ROW, (Span(P, number, number + 1),), Tally(read=1), ack, within_seconds=within)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, receive)
        for number, within in enumerate([None, 5.0, 9.0]):
            await send.send(batch(number, within))
        while len(settled) < 3:
            await trio.sleep(1)
        assert 5.0 <= settled[0] <= settled[2] < 3600
        assert sink.report().commits == 1, "all share the commit of the most urgent"
        await send.send(batch(3, None))
        await trio.sleep(100)
        assert len(settled) == 3, "nobody waits for this one"
        await send.send(Eos())
    await sink.close()
    assert len(settled) == 4
