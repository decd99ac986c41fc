"""The command line as a user calls it: real processes, and tables that a real run has filled."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conveyord.cli.main import conveyord, invoke
from tests.e2e.harness import CONVEYORD, Running

PLUGIN = Path(__file__).resolve().parents[1] / "data" / "plugin"
COMMAND = (sys.executable, "-m", "conveyord")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Starts `conveyord` in processes of its own, with the sample plugin installed."""

    def environment(self, **extra: str) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(PLUGIN), **extra}

    def run(self, *arguments: str, cwd: Path, **extra: str) -> Ended:
        """Run one command to its end, forked (see forking.py) unless a setting is Python's own."""
        is_new = any(name.startswith("PYTHON") for name in extra)
        ended = Running([str(CONVEYORD), *arguments], cwd, self.environment(**extra), is_new=is_new).wait()
        return Ended(ended.code, ended.out, ended.err)

    def popen(self, *arguments: str, cwd: Path, **options: Any) -> subprocess.Popen[str]:
        """Start one command; its output goes into pipes unless `options` say otherwise."""
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": self.environment(), **options}
        return subprocess.Popen([*COMMAND, *arguments], cwd=cwd, text=True, **streams)

    def finish(self, process: subprocess.Popen[str]) -> Ended:
        out, err = process.communicate(timeout=60)
        return Ended(process.returncode, out, err)

    def write(self, path: Path, *, name: str, source: str, sink: str) -> None:
        """Write a pipeline definition."""
        path.write_text(
            f"apiVersion: conveyor.etl/v1\nkind: Pipeline\nmetadata: {{name: {name}}}\n"
            f"spec:\n  source: {source}\n  sink: {sink}\n",
            encoding="utf-8",
        )


@pytest.fixture(scope="session")
def shell() -> Shell:
    return Shell()


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory, shell: Shell) -> Path:
    """A directory with conveyord-data in it: lake.plain and lake.placed, 500 rows each. Do not change it."""
    home = tmp_path_factory.mktemp("lake")
    rows = ({"id": i, "at": f"2024-01-0{i % 3 + 1}T00:00:00Z", "inner": {"mag": i / 2}} for i in range(500))
    (home / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    source = "{type: file_jsonl, path: in.jsonl}"
    for name, options in (("plain", 'partition_by: ["day(at)"]'), ("placed", "provenance: true")):
        sink = f"{{type: iceberg, table: lake.{name}, {options}}}"
        shell.write(home / f"{name}.yaml", name=name, source=source, sink=sink)
        ended = shell.run("run", f"{name}.yaml", "-o", "json", cwd=home)
        assert ended.code == 0, ended.err
    return home


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call a verb in this process, which is quicker where no signals or logs are at stake."""

    def _call(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        code = invoke(conveyord, "conveyord", [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    return _call
