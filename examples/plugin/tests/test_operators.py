"""Each operator alone: a context, a channel, and no pipeline."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio
from conveyord_example.clamp import ClampConfig, ClampTransform
from conveyord_example.dice import DiceConfig, DiceSource
from conveyord_example.json_file import JsonFileConfig, JsonFileSink
from pydantic import ValidationError

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.messages import Ack, Batch, Eos, Message

DICE = Partition("stage", "dice")


def context() -> OperatorContext:
    """What surrounds an operator, as little of it as there can be."""
    return OperatorContext(
        pipeline="default/test", stage="stage", data_dir=Path("unused"), threads=trio.CapacityLimiter(1)
    )


class Collected:
    """An outlet that keeps what a source sends."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.spans: list[Span] = []

    def expects(self, raw_bytes: int | None) -> None:
        """Nobody looks."""

    async def send(
        self, data: pa.RecordBatch, spans: tuple[Span, ...], tally: Tally, *, raw_bytes: int, **more: Any
    ) -> None:
        """Keep rows and spans; the accounting must agree."""
        assert tally.rows == data.num_rows
        assert raw_bytes > 0
        assert not more
        self.rows += data.to_pylist()
        self.spans += spans


async def read(*offsets: int, mark: str = "7/6", **options: Any) -> Collected:
    """What the source sends to sinks that hold it up to `offsets`."""
    source = DiceSource(DiceConfig(**{"throws": 20, "seed": 7, "batch_rows": 8, **options}), context())
    out = Collected()
    fences = tuple(Positions({DICE: Position(offset, mark)}) if offset else Positions() for offset in offsets)
    await source.run(out, fences=fences, drain=trio.Event())  # type: ignore[arg-type]
    return out


async def test_the_same_seed_gives_the_same_throws_from_any_position() -> None:
    """Reading again from an offset gives the same records: what exactly-once rests on."""
    whole = await read(0)
    assert [row["throw"] for row in whole.rows] == list(range(20))
    assert {row["value"] for row in whole.rows} <= set(range(1, 7))
    for offset in (1, 7, 19, 20):
        assert (await read(offset)).rows == whole.rows[offset:]


async def test_a_batch_ends_at_every_fence_and_there_is_no_gap() -> None:
    """What a sink already holds can then be left out by whole batches."""
    out = await read(3, 10, 13)
    assert out.spans[0].first == 3
    assert {10, 13, 20} <= {span.end for span in out.spans}
    assert all(before.end == after.first for before, after in zip(out.spans, out.spans[1:], strict=False))


async def test_throws_of_another_seed_are_refused() -> None:
    """Going on would mix rows of two sources in one table."""
    with pytest.raises(Refused, match="seed/sides 8/6"):
        await read(5, mark="8/6")


async def test_drain_stops_the_source() -> None:
    """The rest of the pipeline then finishes and commits."""
    drain = trio.Event()
    drain.set()
    out = Collected()
    await DiceSource(DiceConfig(throws=5), context()).run(out, fences=(), drain=drain)  # type: ignore[arg-type]
    assert out.rows == []


def test_clamp_limits_numbers_and_leaves_nulls() -> None:
    """And it keeps names, order and types."""
    data = pa.RecordBatch.from_pylist([{"value": 1, "x": "a"}, {"value": None, "x": "b"}, {"value": 9, "x": "c"}])
    made = ClampTransform(ClampConfig(column="value", low=2, high=5), context()).apply(data)
    assert made.column("value").to_pylist() == [2, None, 5]
    assert made.schema == data.schema


def test_clamp_names_what_it_cannot_use() -> None:
    """A user can mend it from the sentence alone."""
    clamp = ClampTransform(ClampConfig(column="valu"), context())
    with pytest.raises(ConfigError, match="no column 'valu'; the columns are value"):
        clamp.apply(pa.RecordBatch.from_pylist([{"value": 1}]))
    with pytest.raises(ValidationError, match="exchange them"):
        ClampConfig(column="value", low=2, high=1)


