"""What `stdout_pretty` prints, when it settles, and how it ends when nobody reads."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
import trio

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext, SinkReport
from conveyord.engine.messages import Ack, Batch, Eos, Message
from conveyord.operators.sink_stdout_pretty import StdoutPrettyConfig, StdoutPrettySink


def sink(tmp_path: Path, **options: object) -> StdoutPrettySink:
    context = OperatorContext(pipeline="default/p", stage="out", data_dir=tmp_path, threads=trio.CapacityLimiter(1))
    return StdoutPrettySink(StdoutPrettyConfig.model_validate(options), context)


async def run(target: StdoutPrettySink, *tables: pa.RecordBatch) -> int:
    """Feed batches and the end; returns how many were settled."""
    settled: list[int] = []
    send, receive = trio.open_memory_channel[Message](len(tables) + 1)
    for number, data in enumerate(tables):
        span = Span(Partition("source", "f"), number, number + 1)
        ack = Ack(lambda number=number: settled.append(number))  # type: ignore[misc]
        await send.send(Batch(data, (span,), Tally(read=data.num_rows), ack))
    await send.send(Eos())
    await target.run(receive)
    assert settled == sorted(settled)
    return len(settled)


def numbers(count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(count), pa.int64())})


async def test_a_table_is_aligned_with_numbers_to_the_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pa.record_batch({"id": [1, 200], "name": ["東京", None], "nested": [{"a": [1, 2]}, {"a": None}]})
    await run(sink(tmp_path), data)
    assert capsys.readouterr().out.splitlines() == [
        " id  name  nested",
        "---  ----  -----------",
        '  1  東京  {"a":[1,2]}',
        '200  -     {"a":null}',
    ]


async def test_times_are_iso_and_json_lines_are_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at = dt.datetime(2024, 1, 2, 3, 4, 5, 600000, tzinfo=dt.UTC)
    data = pa.record_batch(
        {
            "at": pa.array([at], pa.timestamp("us", "UTC")),
            "day": pa.array([at.date()]),
            "money": pa.array([Decimal("1.50")]),
            "odd": [float("nan")],
            "word": pa.array(["x"]).dictionary_encode(),
            "text": ['a\n"b"'],
            "none": pa.nulls(1),
        }
    )
    await run(sink(tmp_path, format="json"), data)
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line) == {
        "at": "2024-01-02T03:04:05.6Z",
        "day": "2024-01-02",
        "money": "1.50",
        "odd": None,
        "word": "x",
        "text": 'a\n"b"',
        "none": None,
    }
    await run(sink(tmp_path), data.select(["at", "day", "word"]))
    assert capsys.readouterr().out.splitlines()[-1] == "2024-01-02T03:04:05.6Z  2024-01-02  x"


async def test_the_limit_counts_over_the_run_and_says_how_many_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = sink(tmp_path, limit=3)
    assert await run(target, numbers(2), numbers(2), numbers(1000)) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line.strip() for line in lines] == [
        "n", "-", "0", "1", "n", "-", "0", "... and 1,001 more rows (limit: 3; null shows all)",
    ]  # fmt: skip
    assert target.report() == SinkReport(name="out", rows=1004, files=0, commits=0)
    assert target.taken == Tally(read=1004)


async def test_json_lines_stay_pure_when_there_are_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await run(sink(tmp_path, format="json", limit=1), numbers(2))
    printed = capsys.readouterr()
    assert printed.out == '{"n":0}\n'
    assert "1 more row " in printed.err


async def test_without_a_limit_every_row_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await run(sink(tmp_path, format="json", limit=None), numbers(2500))
    rows = [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()]
    assert rows == list(range(2500))


async def test_control_characters_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await run(sink(tmp_path), pa.record_batch({"x\x1b[2J": ["a\x1b[31m\nb\x9b"], "long": ["y" * 500]}))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert "a\\x1b[31m\\nb\\x9b" in out
    assert max(map(len, out.splitlines())) < 100


async def test_batches_without_rows_or_columns_are_settled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(sink(tmp_path), numbers(0), pa.record_batch({})) == 2
    assert capsys.readouterr().out == ""


async def test_no_position_is_held(tmp_path: Path) -> None:
    assert await sink(tmp_path).open() is None
    assert StdoutPrettySink.delivery == "at-least-once"


async def test_a_closed_pipe_ends_it_quietly_and_settles_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    pipe = os.fdopen(writer, "w")
    monkeypatch.setattr(sys, "stdout", pipe)
    assert await run(sink(tmp_path), numbers(2), numbers(2)) == 0
    monkeypatch.undo()
    with pytest.raises(BrokenPipeError):
        pipe.close()  # the text that could not leave; the command line gives it to /dev/null
