"""Records of which none is good yet tell no columns; no stage takes that for a mistake in its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conveyord.core.pipeline.graph import Pipeline
from tests.engine.graph_rig import World, line, run_now, sink, stage, transform

STEPS: dict[str, dict[str, Any]] = {
    "cast": {"columns": {"a": "string"}},
    "clean_data": {"columns": ["a"], "remove_nulls": ["a"]},
    "filter": {"when": "a > 0"},
    "flat_map": {"each": "l"},
    "json_flatten": {},
    "map": {"columns": {"b": "a + 1"}},
    "mask": {"columns": {"s": "redact"}},
    "partition": {"partition_by": ["a"]},
    "project": {"columns": ["a", "l", "o", "s"]},
    "rename": {"columns": {"s": "t"}},
    "schema_evolution": {"columns": {"a": "long"}, "strict_mode": True},
    "split": {"outputs": {"rest": "a < 0"}},
    "sql_transform": {"query": "SELECT a, s FROM input_data"},
    "validate": {"columns": {"a": {"min": 0}}},
}
GOOD = b'{"a": 1, "l": [2], "o": {"x": 3}, "s": "x"}\n'


def source(path: Path) -> Any:
    return stage("in", "source", "file_jsonl", path=str(path / "in.jsonl"), block_bytes="64KiB")


def run_over(content: bytes, made: Pipeline, path: Path) -> tuple[list[Any], list[dict[str, Any]], int]:
    (path / "in.jsonl").write_bytes(content)
    world = World()
    outcome = run_now(world, made, path)
    return outcome.failed(), world.kept("default/p", "out").rows, len(outcome.letters_of())


@pytest.mark.parametrize("step", STEPS)
def test_a_stage_lets_a_batch_pass_of_which_nothing_is_known(step: str, tmp_path: Path) -> None:
    made = line(source(tmp_path), transform(step, step, **STEPS[step]), sink())
    bad = b"bad\n" * 3
    assert run_over(bad, made, tmp_path) == ([], [], 3)


@pytest.mark.parametrize("step", ["filter", "mask", "validate"])
def test_the_first_good_record_may_come_late(step: str, tmp_path: Path) -> None:
    made = line(source(tmp_path), transform(step, step, **STEPS[step]), sink())
    (tmp_path / "in.jsonl").write_bytes((b"[" + b" " * 2_000 + b"]\n") * 40 + GOOD)
    world = World()
    outcome = run_now(world, made, tmp_path)
    assert outcome.failed() == []
    assert len(world.kept("default/p", "out").rows) == 1


def test_empty_objects_have_nothing_to_mask(tmp_path: Path) -> None:
    made = line(source(tmp_path), transform("mask", "mask", **STEPS["mask"]), sink())
    assert run_over(b"{}\n{}\n", made, tmp_path) == ([], [{}, {}], 0)


def test_empty_objects_break_the_rules_that_want_a_column(tmp_path: Path) -> None:
    made = line(source(tmp_path), transform("validate", "validate", **STEPS["validate"]), sink())
    ((stage, message),), _, _ = run_over(b"{}\n{}\n", made, tmp_path)
    assert stage == "validate"
    assert "a column 'a' that is not there; these rows have no columns at all: their records are empty obj" in message
