"""The rows that make a stage fail are found in few runs, set aside, and all others go on."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError, ConveyordError, Retryable
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.poison import AWAY_ROWS, POISON_ROWS_MAX, salvage
from tests.engine.graph_rig import World, line, numbered, pipeline, run_now, sink, source, transform


class Stage:
    """Work that fails on some values, and counts how often it was run."""

    def __init__(self, poison: set[int], error: type[ConveyordError] = BatchError) -> None:
        self.poison, self.error, self.runs = poison, error, 0

    def __call__(self, data: pa.RecordBatch) -> pa.RecordBatch:
        self.runs += 1
        if self.poison & set(data.column("n").to_pylist()):
            raise self.error("it fails")
        return data


def rows(count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(count), pa.int64())})


def values(pieces: list[pa.RecordBatch]) -> list[int]:
    return [n for piece in pieces for n in piece.column("n").to_pylist()]


@given(st.integers(1, 80), st.sets(st.integers(0, 79), max_size=80), st.sampled_from([BatchError, Retryable]))
def test_exactly_the_poison_is_found_and_all_else_kept_in_order(
    count: int, poison: set[int], error: type[ConveyordError]
) -> None:
    poison = {n for n in poison if n < count}
    if not poison or (error is Retryable and len(poison) == count):
        return
    try:
        found = salvage(Stage(poison, error), rows(count), error("it fails"))
    except Retryable:
        assert error is Retryable
        assert set(range(AWAY_ROWS)) <= poison  # taken for an outage
        return
    assert [each.row for each in found.poison] == sorted(poison)
    assert values(found.pieces) == [n for n in range(count) if n not in poison]


@pytest.mark.parametrize("place", [0, 1, 32_767, 32_768, 65_535, 40_001])
def test_one_row_of_65536_is_found_in_under_20_runs(place: int) -> None:
    stage = Stage({place})
    found = salvage(stage, rows(65_536), BatchError("it fails"))
    assert [each.row for each in found.poison] == [place]
    assert sum(piece.num_rows for piece in found.pieces) == 65_535
    assert stage.runs < 20


def test_a_batch_of_nothing_but_poison_leaves_nothing() -> None:
    found = salvage(Stage(set(range(200))), rows(200), BatchError("it fails"))
    assert [each.row for each in found.poison] == list(range(200))
    assert found.pieces == []


def test_more_poison_than_a_batch_may_have_fails_the_stage() -> None:
    count = POISON_ROWS_MAX + 1
    assert len(salvage(Stage(set(range(1, count))), rows(count), BatchError("x")).poison) == POISON_ROWS_MAX
    with pytest.raises(BatchError, match=f"more than {POISON_ROWS_MAX} of {count} rows fail"):
        salvage(Stage(set(range(count))), rows(count), BatchError("x"))


@pytest.mark.parametrize("count", [2, 9, 1_000, 65_536])
def test_if_no_row_passes_and_trying_again_may_help_it_is_an_outage(count: int) -> None:
    """It took 17,000 runs of the stage to find that out, and was then called poison."""
    stage = Stage(set(range(count)), Retryable)
    with pytest.raises(Retryable):
        salvage(stage, rows(count), Retryable("away"))
    assert stage.runs < 20 * (AWAY_ROWS + 1)


def test_what_is_no_fault_of_a_row_is_not_looked_for_in_rows() -> None:
    def work(data: pa.RecordBatch) -> pa.RecordBatch:
        raise ConfigError("no such column")

    with pytest.raises(ConfigError):
        salvage(work, rows(8), BatchError("x"))


# ---------------------------------------------------------------------------- in a graph


def arrived(world: World, name: str = "out") -> list[int]:
    return [row["n"] for row in world.kept("default/p", name).rows]


def test_each_of_1000_batches_loses_its_one_poison_row_and_no_other(tmp_path: Path) -> None:
    world = World({"t": numbered(8_000)})
    poison = set(range(3, 8_000, 8))
    stages = [
        source(batch_rows=8),
        transform("a", "brittle", column="n", poison=sorted(poison)),
        sink(commit_batches=99),
    ]
    outcome = run_now(world, line(*stages), tmp_path, capacity=8)
    assert outcome.failed() == []
    assert arrived(world) == [n for n in range(8_000) if n not in poison]
    assert [stored.letter.key.offset for stored in outcome.letters_of()] == [n * 10 for n in sorted(poison)]
    assert outcome.progress["default/p"].dead_letters == 1_000


def test_sql_that_divides_by_zero_sends_its_rows_to_the_dead_letters(tmp_path: Path) -> None:
    world = World({"t": numbered(40)})
    sql = transform("a", "sql_transform", query="SELECT n, 100 / (v - 4) AS q FROM input_data")
    outcome = run_now(world, line(source(batch_rows=16), sql, sink()), tmp_path)
    assert outcome.failed() == []
    assert arrived(world) == [n for n in range(40) if n % 10 != 4]
    letters = [stored.letter for stored in outcome.letters_of()]
    assert [letter.key.offset for letter in letters] == [40, 140, 240, 340]
    assert {letter.code for letter in letters} == {"BATCH_FAILED"}
    assert all("Divide by zero" in letter.message for letter in letters)


def test_poison_in_the_condition_of_an_edge_is_a_letter_of_the_stage_before(tmp_path: Path) -> None:
    world = World({"t": numbered(30)})
    stages = [source(batch_rows=7), transform("a", "passthrough"), sink(), sink("rest")]
    edges = [("in", "a"), Edge("a", "out", when="10 / v > 2"), Edge("a", "rest", otherwise=True)]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert arrived(world) == [n for n in range(30) if n % 10 in (1, 2, 3)]
    assert arrived(world, "rest") == [n for n in range(30) if n % 10 > 3]
    keys = [stored.letter.key for stored in outcome.letters_of()]
    assert [(key.stage, key.offset) for key in keys] == [("a/edges", n * 10) for n in (0, 10, 20)]


@pytest.mark.parametrize("batch_rows", [1, 5, 20])
def test_a_batch_of_nothing_but_poison_moves_positions_and_leaves_letters(tmp_path: Path, batch_rows: int) -> None:
    world = World({"t": numbered(20)})
    stages = [source(batch_rows=batch_rows), transform("a", "brittle", poison=list(range(10))), sink()]
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    assert arrived(world) == []
    assert [position.offset for position in world.kept("default/p", "out").positions.values()] == [200]
    assert len(outcome.letters_of()) == 20


def test_too_much_poison_stops_the_pipeline_with_the_stages_name(tmp_path: Path) -> None:
    world = World({"t": [{**row, "v": 5} for row in numbered(POISON_ROWS_MAX + 1)]})
    stages = [source(batch_rows=9_999), transform("a", "brittle", poison=[5]), sink()]
    ((stage, error),) = run_now(world, line(*stages), tmp_path).failed()
    assert (stage, "more than 1000 of 1001 rows fail" in error) == ("a", True)


def test_an_outage_stops_the_pipeline_and_leaves_no_letters(tmp_path: Path) -> None:
    world = World({"t": numbered(40)})
    stages = [source(batch_rows=10), transform("a", "brittle", away=list(range(10))), sink()]
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == [("a", "what the stage needs is away")]
    assert outcome.letters == []


def test_one_row_that_something_outside_never_takes_is_a_letter_with_its_attempts(tmp_path: Path) -> None:
    world = World({"t": numbered(10)})
    outcome = run_now(world, line(source(batch_rows=10), transform("a", "brittle", away=[6]), sink()), tmp_path)
    assert outcome.failed() == []
    (letter,) = [stored.letter for stored in outcome.letters_of()]
    assert (letter.key.offset, letter.code, letter.attempts) == (60, "UNAVAILABLE", 4)
    assert arrived(world) == [0, 1, 2, 3, 4, 5, 7, 8, 9]


def test_a_stage_that_mixes_rows_fails_as_a_whole(tmp_path: Path) -> None:
    world = World({"t": numbered(10)})
    sql = transform("a", "sql_transform", query="SELECT 1 / (max(v) - 9) AS q FROM input_data")
    ((stage, error),) = run_now(world, line(source(batch_rows=10), sql, sink()), tmp_path).failed()
    assert stage == "a"
    assert "p0 bytes 0 to 100" in error
