"""Backups against copying the file of the state by the kernel, with a sync.

    python -m benchmarks.backup [--bytes 80000000] [--rounds 7] [--json PATH]

A state of configuration entries of `--bytes` is made, as a cluster of three would have it: with its events and the room
that SQLite leaves, its file has 2.4 times that. Then in each round, one after the other: a copy of the file with a
sync; a snapshot that is taken and stored as a backup in a directory; a validation; a restore into an empty data
directory; a recovery of a node that has this state. The ratio is the seconds of ours by those of the copy in the same
round, the median over the rounds: 1 is as fast as the copy.

Disk: some twelve times `--bytes` in a directory of its own below TMPDIR, removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from random import Random

from benchmarks.raft_snapshots import body
from conveyord.core.raft.membership import Membership, encode
from conveyord.core.raft.messages import Install, Write
from conveyord.core.raft.types import BEGINNING, Entry, HardState, Kind, make_entry
from conveyord.core.state.codec import Codec
from conveyord.core.state.commands import ClusterForm, Command, ConfigPut, Envelope, SessionOpen
from conveyord.core.state.machine import MACHINE
from conveyord.storage.backup.backups import Backups, open_backups
from conveyord.storage.backup.manifest import About
from conveyord.storage.backup.recovering import recover
from conveyord.storage.backup.restoring import restore, validate
from conveyord.storage.identity import Identity, keep_identity
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.store import StateStore

VALUE_BYTES = 2_200
BATCH = 500
MEMBERS = Membership(frozenset({"a", "b", "c"}))


def make_node(data_dir: Path, size: int) -> None:
    """A node of a cluster of three, whose state has so many bytes of entries, and whose log begins behind them."""
    random, codec, chain, entries = Random(7), Codec(MACHINE.commands), BEGINNING.chain, list[Entry]()
    executor = Executor()

    def add(kind: Kind, data: bytes) -> None:
        nonlocal chain
        entries.append(make_entry(chain, index + 1, 1, kind, data))
        chain = entries[-1].chain

    def command(what: Command, session: int, number: int) -> bytes:
        return codec.encode(Envelope(session, number, number, 1_000, "someone", what))

    count = size // VALUE_BYTES
    with closing(StateStore.open(data_dir / "state", membership=MEMBERS, migrations=MIGRATIONS)) as store:
        for index in range(count + 3):
            match index:
                case 0:
                    add(Kind.COMMAND, command(ClusterForm("c1", 1), 0, 0))
                case 1:
                    add(Kind.COMMAND, command(SessionOpen(), 0, 0))
                case 2:
                    add(Kind.MEMBERSHIP, encode(MEMBERS))
                case _:
                    value = b"\n".join(body(random, index * 9 + part) for part in range(5))[:VALUE_BYTES]
                    add(Kind.COMMAND, command(ConfigPut(f"k/{index}", value), 2, index))
            if len(entries) >= BATCH or index == count + 2:
                store.apply(entries, executor.execute)
                entries.clear()
        store.snapshots.take()  # moves the write-ahead log into the file
        mark = store.mark
    with closing(RaftLog(data_dir / "raft" / "raft.db", node="a")) as log:
        log.load(0)
        log.write(Write(0, HardState(1, "a", mark.index), None, (), Install(mark, MEMBERS)))
    keep_identity(data_dir, Identity("a", 1, "c1"))


def seconds(act: Callable[[], object]) -> float:
    began = time.perf_counter()
    act()
    return time.perf_counter() - began


def copied(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as file:
        os.fsync(file.fileno())


class Round:
    """What is timed once."""

    def __init__(self, home: Path, node: Path, number: int) -> None:
        self.home, self.node, self.number = home, node, number
        (self.state,) = node.glob("state/generation-*/state.db")
        self.backups: Backups = open_backups((home / "backups").as_uri(), {})
        self.id = ""

    def create(self) -> None:
        """A snapshot, and a backup of it."""
        with closing(StateStore.open(self.node / "state", migrations=MIGRATIONS)) as store:
            for path in self.node.glob("state/snapshots/*"):
                path.unlink()
            store.snapshots.take()
            newest = store.snapshots.newest()
            assert newest is not None
            with newest:
                about = About("c1", "c1", 1, "0", "someone", 1_795_336_215_000 + self.number)
                self.id = self.backups.create(newest, about).id

    def validate(self) -> None:
        with tempfile.TemporaryDirectory(dir=self.home) as scratch:
            validate(self.backups, self.id, Path(scratch), expect_cluster="c1", data_dir=None, force=False)

    def restore(self) -> None:
        restore(
            self.backups, self.id, self.home / "restored", node="a", new_history="h", expect_cluster="c1",
            force=False, actor="someone", at_ms=1,
        )  # fmt: skip

    def recover(self) -> None:
        recover(self.home / "recovered", "h", actor="someone", at_ms=1)

    def run(self) -> dict[str, float]:
        took = {"copy": seconds(lambda: copied(self.state, self.home / "copy"))}
        (self.home / "copy").unlink()
        for name in ("create", "validate", "restore"):
            took[name] = seconds(getattr(self, name))
        shutil.rmtree(self.home / "restored")
        shutil.copytree(self.node, self.home / "recovered")
        took["recover"] = seconds(self.recover)
        shutil.rmtree(self.home / "recovered")
        return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=80_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        make_node(home / "node", given.bytes)
        made_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        rounds = [Round(home, home / "node", number).run() for number in range(given.rounds)]
        (state,) = (home / "node").glob("state/generation-*/state.db")
        snapshot = max((home / "backups").glob("*.snapshot"))
        result: dict[str, object] = {
            "state_bytes": state.stat().st_size,
            "file_bytes": snapshot.stat().st_size,
            "rss_grown_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - made_rss) // 1024,
        }
    for what in rounds[0]:
        took = statistics.median(one[what] for one in rounds)
        ratio = statistics.median(one[what] / one["copy"] for one in rounds)
        result[what] = {"seconds": round(took, 3), "by_copy": round(ratio, 2)}
        print(f"{what:<9} {took:7.3f} s   {ratio:5.2f} x copy")
    print(f"state {result['state_bytes']} bytes, file {result['file_bytes']}, memory +{result['rss_grown_mib']} MiB")
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
