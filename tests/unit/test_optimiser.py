"""The laws at the top of conveyord/core/pipeline/optimiser.py."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from types import MappingProxyType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.pipeline.graph import Edge, Pipeline, Stage
from conveyord.core.pipeline.optimiser import Member, Plan, canonical, share, unshared

TYPES = {"source": ("jsonl", "csv"), "transform": ("filter", "sql", "impure"), "sink": ("iceberg",)}
OPTIONS = ({}, {"a": 1}, {"a": 1.0})


def declared(_: Pipeline, stage: Stage) -> str | None:
    """A salt: every type is pure, but for one."""
    return None if stage.type == "impure" else ""


def line(name: str, *steps: str | tuple[str, dict]) -> Pipeline:
    """A linear pipeline: a source, transforms by type (with options), a sink."""
    stages = [Stage("in", "source", "jsonl")]
    for number, step in enumerate(steps):
        type_name, options = (step, {}) if isinstance(step, str) else step
        stages.append(Stage(f"step{number}", "transform", type_name, options))
    stages.append(Stage("out", "sink", "iceberg"))
    names = [stage.name for stage in stages]
    edges = tuple(Edge(a, b) for a, b in pairwise(names))
    return Pipeline("default", name, tuple(stages), edges)


def built(name: str, *edges: Edge, kinds: dict[str, str] | None = None) -> Pipeline:
    """A pipeline of `edges`; a stage's kind follows from its place, its type is its name's first letter."""
    names = dict.fromkeys(name for edge in edges for name in (edge.source, edge.target))
    targets, sources = {edge.target for edge in edges}, {edge.source for edge in edges}

    def stage(name: str) -> Stage:
        kind = "source" if name not in targets else "sink" if name not in sources else "transform"
        return Stage(name, kind, name)

    return Pipeline("default", name, tuple(stage(each) for each in names), edges)


def shared_names(plan: Plan) -> set[str]:
    return {node.stage.name for node in plan.nodes if node.shared}


@st.composite
def pipelines(draw: st.DrawFn, name: str) -> Pipeline:
    """A random acyclic pipeline over few types, conditions and options, so that much is alike."""
    stages: list[Stage] = []
    edges: list[Edge] = []

    def add(kind: str) -> None:
        stage = Stage(f"s{len(stages)}", kind, draw(st.sampled_from(TYPES[kind])), draw(st.sampled_from(OPTIONS)))
        parents = [other.name for other in stages if other.kind != "sink"]
        if kind != "source":
            for parent in draw(st.lists(st.sampled_from(parents), min_size=1, max_size=3)):
                when = draw(st.sampled_from((None, "x > 1", "y")))
                otherwise = when is None and draw(st.booleans())
                output, slow = draw(st.sampled_from(("", "dropped"))), draw(st.sampled_from(("block", "spill")))
                edges.append(Edge(parent, stage.name, output, when, otherwise, slow))
        stages.append(stage)

    for kind, most in (("source", 2), ("transform", 4), ("sink", 3)):
        for _ in range(draw(st.integers(0 if kind == "transform" else 1, most))):
            add(kind)
    draw(st.randoms(use_true_random=False)).shuffle(edges)
    return Pipeline("default", name, tuple(stages), tuple(edges))


many = st.integers(1, 3).flatmap(lambda n: st.tuples(*(pipelines(f"p{i}") for i in range(n))))


def restricted(plan: Plan, pipeline: Pipeline) -> tuple[set, list, set]:
    """What one pipeline sees of a plan: its stages, its edges by stage, its conditions beside `otherwise`."""
    mine = {
        node.number: (member.stage, node) for node in plan.nodes for member in node.members
        if member.pipeline == pipeline.identity
    }  # fmt: skip
    stages = {(name, node.stage.kind, node.stage.type, canonical(node.stage.options)) for name, node in mine.values()}
    edges, taken, leftover = [], defaultdict(set), []
    for each in plan.edges:
        if pipeline.identity in each.members:
            source, target, edge = mine[each.source][0], mine[each.target][0], each.edge
            edges.append((source, target, edge.output, edge.when, edge.otherwise, edge.on_slow))
            if edge.when is not None:
                taken[source, edge.output].add(edge.when)
            if edge.otherwise:
                leftover.append((source, edge.output, target))
    seen = {(source, output, target, frozenset(taken[source, output])) for source, output, target in leftover}
    return stages, edges, seen


@given(many)
def test_the_plan_restricted_to_one_pipeline_is_that_pipeline(given_pipelines: tuple[Pipeline, ...]) -> None:
    plan = share(given_pipelines, declared)
    for pipeline in given_pipelines:
        alone = share([pipeline], unshared)
        stages, edges, leftover = restricted(plan, pipeline)
        expected_stages, expected_edges, expected_leftover = restricted(alone, pipeline)
        assert stages == expected_stages
        assert sorted(edges, key=repr) == sorted(expected_edges, key=repr)
        assert leftover == expected_leftover
        for stage in pipeline.stages:  # a fan-in hears its parents in the order of the definition
            node = plan.node_of(pipeline.identity, stage.name)
            came = [each.edge for each in plan.edges_to(node.number)]
            assert [(e.output, e.when) for e in came] == [(e.output, e.when) for e in pipeline.edges_to(stage.name)]


@given(many)
def test_what_one_condition_takes_is_the_same_for_every_member_of_an_otherwise(given_pipelines) -> None:
    plan = share(given_pipelines, declared)
    for each in plan.edges:
        if each.edge.otherwise:
            beside = [e for e in plan.edges_from(each.source) if e.edge.output == each.edge.output and e.edge.when]
            assert len({frozenset(e.edge.when for e in beside if member in e.members) for member in each.members}) == 1


@given(many)
def test_a_plan_is_well_formed(given_pipelines: tuple[Pipeline, ...]) -> None:
    plan = share(given_pipelines, declared)
    assert [node.number for node in plan.nodes] == list(range(len(plan.nodes)))
    members = [member for node in plan.nodes for member in node.members]
    assert sorted(members, key=repr) == sorted(
        (Member(p.identity, stage.name) for p in given_pipelines for stage in p.stages), key=repr
    )
    assert plan.pipelines == tuple(p.identity for p in given_pipelines)
    for each in plan.edges:
        assert each.source < each.target
        assert each in plan.edges_from(each.source)
        assert each in plan.edges_to(each.target)
        assert each.members == plan.nodes[each.target].pipelines
    for node in plan.nodes:
        assert len(set(node.pipelines)) == len(node.members)  # never two stages of one pipeline
        assert not node.shared or (node.stage.kind != "sink" and node.stage.type != "impure")


@given(many, st.randoms(use_true_random=False))
def test_what_is_shared_does_not_depend_on_the_order_of_the_pipelines(given_pipelines, random) -> None:
    reordered = list(given_pipelines)
    random.shuffle(reordered)

    def groups(plan: Plan) -> set:
        return {frozenset(node.members) for node in plan.nodes}

    def joins(plan: Plan) -> set:
        nodes = plan.nodes
        return {(frozenset(nodes[e.source].members), frozenset(nodes[e.target].members)) for e in plan.edges}

    first, second = share(given_pipelines, declared), share(reordered, declared)
    assert groups(first) == groups(second)
    assert joins(first) == joins(second)
    assert share(given_pipelines, declared) == first


steps = st.lists(st.sampled_from(("filter", "sql", "impure", ("filter", {"a": 1}))), max_size=5)


@given(st.lists(steps, min_size=1, max_size=8))
def test_linear_pipelines_share_exactly_what_a_trie_shares(lines: list[list]) -> None:
    prefixes: set = {()}  # the source
    single = 0
    for each in lines:
        pure = next((i for i, step in enumerate(each) if step == "impure"), len(each))
        prefixes |= {repr(each[:end]) for end in range(1, pure + 1)}
        single += len(each) - pure + 1  # from the first impure stage on, and the sink
    plan = share([line(f"p{i}", *each) for i, each in enumerate(lines)], declared)
    assert len(plan.nodes) == len(prefixes) + single


def test_a_subset_of_the_pipelines_shares_what_the_others_do_not_have() -> None:
    plan = share([line("a", "filter", "sql"), line("b", "filter", "sql"), line("c", "filter"), line("d")], declared)
    by_type = {node.stage.type: [m.pipeline for m in node.members] for node in plan.nodes if node.stage.kind != "sink"}
    assert by_type == {
        "jsonl": ["default/a", "default/b", "default/c", "default/d"],
        "filter": ["default/a", "default/b", "default/c"],
        "sql": ["default/a", "default/b"],
    }


@pytest.mark.parametrize(("left", "right"), [(1, 1.0), (1, True), (0, False), ("1", 1), ([1, 2], [2, 1]), (None, {})])
def test_options_that_json_tells_apart_are_not_shared(left: object, right: object) -> None:
    plan = share([line("a", ("sql", {"x": left})), line("b", ("sql", {"x": right}))], declared)
    assert shared_names(plan) == {"in"}


def test_the_order_of_keys_and_the_kind_of_mapping_do_not_matter() -> None:
    left = {"x": {"a": 1, "b": [{"c": 2, "d": 3}]}, "y": 1}
    right = {"y": 1, "x": MappingProxyType({"b": ({"d": 3, "c": 2},), "a": 1})}
    plan = share([line("a", ("sql", left)), line("b", ("sql", right))], declared)
    assert shared_names(plan) == {"in", "step0"}


def test_options_that_are_not_json_are_refused() -> None:
    with pytest.raises(TypeError, match="not a JSON value"):
        canonical({"x": {1, 2}})


def test_stages_of_another_salt_are_not_shared() -> None:
    plan = share([line("a", "sql"), line("b", "sql")], lambda pipeline, _: pipeline.name)
    assert not shared_names(plan)


def test_a_stage_behind_one_that_is_not_shared_is_not_shared() -> None:
    plan = share([line("a", "impure", "sql"), line("b", "impure", "sql")], declared)
    assert shared_names(plan) == {"in"}


def test_two_stages_of_one_pipeline_that_are_alike_stay_two() -> None:
    def twin(name: str) -> Pipeline:
        stages = (Stage("in", "source", "jsonl"), Stage("l", "transform", "sql"), Stage("r", "transform", "sql"))
        edges = (Edge("in", "l"), Edge("in", "r"), Edge("l", "out"), Edge("r", "out"))
        return Pipeline("default", name, (*stages, Stage("out", "sink", "iceberg")), edges)

    plan = share([twin("a"), twin("b")], declared)
    assert [node.members for node in plan.nodes if node.stage.type == "sql"] == [
        (Member("default/a", "l"), Member("default/b", "l")),
        (Member("default/a", "r"), Member("default/b", "r")),
    ]


def test_stages_are_shared_under_different_names() -> None:
    other = Pipeline("x", "b", (Stage("quakes", "source", "jsonl"), Stage("t", "sink", "x")), (Edge("quakes", "t"),))
    node = share([line("a"), other], declared).nodes[0]
    assert node.members == (Member("default/a", "in"), Member("x/b", "quakes"))
    assert node.stage.name == "in"


@pytest.mark.parametrize(
    "different",
    [
        Edge("in", "step0", when="x"),
        Edge("in", "step0", otherwise=True),
        Edge("in", "step0", output="dropped"),
        Edge("in", "step0", on_slow="spill"),
    ],
)
def test_a_stage_reached_by_another_edge_is_not_shared(different: Edge) -> None:
    plan = share([built("a", Edge("in", "step0"), Edge("step0", "o")), built("b", different, Edge("step0", "o"))],
                 declared)  # fmt: skip
    assert shared_names(plan) == {"in"}


def _branches(name: str, *conditions: str) -> Pipeline:
    ways = (Edge("in", f"out{i}", when=when) for i, when in enumerate(conditions))
    return built(name, *ways, Edge("in", "rest", otherwise=True), Edge("rest", "left"))


def test_otherwise_is_shared_only_beside_the_same_conditions() -> None:
    assert shared_names(share([_branches("a", "x", "y"), _branches("b", "y", "x")], declared)) == {"in", "rest"}
    assert shared_names(share([_branches("a", "x", "y"), _branches("b", "x")], declared)) == {"in"}
    assert shared_names(share([_branches("a"), _branches("b", "x")], declared)) == {"in"}


def test_a_condition_on_another_output_leaves_otherwise_alone() -> None:
    def with_dropped(name: str, when: str) -> Pipeline:
        ways = (Edge("in", "o", when="x"), Edge("in", "p", "dropped", when=when))
        return built(name, *ways, Edge("in", "rest", otherwise=True), Edge("rest", "left"))

    assert shared_names(share([with_dropped("a", "y"), with_dropped("b", "z")], declared)) == {"in", "rest"}


def test_an_edge_between_shared_nodes_appears_once_with_every_pipeline() -> None:
    plan = share([line("a", "sql"), line("b", "sql"), line("c")], declared)
    (edge,) = (each for each in plan.edges if plan.nodes[each.target].stage.type == "sql")
    assert edge.members == ("default/a", "default/b")
    assert [each.members for each in plan.edges_from(0)] == [("default/a", "default/b"), ("default/c",)]


def test_a_pipeline_given_twice_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="given twice"):
        share([line("a"), line("a")], declared)


def test_each_stage_is_looked_at_once() -> None:
    """Linear work, counted: the salt is asked once per stage that may be shared, for 1,000 pipelines of ten."""
    asked = 0

    def counting(pipeline: Pipeline, stage: Stage) -> str:
        nonlocal asked
        asked += 1
        return ""

    plan = share([line(f"p{i}", *["sql"] * 8) for i in range(1_000)], counting)
    assert asked == 9_000
    assert len(plan.nodes) == 9 + 1_000
    assert len(plan.edges) == 8 + 1_000
