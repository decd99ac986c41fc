"""The manifest's models alone; messages with places are in tests/engine/test_definitions_refused.py."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from conveyord.core.pipeline.manifest import (
    STAGES_MAX,
    STEPS_MAX,
    BarePipeline,
    DeadLetterSpec,
    EdgeSpec,
    GraphBody,
    LinearBody,
    Manifest,
    PipelineManifest,
    SourceManifest,
    manifest_kind,
)
from conveyord.core.pipeline.stages import NAME_CHARS_MAX, StageSpec, is_reference, nested_in_config, stage_names

ADAPTER: TypeAdapter[Any] = TypeAdapter(Manifest)
STAGE = {"type": "a"}


def manifest(**spec: Any) -> dict[str, Any]:
    body = {"source": {"type": "file_jsonl", "path": "x"}, "sink": {"type": "iceberg", "table": "a.b"}, **spec}
    return {"apiVersion": "conveyor.etl/v1", "kind": "Pipeline", "metadata": {"name": "q"}, "spec": body}


def read(document: dict[str, Any]) -> Any:
    return ADAPTER.validate_json(json.dumps(document), strict=True)


@pytest.mark.parametrize(
    ("change", "model", "body"),
    [
        ({}, PipelineManifest, LinearBody),
        ({"spec": {"sources": [STAGE], "sinks": ["ns/lake"]}}, PipelineManifest, GraphBody),
        ({"kind": "Source", "spec": {"type": "a"}}, SourceManifest, None),
    ],
)
def test_the_kind_and_the_keys_choose_the_model(change: dict[str, Any], model: type, body: type | None) -> None:
    read_back = read({**manifest(), **change})
    assert type(read_back) is model
    assert body is None or type(read_back.spec) is body
    assert manifest_kind(read_back) == read_back.kind


MAPPED = {"type": "kafka", "topic_mapping": {"table": "a.b"}}


@pytest.mark.parametrize("source", [MAPPED, "ns/topics"])
def test_a_source_that_maps_topics_or_may_do_so_needs_no_sink(source: Any) -> None:
    spec = {"source": source}
    assert read({**manifest(), "spec": spec}).spec.sink is None
    assert read({"name": "q", "sources": [source]}).sinks is None
    assert read({**manifest(), "spec": {"sources": [source, "other"]}}).spec.sinks is None


@pytest.mark.parametrize("source", [STAGE, {**STAGE, "topic_mapping": None}])
@pytest.mark.parametrize("form", ["linear", "graph", "bare"])
def test_any_other_source_needs_one(source: Any, form: str) -> None:
    document = {
        "linear": {**manifest(), "spec": {"source": source}},
        "graph": {**manifest(), "spec": {"sources": [MAPPED, source]}},
        "bare": {"name": "q", "sources": [source]},
    }[form]
    with pytest.raises(ValidationError) as refused:
        read(document)
    (problem,) = refused.value.errors()
    assert (problem["type"], problem["loc"][-1]) == ("missing", "sink" if form == "linear" else "sinks")


@pytest.mark.parametrize("sinks", [[], None])
def test_sinks_that_are_given_are_some(sinks: Any) -> None:
    with pytest.raises(ValidationError):
        read({"name": "q", "sources": [STAGE], "sinks": sinks})


def test_a_document_without_a_kind_is_a_bare_pipeline() -> None:
    bare = read({"name": "q", "sources": [{"id": "raw", "type": "a"}], "sinks": [STAGE], "edges": [["raw", "a"]]})
    assert isinstance(bare, BarePipeline)
    assert bare.sources[0] == StageSpec(type="a", name="raw")
    assert bare.edges == (("raw", "a"),)


def test_the_operators_own_keys_are_its_options() -> None:
    source = {"type": "file_jsonl", "name": "raw", "path": "x", "schema": {"id": "long"}}
    stage = read(manifest(source=source)).spec.source
    assert stage.name == "raw"
    assert stage.options == {"path": "x", "schema": {"id": "long"}}


def test_both_dialects_of_dead_letters_mean_the_same() -> None:
    camel = {"maxRetries": 2, "retryPolicy": {"initialDelayMs": 10, "maxDelayMs": 30}}
    snake = {"max_retries": 2, "retry_policy": {"initial_delay_ms": 10, "max_delay_ms": 30}}
    flat = {"max_retries": 2, "retryBackoffMs": 10, "maxRetryBackoffMs": 30}
    specs = [DeadLetterSpec.model_validate(form) for form in (camel, snake, flat)]
    assert {spec.maxRetries for spec in specs} == {2}
    assert len({spec.backoff for spec in specs}) == 1
    assert specs[0].backoff.cap_seconds == 0.03


def test_an_edge_is_written_with_from_and_to() -> None:
    edge = EdgeSpec.model_validate({"from": "a", "to": "b", "onSlow": "spill"})
    assert (edge.source, edge.target, edge.on_slow) == ("a", "b", "spill")


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "blocks"},
        {"mode": None},
        {"source": "not a name"},
        {"source": "a/b/c"},
        {"steps": [{}]},
        {"steps": [STAGE] * (STEPS_MAX + 1)},
        {"steps": [{"type": "a", "name": ""}]},
        {"steps": [{"type": "a", "name": "b", "id": "b"}]},
        {"sources": []},
        {"dlq": {"retryPolicy": {}, "retryBackoffMs": 5}},
        {"dlq": {"maxRetries": 1, "max_retries": 1}},
        {"dlq": {"retryBackoffMs": 60_000}},
        {"tests": [{"name": "t", "given": {}, "expect": {"sink": []}}]},
        {"schema": {"tables": "discard_row"}},
        {"schema": {"columns": "ignore"}},
        {"schema": {"fields": "freeze"}},
    ],
)
def test_a_spec_that_cannot_run_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        read(manifest(**change))


@pytest.mark.parametrize("edge", [["a"], ["a", "b", "c"], {"from": "a"}, "a", {"from": "a", "to": "b", "when": ""}])
def test_what_is_no_edge_is_refused(edge: object) -> None:
    with pytest.raises(ValidationError):
        read({"name": "q", "sources": [STAGE], "sinks": [STAGE], "edges": [edge]})


def test_a_graph_has_a_limited_number_of_stages() -> None:
    half = [STAGE] * (STAGES_MAX // 2)
    read({"name": "q", "sources": half, "sinks": half})
    with pytest.raises(ValidationError, match=f"at most {STAGES_MAX} stages"):
        read({"name": "q", "sources": half, "transforms": [STAGE], "sinks": half})


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".a", "a-", "é", "a\n", "x" * (NAME_CHARS_MAX + 1), "../a"])
def test_a_name_that_could_not_be_a_key_or_a_file_is_refused(name: str) -> None:
    assert not is_reference(name) or name == "a/b"  # which is one of two names
    with pytest.raises(ValidationError):
        read({**manifest(), "metadata": {"name": name}})


def test_a_manifest_cannot_be_changed_once_it_is_read() -> None:
    pipeline = read(manifest())
    with pytest.raises(ValidationError):
        pipeline.spec.mode = "batch"


def test_the_json_schema_describes_every_kind_with_canonical_keys() -> None:
    schema = ADAPTER.json_schema()
    assert len(schema["oneOf"]) == 5
    assert set(schema["$defs"]["EdgeSpec"]["properties"]) == {"from", "to", "when", "otherwise", "on_slow"}
    assert "max_retries" not in json.dumps(schema)


def test_options_nested_in_config_are_told_from_an_option_of_that_name() -> None:
    assert nested_in_config({"config": {"path": "x"}})
    assert not nested_in_config({"config": {"path": "x"}, "path": "y"})
    assert not nested_in_config({"config": "x"})


def test_default_names_count_up_and_given_names_stay() -> None:
    wanted = [(None, "source"), (None, "filter"), (None, "filter"), ("filter-2", "filter"), (None, "source")]
    assert stage_names(wanted) == ["source", "filter", "filter-3", "filter-2", "source-2"]


@given(st.lists(st.sampled_from(["a", "source", "sink", "a-2", "source-2"]), max_size=8))
def test_default_names_are_unique_and_the_first_keeps_its_own(defaults: list[str]) -> None:
    names = stage_names([(None, "source"), *((None, default) for default in defaults)])
    assert len(set(names)) == len(names)
    assert names[0] == "source"  # fences are kept by it
