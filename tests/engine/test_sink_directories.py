"""The sinks `parquet_dir` and `file_jsonl`: what is in the files, and when a batch is settled."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import math
from contextlib import AsyncExitStack
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from conveyord.core.errors import BatchError, ConfigError, Refused, StorageFull
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import SchemaContract
from conveyord.engine.contracts import OperatorContext, Sink
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators.sink_file_jsonl import FileJsonlConfig, FileJsonlSink
from conveyord.operators.sink_parquet_dir import ParquetDirConfig, ParquetDirSink
from conveyord.storage.claims import CLAIMS_DIRECTORY
from conveyord.storage.commit_log import STATE_DIRECTORY
from tests.engine.test_sink_iceberg import Letters, fieldless, rows
from tests.storage.directory_rig import files, rows_in

BOTH = pytest.mark.parametrize("kind", ["parquet_dir", "file_jsonl"])
SOURCE = Partition("source", "a.jsonl")
HALF = settings(max_examples=settings().max_examples // 2)  # each one writes directories, several times


def sink_of(kind: str, path: Path, *, letters: Letters | None = None, **options: Any) -> Sink:
    context = OperatorContext("ns/p", "out", path.parent, trio.CapacityLimiter(2), dead_letters=letters)
    if kind == "parquet_dir":
        return ParquetDirSink(ParquetDirConfig.model_validate({"path": str(path), **options}), context)
    return FileJsonlSink(FileJsonlConfig.model_validate({"path": str(path), **options}), context)


async def fed(sink: Sink, *data: pa.RecordBatch, settled: list[int] | None = None) -> int:
    """Open a sink, feed it batches that it does not have yet, end and close it. Returns where it began."""
    settled = [] if settled is None else settled
    async with AsyncExitStack() as stack:
        stack.push_async_callback(sink.close)
        held = await sink.open()
        assert held is not None
        first = held[SOURCE].offset // 10 if SOURCE in held else 0
        send, receive = trio.open_memory_channel[Message](len(data) + 1)
        for number, part in enumerate(data):
            if number >= first:
                span = Span(SOURCE, 10 * number, 10 * number + 10)
                ack = Ack(lambda number=number: settled.append(number))  # type: ignore[misc]
                await send.send(Batch(part, (span,), Tally(read=part.num_rows), ack))
        await send.send(Eos())
        await sink.run(receive)
    return first


def numbers(first: int, end: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(first, end), pa.int64())})


def held(path: Path) -> list[int]:
    return sorted(row["n"] for row in rows_in(path))


@BOTH
async def test_batches_are_settled_after_their_commit_in_order(tmp_path: Path, kind: str) -> None:
    settled: list[int] = []
    sink = sink_of(kind, tmp_path / "out", commit={"rows": 20})
    await fed(sink, *(numbers(10 * n, 10 * n + 10) for n in range(5)), settled=settled)
    assert settled == [0, 1, 2, 3, 4]
    assert held(tmp_path / "out") == list(range(50))
    assert (sink.report().rows, sink.report().commits) == (50, 3)
    assert sink.taken == Tally(read=50)


@BOTH
async def test_the_next_run_goes_on_where_this_one_ended(tmp_path: Path, kind: str) -> None:
    data = [numbers(10 * n, 10 * n + 10) for n in range(5)]
    assert await fed(sink_of(kind, tmp_path / "out"), *data[:3]) == 0
    assert await fed(sink_of(kind, tmp_path / "out"), *data) == 3
    assert held(tmp_path / "out") == list(range(50))


@BOTH
async def test_a_cancelled_sink_leaves_nothing_that_was_not_committed(tmp_path: Path, kind: str) -> None:
    sink = sink_of(kind, tmp_path / "out", commit={"rows": 20})
    settled: list[int] = []
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[Message](3)
        await sink.open()
        nursery.start_soon(sink.run, receive)
        for number in range(3):
            span = Span(SOURCE, 10 * number, 10 * number + 10)
            ack = Ack(lambda number=number: settled.append(number))  # type: ignore[misc]
            await send.send(Batch(numbers(10 * number, 10 * number + 10), (span,), Tally(read=10), ack))
        while send.statistics().current_buffer_used or len(settled) < 2 or sink.taken.read < 30:
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    await sink.close()
    assert settled == [0, 1]
    assert held(tmp_path / "out") == list(range(20))


@BOTH
async def test_an_old_batch_is_committed_by_its_age(tmp_path: Path, kind: str, autojump_clock: Any) -> None:
    sink = sink_of(kind, tmp_path / "out", commit={"every": "5s"})
    await sink.open()
    settled: list[int] = []
    send, receive = trio.open_memory_channel[Message](2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sink.run, receive)
        await send.send(Batch(numbers(0, 3), (Span(SOURCE, 0, 10),), Tally(read=3), Ack(lambda: settled.append(0))))
        while not settled:
            await trio.sleep(1)
        assert held(tmp_path / "out") == [0, 1, 2]
        await send.send(Eos())
    await sink.close()


@BOTH
async def test_files_hold_as_many_rows_as_they_may(tmp_path: Path, kind: str) -> None:
    await fed(sink_of(kind, tmp_path / "out", file={"rows": 7}), numbers(0, 10), numbers(10, 11), numbers(11, 30))
    counts = [sum(1 for _ in rows_in_file) for rows_in_file in map(one_file, files(tmp_path / "out"))]
    assert counts == [7, 7, 7, 7, 2]


def one_file(path: Path) -> list[Any]:
    return pq.read_table(path).to_pylist() if path.suffix == ".parquet" else path.read_text().splitlines()


@BOTH
async def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        await sink_of(kind, tmp_path / "file").open()


@BOTH
async def test_a_full_disk_is_named_and_nothing_is_lost(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fed(sink_of(kind, tmp_path / "out"), numbers(0, 10))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("conveyord.storage.commit_log.write_file", full)
        with pytest.raises(StorageFull, match=r"directory .*out: cannot be written \(No space left on device\); free"):
            await fed(sink_of(kind, tmp_path / "out"), numbers(0, 10), numbers(10, 20))
    assert held(tmp_path / "out") in (list(range(10)), list(range(20)))  # lines are taken back by the next run
    await fed(sink_of(kind, tmp_path / "out"), numbers(0, 10), numbers(10, 20))
    assert held(tmp_path / "out") == list(range(20))


@pytest.mark.parametrize("kind", ["parquet_dir", "file_jsonl"])
def test_paths_that_are_not_local_are_refused(tmp_path: Path, kind: str) -> None:
    sink, config = (ParquetDirSink, ParquetDirConfig) if kind == "parquet_dir" else (FileJsonlSink, FileJsonlConfig)
    mistakes = sink.mistakes(config(path="s3://bucket/out"))
    assert set(mistakes) == {"path"}
    assert "local file systems only" in mistakes["path"]


# ------------------------------------------------------------------------------ parquet_dir


async def test_every_type_comes_back_from_parquet(tmp_path: Path) -> None:
    at = dt.datetime(2024, 1, 2, 3, 4, 5, 600000, tzinfo=dt.UTC)
    data = pa.record_batch(
        {
            "n": pa.array([1, None]),
            "text": pa.array(["a", None], pa.string_view()),
            "coded": pa.array(["a", None]).dictionary_encode(),
            "money": pa.array([Decimal("1.50"), None]),
            "at": pa.array([at, None], pa.timestamp("us", "UTC")),
            "local": pa.array([at.replace(tzinfo=None), None], pa.timestamp("us")),
            "day": pa.array([at.date(), None]),
            "time": pa.array([at.time(), None]),
            "raw": pa.array([b"\x00\xff", None]),
            "odd name.x": pa.array([1.5, math.nan]),
            "o": pa.array([{"a": [1, None]}, None]),
            "m": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "nothing": pa.nulls(2),
        }
    )
    await fed(sink_of("parquet_dir", tmp_path / "out"), data)
    found = ds.dataset(tmp_path / "out").to_table().to_pylist()
    wanted = data.drop_columns(["nothing"]).to_pylist()
    assert repr(found) == repr(wanted)


async def test_later_columns_and_values_of_other_types_are_found_by_name(tmp_path: Path) -> None:
    sink = sink_of("parquet_dir", tmp_path / "out", commit={"rows": 1})
    await fed(sink, rows({"a": 1}), rows({"a": "x", "b": True}), rows({"a": 2.5}), rows({"b": None}))
    again = sink_of("parquet_dir", tmp_path / "out", commit={"rows": 1})
    assert await fed(again, *[rows({"a": 3.0})] * 5) == 4
    query = f"SELECT * FROM read_parquet('{tmp_path}/out/*.parquet', union_by_name=true, filename=false) ORDER BY ALL"
    found = duckdb.sql(query)
    assert found.columns == ["a", "b", "a__string", "a__double"]
    assert sorted(map(repr, found.fetchall())) == sorted(
        map(
            repr,
            [
                (1, None, None, None),
                (None, True, "x", None),
                (None, None, None, 2.5),
                (None, None, None, None),
                (3, None, None, None),
            ],
        )
    )


async def test_partitions_are_read_by_duckdb_and_arrow(tmp_path: Path) -> None:
    at = [dt.datetime(2024, 1, 1 + n % 2, tzinfo=dt.UTC) for n in range(6)]
    country = ["DE", "a/b", None, "DE", "", "Ü"]
    data = pa.record_batch({"n": range(6), "country": country, "at": pa.array(at, pa.timestamp("us", "UTC"))})
    await fed(sink_of("parquet_dir", tmp_path / "out", partition_by=["country", "day(at)"]), data)
    assert (tmp_path / "out" / "country=a%2Fb" / "at_day=2024-01-02").is_dir()
    query = f"SELECT n, country, at_day FROM read_parquet('{tmp_path}/out/**/*.parquet') ORDER BY n"
    assert duckdb.sql(query).fetchall() == [(n, country[n], at[n].date()) for n in range(6)]
    table = ds.dataset(tmp_path / "out", partitioning="hive").to_table().sort_by("n")
    assert table["country"].to_pylist() == country


async def test_values_that_no_directory_can_be_named_after_become_letters(tmp_path: Path) -> None:
    letters = Letters()
    sink = sink_of("parquet_dir", tmp_path / "out", partition_by=["k"], letters=letters)
    await fed(sink, rows(*({"k": "x" * (400 if n == 3 else 4), "n": n} for n in range(8))))
    assert letters.values() == [3]
    assert held(tmp_path / "out") == [0, 1, 2, 4, 5, 6, 7]
    assert sink.taken == Tally(read=8, dead=1)
    with pytest.raises(BatchError, match=r"^a\.jsonl bytes 0 to 10: partition_by: 'k' has a value of 400 characters"):
        await fed(sink_of("parquet_dir", tmp_path / "other", partition_by=["k"]), rows({"k": "x" * 400, "n": 1}))


async def test_rows_without_a_field_need_a_column_first(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="no column to create the directory with"):
        await fed(sink_of("parquet_dir", tmp_path / "out"), fieldless(2))
    await fed(sink_of("parquet_dir", tmp_path / "out"), rows({"n": 1}), fieldless(2))
    assert [row["n"] for row in rows_in(tmp_path / "out")] == [1, None, None]


async def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="columns_max is 1"):
        await fed(sink_of("parquet_dir", tmp_path / "out", columns_max=1), rows({"a": 1, "b": 2}))


async def test_a_directory_keeps_its_pipelines_contract(tmp_path: Path) -> None:
    await fed(sink_of("parquet_dir", tmp_path / "out"), rows({"n": 1}))
    sink = sink_of("parquet_dir", tmp_path / "out")
    sink.context = replace(sink.context, contract=SchemaContract(columns="discard_value"))
    await fed(sink, rows({"n": 1}), rows({"n": 2, "more": 3}))
    assert sorted(map(repr, rows_in(tmp_path / "out"))) == ["{'n': 1}", "{'n': 2}"]
    assert sink.report().discarded_values == 1
    frozen = sink_of("parquet_dir", tmp_path / "new")
    frozen.context = replace(frozen.context, contract=SchemaContract(tables="freeze"))
    with pytest.raises(Refused, match="schema.tables is freeze"):
        await frozen.open()
    await frozen.close()


# ------------------------------------------------------------------------------ file_jsonl


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson.gz", "rows.JSON.zst", "many", "many.d/"])
async def test_one_file_or_a_directory_of_files_as_the_name_says(tmp_path: Path, name: str) -> None:
    sink = sink_of("file_jsonl", Path(f"{tmp_path}/{name}"))
    assert isinstance(sink, FileJsonlSink)
    await fed(sink, numbers(0, 5), numbers(5, 9))
    is_directory = name.startswith("many")
    assert (tmp_path / name).is_dir() == is_directory
    found = files(tmp_path / name if is_directory else tmp_path)
    assert len(found) == 1
    shown = duckdb.sql(f"SELECT n FROM read_json('{found[0]}', format='newline_delimited') ORDER BY 1").fetchall()
    assert [n for (n,) in shown] == list(range(9))


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
async def test_compressed_files_are_cut_at_commits_like_others(tmp_path: Path, compression: str) -> None:
    options = {"compression": compression, "commit": {"rows": 10}, "file": {"bytes": 1024}}
    data = [numbers(10 * n, 10 * n + 10) for n in range(6)]
    await fed(sink_of("file_jsonl", tmp_path / "out", **options), *data[:3])
    newest = files(tmp_path / "out")[-1]
    (state,) = (tmp_path / "out" / STATE_DIRECTORY).iterdir()
    (state / CLAIMS_DIRECTORY / newest.name).hardlink_to(newest)  # as of a run that was appending to it
    with newest.open("ab") as file:
        file.write(b"what a crash left")
    await fed(sink_of("file_jsonl", tmp_path / "out", **options), *data)
    found = duckdb.sql(f"SELECT n FROM read_json('{tmp_path}/out/part-*', format='newline_delimited') ORDER BY 1")
    assert [n for (n,) in found.fetchall()] == list(range(60))


async def test_numbers_that_json_lacks_are_null_and_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await fed(sink_of("file_jsonl", tmp_path / "out.jsonl"), pa.record_batch({"x": [math.nan, 1.5, -math.inf]}))
    assert (tmp_path / "out.jsonl").read_text() == '{"x":null}\n{"x":1.5}\n{"x":null}\n'
    assert "became null" in capsys.readouterr().out


async def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    twice = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], ["a", "a"])
    with pytest.raises(ConfigError, match="two columns are named 'a'"):
        await fed(sink_of("file_jsonl", tmp_path / "out"), twice)


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"path": "a.jsonl", "file": {"rows": 5}}, "file", "one file, never full; name a directory"),
        ({"path": "a.jsonl.gz", "compression": "zstd"}, "compression", "the ending of 'a.jsonl.gz' says gzip"),
        ({"path": "a.jsonl", "compression": "gzip"}, "compression", "says none; leave this out"),
    ],
)
def test_options_that_contradict_the_path_are_refused(options: dict[str, Any], key: str, message: str) -> None:
    mistakes = FileJsonlSink.mistakes(FileJsonlConfig.model_validate(options))
    assert message in mistakes[key]


def test_nonsense_is_refused() -> None:
    for options in ({"path": ""}, {"path": "a", "compression": "lz4"}, {"path": "a", "file": {"rows": 0}}):
        with pytest.raises(ValidationError):
            FileJsonlConfig.model_validate(options)


# ------------------------------------------------------------------------------ whatever comes, however it is cut

texts = st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=4))
moments = st.one_of(st.none(), st.integers(-(10**15), 10**15))
mixed = {pa.int64(): st.integers(-5, 5), pa.string(): texts, pa.float64(): st.sampled_from([0.5, 2.0, None])}
KEYS = [(), ("k",), ("day(at)", "k"), ("truncate(1, k)",), ("bucket(3, n)",), ("year(at)", "bucket(2, k)")]


@st.composite
def shapes(draw: st.DrawFn) -> list[pa.RecordBatch]:
    """Batches with numbered rows, whose column `v` changes its type from one to the next."""
    made, first = [], 0
    for length in draw(st.lists(st.integers(0, 12), min_size=1, max_size=6)):
        kind = draw(st.sampled_from(list(mixed)))
        columns = {
            "n": pa.array(range(first, first + length), pa.int64()),
            "k": pa.array(draw(st.lists(texts, min_size=length, max_size=length)), pa.string()),
            "at": pa.array(draw(st.lists(moments, min_size=length, max_size=length)), pa.timestamp("us", "UTC")),
            "v": pa.array(draw(st.lists(mixed[kind], min_size=length, max_size=length)), kind),
        }
        made.append(pa.record_batch(columns))
        first += length
    return made


@HALF
@given(shapes(), st.sampled_from(KEYS), st.integers(1, 12), st.data())
def test_every_row_is_in_parquet_once_with_its_values(
    data: list[pa.RecordBatch], partition_by: tuple[str, ...], commit_rows: int, draw: st.DataObject
) -> None:
    options = {"commit": {"rows": commit_rows}, "file": {"rows": 5}, "partition_by": partition_by}
    with TemporaryDirectory() as home:
        out = Path(home) / "out"
        for end in [*draw.draw(st.lists(st.integers(0, len(data)), max_size=3).map(sorted)), len(data)]:
            trio.run(partial(fed, sink_of("parquet_dir", out, **options), *data[:end]))
        keys = ds.partitioning(pa.schema([("k", pa.string())]), flavor="hive") if "k" in partition_by else None
        found: dict[int, dict[str, Any]] = {}
        for path in files(out):  # one by one: Arrow reads a dataset under the columns of its first file
            for row in ds.dataset(path, partitioning=keys, partition_base_dir=str(out)).to_table().to_pylist():
                assert row["n"] not in found
                found[row["n"]] = row
    wanted = [row for part in data for row in part.to_pylist()]
    assert sorted(found) == [row["n"] for row in wanted]
    for row in wanted:
        seen = found[row["n"]]
        assert (seen["k"], seen["at"]) == (row["k"], row["at"])
        held = [value for name, value in seen.items() if name.split("__")[0] == "v" and value is not None]
        whole = float(row["v"]).is_integer() if isinstance(row["v"], float) else False
        assert held in ([] if row["v"] is None else [row["v"]], [str(row["v"])], ["2"] if whole else None)


@HALF
@given(shapes(), st.sampled_from(["none", "gzip"]), st.integers(1, 12), st.data())
def test_every_row_is_in_lines_once_with_its_values(
    data: list[pa.RecordBatch], compression: str, commit_rows: int, draw: st.DataObject
) -> None:
    options = {"commit": {"rows": commit_rows}, "file": {"rows": 5}, "compression": compression}
    with TemporaryDirectory() as home:
        out = Path(home) / "out"
        for end in [*draw.draw(st.lists(st.integers(0, len(data)), max_size=3).map(sorted)), len(data)]:
            trio.run(partial(fed, sink_of("file_jsonl", out, **options), *data[:end]))
        found = [json.loads(line) for path in files(out) for line in _text(path).splitlines()]
    wanted = [row for part in data for row in part.drop_columns(["at"]).to_pylist()]
    assert [{name: row[name] for name in ("n", "k", "v")} for row in found] == wanted


def _text(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
