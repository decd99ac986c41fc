"""A starter validates as it is printed, names every option, and says each default as it is."""

from __future__ import annotations

import itertools

import pytest

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.graph import Pipeline
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.formatting import format_definition
from conveyord.engine.reference import installed_operators
from conveyord.engine.registry import stage_config
from conveyord.engine.starters import starter, uncommented
from tests.engine.definition_rig import registry

REGISTRY = registry()
OPERATORS = installed_operators(REGISTRY)
TYPES = {kind: REGISTRY.types(kind) for kind in ("source", "transform", "sink")}
SPECS = [
    *(f"{source}//{sink}" for source, sink in itertools.product(TYPES["source"], TYPES["sink"])),
    *(f"{TYPES['source'][0]}/{transform}/{TYPES['sink'][0]}" for transform in TYPES["transform"]),
    f"{TYPES['source'][0]}/{','.join((*TYPES['transform'], *TYPES['transform']))}/{TYPES['sink'][0]}",
]


def loaded(text: str) -> Pipeline:
    (pipeline,) = parse_pipelines({"x.yaml": text.encode()}, registry=REGISTRY, environ={})
    return pipeline


@pytest.mark.parametrize("spec", SPECS)
def test_a_starter_validates(spec: str) -> None:
    pipeline = loaded(starter(spec, REGISTRY, name="quakes"))
    source, transforms, sink = spec.split("/")
    assert pipeline.identity == "default/quakes"
    assert [stage.type for stage in pipeline.stages] == [source, *filter(None, transforms.split(",")), sink]


@pytest.mark.parametrize("spec", SPECS)
def test_what_is_commented_out_is_the_default(spec: str) -> None:
    text = starter(spec, REGISTRY)
    bare, full = loaded(text), loaded(uncommented(text))
    for before, after in zip(bare.stages, full.stages, strict=True):
        operator = REGISTRY.operator(before.kind, before.type)
        assert len(after.options) == len(operator.Config.model_fields)
        if before.type != "sample":  # its optional group is absent by default, and has defaults of its own
            assert stage_config(operator, dict(after.options), stage="a") == stage_config(
                operator, dict(before.options), stage="a"
            )


@pytest.mark.parametrize("spec", SPECS)
def test_a_starter_is_in_the_canonical_form(spec: str) -> None:
    text = starter(spec, REGISTRY)
    assert format_definition(text.encode(), "x", REGISTRY) == text


def test_every_option_is_explained() -> None:
    for operator in OPERATORS:
        if operator.package != "conveyord":
            continue
        parts = {"source": "{}//stdout_pretty", "transform": "file_jsonl/{}/stdout_pretty", "sink": "file_jsonl//{}"}
        text = starter(parts[operator.kind].format(operator.type), REGISTRY)
        words = text.replace("\n", " ").split()
        for option in operator.options:
            assert f"{option.key.rpartition('.')[2]}:" in text
            assert option.description
            assert set(option.description.split()) <= set(words)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("file_jsonl", "is not SOURCE/TRANSFORM/SINK"),
        ("file_jsonl/iceberg", "is not SOURCE/TRANSFORM/SINK"),
        ("/filter/iceberg", "is not SOURCE/TRANSFORM/SINK"),
        ("file_jsnl//iceberg", "unknown source type 'file_jsnl'; did you mean 'file_jsonl'?"),
        ("file_jsonl/filter,filtre/iceberg", "did you mean 'filter'?"),
        ("file_jsonl/filter,/iceberg", "unknown transform type ''"),
        ("iceberg//iceberg", "'iceberg' is a sink, not a source"),
    ],
)
def test_what_cannot_be_started_is_explained(spec: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        starter(spec, REGISTRY)
    assert sentence in str(refused.value)
