"""Real nodes, each a process of its own, for `conveyorctl` to ask."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conveyord.runtime.rpc.tls import TlsFiles
from tests.e2e.ctl.calling import Said, ctl, environment

CONVEYORD = Path(sys.executable).with_name("conveyord")
STOP_SECONDS_MAX = 60.0
STATE_SECONDS_MAX = 60.0


@dataclass(eq=False)
class RunningNode:
    """A node. server: of its API. home: its data directory."""

    name: str
    home: Path
    server: str
    rpc: str
    process: subprocess.Popen[bytes]
    ca: Path | None = None

    def ask(self, *arguments: str) -> Said:
        """Call `conveyorctl` as who can read the node's data directory."""
        trusted = () if self.ca is None else ("--ca", self.ca)
        return ctl(self.home.parent, *arguments, "--server", self.server, "--data-dir", self.home, *trusted)

    def until_all_are(self, state: str, count: int) -> dict[str, Any]:
        """Wait until the cluster has so many members and all are in that state; returns them as the API does."""
        deadline = time.monotonic() + STATE_SECONDS_MAX
        while True:
            said = self.ask("members", "list", "-o", "json")
            reply: dict[str, Any] = json.loads(said.out)
            states = [member["state"] for member in reply.get("members", ())]
            if states == [state] * count:
                return reply
            assert time.monotonic() < deadline, reply
            if "index" in reply:
                self.ask("members", "list", "--after", str(reply["index"]), "--wait", "1s")

    def until_named(self) -> None:
        """Wait until the cluster has its name, the last thing that a node sees to by itself."""
        deadline = time.monotonic() + STATE_SECONDS_MAX
        while not self.ask("events", "--topic", "cluster").out:
            assert time.monotonic() < deadline

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(timeout=STOP_SECONDS_MAX)


def free_ports(count: int) -> list[int]:
    """Ports that nobody has now. Somebody may take one before it is used."""
    with ExitStack() as stack:
        taken = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in taken]


@contextmanager
def running(
    folder: Path, names: Sequence[str] = ("n1",), *, config: str = "", tls: TlsFiles | None = None
) -> Iterator[list[RunningNode]]:
    """Nodes that found a cluster together, and have a leader. config: of each, as TOML. tls: for HTTP, of localhost."""
    if tls is not None:
        config += f'[http.tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\n'
    ports = free_ports(2 * len(names))
    addresses = [f"127.0.0.1:{port}" for port in ports]
    rpc, http = addresses[: len(names)], addresses[len(names) :]
    with ExitStack() as stack:
        nodes = [
            stack.enter_context(_started(folder, name, rpc[at], http[at], [*rpc[:at], *rpc[at + 1 :]], config))
            for at, name in enumerate(names)
        ]
        for node in nodes:
            if tls is not None:
                node.server, node.ca = f"https://localhost:{node.server.rpartition(':')[2]}", tls.ca
            deadline = time.monotonic() + STATE_SECONDS_MAX
            while (said := node.ask("status", "--wait", "1s")).code:
                lives = node.process.poll() is None and time.monotonic() < deadline
                assert lives, said.err + (folder / f"{node.name}.log").read_text()[-4_000:]
        nodes[0].until_all_are("ready", len(nodes))
        nodes[0].until_named()
        yield nodes


@contextmanager
def alone(folder: Path, name: str, *, expect: int) -> Iterator[RunningNode]:
    """A node that is to found a cluster with others, which are not there."""
    rpc, http, *others = (f"127.0.0.1:{port}" for port in free_ports(expect + 1))
    with _started(folder, name, rpc, http, others, "") as node:
        yield node


@contextmanager
def _started(folder: Path, name: str, rpc: str, http: str, others: Sequence[str], config: str) -> Iterator[RunningNode]:
    settings = folder / f"{name}.toml"
    settings.write_text(config)
    home = folder / name
    arguments = ["--config", settings, "--data-dir", home, "--node-id", name, "--rpc", rpc, "--http", http]
    joined = [part for other in others for part in ("--join", other)]
    expected = ["--expect", str(len(others) + 1)]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [CONVEYORD, "start", *arguments, *expected, *joined],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    node = RunningNode(name, home, f"http://{http}", rpc, process)
    try:
        yield node
    finally:
        node.kill()
