"""What is logged of an exception: where it came from, and nothing of what was in memory there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.harness import Running

FAILING = """
import logging, sys, structlog
from conveyord.cli.logs import configure_logs

class Alive:
    def __repr__(self):
        raise RuntimeError("it cannot be shown now")

def answer(headers):
    alive = Alive()
    raise ValueError("it went wrong")

configure_logs(level="info", form=sys.argv[1])
for log in (structlog.get_logger(), logging.getLogger("library")):
    try:
        answer({"authorization": "Bearer cvd_secret"})
    except ValueError:
        log.exception("failed")
"""
INTERRUPTED = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "conveyord.cli.main":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
from conveyord.__main__ import main, main_ctl
(main if sys.argv[1] == "conveyord" else main_ctl)()
"""


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_traceback_has_no_locals(tmp_path: Path, form: str) -> None:
    ended = Running([sys.executable, "-c", FAILING, form], tmp_path).wait()
    assert ended.code == 0, ended.err
    assert ended.err.count("ValueError: it went wrong") == 2
    assert "in answer" in ended.err
    for unwanted in ("cvd_secret", "Bearer", "cannot be shown"):
        assert unwanted not in ended.err
    if form == "json":
        assert [json.loads(line)["event"] for line in ended.err.splitlines()] == ["failed", "failed"]


@pytest.mark.parametrize("name", ["conveyord", "conveyorctl"])
def test_a_control_c_while_it_is_imported_ends_it_quietly(tmp_path: Path, name: str) -> None:
    ended = Running([sys.executable, "-c", INTERRUPTED, name], tmp_path).wait()
    assert (ended.code, ended.out, ended.err) == (130, "", "")


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_for_which_there_is_no_room_are_lost_and_nothing_else(tmp_path: Path, form: str) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", FAILING + 'print("went on")', form]
        ended = subprocess.run(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=full, timeout=60, check=False)
    assert ended.stdout == b"went on\n"
