"""Directories of nodes, as a daemon leaves them; snapshots of their state; and a node that is started on one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import trio

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Message, Write
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import HardState, NodeId, Options
from conveyord.core.state.codec import Codec
from conveyord.core.state.commands import ClusterForm, ConfigPut, MemberState, SessionOpen
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.proposing import Request, SessionWriter
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.ports import SnapshotSource
from conveyord.runtime.raft.proposer import Proposer
from conveyord.storage.backup.backups import Backups, open_backups
from conveyord.storage.backup.manifest import About, Manifest
from conveyord.storage.identity import Identity, keep_identity, take_identity
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.reading import StateView
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore
from tests.storage.state.rig import Log
from tests.unit.state.rig import join

VOTERS = Membership(frozenset({"a", "b", "c"}))
RESERVE_BYTES = 4096
TERM = 1  # of all entries that the rig makes
ABOUT = About("c1", "c1", 1, "0.7.0", "someone", 1_795_336_215_123)


def script(puts: int = 6) -> Log:
    """The life of a cluster of three: entries 1 to 6, and those of `puts` configuration entries."""
    log = Log()
    log.command(ClusterForm("c1", 1))
    for node in ("a", "b", "c"):
        log.command(join(node, 1))
    session = log.command(SessionOpen()).index
    log.command(MemberState("b", 1, "ready"), session, 1, 1)
    for number in range(2, 2 + puts):
        log.command(ConfigPut(f"k/{number}", b"value %d" % number), session, number, number)
    return log


def make_node(
    data_dir: Path, log: Log, *, node: str = "a", applied: int | None = None, compacted: int = 0, commit: int = 0
) -> Path:
    """What a node of the cluster leaves that has all of `log`, and applied some of it."""
    applied = len(log.entries) if applied is None else applied
    data_dir.mkdir(parents=True)
    keep_identity(data_dir, Identity(node, 3, "c1"))
    raft = RaftLog(data_dir / "raft" / "raft.db", node=node, reserve_bytes=RESERVE_BYTES)
    with closing(raft):
        raft.found(VOTERS)
        raft.write(Write(0, HardState(TERM, "a", commit), None, tuple(log.entries), None))
        with closing(StateStore.open(data_dir / "state", membership=VOTERS, migrations=MIGRATIONS)) as store:
            execute = Executor().execute
            if compacted:
                store.apply(log.entries[:compacted], execute)
                store.snapshots.take()
                raft.compact(store.mark, store.membership)
            store.apply(log.entries[compacted:applied], execute)
    with closing(RaftLog(data_dir / "raft" / "raft.db", node=node, reserve_bytes=RESERVE_BYTES)) as raft:
        raft.load(applied)  # moves the write-ahead log into the file
    return data_dir


@contextmanager
def snapshot_of(directory: Path, log: Log) -> Iterator[SnapshotFile]:
    """Of the state after all of `log`."""
    with closing(StateStore.open(directory, membership=VOTERS, migrations=MIGRATIONS)) as store:
        store.apply(log.entries, Executor().execute)
        store.snapshots.take()
        newest = store.snapshots.newest()
        assert newest is not None
        with newest:
            yield newest


def made(home: Path, log: Log | None = None, about: About = ABOUT) -> tuple[Backups, Manifest]:
    """A place with one backup."""
    backups = open_backups((home / "backups").as_uri(), {})
    with snapshot_of(home / "taken", log or script()) as snapshot:
        return backups, backups.create(snapshot, about)


# ------------------------------------------------------------------------------ a node at work


@dataclass
class Nobody:
    """The transport of a node that needs nobody. sent: what it told others all the same."""

    sent: list[Message] = field(default_factory=list)

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def flush(self) -> None:
        pass

    async def send_snapshot(self, peer: NodeId, term: int, snapshot: SnapshotSource) -> bool:
        raise AssertionError("to nobody")


@dataclass(frozen=True)
class Started:
    """What a node is and has that was started, led alone, and wrote `started`."""

    identity: Identity
    history: str
    cluster: str
    members: tuple[str, ...]
    rows: tuple[str, ...]
    standings: Mapping[str, str]
    config: Mapping[str, bytes]
    digest: bytes


def start(data_dir: Path) -> Started:
    """Start the node of a directory on real parts, wait until it leads, have it write, and stop it."""
    return trio.run(_start, data_dir)


async def _start(data_dir: Path) -> Started:
    identity = take_identity(data_dir)
    log = RaftLog(data_dir / "raft" / "raft.db", node=identity.node, reserve_bytes=RESERVE_BYTES)
    with closing(log):
        store = StateStore.open(data_dir / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS)
        with closing(store):
            options = Options(election_timeout_seconds=0.2, heartbeat_seconds=0.05)
            loaded = log.load(store.mark.index)
            node = RaftNode(identity.node, loaded, options, random=Random(7).random, now=trio.current_time())
            wire = Nobody()
            driver = Driver(node, log, Replica(store, Executor().execute), wire)
            async with trio.open_nursery() as nursery:
                await nursery.start(driver.run)
                with trio.fail_after(30):
                    await driver.until(lambda standing: standing.role is Role.LEADER)
                    writer = SessionWriter(Codec(MACHINE.commands), identity.node)
                    proposer = Proposer(driver, _forward, writer)
                    done = await proposer.propose(Request(ConfigPut("started", b"yes"), "someone", 1), seconds=30)
                    await driver.until(lambda standing: standing.applied >= done.index)  # it is answered before that
                nursery.cancel_scope.cancel()
            assert not wire.sent
            return _told(data_dir, identity, store)


async def _forward(leader: NodeId, data: bytes) -> object:
    raise AssertionError("it leads itself")


def _told(data_dir: Path, identity: Identity, store: StateStore) -> Started:
    with StateView(data_dir / "state") as view, store.reader() as reader:
        cluster, members = view.cluster().value, view.members().value
        rows = view.config_page(limit=1_000).value.items
        standings = dict(reader.connection.execute("SELECT node, standing FROM standings").fetchall())
        return Started(
            identity,
            cluster.history,
            cluster.id,
            tuple(member.node for member in members if member.standing is not None),
            tuple(member.node for member in members if member.row is not None),
            standings,
            {row.key: row.value for row in rows},
            store.state_digest(),
        )
