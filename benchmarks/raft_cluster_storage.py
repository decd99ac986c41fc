"""What the disks' share of a cluster of three leaves at best: their logs and states alone, against raw SQLite.

    python -m benchmarks.raft_cluster_storage [--rounds 7] [--seconds 1.5] [--delay-ms 3]

Three processes at once, each with a real log and a real state, and nothing between them: no consensus, no network, no
clients. Each writes bundles of 256 commands to its log, every commit a fixed time longer as in
`benchmarks.raft_cluster`, and applies one while the next is written. A cluster on this machine, on this storage,
cannot be faster than that. The baseline, in turn with it, is a group commit of as many bare rows in one process.
"one" is a single one of the three with the machine to itself: a group commit that applies what it commits.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from queue import Queue

from benchmarks.raft_cluster import Raw
from benchmarks.raft_cluster_node import GARBAGE, KEYS, REQUESTS, SWITCH_SECONDS
from benchmarks.raft_cluster_processes import NAMES
from conveyord.core.raft.bundles import pack
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Write
from conveyord.core.raft.types import Entry, HardState, Kind, make_entry
from conveyord.core.state.codec import Codec
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.proposing import SessionWriter
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.store import StateStore

BATCH = 256
AHEAD = 1  # entries that the log may have more than the state


def log_of_bundles() -> Iterator[Entry]:
    """Without an end: the first is the opening of the session."""
    writer, number = SessionWriter(Codec(MACHINE.commands), "bench"), 0
    entry = make_entry(bytes(8), 1, 1, Kind.COMMAND, writer.register())
    while True:
        yield entry
        numbers, number = range(number + 1, number + BATCH + 1), number + BATCH
        commands = [writer.command(1, at, max(1, at - BATCH), REQUESTS[at % KEYS]) for at in numbers]
        entry = make_entry(entry.chain, entry.index + 1, 1, Kind.BUNDLE, pack(commands))


def node(home: Path, seconds: float, delay_seconds: float) -> None:
    """A process: says when it is ready, and for each line that it is given how many entries a second it took."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    log = RaftLog(home / "raft" / "raft.db", node="n")
    log.found(Membership(frozenset("n")))
    store = StateStore.open(home / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS)
    log.load(0)
    state = Replica(store, Executor().execute)
    written = Queue[Entry | None](AHEAD)

    def apply_all() -> None:
        while (entry := written.get()) is not None:
            state.apply([entry])

    endless, token = log_of_bundles(), 0

    def write(entry: Entry) -> None:
        nonlocal token
        token += 1
        log.write(Write(token, HardState(1, None, 0), None, (entry,), None))

    write(opening := next(endless))
    state.apply([opening])
    print("ready", flush=True)
    for _ in sys.stdin:
        made = [next(endless) for _ in range(int(seconds * 150_000 / BATCH))]  # beforehand: clients do that
        applier = threading.Thread(target=apply_all)
        applier.start()
        begun = time.perf_counter()
        count = 0
        while time.perf_counter() < begun + seconds:
            write(made[count])
            time.sleep(delay_seconds)
            written.put(made[count])
            count += 1
        written.put(None)
        applier.join()
        endless = chain(made[count:], endless)
        print(BATCH * count / (time.perf_counter() - begun), flush=True)


def measured(rounds: int, seconds: float, delay_seconds: float) -> dict[str, float]:
    """What one process does alone, and the slowest of three at once: commands a second, and in baselines; medians."""
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
