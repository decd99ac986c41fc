"""Source `generate`: rows follow from seed and number alone, positions hold, and bad records are accounted for."""

from __future__ import annotations

from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from trio.testing import MockClock

from conveyord.core.errors import RecordError, Refused
from conveyord.core.flow.positions import Positions
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.generating.declared import DeclaredColumn
from conveyord.engine.generating.draws import Draws
from conveyord.engine.generating.generator import Generator
from conveyord.engine.generating.shapes import SHAPES
from conveyord.operators.source_generate import GenerateConfig, GenerateSource
from tests.engine.source_rig import Collector, Letters, records_of

MASK = 2**64 - 1
COLUMNS: dict[str, Any] = {
    "id": {"type": "row_number", "min": -5},
    "n": {"type": "long", "min": -(2**63), "max": 2**63 - 1, "null_share": 0.3},
    "few": {"type": "long", "min": -9, "max": 1000, "distinct": 7},
    "x": {"type": "double", "min": -1.5, "max": 4, "digits": 2},
    "name": {"type": "string", "length": 15, "prefix": "p ", "distinct": 11},
    "flag": {"type": "boolean", "true_share": 1.0},
    "kind": {"type": "string", "values": ["a", "é", "c"]},
    "at": {"type": "timestamp", "min": "2024-02-29T12:00:00+02:00", "every": "250ms"},
    "seen": {"type": "timestamp", "min": "1969-01-01", "max": "1971-01-01T00:00:00Z"},
    "day": {"type": "date", "min": "2024-02-28", "max": "2024-03-01"},
}


def source(tmp_path: Path = Path(), *, context: dict[str, Any] | None = None, **options: Any) -> GenerateSource:
    surroundings = OperatorContext(
        pipeline="default/p", stage="in", data_dir=tmp_path, threads=trio.CapacityLimiter(2), **(context or {})
    )
    return GenerateSource(GenerateConfig.model_validate(options), surroundings)


async def read(
    fences: tuple[Positions, ...] = (Positions(),), out: Collector | None = None, **options: Any
) -> Collector:
    out = out or Collector()
    await source(**options).run(out, fences=fences, drain=out.drain)
    return out


def by_id(out: Collector) -> list[dict[str, Any]]:
    return sorted(out.rows, key=lambda row: row["id"])


# ------------------------------------------------------------------ a row follows from seed and number


