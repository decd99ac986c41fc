"""What a node tells the service manager, heard on a real socket; and that the unit is one that systemd takes."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.daemon.node_rig import end, start
from tests.e2e.harness import CONVEYORD, ROOT

UNIT = ROOT / "conf" / "conveyord.service"
WATCHDOG_SECONDS = 0.5
EXPOSURE_MAX = 2.0


class Manager:
    """Listens as systemd does."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(path)
        self._socket.settimeout(30)
        self.heard: list[str] = []

    def wait(self, pattern: str) -> re.Match[str]:
        """The first message from now on that matches."""
        while True:
            message = self._socket.recv(4096).decode()
            self.heard.append(message)
            if found := re.search(pattern, message):
                return found

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Manager, str]]:
    """With the address that nodes are given: a path, or with the parameter `abstract` a name without a file."""
    is_abstract = getattr(request, "param", "path") == "abstract"
    name = f"@conveyord-{tmp_path.name}-{time.monotonic_ns()}" if is_abstract else str(tmp_path / "notify")
    with closing(Manager(name.replace("@", "\0"))) as listening:
        yield listening, name


@pytest.mark.parametrize("manager", ["path", "abstract"], indirect=True)
def test_readiness_status_watchdog_and_the_end_are_told(tmp_path: Path, manager: tuple[Manager, str]) -> None:
    listening, name = manager
    env = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": str(round(WATCHDOG_SECONDS * 1e6))}
    (tmp_path / "c.toml").write_text('[shutdown]\ndrain = "7s"\n')
    node = start(tmp_path, "--config", "c.toml", "--node-id", "n1", env=env)
    try:
        listening.wait(r"^READY=1$")
        listening.wait(r"^STATUS=node n1 leads in cluster c-\w+, term 1$")
        began = time.monotonic()
        for _ in range(4):
            listening.wait(r"^WATCHDOG=1$")
        assert time.monotonic() - began < 4 * WATCHDOG_SECONDS  # or it would have been killed
        node.running.send(signal.SIGTERM)
        assert int(listening.wait(r"^STOPPING=1\nEXTEND_TIMEOUT_USEC=(\d+)$")[1]) == 12_000_000
        node.running.wait().orderly(0)
    finally:
        end(node)
    assert sum("READY=1" in message for message in listening.heard) == 1


def test_a_node_that_stands_still_is_not_heard_of(tmp_path: Path, manager: tuple[Manager, str]) -> None:
    listening, name = manager
    node = start(tmp_path, env={"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "200000"})
    try:
        listening.wait(r"^READY=1$")
        listening.wait(r"^WATCHDOG=1$")
        node.running.send(signal.SIGSTOP)
        listening._socket.settimeout(1.0)
        with pytest.raises(TimeoutError):  # what was sent before is read first
            listening.wait(r"^never$")
        node.running.send(signal.SIGCONT)
        listening.wait(r"^WATCHDOG=1$")
        node.stop().orderly(0)
    finally:
        end(node)


@pytest.mark.parametrize(
    "env",
    [
        {"NOTIFY_SOCKET": "/nowhere/at/all", "WATCHDOG_USEC": "100000"},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "", "WATCHDOG_USEC": "x"},
    ],
)
def test_a_manager_that_is_not_there_stops_nothing(tmp_path: Path, env: dict[str, str]) -> None:
    node = start(tmp_path, env=env)
    try:
        node.answers()
        ended = node.stop()
    finally:
        end(node)
    ended.orderly(0)
    assert ended.err.count("the service manager cannot be told") == int(env["NOTIFY_SOCKET"].startswith("/"))


# ---------------------------------------------------------------------------------- the unit


def analysed(*arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not installed")
    return subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=120, check=False)


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "conveyord.service"
    unit.write_text(UNIT.read_text().replace("/opt/conveyord/venv/bin/conveyord", str(CONVEYORD)))
    ended = analysed("verify", "--man=no", str(unit))
    ours = [line for line in ended.stderr.splitlines() if "conveyord" in line]
    assert (ended.returncode, ours) == (0, []), ended.stderr


def test_the_unit_is_hardened() -> None:
    ended = analysed("security", "--offline=true", "--no-pager", str(UNIT))
    if "Unknown" in ended.stderr or "unrecognized option" in ended.stderr:
        pytest.skip(f"systemd-analyze is too old: {ended.stderr.strip()}")
    found = re.search(r"Overall exposure level for conveyord\.service: ([0-9.]+)", ended.stdout)
    assert found is not None, ended.stdout + ended.stderr
    assert float(found[1]) < EXPOSURE_MAX
