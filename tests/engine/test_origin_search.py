"""Many rows of one batch are led back together: to the same records as one by one, for far less work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.positions import Partition
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import MAIN
from conveyord.engine import origin as origin_module
from conveyord.engine.batch_transform import BatchTransform, Mapped
from conveyord.engine.messages import Ack, Batch
from conveyord.engine.origin import Appended, Origin, Place, RecordRef, Reshaped, Selection, Stateless, Step, joined
from conveyord.operators.transform_filter import FilterTransform
from conveyord.operators.transform_flat_map import FlatMapTransform
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from conveyord.operators.transform_split import SplitTransform
from conveyord.operators.transform_sql_transform import SqlTransform
from tests.engine.transform_rig import made

PARTITION = Partition("in", "p0")


def place_of(row: int) -> Place:
    return Place(RecordRef(PARTITION, row))


def numbered(count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(count), pa.int64())})


def searched(origin: Origin, rows: Sequence[int]) -> list[Place]:
    """Where `rows` came from, by what defines that: the shortest beginning that yields more than a row, one by one."""

    @cache
    def made_of(count: int) -> int:
        data = origin.data.slice(0, count)
        for step in origin.steps:
            data = step(data)
        return int(data.num_rows)

    def place(row: int) -> Place:
        record = next(count for count in range(origin.data.num_rows) if made_of(count + 1) > row)
        before = origin.place_of(record)
        return Place(before.record, before.part + row - made_of(record))

    return [place(row) for row in rows]


# ---------------------------------------------------------------------------- steps of every kind


def stateless(step: Step) -> Stateless:
    """A step that does with marks what it does with all columns."""
    return Stateless(step, step)


def repeated(counts: list[int], data: pa.RecordBatch) -> pa.RecordBatch:
    """So many rows of each by its `n`, with all columns."""
    index = [row for row, n in enumerate(data.column("n").to_pylist()) for _ in range(counts[n % len(counts)])]
    return data.take(pa.array(index, pa.int64()))


def forgetful(step: Step, data: pa.RecordBatch) -> pa.RecordBatch:
    """Passes on the column that it knows alone."""
    return step(data).select(["n"])


def touchy(step: Step, data: pa.RecordBatch) -> pa.RecordBatch:
    """Fails at columns that it does not know."""
    if data.num_columns > 2:
        raise KeyError(data.schema.names[-1])
    return step(data)


def prejudiced(step: Step, data: pa.RecordBatch) -> pa.RecordBatch:
    """Makes other rows of those with columns that it does not know."""
    return step(data.slice(0, data.num_rows // 2) if data.num_columns > 2 else data)


def meddling(change: Callable[[Any], Any], step: Step, data: pa.RecordBatch) -> pa.RecordBatch:
    """Changes every column but those that it knows."""
    data = step(data)
    columns = [
        column if name in ("n", "x") else pa.array([change(value) for value in column.to_pylist()])
        for name, column in zip(data.schema.names, data.columns, strict=True)
    ]
    return pa.record_batch(dict(zip(data.schema.names, columns, strict=True)))


WAYS: dict[str, Callable[[Step], Step]] = {
    "any": lambda step: step,
    "stateless": stateless,
    "forgetful": lambda step: stateless(partial(forgetful, step)),
    "touchy": lambda step: stateless(partial(touchy, step)),
    "prejudiced": lambda step: stateless(partial(prejudiced, step)),
    "doubling": lambda step: stateless(partial(meddling, lambda value: value * 2, step)),
    "shifting": lambda step: stateless(partial(meddling, lambda value: value + 1, step)),
    "clearing": lambda step: stateless(partial(meddling, lambda value: 0, step)),
    "writing": lambda step: stateless(partial(meddling, str, step)),
}


@st.composite
def origins(draw: st.DrawFn, *, most: int = 14) -> tuple[Origin, pa.RecordBatch]:
    """Rows behind steps of every kind, and the rows themselves."""
    data = numbered(draw(st.integers(1, most)))
    origin = Origin(data, place_of)
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([*WAYS, "selection", "reshaped", "appended"]))
        step: Step
        if kind == "selection":
            kept = draw(st.lists(st.booleans(), min_size=data.num_rows, max_size=data.num_rows))
            step = Selection(pa.array(kept, pa.bool_()))
        elif kind == "reshaped":
            step = Reshaped(partial(forgetful, lambda rows: rows))
        elif kind == "appended":
            if "x" in data.schema.names:
                continue
            step = Appended("x", pa.array(range(data.num_rows), pa.int64()))
        else:
            counts = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
            step = WAYS[kind](partial(repeated, counts))
        origin, data = origin.through(step), step(data)
        if data.num_rows > 40:
            break
    return origin, data


@given(origins(), st.integers(1, 6), st.data())
def test_rows_led_back_together_lead_where_each_does_alone(
    made_of: tuple[Origin, pa.RecordBatch], piece_rows: int, data: st.DataObject
) -> None:
    origin, rows = made_of
    if rows.num_rows == 0:
        return
    asked = data.draw(st.lists(st.integers(0, rows.num_rows - 1), max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origin_module, "PIECE_ROWS", piece_rows)
        assert origin.places(asked) == searched(origin, asked)


@given(origins(most=6), origins(most=6), st.integers(1, 6), st.data())
def test_rows_of_a_joined_batch_lead_back_together_by_the_ways_they_came(
    one: tuple[Origin, pa.RecordBatch], other: tuple[Origin, pa.RecordBatch], piece_rows: int, data: st.DataObject
) -> None:
    parts = [(rows.select(["n"]), origin) for origin, rows in (one, other)]
    whole = joined([*parts], pa.concat_batches([rows for rows, _ in parts]))
    assert whole is not None
    behind = whole.through(stateless(partial(repeated, [2, 0, 1])))
    rows = repeated([2, 0, 1], whole.data)
    if rows.num_rows == 0:
        return
    asked = data.draw(st.lists(st.integers(0, rows.num_rows - 1), max_size=12))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(origin_module, "PIECE_ROWS", piece_rows)
        assert behind.places(asked) == searched(behind, asked)


def test_rows_of_one_record_share_its_bytes() -> None:
    """A record of a megabyte that was made into thousands of rows filled the memory with copies of it."""
    origin = Origin(numbered(3), lambda row: Place(RecordRef(PARTITION, row, bytes([row]) * 1000)))
    places = origin.through(stateless(partial(repeated, [50]))).places(range(150))
    assert len({id(place.record.raw) for place in places}) == 3


# ---------------------------------------------------------------------------- work


class Worked:
    """A step that counts its runs and the rows it was given."""

    def __init__(self, step: Step) -> None:
        self.step, self.runs, self.rows = step, 0, 0

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        self.runs += 1
        self.rows += data.num_rows
        return self.step(data)


COUNT = 65_536
TWICE = pa.array(np.repeat(np.arange(COUNT), 2))


def twice(data: pa.RecordBatch) -> pa.RecordBatch:
    return data.take(TWICE.slice(0, 2 * data.num_rows))


@pytest.mark.parametrize("asked", [1, 100, 5_000])
def test_a_step_that_passes_numbers_on_is_run_twice_for_any_number_of_rows(asked: int) -> None:
    worked = Worked(twice)
    origin = Origin(numbered(COUNT), place_of).through(stateless(worked))
    rows = list(range(0, 2 * COUNT, 2 * COUNT // asked))[:asked]
    assert [place.record.offset for place in origin.places(rows)] == [row // 2 for row in rows]
    assert worked.rows <= 2 * COUNT
    assert worked.runs <= 2 * (COUNT // origin_module.PIECE_ROWS)


def test_a_step_that_passes_none_on_is_run_on_halves_where_rows_are_asked_for() -> None:
    worked = Worked(partial(forgetful, twice))
    origin = Origin(numbered(COUNT), place_of).through(stateless(worked))
    rows = list(range(0, 2 * COUNT, 2 * COUNT // 500))
    assert [place.record.offset for place in origin.places(rows)] == [row // 2 for row in rows]
    assert worked.runs < 9 * len(rows)  # log2(65,536 / 500) is 7, and 500 ways part before
    assert worked.rows < 10 * COUNT  # it was 17 * 500 / 2 times all rows


def test_what_stands_behind_the_last_row_asked_for_is_not_looked_at() -> None:
    worked = Worked(twice)
    Origin(numbered(COUNT), place_of).through(worked).places([5])
    assert worked.rows <= 2 * origin_module.PIECE_ROWS


def test_a_search_ends_when_nobody_wants_it_any_more() -> None:
    worked = Worked(partial(forgetful, twice))

    def stop_after_ten() -> None:
        if worked.runs == 10:
            raise TimeoutError

    origin = Origin(numbered(COUNT), place_of).through(worked)
    with pytest.raises(TimeoutError):
        joined([(twice(origin.data), origin)], twice(origin.data)).places([9, 5_000, 60_000], between=stop_after_ten)  # type: ignore[union-attr]
    assert worked.runs == 10


def test_a_step_that_makes_other_rows_than_it_did_leads_to_some_record() -> None:
    """As WHERE at < now() does: a letter with another record's name is better than a run that ends."""
    rows = numbered(9)
    fewer, more = Worked(lambda data: data.slice(0, data.num_rows // 2)), Worked(partial(repeated, [3]))
    mask = pa.array([True] * 9)
    for step in (fewer, more):
        for wrapped in (step, stateless(step)):
            places = Origin(rows, place_of).through(wrapped).through(Selection(mask)).through(wrapped).places([0, 8])
            assert all(0 <= place.record.offset < 9 for place in places)


# ---------------------------------------------------------------------------- real stages

LISTS = pa.record_batch(
    {
        "n": pa.array(range(40), pa.int64()),
        "l": pa.array([None if n % 5 == 4 else [{"x": n}] * (n % 4) for n in range(40)]),
        "f": pa.array([float("nan") if n % 7 == 0 else n / 2 for n in range(40)]),
    }
)
STAGES: dict[str, tuple[type[BatchTransform], dict[str, Any], str]] = {
    "flat_map": (FlatMapTransform, {"each": "l"}, MAIN),
    "flat_map, kept": (FlatMapTransform, {"each": "l", "keep_empty": True, "open": True}, MAIN),
    "flat_map, expression": (FlatMapTransform, {"each": "make_array(n, n + 1)"}, MAIN),
    "explode": (JsonFlattenTransform, {"lists": "explode"}, MAIN),
    "filter": (FilterTransform, {"when": "n % 3 <> 1"}, MAIN),
    "dropped": (FilterTransform, {"when": "n % 3 <> 1"}, "dropped"),
    "split": (SplitTransform, {"outputs": {"a": "n % 2 = 0", "b": "n % 3 = 0"}}, "b"),
    "split, rest": (SplitTransform, {"outputs": {"a": "n % 2 = 0", "b": "n % 3 = 0"}, "mode": "all"}, MAIN),
    "select all": (SqlTransform, {"query": "SELECT *, now() AS at FROM input_data WHERE n % 3 <> 1"}, MAIN),
    "select some": (SqlTransform, {"query": "SELECT f, n * 2 AS m FROM input_data WHERE n % 3 <> 1"}, MAIN),
    "select in parts": (
        SqlTransform,
        {
            "query": "/* select */ WITH a AS (select n, 'select x' AS \"select\" FROM input_data WHERE n > 3) "
            "SELECT b.n + 1 AS m FROM (SELECT * FROM a) AS b WHERE n % 3 <> 1 -- select"
        },
        MAIN,
    ),
}


def behind(name: str) -> tuple[Origin, range]:
    """The origin of the rows behind a stage, and the numbers of those."""
    operator, options, output = STAGES[name]
    stage = made(operator, listened=frozenset([output]), **options)
    batch = Batch(LISTS, (), Tally(read=40), Ack(lambda: None), origin=Origin(LISTS, place_of))
    rows = stage._step(output, LISTS)
    assert 6 < rows.num_rows != LISTS.num_rows
    return stage._origin(batch, output, frozenset(), rows), range(rows.num_rows)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("piece_rows", [7, 1_000])
def test_rows_behind_a_real_stage_lead_back(name: str, piece_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin_module, "PIECE_ROWS", piece_rows)
    origin, rows = behind(name)
    assert origin.places(rows) == searched(origin, rows)


@pytest.mark.parametrize("name", STAGES)
def test_a_real_stage_tells_its_rows_in_two_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    applied = BatchTransform._applied

    def counted(self: BatchTransform, data: pa.RecordBatch, beside: Sequence[str] = ()) -> Mapped:
        runs.append(data.num_rows)
        return applied(self, data, beside)

    origin, rows = behind(name)
    monkeypatch.setattr(BatchTransform, "_applied", counted)
    origin.places(rows)
    assert runs == [40, 40]
