"""Poison rows are found, everything else is kept in order, and the search costs what it says."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConveyordError, Retryable
from conveyord.engine.poison import POISON_ROWS_MAX, Salvaged, salvage

ROWS = 65_536


class Stage:
    """Fails on a batch that holds one of `poison`, and counts its runs and the rows in them."""

    def __init__(self, poison: Collection[int], error: type[ConveyordError] = BatchError) -> None:
        self.poison = pa.array(sorted(poison), pa.int64())
        self.error = error
        self.runs = 0
        self.rows = 0

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        self.runs += 1
        self.rows += data.num_rows
        bad = data.filter(pc.is_in(data["n"], value_set=self.poison))
        if bad.num_rows:
            raise self.error(f"row {bad['n'][0]} is bad")
        return data

    def salvaged(self, rows: int) -> Salvaged[pa.RecordBatch]:
        """As a stage comes to it: after it failed on all of `rows` rows."""
        data = pa.record_batch({"n": pa.array(range(rows), pa.int64())})
        try:
            self(data)
        except self.error as error:
            return salvage(self, data, error)
        raise AssertionError("nothing failed")


def kept(salvaged: Salvaged[pa.RecordBatch]) -> list[int]:
    return [number for piece in salvaged.pieces for number in piece["n"].to_pylist()]


@given(
    st.integers(1, 300).flatmap(lambda rows: st.tuples(st.just(rows), st.sets(st.integers(0, rows - 1), min_size=1)))
)
def test_every_poison_row_is_found_and_every_other_kept_in_order(case: tuple[int, set[int]]) -> None:
    rows, poison = case
    found = Stage(poison).salvaged(rows)
    assert [(one.row, str(one.error)) for one in found.poison] == [(row, f"row {row} is bad") for row in sorted(poison)]
    assert kept(found) == [row for row in range(rows) if row not in poison]


@pytest.mark.parametrize("row", [0, 1, ROWS // 2 - 1, ROWS // 2, ROWS - 1])
def test_one_poison_row_costs_less_than_twenty_runs(row: int) -> None:
    stage = Stage({row})
    stage.salvaged(ROWS)
    assert stage.runs < 20
    assert stage.rows < 4 * ROWS


@pytest.mark.parametrize(
    ("poison", "runs_max"),
    [
        (range(7, 500 * 131, 131), 500 * 12),
        (range(500), 500 * 2),
        (range(ROWS - 500, ROWS), 500 * 9),
        ([*range(250), *range(30_000, 30_250)], 500 * 6),
    ],
    ids=["spread", "first", "last", "in two places"],
)
def test_many_poison_rows_cost_no_run_over_everything_each(poison: Collection[int], runs_max: int) -> None:
    stage = Stage(poison)
    assert len(stage.salvaged(ROWS).poison) == 500
    assert stage.runs <= runs_max
    assert stage.rows < 15 * ROWS


def test_too_many_poison_rows_are_no_matter_of_rows() -> None:
    stage = Stage(range(POISON_ROWS_MAX + 1))
    with pytest.raises(BatchError, match=f"more than {POISON_ROWS_MAX} of {ROWS} rows fail"):
        stage.salvaged(ROWS)
    assert stage.runs < 3 * POISON_ROWS_MAX


def test_a_limit_of_poison_rows_may_be_reached() -> None:
    assert len(Stage(range(POISON_ROWS_MAX)).salvaged(ROWS).poison) == POISON_ROWS_MAX


@pytest.mark.parametrize("rows", [2, POISON_ROWS_MAX + 1])
def test_what_may_pass_and_lets_no_row_pass_is_raised_as_it_is(rows: int) -> None:
    with pytest.raises(Retryable):
        Stage(range(rows), Retryable).salvaged(rows)


@pytest.mark.parametrize("error", [BatchError, Retryable])
def test_a_single_row_that_fails_is_poison(error: type[ConveyordError]) -> None:
    found = Stage([0], error).salvaged(1)
    assert [one.row for one in found.poison] == [0]
    assert found.pieces == []


def test_no_rows_cannot_be_divided() -> None:
    nothing = pa.record_batch({"n": pa.array([], pa.int64())})
    with pytest.raises(BatchError, match="the stage itself"):
        salvage(lambda data: data, nothing, BatchError("the stage itself"))


def test_what_is_no_fault_of_a_row_ends_the_search() -> None:
    def broken(data: pa.RecordBatch) -> pa.RecordBatch:
        raise ZeroDivisionError if data.num_rows == 1 else BatchError("some row")

    with pytest.raises(ZeroDivisionError):
        salvage(broken, pa.record_batch({"n": range(4)}), BatchError("some row"))
