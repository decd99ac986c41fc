"""`conveyord test`: what it prints (golden files), how it ends, and what it can be asked for.

tests/data/verdicts holds NAME.yaml and what is printed for it, NAME.txt. After a change of words run
`REWRITE=1 pytest tests/e2e/test_cli_test.py` and read the diff.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
VERDICTS = ROOT / "tests" / "data" / "verdicts"
CASES = sorted(VERDICTS.glob("*.yaml"))
PLAIN = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: plain}
spec:
  source: {type: file_jsonl, path: "nowhere/*.jsonl"}
  sink: {type: iceberg, table: a.b}
"""
TESTED = f"""{PLAIN.replace("plain", "tested")}
  tests:
    - {{name: passes, given: {{source: [{{n: 1}}]}}, expect: {{sink: [{{n: 1}}]}}}}
    - {{name: fails, given: {{source: [{{n: 1}}]}}, expect: {{sink: [{{n: 2}}]}}}}
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A directory with a pipeline that has two tests and one that has none."""
    (tmp_path / "plain.yaml").write_text(PLAIN, encoding="utf-8")
    (tmp_path / "tested.yaml").write_text(TESTED, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.stem)
def test_what_is_printed_is_what_the_golden_file_holds(call: Any, case: Path) -> None:
    ended = call("test", case)
    golden = case.with_suffix(".txt")
    if os.environ.get("REWRITE"):
        golden.write_text(ended.out, encoding="utf-8")
    assert ended.out == golden.read_text(encoding="utf-8")
    assert ended.code == 3
    assert re.fullmatch(r"\d+ tests in \d+\.\d\d s\n", ended.err)


def test_every_golden_file_has_its_definition() -> None:
    assert {case.with_suffix(".txt") for case in CASES} == set(VERDICTS.glob("*.txt"))


def test_the_examples_pass_their_tests(call: Any) -> None:
    ended = call("test", ROOT / "examples" / "earthquakes.yaml", ROOT / "examples" / "birdstrikes.yaml")
    assert ended.code == 0, ended.out
    assert "3 passed" in ended.out
    assert "FAIL" not in ended.out


def test_a_name_selects_tests_whatever_its_case(call: Any, home: Path) -> None:
    ended = call("test", home, "--name", "TESTED: pas*")
    assert ended.code == 0, ended.out
    assert "  ok    passes\n" in ended.out
    assert "fails" not in ended.out


def test_a_name_that_selects_nothing_is_a_mistake_that_shows_what_there_is(call: Any, home: Path) -> None:
    ended = call("test", home, "--name", "nothing")
    assert ended.code == 2
    assert "'default/tested: passes', 'default/tested: fails'" in ended.err


def test_no_tests_is_said_and_no_failure(call: Any, home: Path) -> None:
    ended = call("test", home / "plain.yaml")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == "no tests in 1 pipeline; a pipeline holds them under 'tests'\n"


def test_json_holds_every_difference(call: Any, home: Path) -> None:
    ended = call("test", home, "-o", "json")
    assert (ended.code, ended.err) == (3, "")
    assert (ended.json["passed"], ended.json["failed"]) == (1, 1)
    passed, failed = ended.json["tests"]
    assert (passed["pipeline"], passed["name"], passed["status"], passed["error"]) == (
        "default/tested",
        "passes",
        "passed",
        None,
    )
    (output,) = failed["outputs"]
    assert (output["output"], output["passed"], output["rows_expected"], output["rows_got"]) == ("sink", False, 1, 1)
    assert output["differences"] == [
        {
            "kind": "changed",
            "row_expected": 1,
            "row_got": 1,
            "expected": {"n": 2},
            "got": {"n": 1},
            "columns": ["n"],
        }
    ]


def test_json_names_the_failure_of_a_stage(call: Any) -> None:
    ended = call("test", VERDICTS / "stops.yaml", "--name", "without", "-o", "json")
    (failed,) = ended.json["tests"]
    assert failed["error"]["code"] == "BATCH_FAILED"
    assert failed["error"]["message"].startswith("stage calc: ")
    assert failed["outputs"] == []


def test_json_without_tests_is_a_document_too(call: Any, home: Path) -> None:
    assert call("test", home / "plain.yaml", "-o", "json").json == {"passed": 0, "failed": 0, "tests": []}


def test_a_wrong_definition_runs_no_test(call: Any, home: Path) -> None:
    (home / "plain.yaml").write_text(PLAIN.replace("iceberg", "icebreg"), encoding="utf-8")
    ended = call("test", home)
    assert (ended.code, ended.out) == (2, "")
    assert "did you mean 'iceberg'?" in ended.err


def test_dead_letters_cannot_be_expected_of_a_pipeline_that_keeps_none(call: Any, home: Path) -> None:
    (home / "tested.yaml").write_text(TESTED.replace("{sink: [{n: 2}]}", "{dead_letters: []}"), encoding="utf-8")
    ended = call("test", home)
    assert ended.code == 2
    assert "the pipeline has no 'dlq'" in ended.err


def test_a_disabled_pipeline_is_tested_all_the_same(call: Any, home: Path) -> None:
    (home / "tested.yaml").write_text(TESTED.replace("spec:\n", "spec:\n  enabled: false\n"), encoding="utf-8")
    assert call("test", home).code == 3


def test_the_process_touches_nothing_and_colours_nothing_but_a_terminal(shell: Any, home: Path) -> None:
    before = sorted(home.rglob("*"))
    ended = shell.run("test", ".", cwd=home)
    assert ended.code == 3, ended.err
    assert "1 failed, 1 passed" in ended.out
    assert "\x1b" not in ended.out
    assert sorted(home.rglob("*")) == before


def test_colour_marks_the_cells_that_changed() -> None:
    from conveyord.cli.verdicts import report
    from conveyord.engine.testing import Difference, OutputVerdict, Verdict

    output = OutputVerdict("out", [{"a": 1, "b": 2}], [{"a": 1, "b": 3}], (Difference(0, 0, ("b",)),))
    text = report([Verdict("p", "t", (output,), 0.0)], colour=True)
    assert "\x1b[31m2\x1b[0m" in text
    assert "\x1b[32m3\x1b[0m" in text
    assert "\x1b[31m1" not in text.replace("\x1b[31m1 failed", "")


def test_the_example_of_the_documentation_passes(call: Any, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(apiVersion.*?)```", text, re.DOTALL)
    assert example is not None
    (tmp_path / "orders.yaml").write_text(example[1], encoding="utf-8")
    ended = call("test", tmp_path)
    assert (ended.code, ended.out.splitlines()[-1]) == (0, "1 passed"), ended.out
