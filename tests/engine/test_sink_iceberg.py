"""The sink `iceberg`: it lets go of its files however it ends, and sets rows aside that its table cannot take."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import trio
import trio.testing

from conveyord.core.errors import BatchError, ConfigError, Refused, StorageFull
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext, Rejected
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.engine.secrets import resolved
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


# -------------------------------------------------------------------- rows that the table cannot take


class Letters:
    """What a sink set aside."""

    def __init__(self, error: Exception | None = None) -> None:
        self.rejected: list[Rejected] = []
        self._error = error

    async def put(self, rejected: Sequence[Rejected]) -> None:
        if self._error is not None:
            raise self._error
        self.rejected += rejected

    def values(self, column: str = "n") -> list[Any]:
        return [one.row.to_pylist()[0][column] for one in self.rejected if one.row is not None]


def keeping(sink: IcebergSink, letters: Letters, **options: Any) -> IcebergSink:
    """A sink like `sink` whose pipeline keeps dead letters."""
    return IcebergSink(IcebergConfig(table="ns.t", **options), replace(sink.context, dead_letters=letters))


def rows(*found: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_struct_array(pa.array(found))


def fieldless(count: int) -> pa.RecordBatch:
    return pa.record_batch({"x": [1] * count}).select([])


def batches(*data: pa.RecordBatch) -> list[Message]:
    """One after the other in one file, and the end."""
    partition, made = Partition("source", "a.jsonl"), []
    for number, part in enumerate(data):
        span = Span(partition, 10 * number, 10 * number + 10)
        made.append(Batch(part, (span,), Tally(read=part.num_rows), Ack(lambda: None)))
    return [*made, Eos()]


@pytest.mark.parametrize("size", [1, 7, 60])
async def test_which_rows_a_table_takes_does_not_depend_on_the_batches(tmp_path: Path, size: int) -> None:
    random, limit = Random(3), 6
    records = [{"n": n, **{f"k{random.randrange(12)}": n for _ in range(random.randrange(3))}} for n in range(60)]
    known, refused = {"n"}, []
    for record in records:
        if len(known | record.keys()) > limit:
            refused.append(record["n"])
        else:
            known |= record.keys()
    assert 0 < len(refused) < len(records)
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters, columns_max=limit)
    await sink.open()
    await ended(sink, *batches(*(rows(*records[at : at + size]) for at in range(0, len(records), size))))
    assert letters.values() == refused
    assert sink.report().rows == sink.taken.rows == len(records) - len(refused)
    assert (sink.taken.read, sink.taken.dead) == (len(records), len(refused))
    again = sink_in(tmp_path)
    assert (await again.open())[Partition("source", "a.jsonl")].offset == 10 * -(-len(records) // size)
    await again.close()


async def test_rows_without_a_field_are_set_aside_only_before_there_is_a_table(tmp_path: Path) -> None:
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters)
    await sink.open()
    await ended(sink, *batches(fieldless(2), rows({"n": 1}), fieldless(3)))
    assert len(letters.rejected) == 2
    assert sink.report().rows == 4
    assert sink.taken == Tally(read=6, dead=2)


async def test_rows_without_a_field_go_with_those_too_wide_if_no_other_makes_the_table(tmp_path: Path) -> None:
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters, columns_max=1)
    await sink.open()
    data = rows({"a": None, "b": None}, {"a": 1, "b": 2})
    await ended(sink, *batches(data))
    assert [one.error.args[0].partition(": ")[2][:9] for one in letters.rejected] == ["no field ", "the rows "]
    assert sink.taken == Tally(read=2, dead=2)


async def test_a_batch_without_rows_is_taken_whatever_its_columns(tmp_path: Path) -> None:
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters, columns_max=1)
    await sink.open()
    await ended(sink, *batches(rows({"a": 1}), rows({"a": 1, "b": 2}).slice(0, 0)))
    assert letters.rejected == []
    assert sink.report().rows == 1


@pytest.mark.parametrize("partition", ["t", "year(t)", "month(t)", "day(t)", "hour(t)"])
async def test_a_time_that_no_partition_can_tell_is_set_aside_and_the_rest_is_committed(
    tmp_path: Path, partition: str
) -> None:
    """Before there is a table, and under the partitioning that it has."""
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters, partition_by=(partition,))
    await sink.open()
    times = pa.array([0, 2**63 - 1, None, -(2**62)], pa.int64()).cast(pa.timestamp("us"))
    data = pa.record_batch({"n": [1, 2, 3, 4], "t": times})
    await ended(sink, *batches(data, data))
    assert [one.row.column("n")[0].as_py() for one in letters.rejected if one.row is not None] == [2, 4, 2, 4]
    assert "partition_by: 't' has a timestamp[us] in the year 294247" in str(letters.rejected[0].error)
    assert sink.report().rows == 4


async def test_nothing_is_committed_for_letters_that_cannot_be_kept(tmp_path: Path) -> None:
    sink = keeping(sink_in(tmp_path), Letters(StorageFull("the budget is used up")), columns_max=1)
    await sink.open()
    with pytest.raises(StorageFull):
        await ended(sink, *batches(rows({"a": 1, "b": None}, {"a": 1, "b": 2})))
    again = sink_in(tmp_path)
    assert len(await again.open()) == 0
    await again.close()


async def test_an_error_of_the_definition_stops_a_sink_that_keeps_letters(tmp_path: Path) -> None:
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters)
    await sink.open()
    with pytest.raises(ConfigError, match="dotted name"):
        await ended(sink, *batches(pa.record_batch({"a.b": [1], "a": [{"b": 5}]})))
    assert letters.rejected == []


async def test_without_letters_a_row_too_wide_stops_the_sink_before_it_shapes_the_table(tmp_path: Path) -> None:
    sink = IcebergSink(IcebergConfig(table="ns.t", columns_max=1), sink_in(tmp_path).context)
    await sink.open()
    with pytest.raises(BatchError, match=r"^a\.jsonl bytes 0 to 10: table ns\.t: the rows have 2 columns"):
        await ended(sink, *batches(rows({"a": 1, "b": None}, {"a": 1, "b": 2})))
    assert not list((tmp_path / "warehouse").rglob("*.metadata.json"))


@pytest.mark.parametrize("with_letters", [True, False])
async def test_columns_of_a_row_that_was_refused_refuse_no_row_without_values_in_them(
    tmp_path: Path, with_letters: bool
) -> None:
    """A source remembers them: all its later batches have them, and null throughout."""
    wide = pa.record_batch({"n": [1, 2, 3], "k": [None, 1, None], "l": [None, 1, None], "m": [1, None, None]})
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters, columns_max=2)
    await sink.open()
    await ended(sink, *batches(wide, wide.slice(2), wide.slice(0, 1), wide.slice(2)))
    assert letters.values() == [2]
    assert sink.report().rows == 5
    later = keeping(sink_in(tmp_path), letters, columns_max=2)
    if not with_letters:
        later = IcebergSink(later.config, sink_in(tmp_path).context)
    start = await later.open()
    await ended(later, *batches(*[wide.slice(2)] * 5, wide.slice(0, 1))[4:])
    assert len(start) == 1
    assert letters.values() == [2]


# -------------------------------------------------------------------- catalogs that refer to secrets


def test_references_in_the_properties_of_a_catalog_are_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAT_URI", "sqlite:///there")
    (tmp_path / "token").write_text("s3cr3t\n")
    given = {"type": "sql", "uri": "env:CAT_URI", "token": f"file:{tmp_path}/token", "warehouse": "file:///w"}
    wanted = {"type": "sql", "uri": "sqlite:///there", "token": "s3cr3t", "warehouse": "file:///w"}
    assert resolved(given, "catalog") == wanted


@pytest.mark.parametrize("reference", ["env:CAT_URI_UNSET", "file:/no/such/file"])
def test_a_reference_that_leads_nowhere_is_named_by_its_key(reference: str) -> None:
    with pytest.raises(ConfigError, match=rf"^catalog\.uri: the secret {reference}") as caught:
        resolved({"token": "s3cr3t", "uri": reference}, "catalog")
    assert "s3cr3t" not in str(caught.value)
