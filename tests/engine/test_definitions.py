"""Definitions that are accepted, and what they are lowered to. Refusals: test_definitions_refused.py."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.graph import Edge, Pipeline
from conveyord.engine.definitions import load_pipelines, load_set, parse_pipelines, parse_set
from conveyord.engine.problems import DefinitionError, Problem, render
from conveyord.engine.registry import Registry
from conveyord.engine.yaml_source import DOCUMENTS_MAX, FILE_BYTES_MAX
from tests.engine.definition_samples import ERRORS, HEAD, load, sample_registry

GOOD = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: quakes, labels: {team: seismology}, annotations: {why: "a test"}}
spec:
  mode: batch
  source: {type: sample, path: "data/*.jsonl", block: 64MiB}
  steps:
    - {type: sample, when: mag > 5}
    - {type: sample, when: mag < 9, name: upper}
    - {type: sample, when: 2024-01-01, ratio: 1}
  sink: {type: sample, table: a.b, partition_by: ["day(at)"], commit: {rows: 1_000_000, every: 1h30m}}
"""
GRAPH = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: quakes}
spec:
  sinks: [{name: strong, type: sample, table: a.b}, {name: weak, type: sample, table: a.c}]
  transforms: [{name: clean, type: sample, when: mag > 0}]
  sources: [{type: sample, path: x}, {type: sample, path: y}]
  edges:
    - [sample, clean]
    - [sample-2, clean]
    - {from: clean, to: strong, when: mag > 5, on_slow: spill}
    - {from: clean, to: weak, otherwise: true}
    - [clean.dropped, weak]
