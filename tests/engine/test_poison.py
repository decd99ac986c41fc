"""The rows that make a stage fail are found in few runs, set aside, and all others go on."""

from __future__ import annotations

import itertools
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import BatchError, ConfigError, ConveyordError, Retryable
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.poison import (
    AWAY_ROWS,
    LONG_SEARCH_RUNS,
    RUNS_PER_ROW_MAX,
    SEARCH_SECONDS_MAX,
    SPARE_RUNS,
    salvage,
)
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


@given(st.integers(2, 60), st.data())
def test_a_row_that_passes_by_itself_is_no_poison(count: int, draw: st.DataObject) -> None:
    """As with `d <> 0 AND 10 / d > 3`, whose sides DataFusion computes for a whole batch or not at all."""
    zeros = draw.draw(st.sets(st.integers(0, count - 1), min_size=1))

    def work(data: pa.RecordBatch) -> pa.RecordBatch:
        kinds = {n in zeros for n in data.column("n").to_pylist()}
        if len(kinds) == 2:
            raise BatchError("division by zero")
        return data

    if len(zeros) < count:
        found = salvage(work, rows(count), BatchError("division by zero"))
        assert not found.poison
        assert values(found.pieces) == list(range(count))


def test_a_batch_of_nothing_but_poison_leaves_nothing() -> None:
    found = salvage(Stage(set(range(200))), rows(200), BatchError("it fails"))
    assert [each.row for each in found.poison] == list(range(200))
    assert found.pieces == []


def runs_max(count: int) -> float:
    return RUNS_PER_ROW_MAX * count + SPARE_RUNS + 1


@given(st.integers(2, 800), st.floats(0, 1), st.floats(0, 1), st.randoms(use_true_random=False))
def test_a_search_is_bounded_wherever_the_poison_stands(count: int, share: float, start: float, random: Random) -> None:
    """Poison is dense from somewhere on and rare before, so that what was learnt before is wrong there."""
    turn = int(count * start)
    poison = {n for n in range(count) if random.random() < (share if n >= turn else 0.01)} or {0}
    stage = Stage(poison)
    assert [each.row for each in salvage(stage, rows(count), BatchError("x")).poison] == sorted(poison)
    assert stage.runs <= runs_max(count)


@pytest.mark.parametrize(("share", "runs_per_row_max"), [(0.01, 0.1), (0.1, 0.6), (0.5, 1.1), (1, 1.01)])
def test_however_many_rows_are_poison_all_are_found_in_about_a_run_each_at_most(
    share: float, runs_per_row_max: float
) -> None:
    """A batch with more than a thousand stopped the pipeline, after tens of thousands of runs."""
    count = 8_192
    stage = Stage(set(Random(1).sample(range(count), int(share * count))))
    found = salvage(stage, rows(count), BatchError("it fails"))
    assert [each.row for each in found.poison] == sorted(stage.poison)
    assert stage.runs <= runs_per_row_max * count


