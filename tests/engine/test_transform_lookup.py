"""The transform `lookup`: what rows get, when a reference is read again, and what becomes of rows without a match."""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import structlog
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from trio.testing import MockClock

from conveyord.core.errors import BatchError, ConfigError, Refused
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import Edge
from conveyord.core.retry import Backoff
from conveyord.engine.contracts import OperatorContext, Retries
from conveyord.engine.messages import Ack, Batch, Eos, Message, Watermark
from conveyord.operators.transform_lookup import LookupTransform
from tests.engine.graph_rig import DLQ, World, line, numbered, pipeline, run_now, sink, source, transform

COUNTRIES = "code,name,area\nAT,Austria,83879\nCH,Switzerland,41291\nXX,,\n"
BY_CODE = {"country": "code"}


def write(path: Path, text: str = COUNTRIES) -> Path:
    """Put a new file into the place of the old one, as one should."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)
    return path


@pytest.fixture
def countries(tmp_path: Path) -> Path:
    return write(tmp_path / "countries.csv")


def made(path: Path, listened: tuple[str, ...] = (), **options: Any) -> LookupTransform:
    context = OperatorContext(
        pipeline="default/test",
        stage="look",
        data_dir=Path("unused"),
        threads=trio.CapacityLimiter(1),
        listened=frozenset(listened),
        retries=Retries(count_max=2, backoff=Backoff(base_seconds=0.1, cap_seconds=0.1)),
    )
    config = LookupTransform.Config(**{"reference": {"type": "csv", "path": str(path)}, "on": BY_CODE, **options})
    return LookupTransform(config, context)


def message(data: pa.RecordBatch) -> Batch:
    span = Span(Partition("source", "p"), 0, data.num_rows)
    return Batch(data, (span,), Tally(read=data.num_rows), Ack(lambda: None))


def rows(*codes: str | None) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(len(codes))), "country": pa.array(codes, pa.string())})


class Taken:
    """An outbound that keeps what it gets, and does something after each message."""

    def __init__(self, after: Callable[[int], Awaitable[None]] | None = None) -> None:
        self.messages: list[Any] = []
        self.extra: list[dict[str, Batch]] = []
        self._after = after

    async def send(self, message: Message, extra: Any = None) -> None:
        self.messages.append(message)
        self.extra.append(dict(extra or {}))
        if self._after is not None:
            await self._after(len(self.messages))


async def feed(stage: LookupTransform, out: Taken, *messages: Message) -> Taken:
    into, inbound = trio.open_memory_channel[Message](0)

    async def send_all() -> None:
        for each in (*messages, Eos()):
            await into.send(each)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send_all)
        try:
            await stage.run(inbound, out)
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1_000):
                await stage.close()
            nursery.cancel_scope.cancel()
    return out


def looked_up(stage: LookupTransform, data: pa.RecordBatch) -> Batch:
    try:
        out = trio.run(feed, stage, Taken(), message(data))
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None
    return out.messages[0]


def listed(stage: LookupTransform, data: pa.RecordBatch) -> list[dict[str, Any]]:
    return looked_up(stage, data).data.to_pylist()


def failing(stage: LookupTransform, data: pa.RecordBatch, kind: type[Exception] = ConfigError) -> str:
    with pytest.raises(kind) as refused:
        looked_up(stage, data)
    return str(refused.value)


# ---------------------------------------------------------------------------- what rows get


def test_rows_get_the_columns_of_the_reference_behind_their_own(countries: Path) -> None:
    batch = looked_up(made(countries), rows("CH", "ZZ", None, "AT", "XX"))
    assert batch.data.to_pylist() == [
        {"n": 0, "country": "CH", "name": "Switzerland", "area": 41291},
        {"n": 1, "country": "ZZ", "name": None, "area": None},
        {"n": 2, "country": None, "name": None, "area": None},
        {"n": 3, "country": "AT", "name": "Austria", "area": 83879},
        {"n": 4, "country": "XX", "name": None, "area": None},
    ]
    assert batch.tally == Tally(read=5)


@pytest.mark.parametrize(
    ("options", "added"),
    [
        ({"columns": ("area",)}, {"area": 83879}),
        ({"columns": ("area", "code")}, {"area": 83879, "code": "AT"}),
        ({"columns": {"name": "land"}, "prefix": "c_"}, {"land": "Austria"}),
        ({"prefix": "c_"}, {"c_name": "Austria", "c_area": 83879}),
        ({"columns": ()}, {}),
        ({"mode": "nest", "into": "c"}, {"c": {"name": "Austria", "area": 83879}}),
        ({"mode": "nest", "into": "c", "columns": {"area": "a"}}, {"c": {"a": 83879}}),
        ({"on_miss": "default", "default": {"area": 0}}, {"name": "Austria", "area": 83879}),
    ],
)
def test_which_columns_come_and_how_they_are_called(options: Any, added: Any, countries: Path) -> None:
    assert listed(made(countries, **options), rows("AT")) == [{"n": 0, "country": "AT", **added}]


def test_a_list_names_columns_that_are_called_the_same(countries: Path) -> None:
    data = pa.record_batch({"code": ["AT"]})
    assert listed(made(countries, on=("code",)), data) == [{"code": "AT", "name": "Austria", "area": 83879}]


def test_a_nested_object_is_null_where_nothing_matches(countries: Path) -> None:
    nested = made(countries, mode="nest", into="c")
    assert [row["c"] for row in listed(nested, rows("XX", "ZZ"))] == [{"name": None, "area": None}, None]


def test_defaults_are_for_rows_without_a_match_only(countries: Path) -> None:
    default = {"on_miss": "default", "default": {"name": "somewhere"}}
    got = listed(made(countries, **default), rows("XX", "ZZ", None))
    assert [(row["name"], row["area"]) for row in got] == [(None, None), ("somewhere", None), ("somewhere", None)]
    got = listed(made(countries, **default, mode="nest", into="c"), rows("XX", "ZZ"))
    assert [row["c"] for row in got] == [{"name": None, "area": None}, {"name": "somewhere", "area": None}]


def test_dropped_rows_are_counted_and_leave_by_an_output(countries: Path) -> None:
    batch = looked_up(made(countries, on_miss="drop"), rows("ZZ", "AT", None))
    assert batch.data["n"].to_pylist() == [1]
    assert batch.tally == Tally(read=3, filtered=2)
    stage = made(countries, ("missed",), on_miss="drop")
    out = trio.run(feed, stage, Taken(), message(rows("ZZ", "AT", None)))
    assert out.extra[0]["missed"].data.to_pylist() == [{"n": 0, "country": "ZZ"}, {"n": 2, "country": None}]


def test_without_dead_letters_a_row_without_a_match_stops_the_run(countries: Path) -> None:
    stage = made(countries, on_miss="dead_letter")
    assert failing(stage, rows("AT", "Z" * 100), BatchError) == (
        f"p bytes 0 to 2: 1 of 2 rows are bad; the first is row 1 of the batch: lookup: reference {countries} has no "
        f"row with code = '{'Z' * 59}…"
    )
    assert failing(stage, rows(None), BatchError).endswith("has no row with code = null, which matches nothing")


def test_a_batch_without_rows_gets_the_columns_too(countries: Path) -> None:
    assert looked_up(made(countries), rows("AT").slice(0, 0)).data.schema.names == ["n", "country", "name", "area"]


def test_a_reference_without_rows_matches_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", "code,name\n")
    assert listed(made(path), rows("AT")) == [{"n": 0, "country": "AT", "name": None}]
    assert listed(made(path, mode="nest", into="c"), rows("AT")) == [{"n": 0, "country": "AT", "c": None}]


@pytest.mark.parametrize("kind", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_keys_and_other_columns_may_be_laid_out_in_any_way(kind: pa.DataType, countries: Path) -> None:
    plain = rows("AT", "ZZ", None)
    data = pa.record_batch({"country": plain["country"].cast(kind), "l": [[1], [], None], "s": [{"x": 1}, None, {}]})
    for on_miss in ("keep", "drop"):
        got = listed(made(countries, on_miss=on_miss), data)
        assert got[0] == {"country": "AT", "l": [1], "s": {"x": 1}, "name": "Austria", "area": 83879}
        assert len(got) == (3 if on_miss == "keep" else 1)


@given(
    known=st.dictionaries(
        st.integers(0, 9), st.tuples(st.none() | st.text("ab", max_size=3), st.none() | st.integers(0, 3))
    ),
    keys=st.lists(st.none() | st.integers(0, 9), max_size=12),
    on_miss=st.sampled_from(["keep", "drop", "default"]),
)
@settings(max_examples=30)
def test_it_does_what_a_loop_over_rows_would(
    known: dict[int, tuple[str | None, int | None]], keys: list[int | None], on_miss: str, tmp_path_factory: Any
) -> None:
    path = tmp_path_factory.mktemp("r") / "r.parquet"
    table = {
        "k": pa.array(known, pa.int64()),
        "t": pa.array([text for text, _ in known.values()], pa.string()),
        "v": pa.array([value for _, value in known.values()], pa.int64()),
    }
    pa.parquet.write_table(pa.table(table), path)
    default = {"default": {"t": "?"}} if on_miss == "default" else {}
    stage = made(path, reference={"type": "parquet", "path": str(path)}, on=("k",), on_miss=on_miss, **default)
    expected = []
    for key in keys:
        if key in known:
            expected.append({"k": key, "t": known[key][0], "v": known[key][1]})
        elif on_miss != "drop":
            expected.append({"k": key, "t": "?" if on_miss == "default" else None, "v": None})
    assert listed(stage, pa.record_batch({"k": pa.array(keys, pa.int64())})) == expected


# ---------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("options", "data", "sentence"),
    [
        (
            {"on": {"contry": "code"}},
            rows("AT"),
            "lookup: `on` names the column 'contry', which the rows do not have; did you mean 'country'?",
        ),
        (
            {},
            pa.record_batch({"country": ["AT"], "name": ["x"]}),
            "lookup: the rows have a column 'name' already; set `prefix`, or rename it in `columns`",
        ),
        (
            {"mode": "nest", "into": "n"},
            rows("AT"),
            "lookup: the rows have a column 'n' already; choose another name by `into`",
        ),
        (
            {"on_miss": "default", "default": {"area": "large"}},
            rows("AT"),
            "lookup: the default 'large' does not fit the column 'area', which is int64 in {reference}",
        ),
        (
            {"on_miss": "default", "default": {"size": 1}},
            rows("AT"),
            "lookup: `default` names 'size', which the rows do not get; they get name, area",
        ),
        (
            {"mode": "nest", "into": "c", "on": {"country": "code", "n": "name", "m": "area"}},
            rows("AT"),
            "lookup: {reference} brings no column beside its keys to nest",
        ),
        (
            {"columns": ("nam",)},
            rows("AT"),
            "{reference} has no column 'nam'; did you mean 'name'? It has code, name, area",
        ),
        (
            {"cache": {"rows_max": 2}},
            rows("AT"),
            "{reference} has more than 2 rows, which cache.rows_max allows; raise that if there is memory for them",
        ),
        (
            {"on": {"n": "area"}, "reference": {"type": "csv", "path": "{path}"}},
            rows("AT", "CH"),
            "lookup: the rows have a column 'name' already",
        ),
    ],
)
def test_what_cannot_work_says_what_to_do(
    options: dict[str, Any], data: pa.RecordBatch, sentence: str, countries: Path
) -> None:
    if "reference" in options:
        options = {**options, "reference": {"type": "csv", "path": str(countries)}}
        data = data.append_column("name", data["country"])
    message = failing(made(countries, **options), data)
    assert message.startswith(sentence.replace("{reference}", f"reference {countries}"))


def test_a_key_that_stands_twice_is_found_by_a_dry_run(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", "code,name\nAT,a\nCH,b\nAT,c\n")
    with pytest.raises(ConfigError, match="has a key twice: code = 'AT' in rows 1 and 3"):
        trio.run(made(path).check)
    assert "has a key twice: code = 'AT' in rows 1 and 3" in failing(made(path), rows("CH"))
    trio.run(made(path, duplicates="last").check)
    assert listed(made(path, duplicates="last"), rows("AT"))[0]["name"] == "c"
    assert listed(made(path, duplicates="first"), rows("AT"))[0]["name"] == "a"


def test_a_dry_run_says_that_there_is_no_reference(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        trio.run(made(tmp_path / "nowhere.csv").check)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reference": {"type": "sqlite", "path": "r.db"}}, "needs either table or query"),
        ({"reference": {"type": "sqlite", "path": "r.db", "table": "t", "query": "q"}}, "needs either table or query"),
        ({"reference": {"type": "csv", "path": "r.csv", "table": "t"}}, "are for sqlite, not for csv"),
        ({"reference": {"type": "iceberg", "path": "r", "table": "a.b"}}, "for iceberg write path: a.b"),
        ({"reference": {"type": "json", "path": "r"}}, "'csv', 'parquet', 'sqlite' or 'iceberg'"),
        ({"on": {}}, "at least 1"),
        ({"mode": "nest"}, "mode: nest needs into"),
        ({"into": "c"}, "mode: nest needs into"),
        ({"on_miss": "default"}, "needs default with the values"),
        ({"default": {"a": 1}}, "only on_miss: default uses it"),
        ({"columns": {"a": "x", "b": "x"}}, "columns gives 'x' twice"),
        ({"cache": {"ttl": "5s", "check_every": "5s"}}, "must be longer than cache.check_every (5s), got 5s; try 15s"),
        ({"cache": {"bytes_max": "4GiB"}}, "less than or equal to 2000000000"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        made(Path("r.csv"), **options)
    assert sentence in str(refused.value)


def test_it_is_never_shared() -> None:
    assert not LookupTransform.pure


# ---------------------------------------------------------------------------- reading again


async def names_of(stage: LookupTransform, count: int, after: Callable[[int], Awaitable[None]]) -> list[str]:
    """The name that AT has in each of `count` batches; `after` runs between them."""
    out = await feed(stage, Taken(after), *(message(rows("AT")) for _ in range(count)))
    return [batch.data["name"][0].as_py() for batch in out.messages]


def still_clock(main: Callable[[MockClock], Awaitable[Any]]) -> Any:
    """Run under a clock that goes only where the test moves it."""
    clock = MockClock()
    try:
        return trio.run(main, clock, clock=clock)
    except BaseExceptionGroup as group:
        (error,) = group.exceptions
        raise error from None


def test_a_changed_reference_is_read_again_but_not_before_it_is_time(countries: Path) -> None:
    async def main(clock: MockClock) -> list[str]:
        async def after(count: int) -> None:
            if count == 1:
                write(countries, COUNTRIES.replace("Austria", "Österreich"))
            clock.jump(4)

        return await names_of(made(countries, cache={"check_every": "10s"}), 6, after)

    assert still_clock(main) == ["Austria"] * 3 + ["Österreich"] * 3


def test_watermarks_and_order_survive_a_reload(countries: Path) -> None:
    sent = [message(rows("AT")), Watermark(1), message(rows("CH")), Watermark(2)]

    async def main(clock: MockClock) -> list[Message]:
        async def after(count: int) -> None:
            write(countries)
            clock.jump(20)

        return (await feed(made(countries), Taken(after), *sent)).messages

    got = still_clock(main)
    assert [type(each) for each in got] == [Batch, Watermark, Batch, Watermark]
    assert [each.ack for each in got if isinstance(each, Batch)] == [sent[0].ack, sent[2].ack]


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (None, "does not exist"),
        ("code,title\nAT,a\n", "has no column 'name'"),
        ("code,name,area\nAT,a,1\nAT,b,2\n", "has a key twice"),
        ("code,name\nAT\n", "cannot be read"),
    ],
)
def test_a_reference_that_cannot_be_read_again_stays_as_it_was_with_a_warning(
    broken: str | None, reason: str, countries: Path
) -> None:
    async def main(clock: MockClock) -> list[str]:
        async def after(count: int) -> None:
            clock.jump(11)
            if count == 1 and broken is None:
                os.unlink(countries)
            elif count == 1:
                write(countries, broken)
            elif count == 3:
                write(countries, COUNTRIES.replace("Austria", "Österreich"))

        return await names_of(made(countries, columns=("name",)), 4, after)

    with structlog.testing.capture_logs() as logs:
        assert still_clock(main) == ["Austria"] * 3 + ["Österreich"]
    warnings = [log for log in logs if log["log_level"] == "warning"]
    assert len(warnings) == 2
    assert all(reason in log["reason"] and log["stage"] == "look" for log in warnings)
    assert [log["age_seconds"] for log in warnings] == [11, 22]


def test_a_reference_older_than_its_ttl_is_refused(countries: Path) -> None:
    seen: list[int] = []

    async def main(clock: MockClock) -> None:
        async def after(count: int) -> None:
            seen.append(count)
            if count == 1:
                os.unlink(countries)
            clock.jump(11)

        await names_of(made(countries, cache={"ttl": "30s"}), 9, after)

    with pytest.raises(Refused) as refused:
        still_clock(main)
    assert seen == [1, 2, 3], "after 0, 11 and 22 seconds"
    assert str(refused.value) == (
        f"lookup: reference {countries} does not exist; the path is taken from {os.getcwd()}. It was last known "
        "to be up to date 33.0 s ago, longer than cache.ttl (30.0 s); mend it and run again"
    )


def test_a_pause_longer_than_the_ttl_is_no_reason_to_stop(countries: Path) -> None:
    async def main(clock: MockClock) -> list[str]:
        async def after(count: int) -> None:
            clock.jump(1_000)

        return await names_of(made(countries, cache={"ttl": "30s"}), 3, after)

    assert still_clock(main) == ["Austria"] * 3


def test_a_reference_in_a_database_is_read_again_when_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    writer = sqlite3.connect(path)
    writer.execute("CREATE TABLE c (code, name)")
    writer.execute("INSERT INTO c VALUES ('AT', 'Austria')")
    writer.commit()

    def update() -> None:
        with writer:
            writer.execute("UPDATE c SET name = 'Österreich'")

    async def main(clock: MockClock) -> list[str]:
        async def after(count: int) -> None:
            clock.jump(11)
            if count == 2:
                update()

        stage = made(path, reference={"type": "sqlite", "path": str(path), "table": "c"})
        return await names_of(stage, 3, after)

    assert still_clock(main) == ["Austria", "Austria", "Österreich"]
    writer.close()


def test_a_reference_that_takes_long_to_read_can_be_cancelled(tmp_path: Path) -> None:
    """The query never ends by itself."""
    path = tmp_path / "r.db"
    sqlite3.connect(path).close()
    query = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) AS code FROM n"
    stage = made(path, reference={"type": "sqlite", "path": str(path), "query": query})
    reading, read = trio.Event(), stage._reader.read

    def announced(*arguments: Any) -> Any:
        trio.from_thread.run_sync(reading.set)
        return read(*arguments)

    stage._reader.read = announced

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.check)
            await reading.wait()
            nursery.cancel_scope.cancel()
        await stage.close()

    trio.run(main)


# ---------------------------------------------------------------------------- in the engine


def letters(text: str = "abc") -> str:
    return "k,title\n" + "".join(f"{letter},{letter.upper()}\n" for letter in text)


def look(path: Path, **options: Any) -> Any:
    return transform("look", "lookup", reference={"type": "csv", "path": str(path)}, on=["k"], **options)


def test_rows_without_a_match_become_dead_letters_with_their_records(data_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", letters("ac"))
    world = World(tables={"t": numbered(30)})
    outcome = run_now(world, line(source(), look(path, on_miss="dead_letter"), sink()), data_dir)
    assert not outcome.failed()
    kept = world.kept("default/p", "out")
    assert [row["n"] for row in kept.rows] == [n for n in range(30) if n % 3 != 1]
    assert all(row["title"] == row["k"].upper() for row in kept.rows)
    found = outcome.letters_of()
    assert sorted(stored.letter.key.offset // 10 for stored in found) == [n for n in range(30) if n % 3 == 1]
    assert all("has no row with k = 'b'" in stored.letter.message for stored in found)


def test_what_comes_after_a_lookup_that_drops_still_knows_its_records(data_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", letters("ac"))
    world = World(tables={"t": numbered(30)})
    stages = [source(), look(path, on_miss="drop"), transform("brittle", "brittle", poison=[6]), sink()]
    outcome = run_now(world, line(*stages), data_dir)
    assert not outcome.failed()
    assert sorted(stored.letter.key.offset // 10 for stored in outcome.letters_of()) == [6, 26]
    dropped = Counter(n % 3 == 1 for n in range(30))[True]
    assert len(world.kept("default/p", "out").rows) == 30 - dropped - 2


def test_missed_rows_and_the_others_meet_the_same_positions(data_dir: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", letters("a"))
    world = World(tables={"t": numbered(30)})
    stages = [source(), look(path, on_miss="drop"), sink(), sink("missed")]
    edges = [("in", "look"), ("look", "out"), Edge("look", "missed", output="missed")]
    outcome = run_now(world, pipeline(stages, edges, dlq=DLQ), data_dir)
    assert not outcome.failed()
    out, missed = world.kept("default/p", "out"), world.kept("default/p", "missed")
    assert {row["k"] for row in out.rows} == {"a"}
    assert {row["k"] for row in missed.rows} == {"b", "c"}
    assert len(out.rows) + len(missed.rows) == 30
    assert out.positions == missed.positions


def test_a_reference_that_is_missing_fails_its_pipeline_before_any_row(data_dir: Path, tmp_path: Path) -> None:
    world = World(tables={"t": numbered(30)})
    outcome = run_now(world, line(source(), look(tmp_path / "no.csv"), sink()), data_dir)
    ((stage, message),) = outcome.failed()
    assert stage == "look"
    assert "no.csv does not exist" in message
    assert not world.kept("default/p", "out").rows
