"""`conveyorctl` as a process: its start, signals, closed pipes, a terminal, and completion in a real bash."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.e2e.ctl.calling import CONVEYORCTL, environment, real
from tests.e2e.ctl.servers import http, read_head, saying, serving

SECONDS_MAX = 60.0
JSON = "application/json"
LIGHT = {
    "click",
    "conveyord",
    "msgspec",
    "msgpack",
    "pydantic",
    "pydantic_core",
    "typing_extensions",
    "typing_inspection",
}

IMPORTS = """
import sys
sys.argv[1:] = {arguments!r}
before = set(sys.modules)
from conveyord.cli.main import conveyorctl, invoke
invoke(conveyorctl, "conveyorctl")
found = {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
print(*sorted(found), file=sys.stderr)
"""


@pytest.mark.parametrize("output", ["table", "yaml"])
def test_a_call_imports_little(tmp_path: Path, output: str) -> None:
    """It is started anew for each call, and imports are most of what that takes."""
    reply = {"index": 1, "settings": []}
    with serving(saying(http("200 OK", JSON, json.dumps(reply).encode()))) as address:
        script = IMPORTS.format(arguments=["settings", "list", "--server", f"http://{address}", "-o", output])
        command = [sys.executable, "-c", script]
        ended = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    imported = {name for name in ended.stderr.split() if not name.startswith(("_", "cython"))}
    assert imported - LIGHT == ({"yaml"} if output == "yaml" else set())


@pytest.mark.parametrize("unbuffered", ["", "1"])  # as containers often have it
@pytest.mark.parametrize("output", ["table", "json", "yaml"])
def test_who_reads_the_output_may_leave(tmp_path: Path, output: str, unbuffered: str) -> None:
    entries = [{"key": f"k{number:06}", "created": 1, "changed": 1, "size": 9} for number in range(5_000)]
    page = json.dumps({"index": 1, "entries": entries, "more": False}).encode()
    made = environment(tmp_path, PYTHONUNBUFFERED=unbuffered)
    with serving(saying(http("200 OK", JSON, page))) as address:
        command = [CONVEYORCTL, "config", "list", "--server", f"http://{address}", "-o", output]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=made) as call:
            assert call.stdout is not None
            assert call.stderr is not None
            assert call.stdout.read(10)
            call.stdout.close()
            assert call.stderr.read() == b""
            assert call.wait(timeout=SECONDS_MAX) == 141


@pytest.mark.parametrize("unbuffered", ["", "1"])  # as containers often have it
@pytest.mark.parametrize("form", ["-o table", "-o json", "-o yaml", "--raw"])
def test_a_full_disk_is_told_and_no_success(tmp_path: Path, form: str, unbuffered: str) -> None:
    entry = {"key": "motto", "created": 1, "changed": 1, "size": 9, "value": "MQ=="}
    page = json.dumps({"index": 1, "entry": entry}).encode()
    made = environment(tmp_path, PYTHONUNBUFFERED=unbuffered)
    with serving(saying(http("200 OK", JSON, page))) as address, open("/dev/full", "wb") as full:
        command = [CONVEYORCTL, "config", "get", "motto", "--server", f"http://{address}", *form.split()]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=made, check=False)
    assert ended.returncode == 1
    assert ended.stderr == b"error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("verb", ["status", "config put a 1", "events --follow --after 1"])
def test_a_signal_ends_a_call_at_once(tmp_path: Path, verb: str, number: signal.Signals) -> None:
    has_asked = threading.Event()

    def behave(connected: socket.socket) -> None:
        read_head(connected)
        has_asked.set()
        while connected.recv(65_536):
            pass

    with serving(behave) as address:
        call = subprocess.Popen(
            [CONVEYORCTL, *verb.split(), "--server", f"http://{address}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            cwd=tmp_path,
        )
        assert has_asked.wait(SECONDS_MAX)
        call.send_signal(number)
        out, err = call.communicate(timeout=SECONDS_MAX)
    assert call.returncode == (130 if number is signal.SIGINT else -signal.SIGTERM)
    assert (out, err.strip()) == (b"", b"")


def test_following_ends_with_the_cursor_to_go_on_from(tmp_path: Path) -> None:
    event = {"index": 5, "number": 0, "topic": "config", "key": "a/b", "kind": "put", "value": "MQ=="}
    page = json.dumps({"index": 5, "through": 5, "history": "h-1", "events": [event]}).encode()
    asked = list[str]()
    waits = threading.Event()

    def behave(connected: socket.socket) -> None:
        asked.append(read_head(connected).decode().split(" ", 2)[1])
        if len(asked) == 1:
            connected.sendall(http("200 OK", JSON, page))
        else:
            waits.set()
            connected.recv(1)

    with serving(behave) as address:
        call = subprocess.Popen(
            [CONVEYORCTL, "events", "--follow", "--after", "4", "--server", f"http://{address}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(tmp_path),
            cwd=tmp_path,
        )
        assert waits.wait(SECONDS_MAX)
        assert call.stdout is not None
        shown = call.stdout.readline() + call.stdout.readline()  # told while it follows, not at its end
        call.send_signal(signal.SIGINT)
        _, err = call.communicate(timeout=SECONDS_MAX)
    assert shown == b"   INDEX  TOPIC      KIND    KEY\n       5  config     put     a/b\n"
    assert call.returncode == 130
    assert err.strip() == b"go on with: --after 5 --history h-1"
    assert asked == [
        "/api/v1/events?after=4&limit=100",
        "/api/v1/events?after=5&history=h-1&wait_seconds=30.0&limit=100",
    ]


# ---------------------------------------------------------------------------------------------- a terminal


class Terminal:
    """A process with a terminal of 80 columns."""

    def __init__(self, arguments: list[str], home: Path, **more: str) -> None:
        self._ours, theirs = pty.openpty()
        made = environment(home, COLUMNS="80", TERM="dumb", **more)
        self._process = subprocess.Popen(
            arguments, stdin=theirs, stdout=theirs, stderr=theirs, env=made, cwd=home, start_new_session=True
        )
        os.close(theirs)
        self.seen = ""

    def until(self, text: str) -> str:
        """What it has shown, once that holds `text`."""
        while text not in self.seen:
            self.seen += os.read(self._ours, 65_536).decode()
        return self.seen

    def type(self, text: str) -> None:
        self.seen = ""
        os.write(self._ours, text.encode())

    def end(self) -> int:
        code = self._process.wait(timeout=SECONDS_MAX)
        os.close(self._ours)
        return code


@pytest.mark.parametrize(("answer", "code", "said"), [("y\n", 0, "n-1 is removed"), ("n\n", 0, "nothing is changed")])
def test_what_cannot_be_undone_is_asked_for(tmp_path: Path, answer: str, code: int, said: str) -> None:
    done = http("200 OK", JSON, b'{"index": 7, "changed": 7}')
    with serving(saying(done)) as address:
        terminal = Terminal([str(CONVEYORCTL), "members", "remove", "n-1", "--server", f"http://{address}"], tmp_path)
        assert "Remove node n-1 from the cluster for good? [y/N]: " in terminal.until("[y/N]: ")
        terminal.type(answer)
        terminal.until(said)
        assert terminal.end() == code


def test_a_table_is_cut_where_the_terminal_ends(tmp_path: Path) -> None:
    entry = {"index": 1, "at_ms": 1, "actor": "a", "operation": "config.put", "target": "x" * 300, "code": "OK"}
    page = json.dumps({"index": 1, "entries": [entry], "more": False}).encode()
    with serving(saying(http("200 OK", JSON, page))) as address:
        arguments = [str(CONVEYORCTL), "audit-log", "--server", f"http://{address}"]
        terminal = Terminal(arguments, tmp_path)
        shown = terminal.until("…")
        assert terminal.end() == 0
        piped = real(tmp_path, *arguments[1:])
    assert max(map(len, shown.splitlines())) == 80
    assert "x" * 300 in piped.text


# ---------------------------------------------------------------------------------------------- completion

BASH = shutil.which("bash")
CASES = {
    "conveyorctl memb": ["members"],
    "conveyorctl members ": ["add", "demote", "get", "list", "promote", "remove", "transfer"],
    "conveyorctl config list --pre": ["--prefix"],
    "conveyorctl tokens create --role ": ["viewer", "operator", "admin"],
    "conveyorctl status -o ": ["table", "wide", "json", "yaml"],
    "conveyorctl raft ": ["recover", "verify", "why-no-leader"],
    "conveyorctl backup ": ["cleanup", "create", "describe", "list", "restore"],
    "conveyord completion ": ["bash", "zsh", "fish"],
    "conveyord va": ["validate"],
}
COMPLETE = """
eval "$({program} completion bash)"
COMP_WORDS=({words}) COMP_CWORD={at}
_{program}_completion {program}
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.skipif(BASH is None, reason="there is no bash")
@pytest.mark.parametrize("line", CASES)
def test_bash_completes(tmp_path: Path, line: str) -> None:
    words = line.split(" ")
    quoted = " ".join(f"'{word}'" for word in words)
    script = COMPLETE.format(program=words[0], words=quoted, at=len(words) - 1)
    ended = in_bash(["--norc", "-c", script], tmp_path)
    assert ended.stdout.split() == CASES[line], ended.stderr


@pytest.mark.skipif(BASH is None, reason="there is no bash")
def test_the_tab_key_completes_in_bash(tmp_path: Path) -> None:
    path = f"{CONVEYORCTL.parent}:{os.environ['PATH']}"
    terminal = Terminal([str(BASH), "--norc", "--noprofile", "-i"], tmp_path, PATH=path, PS1="$ ")
    terminal.type('eval "$(conveyorctl completion bash)"; echo rea""dy\n')
    terminal.until("ready")
    terminal.type("conveyorctl settin\tse\t--hel\t\n")
    shown = terminal.until("Change a setting")
    assert re.search(r"settings\x07? set\x07? --help", shown)
    terminal.type("exit\n")
    assert terminal.end() == 0


@pytest.mark.parametrize("shell", ["zsh", "fish"])
@pytest.mark.parametrize("program", ["conveyorctl", "conveyord"])
def test_other_shells_get_a_script_of_theirs(tmp_path: Path, program: str, shell: str) -> None:
    command = [CONVEYORCTL.with_name(program), "completion", shell]
    ended = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, check=True)
    assert f"_{program.upper()}_COMPLETE={shell}_complete" in ended.stdout


def in_bash(arguments: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    made = environment(home, PATH=f"{CONVEYORCTL.parent}:{os.environ['PATH']}")
    return subprocess.run(
        [str(BASH), *arguments], env=made, cwd=home, capture_output=True, text=True, timeout=SECONDS_MAX, check=True
    )
