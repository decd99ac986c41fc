"""Real nodes as processes, each with a data directory of its own, on free ports of loopback."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.harness import CONVEYORD, Ended, Running

ANSWERS = '"event":"the cluster answers"'
FREE = ("--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-format", "json")


@dataclass
class NodeProcess:
    """A started node. http: its base address; local: the headers of who can read its data; both once it answers."""

    running: Running
    http: str = ""
    local: dict[str, str] = field(default_factory=dict)

    def answers(self) -> NodeProcess:
        """Wait until its cluster answers."""
        assert self.running.saw(ANSWERS), self.running.err()
        logs = self.logs()
        self.http = next(line["http"] for line in logs if line["event"] == "the cluster answers")
        self.local = local(next(Path(line["data_dir"]) for line in logs if line["event"] == "starting"))
        return self

    def is_ready(self) -> NodeProcess:
        """Wait until it knows all that it needs to serve: who may ask, too."""
        assert self.running.until(lambda: self.get("/readyz").status_code == 200), self.running.err()
        return self

    def logs(self) -> list[dict[str, Any]]:
        """All lines that were logged; each must be JSON."""
        return [json.loads(line) for line in self.running.err().splitlines()]

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.http + path, timeout=30, headers=self.local, **options)

    def put(self, key: str, value: str) -> httpx.Response:
        return httpx.put(f"{self.http}/api/v1/config/{key}", json={"value": value}, timeout=30, headers=self.local)

    def status(self) -> dict[str, Any]:
        answer = self.get("/api/v1/status")
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def stop(self) -> Ended:
        """Ask it to drain, and wait for its end."""
        self.running.send(signal.SIGTERM)
        return self.running.wait()


def start(home: Path, *arguments: str | Path, env: dict[str, str] | None = None, is_new: bool = False) -> NodeProcess:
    """`conveyord start`, which is not waited for. home: where it is started."""
    command = [str(CONVEYORD), "start", *FREE, *map(str, arguments)]
    return NodeProcess(Running(command, home, env, is_new=is_new))


@contextmanager
def started(home: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[NodeProcess]:
    """A node that answers; killed at the end, if it has not ended by then. Its settings are those of node.toml."""
    settings = home / "node.toml"
    settings.touch()
    node = start(home, "--config", settings, *arguments, env=env)
    try:
        yield node.answers().is_ready()
    finally:
        end(node)


def local(data_dir: Path) -> dict[str, str]:
    """The headers of who can read a data directory."""
    return {"authorization": f"Bearer {(data_dir / 'local-token').read_text(encoding='ascii').strip()}"}


def end(node: NodeProcess) -> None:
    """Kill it, if it runs."""
    if not node.running.has_ended():
        node.running.send(signal.SIGKILL)
        node.running.wait()


def run(home: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> Ended:
    """One command to its end."""
    return Running([str(CONVEYORD), *map(str, arguments)], home, env).wait()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def events(lines: Sequence[dict[str, Any]]) -> list[str]:
    return [str(line["event"]) for line in lines]
