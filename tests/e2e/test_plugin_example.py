"""examples/plugin as an author has it: built, installed into an environment of its own, run and tested there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import conveyord
from tests.e2e.harness import CONVEYORD, Ended, Running

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "examples" / "plugin"
COMMAND_SECONDS_MAX = 120
PIPELINE = """
apiVersion: conveyor.etl/v1
kind: Pipeline
metadata: {name: dice}
spec:
  source: {type: dice, throws: 25000, seed: 3}
  steps:
    - {type: clamp, column: value, low: 2, high: 5}
  sink: {type: json_file, path: rows.jsonl}
"""


class Author:
    """Commands in an environment with the plugin installed."""

    def __init__(self, home: Path) -> None:
        self.home = home
        venv.create(home / "venv", with_pip=False)
        self.python = home / "venv" / "bin" / "python"
        # What the plugin needs is there already, so that nothing is fetched: conveyord and its dependencies.
        paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), str(Path(conveyord.__file__).parents[1])}
        self.packages = next((home / "venv" / "lib").glob("python*")) / "site-packages"
        (self.packages / "conveyord.pth").write_text("\n".join(sorted(paths)) + "\n", encoding="utf-8")

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run Python with these arguments to its end."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
        return subprocess.run(
            [self.python, *map(str, arguments)],
            cwd=self.home,
            env=environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS_MAX,
            check=False,
        )

    def conveyord(self, *arguments: str) -> Ended:
        """Run one command to its end, forked (see forking.py) with the packages of that environment."""
        environment = {"PYTHONPATH": str(self.packages)}
        return Running([str(CONVEYORD), *arguments], self.home, environment).wait()


@pytest.fixture(scope="module")
def author(tmp_path_factory: pytest.TempPathFactory) -> Author:
    made = Author(tmp_path_factory.mktemp("author"))
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--quiet", "--disable-pip-version-check")
    installed = made.run("-m", "pip", "install", *options, PLUGIN)
    assert installed.returncode == 0, installed.stderr
    return made


def test_the_example_is_not_installed_where_conveyord_is_developed() -> None:
    """Else the other tests here would prove nothing."""
    ended = subprocess.run([sys.executable, "-c", "import conveyord_example"], capture_output=True, check=False)
    assert ended.returncode != 0


def test_a_pipeline_of_the_plugins_operators_runs(author: Author) -> None:
    (author.home / "dice.yaml").write_text(PIPELINE, encoding="utf-8")
    ended = author.run("-m", "conveyord", "run", "dice.yaml", "-o", "json")
    assert ended.returncode == 0, ended.stderr
    summary = json.loads(ended.stdout)
    assert (summary["rows_in"], summary["rows_out"], summary["delivery"]) == (25000, 25000, "at-least-once")
    rows = [json.loads(line) for line in (author.home / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["throw"] for row in rows] == list(range(25000))
    assert {row["value"] for row in rows} == {2, 3, 4, 5}


def test_the_plugins_source_goes_on_from_the_fence_of_an_exactly_once_sink(author: Author) -> None:
    definition = PIPELINE.replace("{type: json_file, path: rows.jsonl}", "{type: iceberg, table: games.dice}")
    for throws, expected in ((4000, 4000), (25000, 21000)):
        text = definition.replace("25000", str(throws)).replace("name: dice", "name: kept")
        (author.home / "kept.yaml").write_text(text, encoding="utf-8")
        assert author.conveyord("run", "kept.yaml", "-o", "json").succeeded()["rows_in"] == expected
    ended = author.conveyord("query", "SELECT count(DISTINCT throw) AS n FROM games.dice", "-o", "json")
    assert json.loads(ended.out) == [{"n": 25000}]


def test_conveyord_explains_and_starts_what_the_plugin_adds(author: Author) -> None:
    listed = json.loads(author.conveyord("plugins", "-o", "json").out)
    added = {f"{one['kind']}.{one['type']}": one for one in listed if one["package"] == "conveyord-example-plugin"}
    assert set(added) == {"source.dice", "transform.clamp", "sink.json_file"}
    assert all(one["version"] == "1.0.0" and one["problem"] is None for one in added.values())
    started = author.conveyord("create", "dice/clamp/json_file", "--name", "started")
    (author.home / "started.yaml").write_text(started.out, encoding="utf-8")
    author.conveyord("validate", "started.yaml").orderly(0)
    schema = json.loads(author.conveyord("schema").out)
    assert set(added) <= set(schema["$defs"])


def test_the_plugins_own_tests_pass(author: Author) -> None:
    ended = author.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", PLUGIN / "tests", "-c", PLUGIN / "pyproject.toml"
    )
    assert ended.returncode == 0, ended.stdout