@pytest.mark.parametrize(
    ("values", "limits", "sentence"),
    [
        (pa.array([1], pa.int64()), {"low": 2.5}, "low is 2.5, .* 'value' cannot hold: .* int64; write a whole number"),
        (pa.array([1], pa.int8()), {"high": 300}, "high is 300, .* int8; write a whole number in its range"),
        (pa.array([1], pa.uint8()), {"low": -1}, "low is -1, .* uint8; write a whole number in its range"),
        (pa.array([1], pa.int64()), {"high": 2**70}, f"high is {2**70}, .* int64; write"),
        (pa.array([1.0], pa.float32()), {"low": 0.1}, "low is 0.1, .* float; write 0.10000000149011612, the nearest"),
        (pa.array([1.0]), {"high": 2**53 + 1}, "high is 9007199254740993, .* double; write 9007199254740992.0, the"),
        (pa.array([1.0]), {"high": 10**400}, "high is 1000.* double; write a number in its range"),
        (pa.array([1.0], pa.float32()), {"high": 1e300}, r"high is 1e\+300, .* float; write a number in its range"),
        (pa.array(["1"]), {"low": 1}, "the column 'value' is string, not a number"),
    ],
)
def test_clamp_refuses_a_limit_that_the_column_cannot_hold(
    values: pa.Array, limits: dict[str, Any], sentence: str
) -> None:
    """A limit that was rounded would be another one than was asked for."""
    with pytest.raises(ConfigError, match=sentence):
        ClampTransform(ClampConfig(column="value", **limits), context()).apply(pa.record_batch({"value": values}))


@pytest.mark.parametrize(
    ("values", "low", "high", "made"),
    [
        (pa.array([2**53, 2**53 + 2, 2**62 + 3]), 2**53 + 1, 2**62 + 1, [2**53 + 1, 2**53 + 2, 2**62 + 1]),
        (pa.array([1, 9], pa.uint8()), 2.0, 5.0, [2, 5]),
        (pa.array([1.0, None, 2.75]), 1.5, 2, [1.5, None, 2.0]),
    ],
)
def test_clamp_is_exact(values: pa.Array, low: float, high: float, made: list[Any]) -> None:
    """Also beyond 2**53, where floats have gaps."""
    clamp = ClampTransform(ClampConfig(column="value", low=low, high=high), context())
    result = clamp.apply(pa.record_batch({"value": values})).column("value")
    assert (result.to_pylist(), result.type) == (made, values.type)


def test_clamp_leaves_what_is_neither_below_nor_above() -> None:
    """NaN is no number that could be."""
    clamp = ClampTransform(ClampConfig(column="value", low=0, high=5), context())
    (made,) = clamp.apply(pa.record_batch({"value": [float("nan")]})).column("value").to_pylist()
    assert math.isnan(made)


async def test_the_sink_settles_what_is_on_disk(tmp_path: Path) -> None:
    """And the file holds the rows of the last run alone."""
    path = tmp_path / "rows.jsonl"
    settled: list[int] = []
    for run in range(2):
        sink = JsonFileSink(JsonFileConfig(path=str(path)), context())
        assert await sink.open() is None
        send, receive = trio.open_memory_channel[Message](2)
        data = pa.RecordBatch.from_pylist([{"run": run, "name": "ü"}])
        send.send_nowait(
            Batch(data, (Span(DICE, 0, 1),), Tally(read=1), Ack(lambda: settled.append(len(path.read_bytes()))))
        )
        send.send_nowait(Eos())
        await sink.run(receive)
        assert sink.report().rows == 1
        assert [json.loads(line) for line in path.read_text().splitlines()] == [{"run": run, "name": "ü"}]
    assert len(settled) == 2
    assert all(settled)


async def test_a_missing_folder_is_said_before_anything_is_read(tmp_path: Path) -> None:
    """`open` is where a sink finds out what cannot work."""
    with pytest.raises(ConfigError, match="there is no folder"):
        await JsonFileSink(JsonFileConfig(path=str(tmp_path / "no" / "rows.jsonl")), context()).open()
