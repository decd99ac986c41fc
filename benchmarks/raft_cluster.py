"""A cluster of three processes against raw SQLite on the same disk: commits, reads, faults of the leader, snapshots.

    python -m benchmarks.raft_cluster [--rounds 7] [--seconds 1.5] [--delay-ms 3] [--faults 9] [--json PATH]

Calibrated (notes/raft.md 5.2): every real commit of the baseline and of all nodes takes a fixed time longer, since the
disks of shared machines move by factors within minutes. Rounds of both are in turn, ratios are of one round, the median
of them is told. The baseline is one row of 200 bytes a transaction, `synchronous = FULL`, and group commits of as many
rows as are outstanding. The cluster has sessions, audit, events and apply: a put is answered when it is applied.

The load arises within the leader, by `Driver.propose`: what a client costs is not measured. The figures `client_*` are
of real clients, by RPC from another process on the same two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import apsw
import trio

from benchmarks.raft_cluster_faults import all_of
from benchmarks.raft_cluster_node import PUT, READ, VALUE
from benchmarks.raft_cluster_processes import CALL_SECONDS, Cluster, Intervals, percentile, running, spent
from conveyord.runtime.rpc.connection import Connection

OUTSTANDING = (1, 64, 256)
WARM_SECONDS = 0.5


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
        found, batch = list[float](), [(os.urandom(len(VALUE)),)] * rows
        end = time.perf_counter() + seconds
        while (begun := time.perf_counter()) < end:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany("INSERT INTO t (data) VALUES (?)", batch)
            self._connection.execute("COMMIT")
            time.sleep(self._delay_seconds)
            found.append(time.perf_counter() - begun)
        return found


async def calls(connection: Connection, method: str, outstanding: int, seconds: float) -> Intervals:
    """Calls by a client: when each was made and answered."""
    found: Intervals = []
    end = time.monotonic() + seconds

    async def caller() -> None:
        while (called := time.monotonic()) < end:
            await connection.call(method, VALUE, deadline_seconds=CALL_SECONDS)
            found.append((called, time.monotonic()))

    async with trio.open_nursery() as nursery:
        for _ in range(outstanding):
            nursery.start_soon(caller)
    return found


def rate_of(found: Intervals) -> float:
    """Answers per second."""
    return len(found) / (max(end for _, end in found) - min(begun for begun, _ in found))


def compared(name: str, ours: Intervals, theirs: list[float], rows: int) -> dict[str, float]:
    """Ours to group commits of so many rows."""
    return {
        f"{name}_per_second": rate_of(ours),
        f"{name}_throughput": rate_of(ours) / (rows * len(theirs) / sum(theirs)),
        f"{name}_p50": percentile(spent(ours), 0.5) / percentile(theirs, 0.5),
        f"{name}_p99": percentile(spent(ours), 0.99) / percentile(theirs, 0.99),
    }


async def one_round(raw: Raw, cluster: Cluster, seconds: float) -> dict[str, float]:
    found = dict[str, float]()
    leader = await cluster.leader()
    await cluster.load(leader, PUT, 64, WARM_SECONDS)
    for outstanding in OUTSTANDING:
        theirs = await trio.to_thread.run_sync(raw.commits, outstanding, seconds)
        found |= compared(
            f"puts_{outstanding}", await cluster.load(leader, PUT, outstanding, seconds), theirs, outstanding
        )
        if outstanding == 1:
            found["raw_1_p50_ms"] = 1000 * percentile(theirs, 0.5)
    reads = await cluster.load(leader, READ, 256, seconds)
    found["reads_256_per_second"] = rate_of(reads)
    found["reads_to_writes"] = found["reads_256_per_second"] / found["puts_256_per_second"]
    async with cluster.connected(leader) as connection:
        for outstanding in (1, 256):
            theirs = await trio.to_thread.run_sync(raw.commits, outstanding, seconds)
            ours = await calls(connection, PUT, outstanding, seconds)
            found |= compared(f"client_puts_{outstanding}", ours, theirs, outstanding)
        found["client_reads_to_writes"] = (
            rate_of(await calls(connection, READ, 256, seconds)) / found["client_puts_256_per_second"]
        )
    return found


async def measured(rounds: int, seconds: float, delay_seconds: float, faults: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="conveyord-raft-cluster-") as name:
        home = Path(name)
        raw = Raw(home, delay_seconds)
        async with running(home, delay_seconds) as cluster:
            found = [await one_round(raw, cluster, seconds) for _ in range(rounds)]
            faulty = await all_of(cluster, faults) if faults else {}
    figures = {key: statistics.median(one[key] for one in found) for key in found[0]} | faulty
    told = {key: round(figure, 3) for key, figure in figures.items()}
    return {"rounds": rounds, "delay_seconds": delay_seconds, "faults": faults, **told}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--delay-ms", type=float, default=3.0, help="that every commit takes longer")
    parser.add_argument("--faults", type=int, default=9, help="how often the leader is killed and hands over")
    parser.add_argument("--json", type=Path, help="where to write the result")
    given = parser.parse_args()
    text = json.dumps(
        trio.run(partial(measured, given.rounds, given.seconds, given.delay_ms / 1000, given.faults)), indent=2
    )
    print(text)
    if given.json:
        given.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
