"""Checks of whole graphs: what is found, and that what is not refused can be run in order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.pipeline.checks import check_graph, in_order, resolve_output, unknown_in_test
from conveyord.core.pipeline.graph import Edge, PipelineTest, Stage, StageKind

KINDS: dict[str, StageKind] = {"s": "source", "t": "transform", "k": "sink"}
OUTPUTS = {"t1": ("dropped",), "s1": (), "k1": ()}


def stages(*names: str) -> list[Stage]:
    return [Stage(name, KINDS[name[0]], "any") for name in names]


def found(names: str, edges: list[Edge], dead_letter_sink: str | None = None) -> list[str]:
    findings = check_graph(stages(*names.split()), edges, outputs=OUTPUTS, dead_letter_sink=dead_letter_sink)
    return [finding.message for finding in findings]


@pytest.mark.parametrize(
    ("names", "edges", "message"),
    [
        ("s1 s1 k1", [], "two stages are named 's1'"),
        ("s1 k1", [Edge("s1", "kk1")], "no stage is named 'kk1'; did you mean 'k1'?"),
        ("s1 k1", [Edge("xyz", "k1")], "no stage is named 'xyz'; the stages are s1, k1"),
        ("s1 k1", [Edge("s1", "k1", output="late")], "any has no output 'late', only its main one"),
        ("s1 t1 k1", [Edge("t1", "k1", output="late")], "its outputs are t1 and t1.dropped"),
        ("s1 t1 k1", [Edge("s1", "t1"), Edge("t1", "t1.dropped")], "an edge goes to a stage, not to its output"),
        ("s1 t1 k1", [Edge("k1", "t1")], "'k1' is a sink; no edge leaves a sink"),
        ("s1 t1 k1", [Edge("t1", "s1")], "'s1' is a source; no edge enters a source"),
        ("s1 k1", [Edge("s1", "k1"), Edge("s1", "k1", when="a")], "a second edge from 's1' to 'k1'"),
        ("s1 k1", [Edge("s1", "k1", otherwise=True)], "'otherwise' needs another edge"),
        ("s1 t1 k1", [Edge("s1", "k1"), Edge("s1", "t1")], "'t1' reaches no sink"),
        ("s1 t1 k1", [Edge("s1", "k1"), Edge("t1", "k1")], "no source reaches 't1'"),
        ("s1 k1 k2", [Edge("s1", "k1")], "no source reaches 'k2'"),
        ("s1 t1 t2 k1", [Edge("s1", "t1"), Edge("t1", "t2"), Edge("t2", "t1"), Edge("t2", "k1")], "t1 -> t2 -> t1"),
        ("s1 t1 k1", [Edge("s1", "t1"), Edge("t1", "t1"), Edge("t1", "k1")], "t1 -> t1;"),
    ],
)
def test_one_mistake_makes_one_finding(names: str, edges: list[Edge], message: str) -> None:
    (only,) = found(names, edges)
    assert message in only


def test_a_sound_graph_has_no_findings() -> None:
    edges = [
        Edge("s1", "t1"),
        Edge("t1", "k1", when="a"),
        Edge("t1", "k2", otherwise=True),
        Edge("t1", "k2", "dropped"),
    ]
    assert not found("s1 t1 k1 k2 k3", edges, dead_letter_sink="k3")


def test_the_sink_of_dead_letters_has_no_edges() -> None:
    (only,) = found("s1 k1 k3", [Edge("s1", "k1"), Edge("s1", "k3")], dead_letter_sink="k3")
    assert "'k3' is the sink of dlq" in only


def test_a_stage_of_unknown_outputs_is_not_asked_for_them() -> None:
    assert not found("s1 t9 k1", [Edge("s1", "t9"), Edge("t9", "k1", output="anything")])


def test_an_output_is_found_from_the_end_of_a_name() -> None:
    assert resolve_output("a.b.dropped", ["a", "a.b"]) == ("a.b", "dropped")
    assert resolve_output("a.b", ["a", "a.b"]) == ("a.b", "")
    assert resolve_output("x.y", ["a"]) == ("x.y", "")


def test_what_a_test_names_must_be_there() -> None:
    test = PipelineTest("t", {"s1": [], "t1.dropped": []}, {"t1.dropped": [], "t1.late": [], "k9": []})
    found = unknown_in_test(test, stages("s1", "t1", "k1"), OUTPUTS)
    assert [(side, key) for side, key, _ in found] == [("given", "t1.dropped"), ("expect", "t1.late"), ("expect", "k9")]


NAMES = ["s1", "t1", "t2", "t3", "t4", "k1"]
PAIRS = [(a, b) for a, b in itertools.product(NAMES, NAMES) if a[0] != "k" and b[0] != "s"]


@given(st.permutations(NAMES), st.lists(st.sampled_from(PAIRS), unique=True, max_size=12))
def test_a_graph_is_cyclic_or_has_an_order_in_which_every_edge_points_forward(
    names: list[str], pairs: list[tuple[str, str]]
) -> None:
    edges = [Edge(a, b) for a, b in pairs]
    ordered = [stage.name for stage in in_order(stages(*names), edges)]
    cycles = [finding.cycle for finding in check_graph(stages(*names), edges, outputs={}) if finding.cycle]
    if cycles:
        (cycle,) = cycles
        assert cycle[0] == cycle[-1]
        assert all(pair in pairs for pair in itertools.pairwise(cycle))
        assert len(ordered) < len(names)
    else:
        assert sorted(ordered) == sorted(names)
        assert all(ordered.index(a) < ordered.index(b) for a, b in pairs)
