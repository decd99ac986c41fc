"""What the disks' share of a cluster of three leaves at best: their logs and states alone, against raw SQLite.

    python -m benchmarks.raft_cluster_storage [--rounds 7] [--seconds 1.5] [--delay-ms 3]

Three processes at once, each with a real log and a real state, and nothing between them: no consensus, no network, no
clients. Each writes batches of 256 entries to its log, every commit a fixed time longer as in
`benchmarks.raft_cluster`, and applies a batch while the next is written. A cluster on this machine, on this storage,
cannot be faster than that. The baseline, in turn with it, is a group commit of as many bare rows in one process.
"one" is a single one of the three with the machine to itself: a group commit that applies what it commits.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import Queue

from benchmarks.raft_cluster import Raw
from benchmarks.raft_cluster_node import KEYS, SWITCH_SECONDS, VALUE
from benchmarks.raft_cluster_processes import NAMES
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Write
from conveyord.core.raft.types import Entry, HardState, Kind, make_entry
from conveyord.core.state.codec import Codec
from conveyord.core.state.commands import ConfigPut
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.proposing import Request, SessionWriter
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.store import StateStore

BATCH = 256
AHEAD = 1  # batches that the log may have more than the state


def batches() -> Iterator[Sequence[Entry]]:
    """Without an end: the first is the opening of the session."""
    writer, chain, index, number = SessionWriter(Codec(MACHINE.commands), "bench"), bytes(8), 0, 0
    while True:
        found = list[Entry]()
        for _ in range(BATCH if index else 1):
            index += 1
            data = writer.register()
            if index > 1:
                number += 1
                put = Request(ConfigPut(f"k{number % KEYS}", VALUE, None), "bench", 0)
                data = writer.command(1, number, max(1, number - BATCH), put)
            entry = make_entry(chain, index, 1, Kind.COMMAND, data)
            chain = entry.chain
            found.append(entry)
        yield found


def node(home: Path, seconds: float, delay_seconds: float) -> None:
    """A process: says when it is ready, and for each line that it is given how many entries a second it took."""
    sys.setswitchinterval(SWITCH_SECONDS)
    log = RaftLog(home / "raft" / "raft.db", node="n")
    log.found(Membership(frozenset("n")))
    store = StateStore.open(home / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS)
    log.load(0)
    state = Replica(store, Executor().execute)
    written = Queue[Sequence[Entry] | None](AHEAD)

    def apply_all() -> None:
        while (entries := written.get()) is not None:
            state.apply(entries)

    endless, token = batches(), 0
    print("ready", flush=True)
    for _ in sys.stdin:
        made = [next(endless) for _ in range(int(seconds * 150_000 / BATCH))]  # beforehand: clients do that
        applier = threading.Thread(target=apply_all)
        applier.start()
        begun = time.perf_counter()
        count = 0
        while time.perf_counter() < begun + seconds:
            token += 1
            entries = made[count]
            log.write(Write(token, HardState(1, None, 0), None, tuple(entries), None))
            time.sleep(delay_seconds)
            written.put(entries)
            count += 1
        written.put(None)
        applier.join()
        endless = _after(made[count:], endless)
        print(sum(map(len, made[:count])) / (time.perf_counter() - begun), flush=True)


def _after(left: Sequence[Sequence[Entry]], endless: Iterator[Sequence[Entry]]) -> Iterator[Sequence[Entry]]:
    yield from left
    yield from endless


def measured(rounds: int, seconds: float, delay_seconds: float) -> dict[str, float]:
    """What one process does alone, and the slowest of three at once: entries a second, and in baselines; medians."""
    with tempfile.TemporaryDirectory(prefix="conveyord-raft-storage-") as directory:
        home = Path(directory)
        raw, found = Raw(home, delay_seconds), defaultdict[str, list[float]](list)
        command = [sys.executable, "-m", "benchmarks.raft_cluster_storage", "--seconds", str(seconds)]
        command += ["--delay-ms", str(1000 * delay_seconds), "--node"]
        nodes = [
            subprocess.Popen([*command, str(home / name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for name in NAMES
        ]
        pipes = [(one.stdin, one.stdout) for one in nodes if one.stdin is not None and one.stdout is not None]
        for _, told in pipes:
            assert told.readline() == "ready\n"
        for _ in range(rounds):
            theirs = raw.commits(BATCH, seconds)
            for count, some in (("one", pipes[:1]), ("three", pipes)):
                for asked, _ in some:
                    asked.write("\n")
                    asked.flush()
                rate = min(float(told.readline()) for _, told in some)
                found[f"{count}_per_second"].append(rate)
                found[f"{count}_throughput"].append(rate / (BATCH * len(theirs) / sum(theirs)))
        for one, (asked, _) in zip(nodes, pipes, strict=True):
            asked.close()
            one.wait()
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each measurement")
    parser.add_argument("--delay-ms", type=float, default=3.0, help="that every commit takes longer")
    parser.add_argument("--node", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.node:
        node(given.node, given.seconds, given.delay_ms / 1000)
    else:
        print(json.dumps(measured(given.rounds, given.seconds, given.delay_ms / 1000), indent=2))


if __name__ == "__main__":
    main()