def splitmix(key: int, number: int) -> int:
    """SplitMix64 as it is published, in plain Python."""
    z = (key + number * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


@given(key=st.integers(0, MASK), numbers=st.lists(st.integers(0, 2**50), max_size=5), span=st.integers(1, 2**64))
def test_draws_are_those_of_splitmix64(key: int, numbers: list[int], span: int) -> None:
    draws, array = Draws(key), np.array(numbers, np.uint64)
    assert draws.of(array).tolist() == [splitmix(key, number) for number in numbers]
    assert all(0 <= value < span for value in draws.below(array, span).tolist())
    assert array.tolist() == numbers


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=settings().max_examples // 2)
@given(data=st.data())
def test_a_row_is_the_same_alone_and_among_others(shape: str, data: st.DataObject) -> None:
    first, count = data.draw(st.integers(0, 2**40)), data.draw(st.integers(1, 40))
    at = data.draw(st.integers(0, count - 1))
    generator = Generator(SHAPES[shape], seed=data.draw(st.integers()))
    together = generator.rows(np.arange(first, first + count, dtype=np.uint64))
    together.validate(full=True)
    alone = generator.rows(np.array([first + at], np.uint64))
    assert alone.equals(together.slice(at, 1))


@pytest.mark.parametrize("columns", [*SHAPES.values(), None], ids=[*SHAPES, "declared"])
def test_every_row_can_be_read_from_its_json(columns: Any) -> None:
    declared = {name: DeclaredColumn.model_validate(options).column() for name, options in COLUMNS.items()}
    generator = Generator(columns or declared, seed=3)
    for number in range(8):
        row = generator.rows(np.array([number], np.uint64))
        assert generator.decode(generator.record(number)).equals(row)


def test_rows_stay_what_they_are_between_releases() -> None:
    generator = Generator(SHAPES["trips"], seed=1)
    assert generator.record(1500) == (
        b'{"id":1500,"at":"2026-01-01T00:00:55.5Z","user":"u159077808@riders.example.com","country":"MX",'
        b'"price":670.57,"qty":8,"status":"finished","trip":{"device":"dev-4445-android-14.2","x":988.235571,'
        b'"y":831.355809,"ok":true}}'
    )


async def test_declared_columns_hold_what_they_declare() -> None:
    rows = (await read(rows=5000, columns=COLUMNS)).rows
    assert [row["id"] for row in rows] == list(range(-5, 4995))
    assert 0.25 < sum(row["n"] is None for row in rows) / 5000 < 0.35
    numbers = [row["n"] for row in rows if row["n"] is not None]
    assert min(numbers) < -(2**61) and max(numbers) > 2**61
    assert len({row["few"] for row in rows}) == 7
    assert min(row["few"] for row in rows) == -9
    assert all(-1.5 <= row["x"] <= 4 and round(row["x"], 2) == row["x"] for row in rows)
    assert len({row["name"] for row in rows}) == 11
    assert all(row["name"].startswith("p ") and len(row["name"]) == 17 for row in rows)
    assert {row["flag"] for row in rows} == {True}
    assert {row["kind"] for row in rows} == {"a", "é", "c"}
    assert rows[1]["at"].isoformat() == "2024-02-29T10:00:00.250000+00:00"
    assert {row["seen"].year for row in rows} == {1969, 1970}
    assert {row["day"] for row in rows} == {date(2024, 2, 28), date(2024, 2, 29), date(2024, 3, 1)}


@pytest.mark.parametrize("length", [1, 2, 3, 11, 12])
def test_distinct_words_are_as_many_as_asked_for(length: int) -> None:
    distinct = min(32**length, 1024)
    column = DeclaredColumn(type="string", length=length, distinct=distinct).column()
    words = column.make(Draws(1), np.arange(40_000, dtype=np.uint64))
    assert len(set(words.to_pylist())) == distinct


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"type": "long", "min": 7, "max": 3}, "min of a long lies above its max"),
        ({"type": "long", "min": 1.5}, "min of a long is a whole number of at most 64 bits, got 1.5"),
        ({"type": "long", "values": ["a"]}, "values has 'a', which is not a long"),
        ({"type": "double", "max": float("inf")}, "max of a double is a number between"),
        ({"type": "string", "length": 1, "distinct": 33}, "only 32 different values are possible"),
        ({"type": "string", "min": 3}, "a string takes no 'min'; it takes distinct, length"),
        ({"type": "string", "values": ["a"], "length": 3}, "leave out the options beside it"),
        ({"type": "timestamp", "min": "soon"}, "min of a timestamp is a time such as 2026-01-01T00:00:00Z, got 'soon'"),
        ({"type": "timestamp", "every": "1s", "max": "2027-01-01"}, "leave out max and distinct"),
        ({"type": "date", "max": "2024-02-30"}, "max of a date is a day such as"),
    ],
)
def test_columns_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        DeclaredColumn.model_validate(options)


def test_a_shape_beside_columns_is_refused() -> None:
    config = GenerateConfig.model_validate({"shape": "trips", "columns": {"a": {"type": "long"}}})
    assert GenerateSource.mistakes(config) == {
        "columns": "these would replace the shape; leave out one of shape and columns"
    }
    assert not GenerateSource.mistakes(GenerateConfig(columns={"a": DeclaredColumn(type="long")}))


# ------------------------------------------------------------------ positions


