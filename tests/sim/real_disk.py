"""The same lives on the real storage: the log and the state of every server are SQLite files in memory.

What the simulated disk says lies on the platter goes to the real one as well, and whatever is read comes from there.
A crash leaves the files as they are, or the state's write-ahead log cut off somewhere behind what was synced.
"""

from __future__ import annotations

import shutil
from collections import deque
from pathlib import Path
from random import Random
from typing import Any

import msgpack

from conveyord.core.raft.membership import NOBODY, Membership
from conveyord.core.raft.messages import Write
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import Entry, Mark, size_of
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.store import StateStore
from tests.sim.disk import Disk, Snapshot
from tests.sim.faults import Faults
from tests.sim.machine import SESSIONS_MAX
from tests.sim.server import Server
from tests.sim.world import World
from tests.storage.kv_state import MIGRATIONS, KvState, crash_image, executed, registers

WINDOW_BYTES = 2_000  # so that nodes must fetch
RESERVE_BYTES = 4_096
CHUNK_BYTES = 1_500
COMPARED_EVERY = 20  # entries


class RealDisk(Disk):
    """packed: the files of snapshots, which travel by their marks."""

    def __init__(
        self, home: Path, name: str, membership: Membership, window: int, packed: dict[Mark, tuple[SnapshotInfo, bytes]]
    ) -> None:
        super().__init__(membership, window)
        self.name = name
        self._home, self._lives, self._packed = home / name, 0, packed
        self._founders = membership
        self._synced_bytes = 0
        self._directory = self._home / "0"
        self._directory.mkdir(parents=True)
        self._open()
        if membership != NOBODY:
            self._log.load(0)
            self._log.found(membership)

    def _open(self) -> None:
        self._log = RaftLog(self._directory / "log" / "raft.db", node=self.name, reserve_bytes=RESERVE_BYTES)
        self._store = StateStore.open(
            self._directory / "state",
            base=self._log.base,
            membership=self.platter.membership,
            migrations=MIGRATIONS,
            sessions_max=SESSIONS_MAX,
        )
        self._state = KvState()

    def close(self) -> None:
        """Let go of the files."""
        self._log.close()
        self._store.close()

    # -------------------------------------------------------------------------- what the simulated disk does

    def land(self) -> Write:
        write = self.cache[0]
        if write.install is not None:
            self._stage(write.install.mark)
        self._log.write(write)
        if write.install is not None:
            self._store.switch(write.install.mark)
            self._synced_bytes = 0
        return super().land()

    def _stage(self, mark: Mark) -> None:
        info, content = self._packed[mark]
        receiver = SnapshotReceiver(self._directory / "state", info, MIGRATIONS)
        while not receiver.is_complete:
            receiver.append(info.digest, receiver.offset, content[receiver.offset : receiver.offset + CHUNK_BYTES])
        receiver.stage()

    def apply(self, entry: Entry, machine: Any) -> None:
        """Apply an entry that the simulated state has applied, and compare the two now and then."""
        self._store.apply([entry], self._state.execute)
        assert (self._state.ran, self._state.repeated) == (machine.ran, machine.repeated), entry
        if entry.index % COMPARED_EVERY == 0:
            assert self._dump() == machine.dump()

    def save(self, snapshot: Snapshot, state: bytes, keep: int, members_at: Any) -> Mark | None:
        info = self._store.snapshots.take()
        assert info.mark == snapshot.mark
        self._synced_bytes = sum(wal.stat().st_size for wal in self._directory.rglob("state.db-wal"))
        found = self._store.snapshots.newest()
        assert found is not None
        with found:
            self._packed[info.mark] = info, found.read_chunk(0, info.file_bytes)
        base = super().save(snapshot, state, keep, members_at)
        if base is not None:
            self._log.compact(base, self.platter.membership)
        return base

    def flip(self, random: Random) -> bool:
        """Damage of real files is a matter of tests/storage: which bits matter is not known here."""
        return False

    def read(self, first: int, end: int, bytes_max: int) -> tuple[Entry, ...]:
        found = self._log.read(first, end, bytes_max)
        assert found == tuple(self.platter.entries[first - self.platter.base.index - 1 :][: len(found)])
        assert len(found) == 1 or size_of(found) <= bytes_max
        return found

    # -------------------------------------------------------------------------- how it ends and begins

    def crash(self, random: Random) -> None:
        super().crash(random)
        before, self._lives = self._directory, self._lives + 1
        self._directory = self._home / str(self._lives)
        crash_image(before, self._directory)
        wal = next(self._directory.rglob("state.db-wal"), None)
        if wal is not None and random.random() < 0.5:
            size = wal.stat().st_size
            with wal.open("r+b") as file:
                file.truncate(random.randint(min(self._synced_bytes, size), size))
        self.close()
        shutil.rmtree(before)
        self._open()
        self._synced_bytes = 0
        self.states = deque([self._dump()] if self._store.mark.index else [])

    def load(self, applied: int) -> Loaded:
        loaded = self._log.load(applied, window_bytes=WINDOW_BYTES)
        platter = self.platter
        assert (loaded.hard_state, loaded.base, loaded.membership) == (
            platter.hard_state,
            platter.base,
            platter.membership,
        )
        entries = list(loaded.entries)
        assert entries == platter.entries[len(platter.entries) - len(entries) :]
        assert (entries[-1].index if entries else loaded.base.index) == platter.last
        return loaded

    def _dump(self) -> bytes:
        """What `Machine.dump` gives for the same state."""
        with self._store.reader() as reader:
            values, count = registers(reader.connection), executed(reader.connection)
        sessions = self._store._sessions.dump()
        return bytes(msgpack.packb([self._store.mark.index, count, sorted(values.items()), sessions]))


class RealServer(Server):
    """A process whose state is real as well."""

    disk: RealDisk

    def _apply(self, entry: Entry) -> None:
        before = self.machine
        super()._apply(entry)
        self.disk.apply(entry, before)


class RealWorld(World):
    """A world of such servers. home: in memory, for their files."""

    def __init__(self, home: Path, seed: int, faults: Faults) -> None:
        super().__init__(seed, faults)
        self.home = home
        self.packed: dict[Mark, tuple[SnapshotInfo, bytes]] = {}

    def boot(self, name: str, membership: Membership = NOBODY) -> Server:
        disk = RealDisk(self.home, name, membership, self.faults.window, self.packed)
        self.servers[name] = RealServer(self, name, disk)
        return self.servers[name]

    def begin_anew(self, name: str) -> None:
        disk = self.servers[name].disk
        assert isinstance(disk, RealDisk)
        disk.close()
        super().begin_anew(name)
