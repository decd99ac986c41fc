"""What clients of a cluster see when its leader is killed, hands over, or stalls, and while snapshots are taken."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from itertools import pairwise

import trio

from benchmarks.raft_cluster_node import OPTIONS, PUT, STALL, TRANSFER
from benchmarks.raft_cluster_processes import CALL_SECONDS, NAMES, WAIT_SECONDS, Cluster, Intervals, percentile, spent
from conveyord.runtime.rpc.connection import Connection

CLIENTS = 8
CALM_SECONDS = 0.5
BEHIND_COMMANDS = 40_000  # more than the log keeps: who misses them needs a snapshot
OUTSTANDING = 64
PART_SECONDS = 1.0


async def failover(cluster: Cluster) -> float:
    """Timeouts from the SIGKILL of the leader to the next acknowledgement, by a client that asks another node."""
    leader = await cluster.leader()
    async with cluster.connected(_other(leader)) as connection:
        await connection.call(PUT, b"x", deadline_seconds=CALL_SECONDS)
        begun = time.monotonic()
        await trio.to_thread.run_sync(cluster.kill, leader)
        await connection.call(PUT, b"x", deadline_seconds=CALL_SECONDS)
        seconds = time.monotonic() - begun
    await trio.to_thread.run_sync(cluster.start, leader)
    await _settled(cluster)
    return seconds / OPTIONS.election_timeout_seconds


async def transfer(cluster: Cluster) -> float:
    """Heartbeats without an acknowledgement while leadership is handed over, by clients of another node."""
    leader = await cluster.leader()
    answered = list[float]()
    async with cluster.connected(_other(leader)) as connection, trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(_puts, connection, answered)
        await trio.sleep(CALM_SECONDS)
        async with cluster.connected(leader) as to:
            await to.call(TRANSFER, deadline_seconds=CALL_SECONDS)
        await cluster.leader(but=leader)
        await trio.sleep(CALM_SECONDS)
        nursery.cancel_scope.cancel()
    longest = max(after - before for before, after in pairwise(answered))
    return longest / OPTIONS.heartbeat_seconds


async def stall(cluster: Cluster) -> float:
    """Timeouts from when the leader's disk hangs to the first acknowledgement by the next leader."""
    leader = await cluster.leader()
    answered = list[float]()
    hanging_seconds = 10 * OPTIONS.election_timeout_seconds
    async with cluster.connected(_other(leader)) as connection, trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(_puts, connection, answered)
        await trio.sleep(CALM_SECONDS)
        async with cluster.connected(leader) as to:
            told = await to.call(STALL, b"%f" % hanging_seconds, deadline_seconds=CALL_SECONDS)
        begun = float(told.payload)
        with trio.fail_after(WAIT_SECONDS):
            while not (after := [at for at in answered if at > begun + CALM_SECONDS]):  # noqa: ASYNC110
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()
    await trio.sleep(hanging_seconds)
    await _settled(cluster)
    return (after[0] - begun) / OPTIONS.election_timeout_seconds


@dataclass(slots=True)
class Latencies:
    """Seconds of commands: while a node took or received a snapshot, and at other times of the same run."""

    during: list[float] = field(default_factory=list)
    calm: list[float] = field(default_factory=list)
    busy_seconds: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float]:
        """Of all times together: of one, of some sixty batches, p99 is the slowest. Seconds: of all nodes, a time."""
        return {
            "snapshot_p99": percentile(self.during, 0.99) / percentile(self.calm, 0.99),
            "snapshot_p50": percentile(self.during, 0.5) / percentile(self.calm, 0.5),
            "snapshot_seconds": statistics.median(self.busy_seconds),
        }


async def snapshots(cluster: Cluster, into: Latencies) -> None:
    """Let a follower fall behind, and measure while snapshots are taken and it installs one."""
    leader = await cluster.leader()
    late = _other(leader)
    cluster.pause(late)
    missed = 0
    while missed < BEHIND_COMMANDS:
        missed += len(await cluster.load(leader, PUT, 256, PART_SECONDS))
    cluster.go_on(late)
    since, found, busy = time.monotonic(), Intervals(), Intervals()
    with trio.fail_after(WAIT_SECONDS):
        # As long as it takes until there was one, and as much of calm time after it.
        while not busy or sum(spent(busy)) > time.monotonic() - since - 5 * PART_SECONDS:
            found += await cluster.load(leader, PUT, OUTSTANDING, PART_SECONDS)
            busy = [one for one in await cluster.busy() if one[1] > since]
    for begun, answered in found:
        is_busy = any(begun < to and answered > since for since, to in busy)
        (into.during if is_busy else into.calm).append(answered - begun)
    into.busy_seconds.append(sum(spent(busy)))


async def _settled(cluster: Cluster) -> None:
    """Every node knows who leads, and is connected."""
    for name in NAMES:
        async with cluster.connected(name) as connection:
            await connection.call(PUT, b"x", deadline_seconds=CALL_SECONDS)


async def _puts(connection: Connection, answered: list[float]) -> None:
    while True:
        await connection.call(PUT, b"x", deadline_seconds=CALL_SECONDS)
        answered.append(time.monotonic())


def _other(leader: str) -> str:
    return next(name for name in NAMES if name != leader)


async def all_of(cluster: Cluster, times: int) -> dict[str, float]:
    """Medians of so many times, and the worst; the latencies around snapshots of all of them together."""
    gaps = [await failover(cluster) for _ in range(times)]
    handed = [await transfer(cluster) for _ in range(times)]
    stalled = [await stall(cluster) for _ in range(max(1, times // 3))]
    found = Latencies()
    for _ in range(times):
        await snapshots(cluster, found)
    return {
        "failover_timeouts_p50": statistics.median(gaps),
        "failover_timeouts_max": max(gaps),
        "transfer_heartbeats_p50": statistics.median(handed),
        "transfer_heartbeats_max": max(handed),
        "stall_timeouts_p50": statistics.median(stalled),
        "stall_timeouts_max": max(stalled),
        **found.figures(),
    }
