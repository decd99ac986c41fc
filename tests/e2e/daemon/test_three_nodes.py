"""conf/three-node: the script starts a cluster, which goes on without one of them, and ends it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from conveyord.config import load_node_config
from tests.e2e.daemon.node_rig import is_alive, local
from tests.e2e.harness import CONVEYORD, ROOT, Running

SCRIPT = ROOT / "conf" / "three-node" / "start.sh"
WAIT_SECONDS = 60.0
HTTP_ABOVE = 80  # the script's HTTP ports, above those of RPC


def free_ports() -> int:
    """The first of three ports that are free, and so are those for HTTP."""
    for first in range(21_000 + os.getpid() % 5_000, 32_000, 3):
        held = list[socket.socket]()
        try:
            for port in (first + n + above for n in range(3) for above in (0, HTTP_ABOVE)):
                held.append(socket.create_server(("127.0.0.1", port)))
        except OSError:
            continue
        else:
            return first
        finally:
            for one in held:
                one.close()
    raise AssertionError("no ports are free")


def eventually(look: Callable[[], Any]) -> Any:
    """What `look` gives, once it gives something."""
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        with suppress(httpx.HTTPError):
            if found := look():
                return found
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


class Script:
    """The script, and what it said."""

    def __init__(self, home: Path, first: int) -> None:
        self.home, self.first = home, first
        environment = {**os.environ, "FIRST_PORT": str(first), "CONVEYORD": str(CONVEYORD)}
        with (home / "said").open("wb") as said:
            self.process = subprocess.Popen(
                [str(SCRIPT), str(home / "data")],
                cwd=home,
                env=environment,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def said(self) -> str:
        return (self.home / "said").read_text()

    def pids(self) -> list[int]:
        eventually(lambda: "Ctrl-C stops all" in self.said() or self.process.poll() is not None)
        found = [int(pid) for pid in re.findall(r"process (\d+)", self.said())]
        assert len(found) == 3, self.said()
        return found

    def http(self, number: int) -> str:
        return f"http://127.0.0.1:{self.first + number - 1 + HTTP_ABOVE}"

    def status(self, number: int) -> dict[str, Any]:
        return dict(self.ask("GET", number, "/status").json())

    def ask(self, method: str, number: int, path: str, **options: Any) -> httpx.Response:
        """As who can read the data of the node that is asked."""
        headers = local(self.home / "data" / f"node{number}")
        return httpx.request(method, f"{self.http(number)}/api/v1{path}", headers=headers, timeout=30, **options)

    def put(self, number: int, key: str) -> bool:
        return self.ask("PUT", number, f"/config/{key}", json={"value": "aGk="}).status_code == 200

    def has(self, number: int, key: str) -> bool:
        return self.ask("GET", number, f"/config/{key}").status_code == 200


@contextmanager
def running(home: Path, first: int) -> Iterator[Script]:
    """The script, which is ended with its nodes."""
    one = Script(home, first)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            one.process.wait(60)


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Script]:
    with running(tmp_path, free_ports()) as one:
        yield one


def test_three_nodes_are_a_cluster_that_outlives_one_of_them(script: Script) -> None:
    pids = script.pids()
    leader = eventually(lambda: script.status(1)["leader"])
    follower = next(n for n in (1, 2, 3) if f"node{n}" != leader)
    assert script.put(follower, "by/follower")
    assert all(script.has(number, "by/follower") for number in (1, 2, 3))
    hint = re.search(r"look: conveyorctl (.*?);", script.said())
    assert hint is not None
    looked = Running([str(CONVEYORD.with_name("conveyorctl")), *hint[1].split()], script.home).wait()
    looked.orderly(0)
    assert "cluster" in looked.out, looked
    killed = int(leader.removeprefix("node"))
    os.kill(pids[killed - 1], signal.SIGKILL)
    assert eventually(lambda: script.put(follower, "without/one"))
    assert script.has(follower, "by/follower")
    script.process.send_signal(signal.SIGINT)
    assert script.process.wait(60) == 0, script.said()
    assert not any(is_alive(pid) for pid in pids)
    assert "all nodes have ended" in script.said()
    for number in {1, 2, 3} - {killed}:
        log = (script.home / "data" / f"node{number}.log").read_text()
        assert "stopped" in log.splitlines()[-1], log
        assert "Traceback" not in log


def test_the_script_says_which_node_could_not_start(tmp_path: Path) -> None:
    first = free_ports()
    with socket.create_server(("127.0.0.1", first + 1)), running(tmp_path, first) as one:
        assert one.process.wait(60) == 1
    assert "node2 has ended:" in one.said()
    assert f"another process listens at 127.0.0.1:{first + 1}" in one.said()


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("**/node*.toml")), ids=lambda path: path.name)
def test_the_settings_of_the_three_can_be_started(path: Path) -> None:
    config = load_node_config(path, {})
    assert config.node.id == path.stem
    assert config.rpc.listen in config.cluster.join


def test_the_settings_for_dev_can_be_used() -> None:
    load_node_config(ROOT / "conf" / "dev.toml", {}, is_dev=True)
