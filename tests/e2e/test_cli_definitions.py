"""`validate`, `schema`, `fmt`, `create` and `plugins`, as they are typed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

ROOT = Path(__file__).resolve().parents[2]
GOOD = """\
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata:
  name: {name}
spec:
  source: events
  sink: {{type: stdout_pretty}}
"""
SOURCE = """\
apiVersion: conveyor.etl/v1
kind: Source
metadata: {name: events}
spec:
  type: file_jsonl
  path: in.jsonl
"""
MESSY = """\
kind: Sink  # a sink
metadata: {name: lake}
apiVersion: conveyor.etl/v1
spec:
    type: iceberg
    table: a.b
    catalog: {uri: "http://x", token: s3cr3t}
"""
TIDY = """\
apiVersion: conveyor.etl/v1
kind: Sink  # a sink
metadata: {name: lake}
spec:
  type: iceberg
  table: a.b
  catalog: {uri: "http://x", token: s3cr3t}
"""


@pytest.fixture
def definitions(tmp_path: Path) -> Path:
    """A folder with two pipelines and a source, in files of their own."""
    (tmp_path / "deeper").mkdir()
    (tmp_path / "a.yaml").write_text(GOOD.format(name="a"))
    (tmp_path / "b.yml").write_text(GOOD.format(name="b").replace("spec:", "spec:\n  enabled: false"))
    (tmp_path / "deeper" / "source.yaml").write_text(SOURCE)
    (tmp_path / "notes.txt").write_text("{ not yaml")
    return tmp_path


# ------------------------------------------------------------------------------ validate


def test_validate_names_what_it_has_checked(call: Any, definitions: Path) -> None:
    ended = call("validate", definitions)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines() == [
        f"{definitions}/a.yaml:4: Pipeline default/a: file_jsonl -> stdout_pretty",
        f"{definitions}/b.yml:4: Pipeline default/b: file_jsonl -> stdout_pretty  (disabled)",
        f"{definitions}/deeper/source.yaml:3: Source default/events: file_jsonl",
        "3 definitions, no problems",
    ]
    described = call("validate", definitions, "-o", "json").json
    assert (described["ok"], described["problems"]) == (True, [])
    assert [(one["kind"], one["name"], one["line"]) for one in described["resources"]] == [
        ("Pipeline", "a", 4),
        ("Pipeline", "b", 4),
        ("Source", "events", 3),
    ]


def test_validate_shows_every_problem_of_every_file(call: Any, definitions: Path) -> None:
    (definitions / "a.yaml").write_text(GOOD.format(name="a").replace("spec:", "spec:\n  mode: strem\n  nonsense: 1"))
    (definitions / "deeper" / "source.yaml").write_text(SOURCE.replace("path:", "pth:"))
    ended = call("validate", definitions)
    assert ended.code == 2
    assert ended.out == ""
    for part in (
        "a.yaml:6:9: ",
        "did you mean 'stream'?",
        "unknown key 'nonsense'",
        "source.yaml:6:3: ",
        "did you mean 'path'?",
    ):
        assert part in ended.err
    assert ended.err.splitlines()[-1] == "4 problems"
    described = call("validate", definitions, "-o", "json")
    assert described.code == 2
    problems = described.json["problems"]
    assert len(problems) == 4
    assert all(set(problem) == {"path", "line", "column", "message"} for problem in problems)
    assert {"path": f"{definitions}/a.yaml", "line": 7, "column": 3} == {
        key: value
        for problem in problems
        if "nonsense" in problem["message"]
        for key, value in problem.items()
        if key != "message"
    }


def test_validate_says_what_cannot_be_read(call: Any, tmp_path: Path) -> None:
    ended = call("validate", tmp_path / "missing.yaml", tmp_path / ("x" * 300), tmp_path)
    assert ended.code == 2
    assert "missing.yaml: cannot be read: No such file or directory" in ended.err
    assert "xxx: cannot be read: File name too long" in ended.err
    assert "Traceback" not in ended.err


@pytest.mark.parametrize("verb", [["validate"], ["fmt", "--check"], ["run"]], ids=lambda verb: verb[0])
def test_what_is_no_regular_file_is_refused_by_name_and_passed_over_in_a_directory(
    call: Any, tmp_path: Path, verb: list[str]
) -> None:
    """Reading a pipe would wait for ever for somebody to write to it."""
    (tmp_path / "pipes").mkdir()
    pipe = tmp_path / "pipes" / "a.yaml"
    os.mkfifo(pipe)
    (tmp_path / "pipes" / "b.yaml").symlink_to(pipe)
    for path in (pipe, pipe.with_name("b.yaml"), Path("/dev/zero")):
        ended = call(*verb, path)
        assert ended.code == 2
        assert f"{path}: is no regular file; write the definition to one and name that" in ended.err
    ended = call(*verb, tmp_path / "pipes")
    assert ended.code == 2
    assert "the directory holds no file that ends in .yaml or .yml" in ended.err


def test_a_pipe_beside_definitions_is_passed_over(call: Any, definitions: Path) -> None:
    os.mkfifo(definitions / "deeper" / "pipe.yaml")
    (definitions / "gone.yaml").symlink_to("nowhere")
    ended = call("validate", definitions)
    assert (ended.code, ended.err.count("cannot be read")) == (2, 1)
    assert "gone.yaml: cannot be read: No such file or directory" in ended.err
    (definitions / "gone.yaml").unlink()
    assert call("validate", definitions).code == 0


# ------------------------------------------------------------------------------ schema


def test_schema_prints_a_schema_that_accepts_the_examples(call: Any) -> None:
    ended = call("schema")
    assert ended.code == 0
    Draft202012Validator.check_schema(ended.json)
    assert {"sink.iceberg", "source.file_csv", "transform.filter"} <= set(ended.json["$defs"])


# ------------------------------------------------------------------------------ fmt


def test_fmt_rewrites_what_needs_it_and_nothing_else(call: Any, definitions: Path) -> None:
    messy = definitions / "messy.yaml"
    messy.write_text(MESSY)
    messy.chmod(0o640)
    untouched = (definitions / "a.yaml").stat()
    ended = call("fmt", definitions)
    assert (ended.code, ended.out) == (0, f"{messy}: rewritten\n"), ended.err
    assert messy.read_text() == TIDY
    assert messy.stat().st_mode & 0o777 == 0o640
    assert (definitions / "a.yaml").stat().st_ino == untouched.st_ino
    assert (definitions / "notes.txt").read_text() == "{ not yaml"
    assert sorted(path.name for path in definitions.iterdir()) == [
        "a.yaml",
        "b.yml",
        "deeper",
        "messy.yaml",
        "notes.txt",
    ]
    assert call("fmt", definitions).out == ""


def test_fmt_check_and_diff_write_nothing_and_diff_hides_secrets(call: Any, tmp_path: Path) -> None:
    file = tmp_path / "messy.yaml"
    file.write_text(MESSY)
    checked = call("fmt", "--check", file)
    assert (checked.code, checked.out) == (1, f"{file}: not in the canonical form; run: conveyord fmt {file}\n")
    shown = call("fmt", "--diff", file)
    assert shown.code == 0
    assert "-apiVersion: conveyor.etl/v1\n" in shown.out
    assert "+apiVersion: conveyor.etl/v1\n" in shown.out
    assert "token: ***" in shown.out
    assert "s3cr3t" not in shown.out
    assert call("fmt", "--check", "--diff", file).code == 1
    assert file.read_text() == MESSY
    file.write_text(TIDY)
    assert call("fmt", "--check", file).code == 0


def test_fmt_writes_no_file_if_one_cannot_be_read(call: Any, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(MESSY)
    (tmp_path / "b.yaml").write_text("a: [")
    ended = call("fmt", tmp_path)
    assert ended.code == 2
    assert "b.yaml:" in ended.err
    assert (tmp_path / "a.yaml").read_text() == MESSY


def test_fmt_follows_a_link_and_leaves_it_one(call: Any, tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(MESSY)
    (tmp_path / "link.yaml").symlink_to("real.yaml")
    assert call("fmt", tmp_path / "link.yaml").code == 0
    assert (tmp_path / "link.yaml").is_symlink()
    assert (tmp_path / "real.yaml").read_text() == TIDY


def test_the_examples_are_in_the_canonical_form(call: Any) -> None:
    ended = call("fmt", "--check", ROOT / "examples")
    assert ended.code == 0, ended.out + ended.err


# ------------------------------------------------------------------------------ create, plugins


def test_create_prints_what_validate_accepts(call: Any, tmp_path: Path) -> None:
    for spec in ("file_jsonl/filter,json_flatten/iceberg", "file_csv//stdout_pretty"):
        created = call("create", spec, "--name", "quakes")
        assert created.code == 0, created.err
        (tmp_path / "quakes.yaml").write_text(created.out)
        ended = call("validate", tmp_path / "quakes.yaml")
        assert ended.code == 0, ended.err
        assert "Pipeline default/quakes" in ended.out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("file_jsonl",), "error: 'file_jsonl' is not SOURCE/TRANSFORM/SINK"),
        (("file_jsonl//icebrg",), "did you mean 'iceberg'?"),
        (("file_jsonl//iceberg", "--name", "a b"), "error: --name: not a name: 'a b'"),
    ],
)
def test_create_explains_what_it_cannot_do(call: Any, arguments: tuple[str, ...], sentence: str) -> None:
    ended = call("create", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err


def test_plugins_lists_what_is_installed_and_what_is_broken(shell: Any, tmp_path: Path) -> None:
    ended = shell.run("plugins", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert any(line.startswith("sink       iceberg") for line in ended.out.splitlines())
    assert "cannot be loaded from sample-plugin (sample_plugin_that_is_gone:Ticker)" in ended.out
    listed = {f"{one['kind']}.{one['type']}": one for one in shell.run("plugins", "-o", "json", cwd=tmp_path).json}
    assert listed["source.ticker"]["package"] == "sample-plugin"
    assert listed["source.broken_import"]["problem"]
    assert listed["transform.json_flatten"]["pure"] is True
    assert [option["key"] for option in listed["transform.filter"]["options"]] == ["when"]


def test_plugins_explains_one_operator(call: Any) -> None:
    ended = call("plugins", "sink.iceberg")
    assert ended.code == 0
    for part in (
        "sink iceberg  (conveyord ",
        "Delivers exactly once.",
        "  commit.every  duration, default 60s",
        "  table  text, required",
    ):
        assert part in ended.out
    (described,) = json.loads(call("plugins", "iceberg", "-o", "json").out)
    assert {"key": "commit.every", "type": "duration", "required": False, "default": "60s"}.items() <= next(
        option for option in described["options"] if option["key"] == "commit.every"
    ).items()


def test_plugins_suggests_a_name(call: Any) -> None:
    ended = call("plugins", "icberg")
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: no operator is called 'icberg'; did you mean 'iceberg'?\n"
