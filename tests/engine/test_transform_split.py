"""The transform `split`: every row leaves where the conditions say, and is accounted for on every way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.graph import Edge
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.problems import DefinitionError
from conveyord.engine.registry import installed
from conveyord.operators.transform_split import SplitTransform
from tests.engine.graph_rig import World, numbered, pipeline, run_now, sink, source, transform
from tests.engine.transform_rig import batch, made, rows

CONDITIONS = {"small": "v < 3", "even": "v % 2 = 0", "none": "v > 100"}


def split(*listened: str, **options: Any) -> SplitTransform:
    return made(SplitTransform, listened=frozenset(listened), **options)


ALL = {mode: split(*CONDITIONS, outputs=CONDITIONS, mode=mode) for mode in ("first", "all")}


@given(st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=12), st.sampled_from(["first", "all"]))
def test_rows_leave_by_the_outputs_whose_conditions_they_meet(values: list[int | None], mode: str) -> None:
    data = batch(v=pa.array(values, pa.int64()), n=pa.array(range(len(values)), pa.int64()))
    rest, outputs = ALL[mode].apply_all(data)
    met = {"small": lambda v: v < 3, "even": lambda v: v % 2 == 0, "none": lambda v: v > 100}
    expected: dict[str, list[int]] = {name: [] for name in ("", *CONDITIONS)}
    for n, value in enumerate(values):
        names = [name for name, holds in met.items() if value is not None and holds(value)]
        for name in names[: 1 if mode == "first" else None] or [""]:
            expected[name].append(n)
    got = {"": rest, **outputs}
    assert {name: data.column("n").to_pylist() for name, data in got.items()} == expected
    assert {each.schema for each in got.values()} == {data.schema}


def test_what_nobody_listens_to_is_not_made_but_leaves_all_the_same() -> None:
    rest, outputs = split("even", outputs=CONDITIONS).apply_all(rows({"v": 1}, {"v": 4}, {"v": 5}))
    assert rest.to_pylist() == [{"v": 5}]
    assert {name: data.to_pylist() for name, data in outputs.items()} == {"even": [{"v": 4}]}


def test_the_first_condition_that_is_met_spares_the_row_the_others() -> None:
    conditions = {"text": "s = 'x'", "number": "cast(s AS int) > 1"}
    data = rows({"s": "x"}, {"s": "5"}, {"s": "0"})
    rest, outputs = split("text", "number", outputs=conditions).apply_all(data)
    assert [each.to_pylist() for each in (rest, outputs["text"], outputs["number"])] == [
        [{"s": "0"}],
        [{"s": "x"}],
        [{"s": "5"}],
    ]


def test_views_of_strings_are_split_too() -> None:
    data = batch(s=pa.array(["a", "b"], pa.string_view()))
    assert split("a", outputs={"a": "s = 'a'"}).apply_all(data)[1]["a"].to_pydict() == {"s": ["a"]}


def test_a_stage_is_shared_only_if_the_order_of_outputs_does_not_count() -> None:
    def is_pure(**options: Any) -> bool:
        return SplitTransform.is_pure(SplitTransform.Config(**options))

    assert is_pure(outputs={"a": "v > 1"})
    assert is_pure(outputs=CONDITIONS, mode="all")
    assert not is_pure(outputs=CONDITIONS, mode="first")
    assert not is_pure(outputs={"a": "random() > 0.5"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": {}}, "at least 1 item"),
        ({"outputs": {"a.b": "v > 1"}}, "String should match pattern"),
        ({"outputs": {"a": "v >"}}, "split.outputs.a is refused"),
        (
            {"outputs": {"a": "v + 1"}},
            "split.outputs.a must be a condition that is true or false; this one gives int64",
        ),
        ({"outputs": {"a": "nowhere > 1"}}, "split.outputs.a cannot work on these rows"),
        ({"outputs": {"a": "count(*) > 1"}}, "split.outputs.a must look at one row only"),
    ],
)
def test_what_is_no_condition_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        split(**options).apply(rows({"v": 1}))
    assert message in str(refused.value)


DEFINITION = """apiVersion: conveyor.etl/v1
kind: Pipeline
metadata:
  name: p
