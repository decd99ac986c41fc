"""The sink `iceberg` lets go of its files however it ends."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pyarrow as pa
import pytest
import trio
import trio.testing

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators.sink_iceberg import IcebergConfig, IcebergSink


def sink_in(data_dir: Path) -> IcebergSink:
    context = OperatorContext("ns/p", "sink", data_dir, trio.CapacityLimiter(1))
    return IcebergSink(IcebergConfig(table="ns.t"), context)


def batch(data: pa.RecordBatch) -> Batch:
    spans = (Span(Partition("source", "a.jsonl"), 0, 10),)
    return Batch(data, spans, Tally(read=data.num_rows), Ack(lambda: None))


def open_files(data_dir: Path) -> set[str]:
    """The files below `data_dir` that this process holds open."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            path = os.readlink(entry.path)
        except FileNotFoundError:  # the descriptor of the scan itself
            continue
        if path.startswith(f"{data_dir}/"):
            found.add(path.removeprefix(f"{data_dir}/"))
    return found


async def ended(sink: IcebergSink, *messages: Message) -> None:
    """Run an open sink and close it, as the engine does."""
    send, receive = trio.open_memory_channel[Message](len(messages) + 1)
    for message in messages:
        await send.send(message)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        await sink.run(receive)


async def test_a_sink_that_ends_closes_its_ledger_and_its_catalog(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    assert "runs.db" in open_files(tmp_path)
    await ended(sink, batch(pa.record_batch({"n": [1, 2]})), Eos())
    assert open_files(tmp_path) == set()
    assert sink.report().rows == 2


async def test_a_cancelled_sink_closes_its_ledger_and_its_catalog(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ended, sink)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert open_files(tmp_path) == set()


async def test_a_failed_sink_closes_its_files_and_names_the_place_of_the_batch(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    clashing = pa.record_batch({"a.b": [1], "a": [{"b": 5}]})
    with pytest.raises(ConfigError, match=r"^a\.jsonl bytes 0 to 10: two columns have the same dotted name"):
        await ended(sink, batch(clashing), Eos())
    assert open_files(tmp_path) == set()


async def test_a_sink_that_cannot_open_its_table_closes_its_files(tmp_path: Path) -> None:
    first = sink_in(tmp_path / "former")
    await first.open()
    await ended(first, batch(pa.record_batch({"n": [1]})), Eos())
    (tmp_path / "former").rename(tmp_path / "now")
    sink = sink_in(tmp_path / "now")
    with pytest.raises(Refused, match="moved here from"):
        await sink.open()
    await sink.close()
    assert open_files(tmp_path) == set()
