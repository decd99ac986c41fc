"""The sink `iceberg_topics`: a table and a fence for each topic, however topics come, go and fail."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from conveyord.core.errors import ConfigError, ConveyordError, OutcomeUnknown, Refused, Retryable
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import SchemaContract
from conveyord.engine.copies import COPIED
from conveyord.engine.iceberg_table import IcebergTable, Lake
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators import sink_iceberg_topics
from conveyord.operators.sink_iceberg import IcebergConfig, IcebergSink
from conveyord.operators.sink_iceberg_topics import IcebergTopicsSink
from conveyord.storage.lake.catalog import open_embedded
from tests.engine.test_sink_iceberg import Letters, open_files
from tests.engine.topics_rig import (
    Acks,
    Log,
    assert_rows_are_the_fence,
    assert_whole,
    batch_of,
    ended,
    fence_of,
    partition,
    rows_in,
    sink_in,
    tables,
    written,
)

LOG: Log = {"orders[0]": 10, "orders[1]": 4, "eu.payments[0]": 7, "users-v2[0]": 1, "users-v2[1]": 0}


def span(name: str, first: int, end: int) -> Span:
    return Span(partition(name), first, end, "m")


async def test_every_topic_has_a_table_and_a_fence_of_its_own(tmp_path: Path) -> None:
    acks = Acks()
    sink = await written(sink_in(tmp_path), LOG, acks=acks)
    assert set(tables(tmp_path)) == {"orders", "eu_payments", "users_v2"}
    assert_whole(tmp_path, LOG)
    assert acks.open == 0
    assert (sink.report().rows, sink.report().commits, sink.taken.rows) == (22, 3, 22)
    assert open_files(tmp_path) == set()


async def test_a_restart_goes_on_in_each_topic_and_finds_those_that_are_new(tmp_path: Path) -> None:
    await written(sink_in(tmp_path), LOG)
    longer = {**LOG, "orders[0]": 12, "orders[2]": 3, "new[0]": 5}
    sink = await written(sink_in(tmp_path), longer)
    assert sink.report().rows == 10
    assert_whole(tmp_path, longer)


async def test_nothing_is_written_or_committed_where_nothing_is_new(tmp_path: Path) -> None:
    await written(sink_in(tmp_path), LOG)
    sink = await written(sink_in(tmp_path), LOG)
    assert (sink.report().rows, sink.report().commits) == (0, 0)


async def test_a_topic_that_was_deleted_and_made_anew_goes_on_in_its_table(tmp_path: Path) -> None:
    await written(sink_in(tmp_path), {"orders[0]": 5})
    both = {"orders[0]": 5, "orders[0]@0badcafe": 3}
    await written(sink_in(tmp_path), both)
    assert_whole(tmp_path, both)
    assert set(tables(tmp_path)) == {"orders"}


NAMES = st.sampled_from(["a[0]", "a[1]", "b.c[0]", "d-e[0]", "d-e[1]", "f[0]", "f[0]@01234567"])
LOGS = st.lists(st.dictionaries(NAMES, st.integers(0, 9), min_size=1), min_size=1, max_size=3)


ROUNDS = given(LOGS, st.integers(1, 4), st.integers(1, 3), st.integers(1, 12), st.integers(0, 2**32))


def grown(data_dir: Path, growth: list[Log], size: int, tables_max: int, rows: int, seed: int) -> None:
    """Runs over a log that grows by partitions and records, with room for few tables and commits in between."""
    random, log = Random(seed), dict[str, int]()
    for more in growth:
        log = {name: log.get(name, 0) + more.get(name, 0) for name in {**log, **more}}
        sink, acks = sink_in(data_dir, tables_max=tables_max, commit={"rows": rows}), Acks()
        before = sum(len(rows_in(table)) for table in tables(data_dir).values())

        async def run(sink: IcebergTopicsSink = sink, log: Log = log, acks: Acks = acks) -> None:
            await written(sink, log, random=random, size=size, acks=acks)

        trio.run(run)
        assert_whole(data_dir, log)
        assert acks.open == 0
        assert sink.report().rows == sum(log.values()) - before


@settings(max_examples=3)
@ROUNDS
def test_each_table_has_exactly_its_topics_rows_once_however_topics_take_turns(
    tmp_path_factory: pytest.TempPathFactory, growth: list[Log], size: int, tables_max: int, rows: int, seed: int
) -> None:
    grown(tmp_path_factory.mktemp("topics"), growth, size, tables_max, rows, seed)


@pytest.mark.check
@settings(max_examples=12)
@ROUNDS
def test_each_table_has_exactly_its_topics_rows_once_in_many_histories(
    tmp_path_factory: pytest.TempPathFactory, growth: list[Log], size: int, tables_max: int, rows: int, seed: int
) -> None:
    grown(tmp_path_factory.mktemp("topics"), growth, size, tables_max, rows, seed)


# ------------------------------------------------------------------------------ acknowledgements


async def test_a_batch_is_settled_when_its_own_table_is_committed(
    tmp_path: Path, hasty_clock: trio.testing.MockClock
) -> None:
    sink, acks = sink_in(tmp_path, commit={"rows": 4}), Acks()
    await sink.open()
    send, receive = trio.open_memory_channel[Message](10)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, receive)
        await send.send(batch_of(span("a[0]", 0, 3), acks))
        await send.send(batch_of(span("b[0]", 0, 4), acks))
        while "b[0]" not in acks.settled:
            await trio.sleep(1)
        assert acks.settled == {"b[0]": 4}
        await send.send(Eos())
    await sink.close()
    assert acks.settled == {"a[0]": 3, "b[0]": 4}


async def test_tables_are_committed_by_age_closed_when_idle_and_opened_again(
    tmp_path: Path, hasty_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_iceberg_topics, "IDLE_SECONDS", 3.0)
    sink, acks = sink_in(tmp_path, commit={"every": "1s"}), Acks()
    await sink.open()
    send, receive = trio.open_memory_channel[Message](0)
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, receive)
            for name in ("a[0]", "b[0]"):
                await send.send(batch_of(span(name, 0, 3), acks))
                while name not in acks.settled:
                    await trio.sleep(0.5)
            while sink._opened():
                await trio.sleep(1)
            await send.send(batch_of(span("a[0]", 3, 5), acks))
            await send.send(Eos())
    await sink.close()
    committed = [(entry["table"], entry["reason"]) for entry in logs if entry["event"] == "committed"]
    assert committed == [("raw.a", "age"), ("raw.b", "age"), ("raw.a", "end")]
    assert (sink.report().rows, sink.report().commits) == (8, 3)
    assert_whole(tmp_path, {"a[0]": 5, "b[0]": 3})


async def test_no_more_tables_are_open_than_there_may_be(tmp_path: Path) -> None:
    sink = sink_in(tmp_path, tables_max=2)
    most = 0
    take = sink._take

    async def counted(batch: Batch) -> None:
        nonlocal most
        await take(batch)
        most = max(most, len(sink._opened()))

    sink._take = counted  # type: ignore[method-assign]
    log = {f"t{number}[0]": 4 for number in range(5)}
    await written(sink, log, size=1)
    assert most == 2
    assert_whole(tmp_path, log)


async def test_all_tables_together_hold_only_so_much_that_is_not_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_iceberg_topics, "WAITING_BYTES_MAX", 400)
    sink = sink_in(tmp_path, commit={"bytes": 1024})
    with capture_logs() as logs:
        await written(sink, {f"t{number}[0]": 30 for number in range(5)}, size=10)
    reasons = [entry["reason"] for entry in logs if entry["event"] == "committed"]
    assert "bytes of all tables" in reasons
    assert_whole(tmp_path, {f"t{number}[0]": 30 for number in range(5)})


async def test_rows_without_a_field_wait_for_one_that_makes_the_table(tmp_path: Path) -> None:
    sink, acks = sink_in(tmp_path, tables_max=1), Acks()
    nothing = batch_of(span("a[0]", 0, 1), acks)
    fieldless = Batch(nothing.data.slice(0, 0).select([]), nothing.spans, Tally(read=1, filtered=1), nothing.ack)
    await sink.open()
    await ended(sink, fieldless, batch_of(span("b[0]", 0, 2), acks), batch_of(span("a[0]", 1, 3), acks), Eos())
    assert acks.settled == {"a[0]": 3, "b[0]": 2}
    assert fence_of(tables(tmp_path)["a"]) == {"a[0]": 3}


# ------------------------------------------------------------------------------ what is refused


async def test_topics_that_come_to_one_table_are_refused_by_name_and_the_others_are_committed(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    batches = [batch_of(span(name, 0, 2)) for name in ("a.b[0]", "other[0]", "a-b[0]")]
    with pytest.raises(
        ConfigError,
        match=r"^sink 'sink': the topics 'a\.b' and 'a-b' both come to the table raw\.a_b by raw\.\{topic\};",
    ):
        await ended(sink, *batches, Eos())
    assert_whole(tmp_path, {"a.b[0]": 2, "other[0]": 2})


async def test_topics_that_come_to_one_table_are_refused_after_a_restart_too(tmp_path: Path) -> None:
    await written(sink_in(tmp_path), {"a.b[0]": 2})
    sink = sink_in(tmp_path)
    await sink.open()
    with pytest.raises(ConfigError, match="'a.b' and 'a-b'"):
        await ended(sink, batch_of(span("a-b[0]", 0, 2)), Eos())


async def test_the_same_topic_of_two_sources_is_refused(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    other = Batch(
        pa.record_batch({"n": [1]}), (Span(partition("a[0]", "other"), 0, 1),), Tally(read=1), Ack(lambda: None)
    )
    with pytest.raises(ConfigError, match="the topic 'a' of 'kafka' and that of 'other' both come to"):
        await ended(sink, batch_of(span("a[0]", 0, 2)), other, Eos())


async def test_a_table_for_one_topic_takes_no_second_one(tmp_path: Path) -> None:
    await written(sink_in(tmp_path, table="raw.all"), {"a[0]": 2})
    sink = sink_in(tmp_path, table="raw.all")
    assert (await sink.open())[partition("a[0]")].offset == 2
    with pytest.raises(ConfigError, match="'a' and 'b' both come to the table raw.all by raw.all;"):
        await ended(sink, batch_of(span("b[0]", 0, 2)), Eos())


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (
            Partition("files", "in/a.jsonl"),
            r"'in/a\.jsonl' of 'files' is no partition of a topic, so there is no table",
        ),
        (
            COPIED,
            "copies of dead letters are of no topic, so there is no table for them; let dlq.sink be a sink iceberg",
        ),
    ],
)
async def test_what_is_of_no_topic_is_refused(tmp_path: Path, where: Partition, why: str) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    batch = Batch(pa.record_batch({"n": [1]}), (Span(where, 0, 1),), Tally(read=1), Ack(lambda: None))
    with pytest.raises(ConfigError, match=why):
        await ended(sink, batch, Eos())


async def test_columns_to_partition_by_are_looked_for_when_the_first_rows_come(tmp_path: Path) -> None:
    sink = sink_in(tmp_path, partition_by=("bucket(4, of_a)",))
    await sink.open()
    with pytest.raises(ConfigError, match="of_a"):
        await ended(sink, batch_of(span("a[0]", 0, 2)), batch_of(span("b[0]", 0, 2)), Eos())
    assert set(tables(tmp_path)) == {"a"}
    assert_whole(tmp_path, {"a[0]": 2})


@pytest.mark.parametrize("wrong", ["orders", "raw.{topic}.{topic}", "raw..x", "raw.{topc}", "raw. x", ""])
def test_a_template_that_names_no_table_is_refused(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(ValueError, match=r"namespace|namespace\.table|once"):
        sink_in(tmp_path, table=wrong)


def test_two_sinks_with_one_template_in_one_catalog_write_to_one_place(tmp_path: Path) -> None:
    named = {"context": {"catalogs": {"c": {"uri": "http://x", "token": "s3cr3t"}}}}
    assert sink_in(tmp_path).destination == "tables raw.{topic} of the catalog 'lake'"
    assert sink_in(tmp_path, table="x.{topic}").destination != sink_in(tmp_path).destination
    there = sink_in(tmp_path, catalog="c", **named).destination
    assert there.startswith("tables raw.{topic} of the catalog 'c' (")
    assert "s3cr3t" not in there


# ------------------------------------------------------------------------------ tables of others


async def test_tables_that_do_not_fit_or_are_of_others_are_left_alone(tmp_path: Path) -> None:
    await written(sink_in(tmp_path, table="raw.x_{topic}"), {"a[0]": 2})
    await written(sink_in(tmp_path, context={"pipeline": "ns/q"}), {"b[0]": 2})
    sink = sink_in(tmp_path)
    assert len(await sink.open()) == 0
    await sink.close()


async def test_a_table_of_others_that_a_topic_comes_to_needs_to_be_adopted(tmp_path: Path) -> None:
    await written(sink_in(tmp_path, context={"pipeline": "ns/q"}), {"a[0]": 2})
    sink = sink_in(tmp_path)
    await sink.open()
    with pytest.raises(Refused, match=r"^table raw\.a: it holds 2 rows but no fence of ns/p"):
        await ended(sink, batch_of(span("a[0]", 0, 2)), Eos())
    await written(sink_in(tmp_path, adopt=True), {"a[0]": 3})
    assert rows_in(tables(tmp_path)["a"]) == [("a[0]", n) for n in (0, 0, 1, 1, 2)]


async def test_a_pipeline_by_another_name_takes_over_all_its_tables(tmp_path: Path) -> None:
    await written(sink_in(tmp_path, context={"pipeline": "ns/old"}), LOG)
    longer = {**LOG, "orders[0]": 12, "new[0]": 1}
    sink = await written(sink_in(tmp_path, context={"adopt_from": "ns/old"}), longer)
    assert sink.report().rows == 3
    assert_whole(tmp_path, longer)


async def test_a_table_that_another_sink_of_the_pipeline_fills_is_neither_read_from_nor_written_to(
    tmp_path: Path,
) -> None:
    context = sink_in(tmp_path).context
    other = IcebergSink(IcebergConfig(table="raw.summary"), context)
    await other.open()
    await ended(other, batch_of(span("a[0]", 0, 9)), batch_of(span("b[0]", 0, 9)), Eos())  # type: ignore[arg-type]
    sink = sink_in(tmp_path)
    assert len(await sink.open()) == 0
    with pytest.raises(Refused, match=r"^table raw\.summary: it is not as this sink left it"):
        await ended(sink, batch_of(span("a[0]", 0, 2)), batch_of(span("summary[0]", 0, 2)), Eos())
    assert fence_of(tables(tmp_path)["a"]) == {"a[0]": 2}


async def test_a_table_with_two_of_its_topics_is_refused(tmp_path: Path) -> None:
    context = sink_in(tmp_path).context
    other = IcebergSink(IcebergConfig(table="raw.a_b"), context)
    await other.open()
    await ended(other, batch_of(span("a.b[0]", 0, 1)), batch_of(span("a-b[0]", 0, 1)), Eos())  # type: ignore[arg-type]
    sink = sink_in(tmp_path)
    with pytest.raises(Refused, match=r"^table raw\.a_b: it holds positions of the topics 'a-b' and 'a\.b'"):
        await sink.open()
    await sink.close()
    assert open_files(tmp_path) == set()


async def test_a_topic_finds_its_table_in_a_catalog_that_lists_names_in_lower_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await written(sink_in(tmp_path), {"Orders[0]": 2})
    listed, table = Lake.fenced, Lake.table
    monkeypatch.setattr(
        Lake, "fenced", lambda *some, **by: {name.lower(): held for name, held in listed(*some, **by).items()}
    )
    monkeypatch.setattr(Lake, "table", lambda self, _, **options: table(self, "raw.Orders", **options))
    sink = await written(sink_in(tmp_path), {"Orders[0]": 5})
    assert sink.report().rows == 3
    assert_whole(tmp_path, {"Orders[0]": 5})


async def test_a_table_that_was_dropped_while_it_was_closed_is_not_made_again(
    tmp_path: Path, hasty_clock: trio.testing.MockClock
) -> None:
    sink = sink_in(tmp_path, tables_max=1)
    await sink.open()

    def drop() -> None:
        catalog = open_embedded(tmp_path)
        catalog.drop_table("raw.a")
        catalog.close()

    send, receive = trio.open_memory_channel[Message](10)
    for one in (batch_of(span("a[0]", 0, 2)), batch_of(span("b[0]", 0, 2))):
        await send.send(one)
    with pytest.RaisesGroup(
        pytest.RaisesExc(Refused, match=r"^table raw\.a: it is not as this sink left it: it was dropped")
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sink.run, receive)
            while sink.report().commits == 0 or "raw.b" not in sink._shares:
                await trio.sleep(1)
            await trio.to_thread.run_sync(drop)
            await send.send(batch_of(span("a[0]", 2, 4)))
    await sink.close()
    assert_whole(tmp_path, {"b[0]": 2})


@pytest.mark.parametrize("template", ["{topic}.events", "a.{topic}.events", "raw.v1_{topic}_x"])
async def test_the_topic_may_stand_anywhere_in_the_name_of_a_table(tmp_path: Path, template: str) -> None:
    await written(sink_in(tmp_path, table=template), {"t.1[0]": 2, "t.2[0]": 2})
    sink = await written(sink_in(tmp_path, table=template), {"t.1[0]": 3, "t.2[0]": 2})
    assert sink.report().rows == 1


# ------------------------------------------------------------------------------ contracts, letters, states


async def test_a_table_is_not_created_for_a_new_topic_if_tables_are_frozen(tmp_path: Path) -> None:
    await written(sink_in(tmp_path), {"a[0]": 2})
    sink = sink_in(tmp_path, context={"contract": SchemaContract("freeze")})
    await sink.open()
    with pytest.raises(Refused, match=r"^table raw\.b: it does not exist, and the pipeline's schema\.tables is freeze"):
        await ended(sink, batch_of(span("a[0]", 2, 4)), batch_of(span("b[0]", 0, 2)), Eos())
    assert_whole(tmp_path, {"a[0]": 4})


async def test_each_table_is_held_to_the_contract_and_to_its_own_columns(tmp_path: Path) -> None:
    await written(sink_in(tmp_path), {"a[0]": 2, "b[0]": 2})
    contract = SchemaContract("evolve", "discard_value", "evolve")
    sink = sink_in(tmp_path, context={"contract": contract})
    await sink.open()
    strange = batch_of(span("a[0]", 2, 5))
    strange = Batch(
        strange.data.append_column("of_b", pa.array([1, None, 2])), strange.spans, strange.tally, strange.ack
    )
    await ended(sink, strange, batch_of(span("b[0]", 2, 4)), Eos())
    assert sink.report().discarded_values == 2
    assert_whole(tmp_path, {"a[0]": 5, "b[0]": 4})


async def test_rows_too_wide_become_letters_and_each_table_counts_its_own_columns(tmp_path: Path) -> None:
    letters = Letters()
    sink = sink_in(tmp_path, columns_max=3, context={"dead_letters": letters})
    await sink.open()
    wide = Batch(
        pa.record_batch({"partition": ["b[0]"] * 2, "offset": [0, 1], "of_b": [0, 1], "more": [None, 1]}),
        (span("b[0]", 0, 2),),
        Tally(read=2),
        Ack(lambda: None),
    )
    await ended(sink, batch_of(span("a[0]", 0, 2)), wide, Eos())
    assert letters.values("offset") == [1]
    assert sink.taken == Tally(read=4, dead=1)
    assert rows_in(tables(tmp_path)["b"]) == [("b[0]", 0)]


async def test_what_a_source_wants_back_is_kept_with_the_table_that_it_came_to(tmp_path: Path) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    await ended(
        sink,
        batch_of(span("a[0]", 0, 2), states={"kafka/a": "1"}),
        batch_of(span("b[0]", 0, 2), states={"kafka/b": "2"}),
        batch_of(span("a[0]", 2, 3), states={"kafka/a": "3"}),
        Eos(),
    )
    again = sink_in(tmp_path)
    assert (await again.open()).states == {"kafka/a": "3", "kafka/b": "2"}
    await again.close()


# ------------------------------------------------------------------------------ tables that fail


def failing(monkeypatch: pytest.MonkeyPatch, method: str, **errors: ConveyordError) -> None:
    """Have a method of the tables named in `errors` raise."""
    work = getattr(IcebergTable, method)

    def call(self: IcebergTable, *arguments: Any) -> Any:
        error = errors.get(self.what.removeprefix("table raw."))
        if error is not None:
            raise error
        return work(self, *arguments)

    monkeypatch.setattr(IcebergTable, method, call)


@pytest.mark.parametrize("error", [Retryable("away"), OutcomeUnknown("perhaps")])
@pytest.mark.parametrize("seed", range(3))
async def test_a_table_that_cannot_be_committed_stops_no_other_tables_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: ConveyordError, seed: int
) -> None:
    acks = Acks()
    with monkeypatch.context() as patch:
        failing(patch, "commit", orders=error)
        with pytest.raises(type(error), match=str(error)):
            await written(sink_in(tmp_path), LOG, random=Random(seed), acks=acks)
    assert acks.settled == {"eu.payments[0]": 7, "users-v2[0]": 1}
    assert fence_of(tables(tmp_path)["orders"]) == {}
    await written(sink_in(tmp_path), LOG)
    assert_whole(tmp_path, LOG)


async def test_a_table_that_fails_midway_is_left_out_and_what_others_have_is_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acks = Acks()
    with monkeypatch.context() as patch:
        failing(patch, "write", b=Retryable("no room"))
        sink = sink_in(tmp_path)
        await sink.open()
        with pytest.raises(Retryable, match="no room"):
            await ended(
                sink,
                batch_of(span("a[0]", 0, 2), acks),
                batch_of(span("b[0]", 0, 2), acks),
                batch_of(span("c[0]", 0, 1)),
            )
    assert acks.settled == {"a[0]": 2}
    assert_whole(tmp_path, {"a[0]": 2})


async def test_of_several_tables_that_fail_the_first_is_raised_and_the_rest_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, "commit", a=Retryable("first"), b=Retryable("second"))
    sink = sink_in(tmp_path)
    await sink.open()
    with capture_logs() as logs, pytest.raises(Retryable, match="first"):
        await ended(sink, *(batch_of(span(f"{name}[0]", 0, 2)) for name in "abc"), Eos())
    assert [(entry["table"], entry["reason"]) for entry in logs if entry["event"] == "another table failed too"] == [
        ("raw.b", "second")
    ]
    assert_rows_are_the_fence(tables(tmp_path)["c"], "c")


async def test_a_cancelled_run_commits_nothing_and_leaves_no_files_open(
    tmp_path: Path, hasty_clock: trio.testing.MockClock
) -> None:
    sink = sink_in(tmp_path)
    await sink.open()
    send, receive = trio.open_memory_channel[Message](10)
    await send.send(batch_of(span("a[0]", 0, 2)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, receive)
        while sink.taken.read == 0:
            await trio.sleep(1)
        nursery.cancel_scope.cancel()
    await sink.close()
    assert open_files(tmp_path) == set()
    assert fence_of(tables(tmp_path)["a"]) == {}
    await written(sink_in(tmp_path), {"a[0]": 2})
    assert_whole(tmp_path, {"a[0]": 2})