spec:
  sources:
    - {{name: in, type: file_jsonl, path: x}}
  transforms:
    - name: split
      type: split
      outputs: {{big: "{when}"}}
  sinks:
    - {{name: out, type: stdout_pretty}}
  edges:
    - [in, split]
    - [{start}, out]
"""


def problems(when: str, start: str) -> list[tuple[int | None, str]]:
    text = DEFINITION.format(when=when, start=start)
    try:
        parse_pipelines({"x.yaml": text.encode()}, registry=installed(), environ={})
    except DefinitionError as error:
        return [(problem.line, problem.message) for problem in error.problems]
    return []


def test_edges_may_leave_by_the_outputs_that_the_options_name_and_no_others() -> None:
    assert problems("v > 5", "split.big") == []
    assert problems("v > 5", "split") == []
    ((number, message),) = problems("v > 5", "split.bug")
    assert number == 16
    assert "split.big" in message
    ((number, message),) = problems("v >", "split.big")
    assert number == 11
    assert message.startswith("big: when is refused:")


@pytest.mark.parametrize("mode", ["first", "all"])
def test_in_a_run_every_row_reaches_the_sinks_of_its_outputs(tmp_path: Path, mode: str) -> None:
    world = World({"t": numbered(40)})
    stages = (
        source(batch_rows=7),
        transform("split", "split", outputs=CONDITIONS, mode=mode),
        sink("rest"),
        sink("small"),
        sink("even"),
    )
    edges = [Edge("in", "split"), Edge("split", "rest"), *(Edge("split", o, output=o) for o in ("small", "even"))]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert outcome.failed() == []
    table = numbered(40)
    assert world.kept("default/p", "rest").rows == [row for row in table if row["v"] >= 3 and row["v"] % 2]
    assert world.kept("default/p", "small").rows == [row for row in table if row["v"] < 3]
    even = [row for row in table if row["v"] % 2 == 0 and (mode == "all" or row["v"] >= 3)]
    assert world.kept("default/p", "even").rows == even


def test_in_a_run_rows_on_which_a_condition_fails_become_letters_of_every_way(tmp_path: Path) -> None:
    table = numbered(20)
    for row in table:
        row["k"] = "no number" if row["n"] == 13 else str(row["n"])
    world = World({"t": table})
    stages = (
        source(batch_rows=7),
        transform("split", "split", outputs={"big": "cast(k AS int) > 9"}),
        transform("brittle", "brittle", column="n", poison=[15]),
        sink("rest"),
        sink("big"),
    )
    edges = [Edge("in", "split"), Edge("split", "rest"), Edge("split", "brittle", output="big"), Edge("brittle", "big")]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert outcome.failed() == []
    assert [row["n"] for row in world.kept("default/p", "rest").rows] == list(range(10))
    assert [row["n"] for row in world.kept("default/p", "big").rows] == [n for n in range(10, 20) if n not in (13, 15)]
    keys = [(stored.letter.key.stage, stored.letter.key.offset) for stored in outcome.letters_of()]
    assert sorted(keys) == [("brittle", 150), ("split", 130)]


def test_outputs_may_meet_again_without_the_main_one(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    stages = (source(), transform("split", "split", outputs=CONDITIONS), sink())
    edges = [Edge("in", "split"), Edge("split", "out", output="small"), Edge("split", "out", output="even")]
    outcome = run_now(world, pipeline(stages, edges), tmp_path)
    assert outcome.failed() == []
    kept = sorted(row["n"] for row in world.kept("default/p", "out").rows)
    assert kept == [n for n in range(20) if n % 10 < 3 or n % 2 == 0]
