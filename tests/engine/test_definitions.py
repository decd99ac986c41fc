"""Definitions: what is accepted, and that every refusal says where, what, and what to do about it.

The refusals are kept as files: tests/data/errors/NAME.yaml must give exactly NAME.txt. After a change of
words run `REWRITE=1 pytest tests/engine/test_definitions.py` and read the difference.
"""

from __future__ import annotations

import os
import re
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.engine.definitions import load_pipelines, parse_pipelines
from conveyord.engine.problems import DefinitionError, Problem, render
from conveyord.engine.registry import GROUP, Registry
from conveyord.engine.yaml_source import FILE_BYTES_MAX

ERRORS = Path(__file__).resolve().parent.parent / "data" / "errors"
CASES = sorted(ERRORS.glob("*.yaml"))
GOOD = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: quakes, labels: {team: seismology}}
spec:
  mode: batch
  source: {type: sample, path: "data/*.jsonl", block: 64MiB}
  steps:
    - {type: sample, when: mag > 5}
    - {type: sample, when: mag < 9, name: upper}
    - {type: sample, when: 2024-01-01, ratio: 1}
  sink: {type: sample, table: a.b, partition_by: ["day(at)"], commit: {rows: 1_000_000, every: 1h30m}}
"""


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(str(ERRORS))
    points = {
        "source.sample": "sample_operators:SampleSource",
        "transform.sample": "sample_operators:SampleTransform",
        "sink.sample": "sample_operators:SampleSink",
        "sink.only_sink": "sample_operators:SampleSink",
        "source.broken": "a_module_that_is_not_there:Source",
        "transform.not_an_operator": "sample_operators:CommitConfig",
        "transform.twice": "sample_operators:SampleTransform",
    }
    found = [EntryPoint(name, value, GROUP) for name, value in points.items()]
    return Registry.of([*found, EntryPoint("transform.twice", "sample_operators:Other", GROUP)])


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_a_wrong_definition_is_refused_with_the_agreed_words(case: Path, registry: Registry) -> None:
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines(case.read_bytes(), case.name, registry=registry)
    told, golden = str(refused.value) + "\n", case.with_suffix(".txt")
    if os.environ.get("REWRITE"):
        golden.write_text(told, encoding="utf-8")
    assert told == golden.read_text(encoding="utf-8")


def test_a_definition_loads_with_units_names_and_options(registry: Registry) -> None:
    (pipeline,) = parse_pipelines(GOOD.encode(), "good.yaml", registry=registry)
    assert pipeline.identity == "default/quakes"
    assert pipeline.spec.mode == "batch"
    assert [stage.name for stage in (pipeline.source, *pipeline.steps, pipeline.sink)] == [
        "source",
        "sample",
        "upper",
        "sample-2",
        "sink",
    ]
    assert pipeline.steps[2].options == {
        "when": "2024-01-01",
        "ratio": 1,
    }  # a date is text, as it was written
    assert pipeline.sink.options["commit"] == {"rows": 1_000_000, "every": "1h30m"}


def test_an_alias_may_stand_for_a_value_in_several_places(registry: Registry) -> None:
    shared = GOOD.replace('"data/*.jsonl"', "&p data.jsonl").replace("mag > 5", "*p")
    (pipeline,) = parse_pipelines(shared.encode(), "good.yaml", registry=registry)
    assert pipeline.steps[0].options["when"] == "data.jsonl"


def test_bytes_that_are_not_utf8_are_placed(registry: Registry) -> None:
    with pytest.raises(DefinitionError, match=r"x\.yaml:2:4: byte 0xff is not UTF-8"):
        parse_pipelines(b"a: 1\nb: \xff\n", "x.yaml", registry=registry)


def test_a_byte_order_mark_is_passed_over(registry: Registry) -> None:
    assert parse_pipelines(b"\xef\xbb\xbf" + GOOD.encode(), "x.yaml", registry=registry)


def test_a_file_beyond_the_limit_is_refused_unread(tmp_path: Path, registry: Registry) -> None:
    path = tmp_path / "huge.yaml"
    path.write_bytes(b"#" * (FILE_BYTES_MAX + 1))
    with pytest.raises(DefinitionError, match=f"has {FILE_BYTES_MAX + 1} bytes, the limit is {FILE_BYTES_MAX}"):
        load_pipelines(path, registry=registry)


def test_a_file_that_cannot_be_read_says_why(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(DefinitionError, match=r"gone\.yaml: cannot be read: No such file"):
        load_pipelines(tmp_path / "gone.yaml", registry=registry)
    with pytest.raises(DefinitionError, match="cannot be read: Is a directory"):
        load_pipelines(tmp_path, registry=registry)


@given(st.one_of(st.text(max_size=80), st.text("ab: -{}[]&*!#'\"\n\t|>?%@`,", max_size=80)))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Whatever a file holds, it is refused with places inside it: no operator is known, so nothing loads."""
    content = text.encode(errors="surrogatepass")
    with pytest.raises(DefinitionError) as refused:
        parse_pipelines(content, "x.yaml", registry=Registry({}))
    assert all(0 < problem.line <= text.count("\n") + 2 for problem in refused.value.problems)
    assert render(refused.value.problems)


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


@pytest.mark.parametrize(("style", "expected"), [(">-", "SELECT a FROM t"), ("|-", "SELECT a\nFROM t")])
def test_multi_line_text_is_folded_without_traces(registry: Registry, style: str, expected: str) -> None:
    text = GOOD.replace(
        "{type: sample, when: mag > 5}", f"type: sample\n      when: {style}\n        SELECT a\n        FROM t"
    )
    (pipeline,) = parse_pipelines(text.encode(), path="p.yaml", registry=registry)
    assert pipeline.steps[0].options["when"] == expected
