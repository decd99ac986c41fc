"""The canonical form: it means the same, keeps every comment, is stable, and shows no secret."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given

from conveyord.engine.definitions import DefinitionSet, parse_set
from conveyord.engine.formatting import format_definition, hide_secrets
from conveyord.engine.problems import DefinitionError
from conveyord.engine.yaml_reading import comments
from tests.engine.definition_rig import SAMPLES, definitions, registry, written

REGISTRY = registry()


def formatted(text: str) -> str:
    return format_definition(text.encode(), "x.yaml", REGISTRY)


def meaning(text: str) -> tuple[Any, ...]:
    """What is loaded from a text: pipelines as they are run, and resources with their options."""
    loaded: DefinitionSet = parse_set({"x.yaml": text.encode()}, registry=REGISTRY, environ={})
    resources = [(one.kind, one.identity, one.type, one.options, one.labels) for one in loaded.resources]
    return loaded.pipelines, resources


@given(written(definitions()))
def test_formatting_never_changes_what_is_loaded(text: str) -> None:
    assert meaning(formatted(text)) == meaning(text)


@given(written(definitions()))
def test_formatting_twice_is_formatting_once_and_every_comment_stays(text: str) -> None:
    once = formatted(text)
    assert formatted(once) == once
    assert comments(once) == comments(text)
    numbered = re.compile(r"# comment \d+")
    assert sorted(numbered.findall(once)) == sorted(numbered.findall(text))


@given(written(definitions()))
def test_only_canonical_keys_are_left(text: str) -> None:
    once = formatted(text)
    assert not re.search(r"\b(id|table_name|max_retries|retry_policy|max_delay_ms|onSlow|config):", once)
    assert list(re.findall(r"^([a-zA-Z]+):", once, re.MULTILINE)) == ["apiVersion", "kind", "metadata", "spec"]


BEFORE = """\
# A file of our team.

# the name
name: quakes   # was: tremors
edges:
- [in, out]   # all of it
sinks:
   # where it goes
   - id: out
     type: sample
     table_name: a.b  # by day
     # not yet:
     # partition_by: ["day(at)"]
# where it comes from
sources:
   - {type: sample, id: in,
      path: "x
        y"}
dlq: {max_retries: 3, "retry_policy":{max_delay_ms: 40000}}
# the end
"""
AFTER = """\
# A file of our team.

# the name
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata:
  name: quakes   # was: tremors
spec:
  # where it comes from
  sources:
    - {type: sample, name: in,
       path: "x
         y"}
  sinks:
    # where it goes
    - name: out
      type: sample
      table: a.b  # by day
      # not yet:
      # partition_by: ["day(at)"]
  edges:
    - [in, out]   # all of it
  dlq: {maxRetries: 3, "retryPolicy":{maxDelayMs: 40000}}
  # the end
"""


def test_comments_go_where_their_keys_go() -> None:
    assert formatted(BEFORE) == AFTER
    assert meaning(AFTER) == meaning(BEFORE)


def test_options_in_config_come_out_of_it() -> None:
    before = (
        "kind: Sink\napiVersion: conveyor.etl/v1\nmetadata: {name: s}\nspec: {config: {table: a.b}, type: sample}\n"
    )
    after = "apiVersion: conveyor.etl/v1\nkind: Sink\nmetadata: {name: s}\nspec:\n  type: sample\n  table: a.b\n"
    assert formatted(before) == after


SCALARS = """\
apiVersion: conveyor.etl/v1
kind: Transform
metadata: {name: t}
spec:
    type: sample
    when: |2
          indented
        less

    # between
    ratio:   1_000.50   # kept as written
---
# nothing but a comment
---
spec:
  type: sql_transform
  query: >+
     SELECT *
     FROM input_data


metadata: {name: "é", annotations: {a: &one 'it''s', b: *one}}
apiVersion: conveyor.etl/v1
kind: Transform
"""


def test_scalars_anchors_and_documents_keep_their_values() -> None:
    text = SCALARS.replace('"é"', "u")
    once = formatted(text)
    assert formatted(once) == once
    assert meaning(once) == meaning(text)
    assert "ratio: 1_000.50   # kept as written" in once
    # What comes before an alias may hold its anchor, so such a document keeps its order.
    assert once.index("query:") < once.index("metadata: {name: u")


def test_windows_line_ends_and_a_byte_order_mark_are_mended() -> None:
    assert format_definition(b"\xef\xbb\xbf" + AFTER.replace("\n", "\r\n").encode(), "x", REGISTRY) == AFTER


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: 1\na: 2\n", "%YAML 1.1\n---\na: yes\n", "a: \x00", "a:\n\t- b"],
    ids=["syntax", "twice", "directive", "control", "tab"],
)
def test_what_is_not_yaml_is_refused_with_its_place(text: str) -> None:
    with pytest.raises(DefinitionError, match=r"^x.yaml:\d+:\d+: "):
        formatted(text)


def test_secrets_are_hidden_but_not_the_references_to_them() -> None:
    text = AFTER.replace("table: a.b", 'token: "s3cr3t"\n      catalog: {uri: hidden-too, "s3.secret-access-key":x}')
    shown = hide_secrets(text, REGISTRY)
    assert "s3cr3t" not in shown
    assert "hidden-too" not in shown
    assert "token: ***\n" in shown
    assert shown.replace("***", "") != text
    kept = text.replace('"s3cr3t"', "env:TOKEN")
    assert "token: env:TOKEN" in hide_secrets(kept, REGISTRY)


def test_no_wrong_definition_is_made_worse() -> None:
    """What does not load is formatted too, unless it is not YAML; nothing is lost, and nothing crashes."""
    for path in sorted(SAMPLES.rglob("*.yaml")):
        content = path.read_bytes()
        try:
            once = format_definition(content, path.name, REGISTRY)
        except DefinitionError:
            continue
        assert format_definition(once.encode(), path.name, REGISTRY) == once, path
        assert bool(faults(once)) == bool(faults(content.decode())), path


def faults(text: str) -> list[str]:
    """What is wrong with a text."""
    try:
        meaning(text)
    except DefinitionError as error:
        return [problem.message for problem in error.problems]
    return []