"""
RESOURCES = """
apiVersion: conveyor.etl/v1
kind: Source
metadata: {name: raw}
spec: {type: sample, path: x}
---
apiVersion: conveyor.etl/v1
kind: Transform
metadata: {name: clean, namespace: team}
spec: {type: sample, config: {when: a}}
---
apiVersion: conveyor.etl/v1
kind: Sink
metadata: {name: rejected}
spec: {type: sample, table_name: a.rejected}
"""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(str(ERRORS))
    return sample_registry()


def one(registry: Registry, *texts: str) -> Pipeline:
    (pipeline,) = load(registry, *texts)
    return pipeline


def names(pipeline: Pipeline) -> list[str]:
    return [stage.name for stage in pipeline.stages]


def test_a_line_loads_with_units_names_and_options(registry: Registry) -> None:
    pipeline = one(registry, GOOD)
    assert pipeline.identity == "default/quakes"
    assert pipeline.mode == "batch"
    assert pipeline.labels == {"team": "seismology"}
    assert pipeline.annotations == {"why": "a test"}
    assert names(pipeline) == ["source", "sample", "upper", "sample-2", "sink"]
    assert pipeline.edges == tuple(map(Edge, names(pipeline), names(pipeline)[1:]))
    assert pipeline.stages[3].options == {"when": "2024-01-01", "ratio": 1}  # a date is text, as it was written
    assert pipeline.stages[4].options["commit"] == {"rows": 1_000_000, "every": "1h30m"}
    assert pipeline.dlq is None
    assert pipeline.enabled


def test_a_graph_loads_with_conditions_outputs_and_policies(registry: Registry) -> None:
    pipeline = one(registry, GRAPH)
    assert names(pipeline) == ["sample", "sample-2", "clean", "strong", "weak"]
    assert pipeline.edges == (
        Edge("sample", "clean"),
        Edge("sample-2", "clean"),
        Edge("clean", "strong", when="mag > 5", on_slow="spill"),
        Edge("clean", "weak", otherwise=True),
        Edge("clean", "weak", output="dropped"),
    )


def test_every_form_of_a_line_is_lowered_to_the_same_graph(registry: Registry) -> None:
    linear = HEAD + "spec:\n  source: {type: sample, name: a, path: x}\n"
    linear += "  steps: [{type: sample, name: b, when: x}]\n  sink: {type: sample, name: c, table: a.b}\n"
    stages = "sources: [{type: sample, id: a, path: x}]\ntransforms: [{type: sample, id: b, when: x}]\n"
    stages += "sinks: [{type: sample, id: c, table_name: a.b}]\n"
    graph = HEAD + "spec:\n" + re.sub("^", "  ", stages + "edges: [[a, b], {from: b, to: c}]", flags=re.MULTILINE)
    bare = "name: quakes\n" + stages
    assert one(registry, linear) == one(registry, graph) == one(registry, bare)


def test_stages_may_be_named_from_other_files_and_namespaces(registry: Registry) -> None:
    using = HEAD + "spec:\n  source: raw\n  steps: [team/clean, team/clean]\n"
    using += "  sink: {type: sample, table: a.b}\n  dlq: {sink: rejected, max_retries: 5, retryBackoffMs: 7}\n"
    pipeline = one(registry, using, RESOURCES)
    assert names(pipeline) == ["raw", "clean", "clean-2", "sink", "rejected"]
    assert [stage.options for stage in pipeline.stages[:2]] == [{"path": "x"}, {"when": "a"}]
    assert pipeline.stages[4].options == {"table": "a.rejected"}
    assert pipeline.dlq is not None
    assert (pipeline.dlq.sink, pipeline.dlq.max_retries, pipeline.dlq.retry.base_seconds) == ("rejected", 5, 0.007)
    assert not pipeline.edges_to("rejected")


@pytest.mark.parametrize(
    ("dlq", "sink"),
    [
        ("{sink: weak}", "weak"),
        ("{sink: {type: sample, table: a.d}}", "dead-letters"),
        ("{retry_policy: {initial_delay_ms: 10, maxDelayMs: 20, multiplier: 3}}", None),
        ("{}", None),
    ],
)
def test_a_dead_letter_sink_has_no_edges(registry: Registry, dlq: str, sink: str | None) -> None:
    text = HEAD + "spec:\n  sources: [{type: sample, path: x}]\n  sinks: [{type: sample, name: lake, table: a.b}"
    text += ", {type: sample, name: weak, table: a.c}]" if sink == "weak" else "]"
    pipeline = one(registry, f"{text}\n  dlq: {dlq}\n")
    assert pipeline.dlq is not None
    assert pipeline.dlq.sink == sink
    assert pipeline.edges == (Edge("sample", "lake"),)
    if "retry_policy" in dlq:
        assert (pipeline.dlq.retry.base_seconds, pipeline.dlq.retry.cap_seconds) == (0.01, 0.02)


def test_a_stage_whose_name_has_a_dot_wins_over_an_output(registry: Registry) -> None:
    text = GRAPH.replace("name: weak", "name: clean.dropped").replace("to: weak", "to: clean.dropped")
    pipeline = one(registry, text.replace("    - [clean.dropped, weak]\n", ""))
    assert pipeline.edges[-1] == Edge("clean", "clean.dropped", otherwise=True)


def test_tests_are_kept_with_their_rows(registry: Registry) -> None:
    test = "  tests: [{name: t, given: {sample: [{a: 1, b: [null]}]}, expect: {strong: [], clean.dropped: [{a: 1}]}}]\n"
    (kept,) = one(registry, GRAPH + test).tests
    assert kept.given == {"sample": [{"a": 1, "b": [None]}]}
    assert kept.expect == {"strong": [], "clean.dropped": [{"a": 1}]}


def test_a_disabled_pipeline_is_checked_and_kept(registry: Registry) -> None:
    assert not one(registry, GOOD + "  enabled: false\n").enabled
    with pytest.raises(DefinitionError, match="unknown source type"):
        load(registry, GOOD.replace("type: sample, path", "type: sampl, path") + "  enabled: false\n")


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("${PORT}", 8080),
        ('"${PORT}"', "8080"),
        ("${PORT}0", "80800"),
        ("${UNSET:7.5}", 7.5),
        ("${UNSET:true}", True),
        ("${UNSET:a:b}", "a:b"),
        ("${UNSET:-1}", -1),
        ("$${PORT}", "${PORT}"),
        ("'a ${DIR}/${UNSET:}$'", "a /data/$"),
    ],
)
def test_variables_are_replaced_in_values_and_typed_only_when_they_stand_alone(
    registry: Registry, written: str, value: object
) -> None:
    text = f"""{HEAD}spec:
  source: {{type: sample, path: x}}
  sink: {{type: sample, table: a.b}}
  tests:
    - name: t
      given:
        source:
          - v: {written}
      expect: {{sink: []}}
