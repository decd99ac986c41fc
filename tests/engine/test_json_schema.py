"""The JSON Schema says what the loader says, as far as a schema can."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from conveyord.engine.definitions import parse_set
from conveyord.engine.json_schema import DIALECT, definition_schema
from conveyord.engine.problems import DefinitionError
from tests.engine.definition_rig import definitions, registry

ROOT = Path(__file__).resolve().parents[2]
REGISTRY = registry()
SCHEMA = definition_schema(REGISTRY)
VALIDATOR = Draft202012Validator(SCHEMA)
ERRORS = ROOT / "tests" / "data" / "errors"
ENVIRON = {"DIR": "/data", "PORT": "8080", "TOKEN": "from-the-environment", "SIZE": "1MiB"}
# Cases of tests/data/errors whose fault lies in one document, in a key, an operator's type or a value's type.
IN_ONE_DOCUMENT = (
    "dlq_keys",
    "keys_of_later",
    "kinds_of_later",
    "labels",
    "list_items",
    "missing_everything",
    "missing_keys",
    "mode",
    "mode_blocks",
    "names",
    "not_a_mapping",
    "null_values",
    "unknown_keys",
    "unknown_types",
    "wrong_numbers",
    "wrong_types",
    "wrong_version_and_kind",
)


def loads(document: Any) -> bool:
    try:
        # JSON is YAML, so that no style of writing stands between the two.
        parse_set({"x.yaml": json.dumps(document).encode()}, registry=REGISTRY, environ=ENVIRON)
    except DefinitionError:
        return False
    return True


def accepts(document: Any) -> bool:
    return bool(VALIDATOR.is_valid(document))


def complaints(document: Any) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in VALIDATOR.iter_errors(document)]


def as_editors_read(path: Path) -> list[Any]:
    """The documents of a file, its dates left as text, which is what YAML 1.2 says."""
    loader = type("Loader", (yaml.SafeLoader,), {})
    loader.yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in known if not tag.endswith("timestamp")]
        for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    return list(yaml.load_all(path.read_text(encoding="utf-8"), loader))


def test_it_is_a_schema() -> None:
    assert SCHEMA["$schema"] == DIALECT
    Draft202012Validator.check_schema(SCHEMA)


def test_every_installed_operator_is_in_it() -> None:
    for kind in ("source", "transform", "sink"):
        assert set(SCHEMA["$defs"][f"{kind}-stage"]["properties"]["type"]["anyOf"][0]["enum"]) == set(
            REGISTRY.types(kind)
        )


@pytest.mark.parametrize("path", sorted((ROOT / "examples").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_examples_are_accepted(path: Path) -> None:
    assert [complaints(document) for document in as_editors_read(path)] == [[]] * len(as_editors_read(path))


@given(definitions())
def test_what_loads_is_accepted(document: dict[str, Any]) -> None:
    assert loads(document)
    assert complaints(document) == []


def mappings(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The paths of all mappings whose keys are not free."""
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            if key not in ("labels", "annotations", "types", "properties", "catalog"):
                yield from mappings(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from mappings(item, (*path, index))


def at(value: Any, path: tuple[str | int, ...]) -> Any:
    for part in path:
        value = value[part]
    return value


@given(definitions(), st.data())
def test_an_unknown_key_is_refused_wherever_it_stands(document: dict[str, Any], data: st.DataObject) -> None:
    broken = copy.deepcopy(document)
    at(broken, data.draw(st.sampled_from(list(mappings(document)))))["unknown_key"] = 1
    assert not loads(broken)
    assert not accepts(broken)


# What these hold is also checked against the rest of the set, such as the name of a stage against the edges.
OF_THE_SET = ("edges", "sources", "sinks", "transforms", "steps", "source", "sink", "name", "id")
WRONG = st.sampled_from([None, True, 5, 1.5, "text", [], {}, [None], {"a": 1}])


@given(definitions(), st.data(), WRONG)
def test_a_value_of_another_type_is_accepted_only_where_it_loads(
    document: dict[str, Any], data: st.DataObject, wrong: Any
) -> None:
    broken = copy.deepcopy(document)
    place = at(broken, data.draw(st.sampled_from([path for path in mappings(document) if at(document, path)])))
    key = data.draw(st.sampled_from(sorted(place)))
    # Another name or reference breaks what only the whole set shows; another type of a wanted kind changes no type.
    assume(
        type(place[key]) is not type(wrong) and not (isinstance(wrong, str) and key not in ("limit", "ratio", "header"))
    )
    place[key] = wrong
    if loads(broken):
        assert complaints(broken) == []
    elif key not in OF_THE_SET and not _in_range(key, wrong):
        assert not accepts(broken)


def _in_range(key: str, wrong: Any) -> bool:
    """Whether only a number's limits or a rule about several keys may be what the loader minds."""
    return isinstance(wrong, int | float) and not isinstance(wrong, bool) and key not in ("header", "enabled")


@given(definitions(), st.data())
def test_an_unknown_operator_type_is_refused(document: dict[str, Any], data: st.DataObject) -> None:
    typed = [path for path in mappings(document) if "type" in at(document, path) and path[-1:] != ("retryPolicy",)]
    assume([path for path in typed if path[-1] != "retry_policy"])
    broken = copy.deepcopy(document)
    at(broken, data.draw(st.sampled_from([path for path in typed if path[-1] != "retry_policy"])))["type"] = "no_such"
    assert not loads(broken)
    assert not accepts(broken)


@pytest.mark.parametrize(
    "path", sorted(path for path in ERRORS.glob("*.yaml") if path.stem in IN_ONE_DOCUMENT), ids=lambda path: path.stem
)
def test_the_faults_of_the_golden_files_are_refused(path: Path) -> None:
    assert any(complaints(document) for document in as_editors_read(path))


PIPELINE = {"apiVersion": "conveyor.etl/v1", "kind": "Pipeline", "metadata": {"name": "p"}}


def line(source: Any = None, sink: Any = None, **more: Any) -> dict[str, Any]:
    spec = {
        "source": source or {"type": "sample", "path": "x"},
        "sink": sink or {"type": "sample", "table": "a.b"},
        **more,
    }
    return {**PIPELINE, "spec": spec}


@pytest.mark.parametrize(
    "document",
    [
        line({"type": "sample", "path": "x", "block": "${SIZE}"}),
        line({"type": "sample", "path": "x", "compression": "${HOW:auto}"}),
        line({"type": "${TYPE:sample}", "path": "x"}),
        line("a-source", sink="other/a-sink"),
        line(mode="${MODE:batch}"),
        line(sink={"type": "sample", "table_name": "a.b", "commit": {"every": "1d2h3m4s5ms"}}),
        line(dlq={}),
        line(dlq={"sink": {"type": "sample", "table": "a.b"}, "max_retries": 0}),
        line(tests=[{"name": "t", "given": {"source": [{"any": [1, {}]}]}, "expect": {"sink": []}}]),
        {**PIPELINE, "kind": "Source", "spec": {"type": "sample", "config": {"path": "x"}}},
        {"name": "p", "sources": ["a"], "sinks": ["b"], "edges": [["a", "b"], {"from": "a.dropped", "to": "b"}]},
    ],
    ids=str,
)
def test_what_people_write_is_accepted(document: Any) -> None:
    assert complaints(document) == []


@pytest.mark.parametrize(
    "document",
    [
        line({"type": "sample", "path": "x", "block": "64MiBs"}),
        line(sink={"type": "sample", "table": "a.b", "commit": {"every": 60}}),
        line(sink={"type": "sample", "table": "a.b", "commit": {"every": "30"}}),
        line(sink={"type": "sample", "table": "a.b", "commit": {"every": "3m1h"}}),
        line(sink={"type": "sample", "table": "a.b", "table_name": "a.b"}),
        line(sink={"type": "sample"}),
        line({"type": "sample", "path": "x", "compression": "gz"}),
        line(mode="strem"),
        line(dlq={"maxRetries": 1, "max_retries": 1}),
        {**PIPELINE, "kind": "Source", "spec": {"type": "sample", "config": {"pth": "x"}}},
        {**PIPELINE, "kind": "Pipelin", "spec": {}},
        {"name": "p", "sources": ["a"], "sinks": ["b"], "source": "a"},
        {"metadata": {"name": "p"}},
    ],
    ids=str,
)
def test_what_is_refused_is_refused(document: Any) -> None:
    assert not loads(document)
    assert not accepts(document)


def test_options_carry_what_an_editor_shows() -> None:
    options = SCHEMA["$defs"]["source.file_jsonl"]["properties"]
    assert options["block_bytes"]["default"] == "8MiB"
    assert "description" in options["path"]
    assert SCHEMA["$defs"]["sink.sample"]["properties"]["table_name"]["deprecated"] is True
    assert "title" not in json.dumps(SCHEMA["$defs"])
