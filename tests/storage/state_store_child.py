"""A node with a state store, and a leader that sends it snapshots, in one process. Run by test_state_store_crashes.py.

    python state_store_child.py HOME SEED [MOUNT SECONDS [careless]]

Lives until it is killed, until the power is cut, or until the log of kv_state.py is at its end. Prints `applied N` when
an entry is applied, and `base N` when the log would begin after it. `careless` leaves the state out of what is synced
when a snapshot is taken, by SQLite or by us, which shows that the power cut takes what was not.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from random import Random

from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import Mark
from conveyord.storage.disk import write_file
from conveyord.storage.state_store import snapshots
from conveyord.storage.state_store import store as store_module
from conveyord.storage.state_store.connections import connect_to_write
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.schema import Migration
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore
from tests.storage.kv_state import LOG_ENTRIES, MIGRATIONS, advance, check_state, mark_of, open_store
from tests.storage.power_cut_child import cut

CHUNK_BYTES = 700


class Follower:
    """A node whose log is nothing but the place where it begins, in a file beside the state."""

    def __init__(self, home: Path) -> None:
        self.directory, self._base = home / "state", home / "base"
        self.base = mark_of(int(self._base.read_text()) if self._base.exists() else 0)
        self.store = open_store(self.directory, base=self.base)

    def compact(self, base: Mark) -> None:
        """What `RaftLog` does durably when it is compacted, and when it installs a snapshot."""
        write_file(self._base, b"%d" % base.index)
        self.base = base

    def take(self) -> SnapshotInfo:
        """A snapshot, and the log is cut behind it."""
        info = self.store.snapshots.take()
        self.compact(info.mark)
        return info

    def receive(self, snapshot: SnapshotFile, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        """Everything from the offer to the switch."""
        offer = snapshot.info
        with closing(SnapshotReceiver(self.directory, offer, MIGRATIONS)) as receiver:
            while not receiver.is_complete:
                data = snapshot.read_chunk(receiver.offset, chunk_bytes)
                receiver.append(offer.digest, receiver.offset, data)
            receiver.stage()
        self.compact(offer.mark)
        self.store.switch(offer.mark)

    def close(self) -> None:
        self.store.close()


def live(home: Path, random: Random, say: Callable[[str], None]) -> None:
    """Go on from whatever is in `home`."""
    follower, leader = Follower(home), open_store(home / "leader")
    check_state(follower.store)
    say(f"applied {follower.store.mark.index}")
    while follower.store.mark.index < LOG_ENTRIES:
        _one_act(follower, leader, random)
        say(f"base {follower.base.index}")
        say(f"applied {follower.store.mark.index}")


def _one_act(follower: Follower, leader: StateStore, random: Random) -> None:
    at = follower.store.mark.index
    draw = random.random()
    if draw < 0.7:
        advance(follower.store, min(at + random.randint(1, 20), LOG_ENTRIES), batch=random.randint(1, 8))
    elif draw < 0.85 and at:
        follower.take()
    else:
        advance(leader, min(at + random.randint(1, 60), LOG_ENTRIES))
        leader.snapshots.take(keep=1)
        newest = leader.snapshots.newest()
        assert newest is not None
        with newest:
            if newest.info.mark.index > at:
                follower.receive(newest)


def _connect_carelessly(path: Path, migrations: Sequence[Migration]) -> sqlite3.Connection:
    connection = connect_to_write(path, migrations)
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def main() -> None:
    home, seed, *power = sys.argv[1:]
    if power[2:]:
        snapshots._sync = lambda *_: None
        store_module.connect_to_write = _connect_carelessly
    if power:
        threading.Timer(float(power[1]), cut, [power[0]]).start()
    live(Path(home), Random(int(seed)), lambda line: print(line, flush=True))


if __name__ == "__main__":
    main()