"""
    (test,) = one(registry, text).tests
    assert test.given["source"][0]["v"] == value


def test_what_a_variable_holds_is_never_read_as_yaml(registry: Registry) -> None:
    files = {"a.yaml": GOOD.replace("mag > 5", '"${WHEN}"').encode()}
    (pipeline,) = parse_pipelines(files, registry=registry, environ={"WHEN": "x}\nevil: ${PATH} $${"})
    assert pipeline.stages[1].options["when"] == "x}\nevil: ${PATH} $${"


def test_an_alias_may_stand_for_a_value_in_several_places(registry: Registry) -> None:
    pipeline = one(registry, GOOD.replace('"data/*.jsonl"', "&p data.jsonl").replace("mag > 5", "*p"))
    assert pipeline.stages[1].options["when"] == "data.jsonl"


@pytest.mark.parametrize(("style", "expected"), [(">-", "SELECT a FROM t"), ("|-", "SELECT a\nFROM t")])
def test_multi_line_text_is_folded_without_traces(registry: Registry, style: str, expected: str) -> None:
    folded = f"type: sample\n      when: {style}\n        SELECT a\n        FROM t"
    assert one(registry, GOOD.replace("{type: sample, when: mag > 5}", folded)).stages[1].options["when"] == expected


def test_bytes_that_are_not_utf8_are_placed(registry: Registry) -> None:
    with pytest.raises(DefinitionError, match=r"x\.yaml:2:4: byte 0xff is not UTF-8"):
        parse_pipelines({"x.yaml": b"a: 1\nb: \xff\n"}, registry=registry)


def test_a_byte_order_mark_is_passed_over(registry: Registry) -> None:
    assert parse_pipelines({"x.yaml": b"\xef\xbb\xbf" + GOOD.encode()}, registry=registry)


def test_a_file_beyond_the_limit_is_refused_by_its_size(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "huge.yaml"
    with path.open("wb") as file:
        file.truncate(50 * 1024 * 1024)
    with pytest.raises(DefinitionError, match=f"has 52428800 bytes, the limit is {FILE_BYTES_MAX}"):
        load_pipelines([path], registry=registry)


def test_more_documents_than_the_limit_are_refused(registry: Registry) -> None:
    with pytest.raises(DefinitionError, match=f"more than {DOCUMENTS_MAX} documents"):
        load(registry, "--- 1\n" * (DOCUMENTS_MAX + 1))


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 100_000, "{a: " * 100_000, "? " * 100_000])
def test_deep_nesting_is_refused_without_recursing(registry: Registry, text: str) -> None:
    with pytest.raises(DefinitionError, match="nested more than 64 levels deep"):
        load(registry, text)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(DefinitionError, match=r"gone\.yaml: cannot be read: No such file"):
        load_pipelines([tmp_path / "gone.yaml"], registry=registry)
    with pytest.raises(DefinitionError, match="holds no file that ends in .yaml or .yml"):
        load_pipelines([tmp_path], registry=registry)


def test_a_directory_stands_for_all_yaml_files_below_it(tmp_path: Path, registry: Registry) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.yaml").write_text("nonsense: [")
    (tmp_path / "notes.txt").write_text("nonsense: [")
    (tmp_path / "b" / "c" / "resources.yml").write_text(RESOURCES)
    using = HEAD + "spec: {source: raw, sink: rejected}\n"
    (tmp_path / "a.yaml").write_text(using)
    (tmp_path / "b" / "z.yaml").write_text(using.replace("quakes", "others"))
    loaded = load_set([tmp_path, tmp_path / "a.yaml"], registry=registry)
    assert [pipeline.name for pipeline in loaded.pipelines] == ["quakes", "others"]
    kinds = [(resource.kind, resource.identity) for resource in loaded.resources]
    assert ("Transform", "team/clean") in kinds
    assert len(kinds) == 5


def test_a_set_without_a_pipeline_is_fine_until_pipelines_are_asked_for(registry: Registry) -> None:
    files = {"a.yaml": RESOURCES.encode()}
    assert not parse_set(files, registry=registry).pipelines
    with pytest.raises(DefinitionError, match="a.yaml: there is no Pipeline here, only Sink, Source, Transform"):
        parse_pipelines(files, registry=registry)


SOUP = st.text("ab: -{}[]&*!#'\"\n\t|>?%@`,$~\r\x85\u2028", max_size=80)
WORDS = ["kind", "spec", "source", "sources", "sinks", "sink", "edges", "dlq", "name", "type", "steps", "metadata"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["sample", "Pipeline", "Source", "a", "a.b", "${X}"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*WORDS, "from", "to"]), inner),
    max_leaves=20,
)


@given(st.one_of(st.text(max_size=80), SOUP, JSON.map(json.dumps)))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever a file holds, it is refused with places inside it: no operator is known, so nothing loads."""
    content = text.encode(errors="surrogatepass")
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines({"x.yaml": content}, registry=Registry({}), environ={})
    lines = len(re.split("\r\n|[\r\n\x85\u2028\u2029]", text))
    assert all(0 < problem.line <= lines + 1 for problem in refused.value.problems)
    assert render(refused.value.problems)


