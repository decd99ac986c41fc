"""What rows become when they are repeated is bounded before anything is made, for a row and for a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.batch_transform import BadRows, BatchTransform, together
from conveyord.operators.transform_flat_map import FlatMapTransform
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from tests.engine.graph_rig import World, line, numbered, run_now, sink, source, transform
from tests.engine.transform_rig import batch, made

MIB = 1024 * 1024
EACH: list[tuple[str, type[BatchTransform], dict[str, Any]]] = [
    ("flat_map", FlatMapTransform, {"each": "l"}),
    ("json_flatten", JsonFlattenTransform, {"lists": "explode"}),
]
each_of_them = pytest.mark.parametrize(("word", "operator", "options"), EACH, ids=[word for word, _, _ in EACH])


@each_of_them
def test_a_batch_that_would_become_too_large_stops_the_run_before_it_is_made(
    word: str, operator: type[BatchTransform], options: dict[str, Any]
) -> None:
    rows = batch(t=pa.repeat("x" * 4_000, 1_500), l=pa.array([list(range(1_000))] * 1_500))
    before = pa.total_allocated_bytes()
    with pytest.raises(ConfigError) as refused:
        made(operator, **options).apply(rows)
    assert f"{word}: 1500 rows of one batch would become about 57" in str(refused.value)
    assert "MiB, and a batch has at most 256 MiB" in str(refused.value)
    assert "lower block_bytes or batch_rows of the source to 1/23 of what they are" in str(refused.value)
    assert pa.total_allocated_bytes() - before < 64 * MIB
    assert made(operator, **options).apply(rows.slice(0, 15)).num_rows == 15_000


@each_of_them
def test_a_row_that_would_become_too_large_is_bad_and_the_others_are_not(
    word: str, operator: type[BatchTransform], options: dict[str, Any]
) -> None:
    rows = batch(
        t=pa.array(["a", "x" * MIB, "b", None]), l=pa.array([[1, 2], list(range(70)), [3], []], pa.list_(pa.int64()))
    )
    with pytest.raises(BadRows) as bad:
        made(operator, **options).apply(rows)
    assert [poison.row for poison in bad.value.poison] == [1]
    assert str(bad.value.poison[0].error).startswith(f"{word}: the row would become more than 67108864 bytes")
    kept = [("a", 1), ("a", 2), ("b", 3)] + ([] if word == "flat_map" else [(None, None)])
    assert [(row["t"], row["l"]) for row in bad.value.good[0].to_pylist()] == kept


def test_a_row_is_measured_over_all_levels_of_its_lists() -> None:
    lists = pa.array([[[0] * 9] * 9, None, [[0] * 9] * 8, [[7], [8]]], pa.list_(pa.list_(pa.int64())))
    rows = batch(t=pa.array(["x" * MIB, "b", "x" * MIB, "c"]), l=lists)
    with pytest.raises(BadRows) as bad:
        made(JsonFlattenTransform, lists="explode").apply(rows)
    assert [poison.row for poison in bad.value.poison] == [0, 2]
    assert [(row["t"], row["l"]) for row in bad.value.good[0].to_pylist()] == [("b", None), ("c", 7), ("c", 8)]


@pytest.mark.parametrize("step", [{"each": "l"}, {"lists": "explode"}], ids=["flat_map", "json_flatten"])
def test_dead_letters_do_not_put_together_what_is_too_large_as_a_whole(tmp_path: Path, step: dict[str, Any]) -> None:
    """Halves of the batch are small enough; all of them, put together again, are not."""
    operator = "flat_map" if "each" in step else "json_flatten"
    world = World({"t": [{**row, "k": "x" * 40_000} for row in numbered(100)]})
    stages = [transform("m", "map", columns={"l": "range(0, 100)"}), transform("a", operator, **step)]
    stages += [transform("p", "sql_transform", query="SELECT n FROM input_data"), sink()]
    outcome = run_now(world, line(source(batch_rows=100), *stages), tmp_path)
    ((stage, error),) = outcome.failed()
    assert stage == "a"
    assert "100 rows of one batch would become about 38" in error
    assert outcome.letters == []
    again = run_now(world, line(source(batch_rows=10), *stages), tmp_path)
    assert again.failed() == []
    assert len(world.kept("default/p", "out").rows) == 10_000


def test_parts_that_no_batch_can_hold_are_refused_in_words() -> None:
    part = pa.record_batch({"t": pa.array(["x" * (64 * MIB)])})
    with pytest.raises(BatchError, match="33 parts of one batch are more than one batch can hold"):
        together([part] * 33)
