"""What the command line imports before anyone asked for anything: that is what `--help` costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = {"click", "conveyord"}  # beside the standard library

SCRIPT = """
import sys
sys.argv[1:] = {arguments!r}
before = set(sys.modules)
from conveyord.__main__ import {entry}
try:
    {entry}()
except SystemExit as ended:
    assert ended.code == 0, ended.code
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("entry", "arguments"),
    [
        ("main", ["--help"]),
        ("main", ["--version"]),
        ("main", ["run", "--help"]),
        ("main", ["query", "--help"]),
        ("main_ctl", ["--help"]),
    ],
)
def test_help_imports_nothing_beyond_click(entry: str, arguments: list[str]) -> None:
    script = SCRIPT.format(entry=entry, arguments=arguments)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    imported = set(ended.stderr.split())
    assert imported - sys.stdlib_module_names - LIGHT == set()
    assert not imported & {"asyncio", "sqlite3", "multiprocessing"}
    assert ended.stdout


def test_conveyorctl_has_the_client_verbs_only() -> None:
    script = "import sys; sys.argv[1:] = ['--help']; from conveyord.__main__ import main_ctl; main_ctl()"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert "  query " in shown
    assert "  audit " in shown
    assert "  run " not in shown
