"""Consensus without I/O: three nodes in one process that deliver to each other, against the unavoidable.

    python -m benchmarks.raft_core [--proposals 60000] [--rounds 9] [--entries 1000000] [--json PATH]

Both sides run on one core, interleaved; the figures are medians. The bare loop makes every entry with its checksum and
chain and appends it to a list, three times: what three replicas cannot do without. "per proposal" is the CPU of all
three nodes together. The second part is a follower that starts with nothing and catches up over a long log, which the
leader's disk (a generator here) hands out in pieces: what it and its leader hold at most is traced, and must depend on
the limits alone.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Applied, Fetch, Fetched, Message, Persisted, Propose, Receive, Tick
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import ENTRY_BYTES, ROOT_CHAIN, Entry, HardState, Kind, Mark, Options, make_entry

DATA = b"d" * 200
BATCHES = (1, 256)
NAMES = ("a", "b", "c")
OPTIONS = Options()


def bare(proposals: int) -> None:
    """What three replicas cannot do without."""
    for _ in NAMES:
        log, chain = list[Entry](), ROOT_CHAIN
        for index in range(1, proposals + 1):
            log.append(make_entry(chain, index, 1, Kind.COMMAND, DATA))
            chain = log[-1].chain


class Trio:
    """Nodes whose disks and network take no time. read: what stands for a disk that holds the older entries."""

    def __init__(self, loaded: dict[str, Loaded]) -> None:
        self.now = 0.0
        self.mail = deque[Message]()
        self.writes = deque[tuple[str, int]]()
        self.fetches = deque[tuple[str, Fetch]]()
        self.nodes = {
            name: RaftNode(name, loaded[name], OPTIONS, random=lambda: 0.5, now=0.0) for name in sorted(loaded)
        }

    def elect(self) -> RaftNode:
        leader = self.nodes["a"]
        self.now = leader.deadline
        leader.step(Tick(), self.now)
        self.take("a")
        self.settle()
        assert leader.state.role is Role.LEADER
        return leader

    def take(self, name: str) -> None:
        node = self.nodes[name]
        ready = node.ready()
        self.mail.extend(ready.messages)
        if ready.write is not None:
            self.writes.append((name, ready.write.token))
        for fetch in ready.fetches:
            self.fetches.append((name, fetch))
        if ready.committed:
            node.step(Applied(ready.committed[-1].index), self.now)
            self.take(name)

    def settle(self) -> None:
        nodes, mail, writes = self.nodes, self.mail, self.writes
        while mail or writes:
            while writes:
                name, token = writes.popleft()
                nodes[name].step(Persisted(token), self.now)
                self.take(name)
            while mail:
                message = mail.popleft()
                nodes[message.to].step(Receive(message), self.now)
                self.take(message.to)


def core(proposals: int, batch: int) -> None:
    """Propose in batches, each committed and applied by all three before the next."""
    everyone = Membership(frozenset(NAMES))
    trio = Trio({name: Loaded(membership=everyone) for name in NAMES})
    leader = trio.elect()
    commands = tuple((number, DATA) for number in range(batch))
    for _ in range(proposals // batch):
        leader.step(Propose(commands), trio.now)
        trio.take("a")
        trio.settle()
    wanted = proposals // batch * batch + 1
    assert {node.state.applied for node in trio.nodes.values()} == {wanted}


# ------------------------------------------------------------------------------ catching up


def generated(entries: int) -> Iterator[Entry]:
    """A log of one term, without holding it."""
    chain = ROOT_CHAIN
    for index in range(1, entries + 1):
        entry = make_entry(chain, index, 1, Kind.COMMAND, b"%0200d" % index)  # bytes of its own, as read from a disk
        chain = entry.chain
        yield entry


def catch_up(entries: int) -> dict[str, float]:
    """A follower with nothing and a leader with `entries` entries, all but the last on its disk only.

    The follower answers only when nothing more may be sent to it, so the limits in flight are reached every time.
    """
    everyone = Membership(frozenset("ab"))
    last = deque(generated(entries), maxlen=1)[0]
    full = Loaded(HardState(1, None, entries), Mark(), everyone, (), ((1, 1),), (last,), entries)
    trio = Trio({"a": full, "b": Loaded(membership=everyone)})
    disk = generated(entries)
    tracemalloc.start()
    started, fetched = time.process_time(), 0
    leader, follower = trio.elect(), trio.nodes["b"]
    while follower.state.applied <= entries:
        while trio.fetches:
            name, fetch = trio.fetches.popleft()
            room = fetch.bytes_max // (len(DATA) + ENTRY_BYTES)
            found = tuple(islice(disk, min(room, fetch.end - fetch.first)))
            assert found[0].index == fetch.first, (found[0].index, fetch)
            leader.step(Fetched(fetch.peer, fetch.first, found), trio.now)
            trio.take(name)
            fetched += 1
        trio.settle()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {
        "entries": entries,
        "fetches": fetched,
        "traced_peak_mib": round(peak / 2**20, 1),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10),
        "cpu_seconds_traced": round(time.process_time() - started, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proposals", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--entries", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    sides: dict[str, Callable[[], None]] = {"bare": partial(bare, arguments.proposals)}
    sides |= {f"batch_{batch}": partial(core, arguments.proposals, batch) for batch in BATCHES}
    times: dict[str, list[float]] = {}
    for _ in range(arguments.rounds):
        for name, run in sides.items():
            cpu = time.process_time()
            run()
            times.setdefault(name, []).append(time.process_time() - cpu)
    figures: dict[str, object] = {"proposals": arguments.proposals, "rounds": arguments.rounds}
    for name, runs in times.items():
        figures[f"{name}_per_second"] = round(arguments.proposals / statistics.median(runs))
    for batch in BATCHES:
        pairs = zip(times["bare"], times[f"batch_{batch}"], strict=True)
        figures[f"batch_{batch}_ratio_to_bare"] = round(statistics.median(bare / ours for bare, ours in pairs), 3)
    figures["catch_up"] = [catch_up(entries) for entries in (arguments.entries // 10, arguments.entries)]
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
