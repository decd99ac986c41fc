"""The manifest's models alone; messages with places are in tests/engine/test_definitions.py."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from conveyord.core.pipeline.manifest import NAME_CHARS_MAX, STEPS_MAX, PipelineSpec


def manifest(**spec: Any) -> dict[str, Any]:
    body = {
        "source": {"type": "file_jsonl", "path": "x"},
        "sink": {"type": "iceberg", "table": "a.b"},
        **spec,
    }
    return {"apiVersion": "conveyor.etl/v1", "kind": "Pipeline", "metadata": {"name": "q"}, "spec": body}


def test_the_identity_is_namespace_and_name() -> None:
    assert PipelineSpec.model_validate(manifest()).identity == "default/q"
    named = {**manifest(), "metadata": {"name": "q", "namespace": "team-a"}}
    assert PipelineSpec.model_validate(named).identity == "team-a/q"


def test_default_stage_names_are_source_sink_and_the_types_of_steps() -> None:
    steps = [
        {"type": "filter"},
        {"type": "filter"},
        {"type": "filter", "name": "filter-2"},
        {"type": "source"},
    ]
    pipeline = PipelineSpec.model_validate(manifest(steps=steps))
    assert [stage.name for stage in (pipeline.source, *pipeline.steps, pipeline.sink)] == [
        "source",
        "filter",
        "filter-3",
        "filter-2",
        "source-2",
        "sink",
    ]


@given(st.lists(st.fixed_dictionaries({"type": st.sampled_from(["a", "source", "sink", "a-2"])}), max_size=6))
def test_stage_names_are_unique_and_the_source_keeps_its_own(steps: list[dict[str, str]]) -> None:
    pipeline = PipelineSpec.model_validate(manifest(steps=steps))
    names = [stage.name for stage in (pipeline.source, *pipeline.steps, pipeline.sink)]
    assert len(set(names)) == len(names)
    assert names[0] == "source"  # fences are kept by it


def test_the_operators_own_keys_are_its_options() -> None:
    source = {"type": "file_jsonl", "name": "raw", "path": "x", "schema": {"id": "long"}}
    assert PipelineSpec.model_validate(manifest(source=source)).source.options == {
        "path": "x",
        "schema": {"id": "long"},
    }


@pytest.mark.parametrize(
    "change",
    [
        {"mode": "blocks"},
        {"mode": None},
        {"source": "raw"},
        {"steps": [{}]},
        {"steps": [{"type": "a"}] * (STEPS_MAX + 1)},
        {"steps": [{"type": "a", "name": ""}]},
        {"source": {"type": "a", "name": "same"}, "sink": {"type": "a", "name": "same"}},
        {"dlq": {}},
    ],
)
def test_a_spec_that_cannot_run_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PipelineSpec.model_validate(manifest(**change))


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".a", "a-", "é", "a\n", "x" * (NAME_CHARS_MAX + 1), "../a"])
def test_a_name_that_could_not_be_a_key_or_a_file_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        PipelineSpec.model_validate({**manifest(), "metadata": {"name": name}})


def test_a_pipeline_cannot_be_changed_once_it_is_loaded() -> None:
    pipeline = PipelineSpec.model_validate(manifest())
    with pytest.raises(ValidationError):
        pipeline.spec.mode = "batch"
