"""A cluster of three processes against raw SQLite on the same disk: commits, reads, a leader that is killed.

    python -m benchmarks.raft_cluster [--rounds 5] [--seconds 3] [--delay-ms 3] [--json PATH]

Calibrated (notes/raft.md 5.2): every real commit of the baseline and of all nodes takes a fixed time longer, since the
disks of shared machines move by factors within minutes. Rounds of both are in turn, ratios are of one round, the median
of them is told. The baseline is one row of 200 bytes a transaction, `synchronous = FULL`, and group commits of as many
rows as are outstanding. The cluster has sessions, audit, events and apply: a put is answered when it is applied.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import apsw
import trio

from benchmarks.raft_cluster_node import LEADS, OPTIONS, PUT, READ
from conveyord.core.errors import ConveyordError
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Handlers
from conveyord.runtime.rpc.limits import Counters, Limits

NAMES = ("a", "b", "c")
DATA_BYTES = 200
OUTSTANDING = (1, 64, 256)
SIDE = Side(lambda: Me("", 1, "bench"), Handlers(), Limits(), Counters())
CALL_SECONDS = 30.0
WAIT_SECONDS = 60.0


def percentile(seconds: list[float], share: float) -> float:
    found = sorted(seconds)
    return found[min(len(found) - 1, int(share * len(found)))]


class Raw:
    """SQLite alone."""

    def __init__(self, home: Path, delay_seconds: float) -> None:
        self._connection = apsw.Connection(str(home / "raw.db"))
        self._delay_seconds = delay_seconds
        for statement in (
            "PRAGMA locking_mode = EXCLUSIVE",
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)",
        ):
            self._connection.execute(statement)

    def commits(self, rows: int, seconds: float) -> list[float]:
        """How long each commit of so many rows took."""
        found, batch = list[float](), [(os.urandom(DATA_BYTES),)] * rows
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO t (data) VALUES (?)", batch)
            self._connection.execute("COMMIT")
            time.sleep(self._delay_seconds)
            found.append(time.perf_counter() - begun)
        return found


class Cluster:
    """Three processes. connections: to each, while it is there."""

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
        assert process.stdout.readline() == b"ready\n", (self._home / f"{name}.log").read_text()[-2000:]
        self._processes[name] = process

    def kill(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()

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
                for name in self._processes.keys() - {but}:
                    try:
                        async with self.connected(name) as connection:
                            if (await connection.call(LEADS, deadline_seconds=1.0)).payload:
                                return name
                    except ConveyordError:
                        pass
                await trio.sleep(0.01)


async def calls(connection: Connection, method: str, outstanding: int, seconds: float) -> tuple[list[float], float]:
    """How long each call took, and for how long calls were made."""
    found, payload = list[float](), os.urandom(DATA_BYTES)
    begun = trio.current_time()

    async def caller() -> None:
        while (called := trio.current_time()) < begun + seconds:
            await connection.call(method, payload, deadline_seconds=CALL_SECONDS)
            found.append(trio.current_time() - called)

    async with trio.open_nursery() as nursery:
        for _ in range(outstanding):
            nursery.start_soon(caller)
    return found, trio.current_time() - begun


async def failover(cluster: Cluster) -> float:
    """Seconds from the SIGKILL of the leader to the next acknowledgement, by a client that asks the others."""
    leader = await cluster.leader()
    others = [name for name in NAMES if name != leader]
    async with cluster.connected(others[0]) as connection:
        await connection.call(PUT, b"x", deadline_seconds=CALL_SECONDS)
        begun = trio.current_time()
        await trio.to_thread.run_sync(cluster.kill, leader)
        await connection.call(PUT, b"x", deadline_seconds=CALL_SECONDS)
        seconds = trio.current_time() - begun
    await trio.to_thread.run_sync(cluster.start, leader)
    await cluster.leader()
    return seconds


async def one_round(raw: Raw, cluster: Cluster, seconds: float) -> dict[str, float]:
    found = dict[str, float]()
    leader = await cluster.leader()
    async with cluster.connected(leader) as connection:
        await calls(connection, PUT, 64, 0.5)
        for outstanding in OUTSTANDING:
            theirs = await trio.to_thread.run_sync(raw.commits, outstanding, seconds)
            ours, spent = await calls(connection, PUT, outstanding, seconds)
            rate = len(ours) / spent
            found[f"puts_{outstanding}_per_second"] = rate
            found[f"throughput_{outstanding}"] = rate / (outstanding * len(theirs) / sum(theirs))
            found[f"p50_{outstanding}"] = percentile(ours, 0.5) / percentile(theirs, 0.5)
            found[f"p99_{outstanding}"] = percentile(ours, 0.99) / percentile(theirs, 0.99)
        reads, spent = await calls(connection, READ, 256, seconds)
        found["reads_256_per_second"] = len(reads) / spent
        found["reads_to_writes"] = found["reads_256_per_second"] / found["puts_256_per_second"]
    return found


async def measured(rounds: int, seconds: float, delay_seconds: float, failovers: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="conveyord-raft-cluster-") as name:
        home = Path(name)
        ports = dict(zip(NAMES, await free_ports(len(NAMES)), strict=True))
        cluster, raw = Cluster(home, ports, delay_seconds), Raw(home, delay_seconds)
        try:
            for node in NAMES:
                await trio.to_thread.run_sync(cluster.start, node)
            found = [await one_round(raw, cluster, seconds) for _ in range(rounds)]
            gaps = [await failover(cluster) / OPTIONS.election_timeout_seconds for _ in range(failovers)]
        finally:
            cluster.close()
    figures = {key: round(statistics.median(one[key] for one in found), 3) for key in found[0]}
    figures["failover_timeouts_p50"] = round(statistics.median(gaps), 2)
    figures["failover_timeouts_max"] = round(max(gaps), 2)
    return {"rounds": rounds, "delay_seconds": delay_seconds, "failovers": failovers, **figures}


async def free_ports(count: int) -> list[int]:
    listeners = [(await trio.open_tcp_listeners(0, host="127.0.0.1"))[0] for _ in range(count)]
    ports = [listener.socket.getsockname()[1] for listener in listeners]
    for listener in listeners:
        await listener.aclose()
    return ports


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--delay-ms", type=float, default=3.0, help="that every commit takes longer")
    parser.add_argument("--failovers", type=int, default=9)
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    run: Callable[[], object] = partial(measured, given.rounds, given.seconds, given.delay_ms / 1000, given.failovers)
    text = json.dumps(trio.run(run), indent=2)  # type: ignore[arg-type]
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
