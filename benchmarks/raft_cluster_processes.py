"""The cluster of three processes of `benchmarks.raft_cluster`, and clients of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from benchmarks.raft_cluster_node import BUSY, LEADS, LOAD
from conveyord.core.errors import ConveyordError
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Handlers
from conveyord.runtime.rpc.limits import Counters, Limits

NAMES = ("a", "b", "c")
SIDE = Side(lambda: Me("", 1, "bench"), Handlers(), Limits(), Counters())
CALL_SECONDS = 60.0
WAIT_SECONDS = 60.0

Intervals = list[tuple[float, float]]


def percentile(seconds: list[float], share: float) -> float:
    found = sorted(seconds)
    return found[min(len(found) - 1, int(share * len(found)))]


def spent(found: Intervals) -> list[float]:
    """How long each took."""
    return [end - begun for begun, end in found]


class Cluster:
    """The processes. Their disks take `delay_seconds` longer for every commit."""

    def __init__(self, home: Path, ports: dict[str, int], delay_seconds: float) -> None:
        self._home, self._ports, self._delay_seconds = home, ports, delay_seconds
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        settings = {
            "name": name,
            "home": str(self._home / name),
            "peers": self._ports,
            "delay_seconds": self._delay_seconds,
        }
        with (self._home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.raft_cluster_node"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        process.stdin.flush()
        self._processes[name] = process
        assert process.stdout.readline() == b"ready\n", (self._home / f"{name}.log").read_text()[-2000:]

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

    def pause(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGSTOP)

    def go_on(self, name: str) -> None:
        self._processes[name].send_signal(signal.SIGCONT)

    def close(self) -> None:
        for name in list(self._processes):
            self.kill(name)

    @asynccontextmanager
    async def connected(self, name: str) -> AsyncIterator[Connection]:
        async with dial_once(SIDE, ("127.0.0.1", self._ports[name])) as connection:
            yield connection

    async def leader(self, *, but: str = "") -> str:
        with trio.fail_after(WAIT_SECONDS):
            while True:
                for name in sorted(self._processes.keys() - {but}):
                    try:
                        async with self.connected(name) as connection:
                            if (await connection.call(LEADS, deadline_seconds=1.0)).payload:
                                return name
                    except ConveyordError:
                        pass
                await trio.sleep(0.01)

    async def load(self, name: str, kind: str, outstanding: int, seconds: float) -> Intervals:
        """Commands or reads that arise in a node: when each was asked for and answered."""
        async with self.connected(name) as connection:
            payload = json.dumps((kind, outstanding, seconds)).encode()
            answer = await connection.call(LOAD, payload, deadline_seconds=CALL_SECONDS + seconds)
        return msgspec.json.decode(answer.payload, type=Intervals)

    async def busy(self) -> Intervals:
        """When any node took a snapshot or received one."""
        found: Intervals = []
        for name in NAMES:
            async with self.connected(name) as connection:
                answer = await connection.call(BUSY, deadline_seconds=CALL_SECONDS)
            found += msgspec.json.decode(answer.payload, type=Intervals)
        return found


@asynccontextmanager
async def running(home: Path, delay_seconds: float) -> AsyncIterator[Cluster]:
    """A cluster that is up."""
    cluster = Cluster(home, dict(zip(NAMES, await _free_ports(len(NAMES)), strict=True)), delay_seconds)
    try:
        for name in NAMES:
            await trio.to_thread.run_sync(cluster.start, name)
        await cluster.leader()
        yield cluster
    finally:
        cluster.close()


async def _free_ports(count: int) -> list[int]:
    listeners = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(count)]
    ports = [listener.socket.getsockname()[1] for listener in listeners]
    for listener in listeners:
        await listener.aclose()
    return ports
