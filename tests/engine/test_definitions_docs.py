"""The examples of docs/pipelines.md are definitions that load with the operators that are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from conveyord.engine.definitions import parse_pipelines

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pipelines.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_an_example_of_the_documentation_loads(example: str) -> None:
    (pipeline,) = parse_pipelines({"example.yaml": example.encode()}, environ={})
    assert pipeline.edges


def test_the_documentation_has_examples() -> None:
    assert len(EXAMPLES) >= 7