@settings(max_examples=settings().max_examples // 3)  # each one reads up to eight times
@given(
    rows=st.integers(0, 60),
    partitions=st.integers(1, 5),
    batch_rows=st.integers(1, 20),
    other_batch_rows=st.integers(1, 20),
    stops=st.lists(st.integers(1, 6), max_size=3),
    broken_share=st.sampled_from([0.0, 0.3, 1.0]),
)
def test_reading_goes_on_from_any_fences_with_the_same_rows(
    rows: int, partitions: int, batch_rows: int, other_batch_rows: int, stops: list[int], broken_share: float
) -> None:
    async def main() -> None:
        options = {"rows": rows, "partitions": partitions, "broken_share": broken_share, "shape": "events"}
        options["context"] = {"skip_bad": True}
        whole = await read(batch_rows=batch_rows, **options)
        assert sum(tally.read for _, _, tally in whole.batches) == rows
        fences = [Positions()]
        for stop in stops:
            some = await read(out=Collector(drain_after=stop), batch_rows=other_batch_rows, **options)
            fences.append(some.positions)
        for held in (tuple(fences[1:]) or (Positions(),), tuple(fences)):
            rest = await read(held, batch_rows=batch_rows, **options)
            cuts = {position.offset for fence in held for position in fence.values()}
            for fence in held:
                # What each sink lacks is whole batches, and with what it has makes up everything.
                lacking = [data for data, (span,), _ in rest.batches if not fence.covers(span)]
                assert all(
                    span.first >= fence[span.partition].offset
                    for _, (span,), _ in rest.batches
                    if span.partition in fence and not fence.covers(span)
                ), cuts
                wanted = [
                    row for row in by_id(whole) if row["id"] // partitions >= held_at(fence, row["id"], partitions)
                ]
                assert sorted((row for data in lacking for row in data.to_pylist()), key=lambda r: r["id"]) == wanted

    trio.run(main)


def held_at(fence: Positions, number: int, partitions: int) -> int:
    return next((at.offset for part, at in fence.items() if int(part.name) == number % partitions), 0)


async def test_partitions_and_batches_change_no_row() -> None:
    whole = await read(rows=1000)
    for options in ({"partitions": 3}, {"batch_rows": 7}, {"partitions": 4, "batch_rows": 100, "rows_per_second": 1e6}):
        assert by_id(await read(rows=1000, **options)) == whole.rows


async def test_more_rows_are_gone_on_with_and_fewer_are_none() -> None:
    first = await read(rows=700, partitions=2)
    more = await read((first.positions,), rows=1000, partitions=2)
    assert by_id(more) == (await read(rows=1000)).rows[700:]
    assert (await read((first.positions,), rows=300, partitions=2)).batches == []


@pytest.mark.parametrize("other", [{"seed": 2}, {"shape": "metrics"}, {"partitions": 3}, {"broken_share": 0.1}])
async def test_positions_in_other_rows_are_refused(other: dict[str, Any]) -> None:
    fence = (await read(rows=10, partitions=2)).positions
    with pytest.raises(Refused, match=r"position 5 of partition 0 was taken in other rows.*restore seed, shape"):
        await read((fence,), **{"rows": 10, "partitions": 2, **other})


async def test_an_endless_source_ends_when_drained_and_its_parts_fit_together() -> None:
    first = await read(out=Collector(drain_after=3), batch_rows=100)
    second = await read((first.positions,), out=Collector(drain_after=3), batch_rows=100)
    count = len(first.rows) + len(second.rows)
    assert first.rows + second.rows == (await read(rows=count)).rows
    assert first.expected_bytes is None


async def test_batches_are_as_large_as_8_mib_make() -> None:
    out = await read(rows=20_000, shape="wide")
    data = out.batches[0][0]
    assert 6 * 2**20 < data.nbytes < 10 * 2**20
    assert out.expected_bytes is not None


async def test_provenance_names_each_row(tmp_path: Path) -> None:
    context = {"provenance": True, "skip_bad": True}
    out = await read(rows=90, partitions=4, batch_rows=10, broken_share=0.2, context=context)
    assert out.rows
    for row in out.rows:
        assert (row["_source"], int(row["_partition"]), row["_offset"]) == ("in", row["id"] % 4, row["id"] // 4)


# ------------------------------------------------------------------ pace


async def test_the_pace_is_kept(autojump_clock: MockClock) -> None:
    began = trio.current_time()
    out = await read(rows=1000, rows_per_second=100, partitions=3)
    # The last batch, of at most ten rows, is sent as soon as those before it are paid for.
    assert 9.8 < trio.current_time() - began < 10.1
    assert len(out.rows) == 1000


async def test_a_slow_source_drains_while_it_waits(hasty_clock: MockClock) -> None:
    out = Collector(drain_after=1)
    began = trio.current_time()
    await read(out=out, rows_per_second=0.01)
    assert trio.current_time() - began < 100, "it did not wait for the second row"
    assert len(out.rows) >= 1


# ------------------------------------------------------------------ bad records


async def test_bad_records_become_dead_letters_once_and_alike(tmp_path: Path) -> None:
    options = {"rows": 3000, "broken_share": 0.02, "partitions": 2, "shape": "events"}
    letters, again = Letters(), Letters()
    out = await read(context={"dead_letters": letters}, **options)
    await read(context={"dead_letters": again}, batch_rows=17, **options)
    keys = [
        (one.place.record.partition.name, one.place.record.offset, one.place.record.raw, one.error.code)
        for one in letters.rejected
    ]
    other = [
        (one.place.record.partition.name, one.place.record.offset, one.place.record.raw, one.error.code)
        for one in again.rejected
    ]
    assert sorted(keys) == sorted(other)
    assert 20 < len(keys) < 120
    assert {code for *_, code in keys} == {"MALFORMED_RECORD", "NOT_AN_OBJECT", "INVALID_UTF8", "DUPLICATE_KEY"}
    assert len(out.rows) + len(keys) == 3000 == sum(tally.read for _, _, tally in out.batches)
    assert sum(tally.dead for _, _, tally in out.batches) == len(keys)
    made = source(**options)
    for one in letters.rejected:
        assert one.place.record.raw is not None
        with pytest.raises(RecordError):
            made.decode(one.place.record.raw, None)


async def test_each_row_knows_its_record_and_can_be_read_from_it() -> None:
    options = {"rows": 60, "partitions": 3, "batch_rows": 7, "broken_share": 0.1}
    out = await read(context={"dead_letters": Letters()}, **options)
    made = source(**options)
    for (offset, raw), row in zip(records_of(out), out.rows, strict=True):
        assert offset == row["id"] // 3
        assert raw is not None
        assert made.decode(raw, None).to_pylist() == [row]


async def test_a_bad_record_stops_behind_the_rows_before_it() -> None:
    out = Collector()
    with pytest.raises(RecordError, match=r"in \(row \d+ of partition 0\): "):
        await read(out=out, rows=3000, broken_share=0.01)
    (position,) = out.positions.values()
    assert position.offset == len(out.rows) > 0
    again = Collector()
    with pytest.raises(RecordError):
        await read((out.positions,), out=again, rows=3000, broken_share=0.01)
    assert again.batches == []
    rest = await read((out.positions,), rows=3000, broken_share=0.01, context={"skip_bad": True})
    assert sum(tally.skipped for _, _, tally in rest.batches) == 3000 - len(out.rows) - len(rest.rows)


async def test_a_source_of_nothing_but_bad_records_moves_on() -> None:
    out = await read(rows=100, broken_share=1.0, batch_rows=30, context={"skip_bad": True})
    assert out.rows == []
    assert [position.offset for position in out.positions.values()] == [100]
    assert all(isinstance(data, pa.RecordBatch) and data.num_columns == 8 for data, _, _ in out.batches)


def test_times_without_a_zone_are_utc() -> None:
    one = DeclaredColumn(type="timestamp", min="2024-01-01", max="2024-01-01").column()
    (value,) = one.make(Draws(0), np.zeros(1, np.uint64)).to_pylist()
    assert value.replace(tzinfo=None) == datetime(2024, 1, 1)
