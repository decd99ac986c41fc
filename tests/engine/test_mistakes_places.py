"""A mistake within an option of an operator is shown at its own place, with all others of the definition."""

from __future__ import annotations

import pytest

from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.problems import DefinitionError
from conveyord.engine.registry import installed

DEFINITION = """\
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: nested}
spec:
  source: {type: http, url: "https://example.org/", headers: {"bad name": "x"}}
  steps:
    - type: map
      columns:
        good: "1 + 1"
        total: sum(a)
        other: uper(a)
    - {type: cast, columns: {a: int, b: number}}
    - {type: rename, columns: {a: b, c: ""}}
    - {type: project, columns: [a, b, a]}
    - type: partition
      partition_by:
        - a
        - bucket(4, b)
        - a
    - {type: schema_evolution, columns: {a: int, b: number}}
    - {type: filter, when: "1"}
    - {type: filter, when: "starts_wit(a, 'x')"}
  sink: {type: stdout_pretty}
"""
WANTED = [
    ("5:75", "'bad name' is not the name of a header"),
    ("10:16", "columns.total must look at one row only"),
    ("11:16", "columns.other is refused: there is no function 'uper'; did you mean 'upper'?"),
    ("12:41", "columns.b: 'number' is no type"),
    ("13:41", "the new name of 'c' is empty"),
    ("14:39", "'a' is named twice"),
    ("18:11", "'bucket(4, b)' is not known"),
    ("19:11", "an expression stands there twice"),
    ("20:53", "column 'b': 'number' is no type"),
    ("21:28", "when must be a condition that is true or false; this one gives int64"),
    ("22:28", "when is refused: there is no function 'starts_wit'; did you mean 'starts_with'?"),
]


def test_each_is_at_its_own_place() -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines({"a.yaml": DEFINITION.encode()}, registry=installed(), environ={})
    found = [(f"{each.line}:{each.column}", each.message) for each in refused.value.problems]
    assert [place for place, _ in found] == [place for place, _ in WANTED]
    for (_, message), (_, wanted) in zip(found, WANTED, strict=True):
        assert message.startswith(wanted)


def test_the_outputs_of_a_split_and_the_edges_too() -> None:
    text = """\
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: branches}
spec:
  sources:
    - {name: in, type: file_jsonl, path: x}
  transforms:
    - {name: parts, type: split, outputs: {good: "a > 1", bad: "1", worse: "nope(a)"}}
  sinks:
    - {name: out, type: stdout_pretty}
    - {name: rest, type: stdout_pretty}
  edges:
    - {from: in, to: parts}
    - {from: parts.good, to: out, when: "length(a)"}
    - {from: parts, to: rest}
"""
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines({"a.yaml": text.encode()}, registry=installed(), environ={})
    found = [(each.line, each.column, each.message) for each in refused.value.problems]
    assert found == [
        (8, 64, "bad: when must be a condition that is true or false; this one gives int64"),
        (8, 76, "worse: when is refused: there is no function 'nope'"),
        (14, 41, "when must be a condition that is true or false; this one gives int32"),
    ]