NAMES = st.sampled_from(["a", "b", "c", "a.dropped", "none", "x/y", ""])
STAGES = st.lists(st.one_of(NAMES, st.fixed_dictionaries({"type": NAMES}, optional={"name": NAMES, "k": JSON})))
EDGES = st.lists(
    st.one_of(
        st.lists(NAMES, min_size=2, max_size=2),
        st.fixed_dictionaries({"from": NAMES, "to": NAMES}, optional={"otherwise": st.booleans()}),
    )
)
GRAPHS = st.fixed_dictionaries(
    {"name": st.just("q"), "sources": STAGES, "sinks": STAGES},
    optional={"transforms": STAGES, "edges": EDGES, "dlq": st.fixed_dictionaries({"sink": NAMES}), "tests": JSON},
)


@given(GRAPHS)
def test_no_graph_breaks_the_checks(graph: dict[str, object]) -> None:
    with pytest.raises(DefinitionError):
        parse_pipelines({"x.yaml": json.dumps(graph).encode()}, registry=Registry({}), environ={})


def test_colours_wrap_the_place_and_the_caret() -> None:
    problem = Problem("x.yaml", 1, 3, "wrong", "a: b")
    plain = render([problem])
    assert plain == "x.yaml:1:3: wrong\n  a: b\n    ^"
    coloured = render([problem], colour=True)
    assert coloured != plain
    assert re.sub(r"\x1b\[\d+m", "", coloured) == plain


def test_types_are_listed_without_importing_them(registry: Registry) -> None:
    assert registry.types("source") == ("broken", "sample")
    with pytest.raises(ConfigError, match="cannot be loaded from an unknown package"):
        registry.operator("source", "broken")


def test_a_registry_without_operators_says_how_to_install_them() -> None:
    with pytest.raises(ConfigError, match="no operators are installed"):
        Registry({}).operator("source", "file_jsonl")
