"""`conveyord run`: its output, its exit codes, its signals, and how it reports every kind of failure."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SUMMARY_KEYS = {
    *(
        "pipeline",
        "status",
        "rows_in",
        "rows_out",
        "filtered",
        "skipped",
        "dead_letters",
        "seconds",
        "discarded_values",
    ),
    *("rows_per_second", "bytes_in", "delivery", "sinks", "sources", "error"),
}
TABLE = "{type: iceberg, table: t.ticks}"


def ticker(shell: Any, home: Path, options: str = "") -> None:
    shell.write(home / "p.yaml", name="clock", source="{type: ticker" + options + "}", sink=TABLE)


def started(shell: Any, home: Path) -> subprocess.Popen[str]:
    """A run that is under way."""
    process: subprocess.Popen[str] = shell.popen("run", "p.yaml", "-o", "json", cwd=home)
    wait_for(process, "ticking")
    return process


def wait_for(process: subprocess.Popen[str], word: str) -> None:
    assert process.stderr is not None
    for line in process.stderr:
        if word in line:
            return
    raise AssertionError(f"the process ended before it said {word!r}")


def test_a_run_ends_with_one_json_document_of_the_documented_shape(shell: Any, lake: Path) -> None:
    ended = shell.run("run", "plain.yaml", "-o", "json", cwd=lake)
    assert ended.code == 0
    assert set(ended.json) == SUMMARY_KEYS
    assert (ended.json["pipeline"], ended.json["status"]) == ("default/plain", "succeeded")
    assert ended.json["rows_in"] == 0  # the fixture's run has read everything
    assert ended.json["delivery"] == "exactly-once"
    assert ended.json["sources"] == []  # of those that may fall behind; tests/engine/test_metrics.py has their shape
    assert set(ended.json["sinks"][0]) == {"name", "rows", "files", "commits", "discarded_values"}


def test_a_summary_for_people_says_what_where_and_what_next(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path, ", ticks: 3")
    ended = shell.run("run", "p.yaml", "--data-dir", "my data", cwd=tmp_path)
    assert ended.code == 0
    assert "default/clock: finished" in ended.out
    assert re.search(r"rows in +3 ", ended.out)
    assert re.search(r"sink +3 rows   1 file   1 commit\n", ended.out)
    assert re.search(r"delivery +exactly-once", ended.out)
    assert f"t.ticks, in {tmp_path}/my data/warehouse" in ended.out
    hint = next(line.split("  ")[-1] for line in ended.out.splitlines() if "conveyord query" in line)
    command = hint.replace("conveyord", f"{sys.executable} -m conveyord", 1)
    tried = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert tried.returncode == 0, tried.stderr
    assert "tick" in tried.stdout


def test_the_first_signal_drains_and_what_was_read_is_in_the_table(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path)
    process = started(shell, tmp_path)
    process.send_signal(signal.SIGTERM)
    ended = shell.finish(process)
    assert "draining" in ended.err
    assert (ended.code, ended.json["status"]) == (0, "drained")
    assert ended.json["rows_in"] == ended.json["sinks"][0]["rows"] > 0
    audit = shell.run("audit", "t.ticks", "-o", "json", cwd=tmp_path)
    assert (audit.code, audit.json["rows"]) == (0, ended.json["rows_in"])


def test_the_second_signal_stops_at_once_and_a_later_run_goes_on(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path, ", stubborn: true")
    process = started(shell, tmp_path)
    process.send_signal(signal.SIGINT)
    wait_for(process, "draining")
    process.send_signal(signal.SIGINT)
    ended = shell.finish(process)
    assert (ended.code, ended.json["status"]) == (130, "cancelled")
    ticker(shell, tmp_path, ", ticks: 5")
    assert shell.run("run", "p.yaml", cwd=tmp_path).code == 0
    assert shell.run("audit", "t.ticks", cwd=tmp_path).code == 0


def test_an_expected_failure_is_a_sentence_and_exit_code_1(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path, ", fail: refused")
    ended = shell.run("run", "p.yaml", "-o", "json", cwd=tmp_path)
    assert (ended.code, ended.json["status"]) == (1, "failed")
    sentence = "clock: it goes backwards; set it right and run again"
    assert ended.json["error"] == {"code": "REFUSED", "message": sentence, "stage": "source"}
    assert f"error: stage source: {sentence}" in ended.err
    assert "Traceback" not in ended.err


def test_a_data_directory_in_use_refuses_a_second_run_and_answers_queries(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path)
    process = started(shell, tmp_path)
    second = shell.run("run", "p.yaml", cwd=tmp_path)
    query = shell.run("query", "SELECT count(*) AS n FROM t.ticks", "-o", "json", cwd=tmp_path)
    process.send_signal(signal.SIGTERM)
    shell.finish(process)
    assert second.code == 1
    assert second.out.startswith("default/clock: failed, after")
    assert f"is in use by process {process.pid}" in second.err
    assert query.code == 0


def test_a_bug_is_one_line_and_a_file(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path, ", fail: bug")
    ended = shell.run("run", "p.yaml", "-o", "json", cwd=tmp_path, TMPDIR=str(tmp_path))
    assert ended.code == 1
    assert ended.json["error"] == {
        "code": "BUG",
        "message": "KeyError: 'a bug of the plugin' (in the stage 'source', Ticker)",
    }
    assert "Traceback" not in ended.err
    assert "this is a bug in conveyord: KeyError: 'a bug of the plugin'" in ended.err
    saved = re.search(r"the traceback is in (\S+)", ended.err)
    assert saved is not None
    assert "a bug of the plugin" in Path(saved[1]).read_text(encoding="utf-8")


def test_a_bug_prints_its_traceback_when_debugging(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path, ", fail: bug")
    ended = shell.run("run", "p.yaml", cwd=tmp_path, TMPDIR=str(tmp_path), CONVEYORD_DEBUG="1")
    assert "Traceback" in ended.err


def test_a_wrong_definition_is_exit_code_2_with_place_and_caret(shell: Any, tmp_path: Path) -> None:
    shell.write(tmp_path / "p.yaml", name="p", source="{type: file_jsnl, path: x}", sink=TABLE)
    ended = shell.run("run", "p.yaml", cwd=tmp_path)
    assert ended.code == 2
    assert ended.out == ""
    assert "p.yaml:5:18: unknown source type 'file_jsnl'; did you mean 'file_jsonl'?" in ended.err
    assert ended.err.splitlines()[2].endswith("^")
    assert shell.run("run", "p.yaml", "-o", "json", cwd=tmp_path).json["error"]["code"] == "CONFIG"


def test_a_plugin_that_cannot_be_imported_hurts_only_who_names_it(shell: Any, tmp_path: Path) -> None:
    shell.write(tmp_path / "p.yaml", name="p", source="{type: broken_import}", sink=TABLE)
    ended = shell.run("run", "p.yaml", cwd=tmp_path)
    assert ended.code == 2
    assert "cannot be loaded from sample-plugin (sample_plugin_that_is_gone:Ticker)" in ended.err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["gone.yaml"], "gone.yaml: cannot be read: No such file"),
        (["p.yaml", "--config", "gone.toml"], "gone.toml: cannot be read"),
        (["p.yaml", "--channel-capacity", "0"], "0 is not in the range 1<=x<=1024"),
        (["p.yaml", "--adopt", "old"], "--adopt takes NAMESPACE/NAME, such as default/old"),
        (["two.yaml", "--adopt", "default/old"], "--adopt is for one pipeline; run that one by itself"),
        (["p.yaml", "two.yaml"], "Pipeline default/p is defined twice, first in p.yaml:3; rename one of them"),
        (["print.yaml", "-o", "json"], "both write to standard output"),
    ],
)
def test_a_command_line_that_cannot_work_is_exit_code_2(
    shell: Any, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    shell.write(tmp_path / "p.yaml", name="p", source="{type: ticker}", sink=TABLE)
    one = (tmp_path / "p.yaml").read_text(encoding="utf-8")
    (tmp_path / "two.yaml").write_text(one + "---\n" + one.replace("name: p", "name: q"), encoding="utf-8")
    (tmp_path / "print.yaml").write_text(one.replace(TABLE, "{type: stdout_pretty}"), encoding="utf-8")
    ended = shell.run("run", *arguments, cwd=tmp_path)
    assert ended.code == 2
    assert sentence in ended.err


def test_logs_are_json_lines_on_stderr_when_asked_for(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path, ", ticks: 5")
    ended = shell.run("run", "p.yaml", "--log-format", "json", "--log-level", "debug", cwd=tmp_path)
    lines = [json.loads(line) for line in ended.err.splitlines() if line.startswith("{")]
    assert {"event", "level", "timestamp"} <= set(lines[0])


def test_on_a_terminal_progress_is_shown_in_place_and_removed(shell: Any, tmp_path: Path) -> None:
    ticker(shell, tmp_path, ", ticks: 400")
    ours, theirs = pty.openpty()
    environment = shell.environment(TERM="xterm", COLUMNS="100")
    with shell.popen("run", "p.yaml", cwd=tmp_path, env=environment, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:  # Linux's way of saying that the other side is closed
                break
            if not part:
                break
            shown += part
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    assert process.returncode == 0
    assert b"rows in" in shown
    assert b"uncommitted" in shown
    assert b"\x1b[1A" in shown  # the cursor goes up: redrawn in place
    assert "\x1b" not in out
    assert "finished" in out
