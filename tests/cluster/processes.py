"""Nodes as processes, as a user starts them; killed, frozen, cut off, and asked over HTTP."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WAIT_SECONDS = 60.0
ELECTION_SECONDS = 0.5
POLL_SECONDS = 0.02
ROOT = Path(__file__).parents[2]


class Unanswered(Exception):
    """No answer came. may_have_happened: what was asked for may have been done."""

    def __init__(self, reason: str, *, may_have_happened: bool) -> None:
        super().__init__(reason)
        self.may_have_happened = may_have_happened


def ask(
    address: str,
    method: str,
    path: str,
    body: object = None,
    *,
    seconds: float = 5.0,
    token: str = "",
    is_encrypted: bool = False,
) -> tuple[int, dict[str, Any]]:
    """One request of the API: status and body. Raises Unanswered."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=seconds)
    if is_encrypted:
        context = ssl._create_unverified_context()  # whom it is, other tests ask
        connection = http.client.HTTPSConnection(host, int(port), timeout=seconds, context=context)
    headers = {"authorization": f"Bearer {token}"} if token else {}
    data = None
    if body is not None:
        data, headers["content-type"] = json.dumps(body), "application/json"
    try:
        try:
            connection.connect()
        except OSError as error:
            raise Unanswered(str(error), may_have_happened=False) from error
        try:
            connection.request(method, f"/api/v1{path}", data, headers)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}")
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unanswered(repr(error), may_have_happened=True) from error
    finally:
        connection.close()


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def until(holds: Callable[[], Any], what: Callable[[], object] | str, seconds: float = WAIT_SECONDS) -> Any:
    """What `holds` returns once that is true. what: told if it never is."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what() if callable(what) else what}")
        time.sleep(POLL_SECONDS)
    return found


@dataclass(eq=False)
class NodeProcess:
    """One node. prefix: of its command line, such as `ip netns exec`. is_encrypted: whether its API is."""

    name: str
    home: Path
    rpc: str
    http: str
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    prefix: Sequence[str] = ()
    is_encrypted: bool = False
    module: str = "conveyord"
    process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        return self.home / "node.log"

    @property
    def data(self) -> Path:
        return self.home / "data"

    def start(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        config = self.home / "conveyord.toml"
        config.write_text(self._toml())
        command = [*self.prefix, sys.executable, "-m", self.module, "start", "--config", str(config)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def _toml(self) -> str:
        tables: dict[str, dict[str, Any]] = {
            "node": {"id": self.name},
            "rpc": {"listen": self.rpc},
            "http": {"listen": self.http},
            "cluster": {"election_timeout": f"{ELECTION_SECONDS}s"},
            "shutdown": {"drain": "10s"},
        }
        for table, keys in self.settings.items():
            tables.setdefault(table, {}).update(keys)
        lines = [f"data_dir = {json.dumps(str(self.data))}"]
        for table, keys in tables.items():
            lines.append(f"[{table}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        return "\n".join(lines) + "\n"

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.kill()
            self.process.wait()

    def stop(self) -> int:
        """With SIGTERM; the exit code."""
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(timeout=WAIT_SECONDS)

    def ask(self, method: str, path: str, body: object = None, *, seconds: float = 5.0) -> tuple[int, dict[str, Any]]:
        token = self.token()
        status, answer = ask(
            self.http, method, path, body, seconds=seconds, token=token, is_encrypted=self.is_encrypted
        )
        if status == 401 and (newer := self.token()) != token:  # the node was started again meanwhile
            return ask(self.http, method, path, body, seconds=seconds, token=newer, is_encrypted=self.is_encrypted)
        return status, answer

    def token(self) -> str:
        """Of who can read its data; another one at each start."""
        try:
            return (self.data / "local-token").read_text().strip()
        except FileNotFoundError:
            return ""

    def status(self) -> dict[str, Any]:
        """What it says of itself; nothing if it does not answer."""
        with suppress(Unanswered):
            status, body = self.ask("GET", "/status", seconds=1.0)
            if status == 200:
                return body
        return {}


class Processes:
    """Nodes that make a cluster."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.nodes: dict[str, NodeProcess] = {}

    def add(self, name: str, *, rpc: str = "", http: str = "", **more: Any) -> NodeProcess:
        ports = free_ports(2)
        found = NodeProcess(
            name, self.home / name, rpc or f"127.0.0.1:{ports[0]}", http or f"127.0.0.1:{ports[1]}", **more
        )
        self.nodes[name] = found
        return found

    def found(self, names: Sequence[str], **settings: Any) -> None:
        """Start these as the founders of a cluster, and wait until all of them vote."""
        for name in names:
            if name not in self.nodes:
                self.add(name)
        join = [self.nodes[name].settings.get("rpc", {}).get("advertise", self.nodes[name].rpc) for name in names]
        for name in names:
            cluster = self.nodes[name].settings.setdefault("cluster", {})
            cluster.update({"expect": len(names), "join": join, **settings})
            self.nodes[name].start()
        self.until_members(dict.fromkeys(names, ("voter", "ready")))

    def leader(self) -> NodeProcess | None:
        """Who says that it leads, in the highest term."""
        said = {name: node.status() for name, node in self.nodes.items() if node.is_up}
        leading = [(status["term"], name) for name, status in said.items() if status.get("raft") == "leader"]
        return self.nodes[max(leading)[1]] if leading else None

    def until_leader(self, *, other_than: str = "") -> NodeProcess:
        found = until(
            lambda: leader if (leader := self.leader()) is not None and leader.name != other_than else None,
            lambda: f"a leader: {self.seen()}",
        )
        assert isinstance(found, NodeProcess)
        return found

    def members(self) -> dict[str, tuple[str, str]]:
        """Standing and state of each node, as the first that answers has them; linearizable."""
        for node in self.nodes.values():
            if node.is_up:
                with suppress(Unanswered):
                    status, body = node.ask("GET", "/members", seconds=3.0)
                    if status == 200:
                        return {one["node"]: (one["standing"], one["state"]) for one in body["members"]}
        return {}

    def until_members(self, wanted: dict[str, tuple[str, str]], *, seconds: float = WAIT_SECONDS) -> None:
        until(lambda: self.members() == wanted, lambda: f"{self.members()} is not {wanted}; {self.seen()}", seconds)

    def seen(self) -> str:
        """What there is to see, for who asks why a test failed."""
        told = []
        for name, node in self.nodes.items():
            end = node.log.read_text(errors="replace")[-1500:] if node.log.exists() else ""
            told.append(f"--- {name} up={node.is_up} {node.status()}\n{end}")
        return "\n".join(told)


@contextmanager
def processes(home: Path) -> Iterator[Processes]:
    made = Processes(home)
    try:
        yield made
    finally:
        for node in made.nodes.values():
            node.kill()