def test_rows_that_fail_for_their_company_alone_are_no_poison_and_bounded_too() -> None:
    """Each of two kinds passes alone, and no piece with both; there was no bound to that search."""
    runs = 0

    def work(data: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal runs
        runs += 1
        if len({n % 3 == 0 for n in data.column("n").to_pylist()}) == 2:
            raise BatchError("division by zero")
        return data

    found = salvage(work, rows(4_096), BatchError("division by zero"))
    assert not found.poison
    assert values(found.pieces) == list(range(4_096))
    assert runs <= runs_max(4_096)


def test_a_long_search_says_so_once() -> None:
    with structlog.testing.capture_logs() as logs:
        salvage(Stage(set(range(3 * LONG_SEARCH_RUNS))), rows(3 * LONG_SEARCH_RUNS), BatchError("x"))
        salvage(Stage({7}), rows(3 * LONG_SEARCH_RUNS), BatchError("x"))
    ((event, level, failed),) = [(log["event"], log["log_level"], log["failed"]) for log in logs]
    assert (level, failed) == ("warning", LONG_SEARCH_RUNS - 21)
    assert event == "many rows of a batch fail, and the search for them takes long"


def test_a_search_that_takes_too_long_stops_and_says_how_far_it_was() -> None:
    """A stage that takes a second for a row would take a day for a batch; the run would hang without an end."""
    count = SEARCH_SECONDS_MAX + 100
    seconds = itertools.count()
    told = (
        rf"took more than 30m 00s, 1,8\d\d runs of the stage; of the first 1,7\d\d of {count:,} rows 1,7\d\d fail, the"
    )
    with pytest.raises(BatchError, match=told):
        salvage(Stage(set(range(count))), rows(count), BatchError("x"), clock=lambda: next(seconds))
    assert len(salvage(Stage({7}), rows(count), BatchError("x"), clock=lambda: next(seconds)).poison) == 1


def test_what_is_found_keeps_no_frames_and_so_no_rows_in_memory() -> None:
    for each in salvage(Stage({3, 5}), rows(9), BatchError("x")).poison:
        assert (each.error.__traceback__, each.error.__cause__, each.error.__context__) == (None, None, None)


def test_what_goes_away_during_a_search_is_an_outage_and_no_fault_of_the_rows_that_follow() -> None:
    """They were called poison, up to a thousand of them, and what came then stopped the run."""
    passed: list[int] = []

    def work(data: pa.RecordBatch) -> pa.RecordBatch:
        if passed:
            raise Retryable("gone")
        if 900 in data.column("n").to_pylist():
            raise BatchError("x")
        passed.append(data.num_rows)
        return data

    with pytest.raises(Retryable, match="gone"):
        salvage(work, rows(4_000), BatchError("x"))


def test_rows_that_something_outside_never_takes_are_poison_while_it_takes_others() -> None:
    stage = Stage(set(range(100, 400)), Retryable)
    found = salvage(stage, rows(1_000), Retryable("x"))
    assert [each.row for each in found.poison] == list(range(100, 400))


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


def test_each_of_many_batches_loses_its_one_poison_row_and_no_other(tmp_path: Path) -> None:
    world = World({"t": numbered(2_000)})
    poison = set(range(3, 2_000, 8))
    stages = [
        source(batch_rows=8),
        transform("a", "brittle", column="n", poison=sorted(poison)),
        sink(commit_batches=99),
    ]
    outcome = run_now(world, line(*stages), tmp_path, capacity=8)
    assert outcome.failed() == []
    assert arrived(world) == [n for n in range(2_000) if n not in poison]
    assert [stored.letter.key.offset for stored in outcome.letters_of()] == [n * 10 for n in sorted(poison)]
    assert outcome.progress["default/p"].dead_letters == 250


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


def test_a_guarded_condition_of_an_edge_fails_on_no_row(tmp_path: Path) -> None:
    world = World({"t": numbered(40)})
    stages = [source(batch_rows=16), transform("a", "passthrough"), sink(), sink("rest")]
    edges = [("in", "a"), Edge("a", "out", when="v <> 0 AND 10 / v > 2"), Edge("a", "rest", otherwise=True)]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert arrived(world) == [n for n in range(40) if n % 10 in (1, 2, 3)]
    assert arrived(world, "rest") == [n for n in range(40) if n % 10 not in (1, 2, 3)]
    assert not outcome.letters_of()


@pytest.mark.parametrize("batch_rows", [1, 5, 20])
def test_a_batch_of_nothing_but_poison_moves_positions_and_leaves_letters(tmp_path: Path, batch_rows: int) -> None:
    world = World({"t": numbered(20)})
    stages = [source(batch_rows=batch_rows), transform("a", "brittle", poison=list(range(10))), sink()]
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    assert arrived(world) == []
    assert [position.offset for position in world.kept("default/p", "out").positions.values()] == [200]
    assert len(outcome.letters_of()) == 20


def test_however_much_of_a_batch_is_poison_it_becomes_letters_and_the_pipeline_goes_on(tmp_path: Path) -> None:
    """Beyond a thousand rows of one batch the pipeline stopped, in spite of its `dlq`."""
    world = World({"t": numbered(1_500)})
    stages = [source(batch_rows=9_999), transform("a", "brittle", poison=[0, 1, 2, 3, 4, 5, 6, 8]), sink()]
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    assert arrived(world) == [n for n in range(1_500) if n % 10 in (7, 9)]
    offsets = [stored.letter.key.offset for stored in outcome.letters_of()]
    assert offsets == [n * 10 for n in range(1_500) if n % 10 not in (7, 9)]


def test_a_stage_that_can_work_on_no_rows_stops_the_pipeline_without_letters(tmp_path: Path) -> None:
    """No value of a row is at fault where a column is missing: that is for somebody to mend first."""
    world = World({"t": numbered(40)})
    sql = transform("a", "sql_transform", query="SELECT nn FROM input_data")
    outcome = run_now(world, line(source(batch_rows=16), sql, sink()), tmp_path)
    ((stage, error),) = outcome.failed()
    assert (stage, "nn" in error, outcome.letters_of()) == ("a", True, [])


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


@pytest.mark.parametrize(
    "query",
    [
        "SELECT n, 10 / v AS q FROM input_data WHERE n >= (SELECT avg(n) FROM input_data)",
        "WITH m AS (SELECT max(n) AS x FROM input_data) SELECT n, 10 / v AS q, (SELECT x FROM m) AS x FROM input_data",
        "SELECT n, 10 / v AS q FROM input_data WHERE n IN (SELECT n FROM input_data WHERE v < 5)",
        "SELECT n, 10 / v AS q FROM input_data WHERE random() < 2",
    ],
)
def test_a_query_that_looks_at_other_rows_or_at_dice_is_not_taken_to_pieces(tmp_path: Path, query: str) -> None:
    """Each piece would give another answer, and rows would come or go on account of one that fails."""
    world = World({"t": numbered(20)})
    outcome = run_now(
        world, line(source(batch_rows=20), transform("a", "sql_transform", query=query), sink()), tmp_path
    )
    ((stage, error),) = outcome.failed()
    assert stage == "a"
    assert "Divide by zero" in error
    assert not arrived(world)
