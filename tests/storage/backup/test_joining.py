"""The others come back to a restored node: with nothing, and get all that it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random

import trio

from conveyord.core.raft.codec import decode, encode
from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.raft.messages import Message
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import NodeId, Options
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.ports import SnapshotSource
from conveyord.storage.backup.restoring import restore
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.store import StateStore
from tests.runtime.raft.rig import asked, reached
from tests.storage.backup.rig import RESERVE_BYTES, made

Up = dict[NodeId, tuple[Driver, StateStore, Path]]


class Wire:
    """The transport between nodes of this process."""

    def __init__(self, up: Up, name: NodeId) -> None:
        self._up, self._name = up, name

    def send(self, message: Message) -> None:
        if message.to in self._up:
            self._up[message.to][0].receive(decode(encode(message)))

    def flush(self) -> None:
        pass

    async def send_snapshot(self, peer: NodeId, term: int, snapshot: SnapshotSource) -> bool:
        driver, _, home = self._up[peer]
        info = snapshot.info
        assert isinstance(info, SnapshotInfo)
        receiver = SnapshotReceiver(home / "state", info, MIGRATIONS)
        while not receiver.is_complete:
            receiver.append(info.digest, receiver.offset, snapshot.read_chunk(receiver.offset, 10_000))
        receiver.stage()
        driver.snapshot_received(self._name, term, info.mark, info.membership)
        return True


@asynccontextmanager
async def node(up: Up, name: NodeId, home: Path) -> AsyncIterator[Driver]:
    log = RaftLog(home / "raft" / "raft.db", node=name, reserve_bytes=RESERVE_BYTES)
    store = StateStore.open(home / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS)
    options = Options(election_timeout_seconds=0.2, heartbeat_seconds=0.05)
    raft = RaftNode(name, log.load(store.mark.index), options, random=Random(name).random, now=trio.current_time())
    driver = Driver(raft, log, Replica(store, Executor().execute), Wire(up, name))
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(driver.run)
            up[name] = driver, store, home
            yield driver
            nursery.cancel_scope.cancel()
    finally:
        del up[name]
        store.close()
        log.close()


async def test_a_node_with_an_empty_directory_joins_a_restored_one(tmp_path: Path) -> None:
    """Under the name of one of before. It hears only of members of now, and has the same state."""
    backups, manifest = made(tmp_path)
    restore(
        backups, manifest.id, tmp_path / "a", node="a", new_history="h1", expect_cluster="c1", force=False,
        actor="someone", at_ms=1,
    )  # fmt: skip
    up: Up = {}
    async with node(up, "a", tmp_path / "a") as first, node(up, "b", tmp_path / "b") as second:
        await reached(first, lambda standing: standing.role is Role.LEADER)
        for standing in (Standing.LEARNER, Standing.VOTER):
            with trio.fail_after(30):
                while True:
                    outcome = await asked(partial(first.change_members, [Change("b", standing)]))
                    if type(outcome).__name__ == "Done":
                        break
                    await trio.sleep(0.05)  # it must have caught up before it gets a vote
        applied = first.standing.applied
        await reached(second, lambda standing: standing.applied >= applied)
        await reached(first, lambda standing: not first.membership.is_joint and standing.applied >= applied)
        with trio.fail_after(30):
            while up["a"][1].mark != up["b"][1].mark:
                await trio.sleep(0.02)
        assert first.membership == second.membership == Membership(frozenset({"a", "b"}))
        assert up["a"][1].state_digest() == up["b"][1].state_digest()
        assert up["b"][1].membership == Membership(frozenset({"a", "b"}))
    assert (tmp_path / "b" / "state" / "generation-00000002").is_dir(), "it got a snapshot"
