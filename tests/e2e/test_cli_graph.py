"""`conveyord graph`: from files to pictures. The pictures themselves are tested in tests/unit/test_drawing.py."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

BY_SIZE = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: by-size}
spec:
  sources: [{name: quakes, type: file_jsonl, path: "secret-path/*.jsonl"}]
  transforms: [{name: flat, type: json_flatten}]
  sinks:
    - {name: strong, type: iceberg, table: q.strong}
    - {name: weak, type: iceberg, table: q.weak}
  edges:
    - [quakes, flat]
    - {from: flat, to: strong, when: "mag >= 5", on_slow: spill}
    - {from: flat, to: weak, otherwise: true}
"""
ALL = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: all}
spec:
  source: {type: file_jsonl, path: "secret-path/*.jsonl"}
  steps: [{type: json_flatten}]
  sink: {type: iceberg, table: q.all}
"""


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A directory with two pipelines that read the same files in the same way."""
    home = tmp_path / "pipelines"
    home.mkdir()
    (home / "a.yaml").write_text(BY_SIZE, encoding="utf-8")
    (home / "b.yaml").write_text(ALL, encoding="utf-8")
    return home


def test_one_pipeline_is_drawn_under_its_name(call: Any, files: Path) -> None:
    ended = call("graph", files / "a.yaml")
    assert ended.code == 0, ended.err
    assert ended.out.startswith("default/by-size\n\n")
    for text in ("│ quakes ", "│ json_flatten ", "when mag >= 5, spill", "otherwise", "│ strong ", "│ weak "):
        assert text in ended.out
    assert "secret-path" not in ended.out
    assert ended.err == ""


def test_what_pipelines_share_is_drawn_once(call: Any, files: Path) -> None:
    drawn = call("graph", files).out
    assert drawn.startswith("default/by-size, default/all\n")
    assert drawn.count("│ json_flatten ") == 1
    assert "by-size, all (as json_flatten)" in drawn
    assert "by-size, all (as source)" in drawn


def test_no_share_draws_every_pipeline_by_itself(call: Any, files: Path) -> None:
    drawn = call("graph", files, "--no-share").out
    assert drawn.startswith("default/by-size\n")
    assert "\ndefault/all\n" in drawn
    assert drawn.count("file_jsonl") == 2


def test_a_disabled_pipeline_shares_nothing_and_is_mentioned(call: Any, files: Path) -> None:
    (files / "b.yaml").write_text(ALL.replace("spec:\n", "spec:\n  enabled: false\n"), encoding="utf-8")
    ended = call("graph", files)
    assert ended.code == 0, ended.err
    assert ended.out.count("file_jsonl") == 2
    assert ended.err == "note: default/all is disabled; conveyord run skips it\n"


@pytest.mark.parametrize(("form", "first"), [("dot", "digraph"), ("mermaid", "flowchart LR"), ("svg", "<svg ")])
def test_a_format_is_printed_as_one_document(call: Any, files: Path, form: str, first: str) -> None:
    ended = call("graph", files, "--format", form)
    assert ended.code == 0, ended.err
    assert ended.out.startswith(first)
    if form == "svg":
        ET.fromstring(ended.out)


def test_a_wrong_definition_is_reported_and_nothing_drawn(call: Any, files: Path) -> None:
    (files / "b.yaml").write_text(ALL.replace("json_flatten", "json_flaten"), encoding="utf-8")
    ended = call("graph", files)
    assert ended.code == 2
    assert ended.out == ""
    assert "json_flaten" in ended.err


def test_a_file_that_is_not_there_is_a_sentence(call: Any, tmp_path: Path) -> None:
    ended = call("graph", tmp_path / "none.yaml")
    assert ended.code == 2
    assert "none.yaml" in ended.err
    assert "Traceback" not in ended.err


def test_an_unknown_format_and_a_missing_path_are_refused(call: Any, files: Path) -> None:
    assert call("graph", files, "--format", "png").code == 2
    assert call("graph").code == 2


def test_a_terminal_that_is_not_utf8_gets_no_traceback(shell: Any, files: Path) -> None:
    ended = shell.run("graph", "a.yaml", cwd=files, PYTHONIOENCODING="ascii")
    assert ended.code == 0, ended.err
    assert "by-size" in ended.out
