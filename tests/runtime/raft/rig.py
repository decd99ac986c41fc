"""Clusters in one process: real drivers on real logs and states, on wires that can be cut."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import trio

from conveyord.core.errors import ConveyordError, Retryable
from conveyord.core.raft.codec import decode, encode
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Message
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import NodeId, Options
from conveyord.runtime.raft.driver import Driver, Standing
from conveyord.runtime.raft.outcomes import Done, Outcome
from conveyord.runtime.raft.ports import LogPort, SnapshotSource, StatePort
from conveyord.runtime.raft.snapshots import Policy
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.store import StateStore
from tests.sim.machine import command, register
from tests.storage.kv_state import MIGRATIONS, SESSIONS_MAX, KvState, registers

OPTIONS = Options(election_timeout_seconds=0.5, heartbeat_seconds=0.1)
WAIT_SECONDS = 30.0
CHUNK_BYTES = 10_000


@dataclass
class Wires:
    """cuts: pairs (from, to) whose messages are lost. sent: how many left."""

    members: dict[NodeId, Member] = field(default_factory=dict)
    cuts: set[tuple[NodeId, NodeId]] = field(default_factory=set)
    sent: int = 0

    def cut_off(self, *names: NodeId) -> None:
        """Between these and all others nothing passes."""
        others = self.members.keys() - set(names)
        self.cuts |= {pair for name in names for other in others for pair in ((name, other), (other, name))}


@dataclass
class Wire:
    """The transport of one node."""

    name: NodeId
    wires: Wires

    def _peer(self, peer: NodeId) -> Member | None:
        found = self.wires.members.get(peer)
        return None if found is None or found.driver is None or (self.name, peer) in self.wires.cuts else found

    def send(self, message: Message) -> None:
        self.wires.sent += 1
        peer = self._peer(message.to)
        if peer is not None and peer.driver is not None:
            peer.driver.receive(decode(encode(message)))

    def flush(self) -> None:
        pass

    async def send_snapshot(self, peer: NodeId, term: int, snapshot: SnapshotSource) -> bool:
        member, info = self._peer(peer), snapshot.info
        assert isinstance(info, SnapshotInfo)
        if member is None:
            raise Retryable(f"{peer} is not there")
        receiver = SnapshotReceiver(member.home / "state", info, MIGRATIONS)
        while not receiver.is_complete:
            receiver.append(info.digest, receiver.offset, snapshot.read_chunk(receiver.offset, CHUNK_BYTES))
            await trio.lowlevel.checkpoint()
        await trio.to_thread.run_sync(receiver.stage)
        if member.driver is None:
            return False
        member.driver.snapshot_received(self.name, term, info.mark, info.membership)
        return True


@dataclass(eq=False)
class Member:
    """One node, which can be stopped and started on what it has. log_of, state_of: put something before the real ones.

    trouble: what ended it.
    """

    name: NodeId
    home: Path
    wires: Wires
    founders: Membership | None
    policy: Policy
    log_of: Callable[[LogPort], LogPort] = lambda log: log
    state_of: Callable[[StatePort], StatePort] = lambda state: state
    driver: Driver | None = None
    store: StateStore | None = None
    trouble: BaseException | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.scope, self.ended, self.trouble = trio.CancelScope(), trio.Event(), None
        log = RaftLog(self.home / "raft" / "raft.db", node=self.name, reserve_bytes=4096)
        try:
            if self.founders is not None:
                log.found(self.founders)
                self.founders = None
            self.store = StateStore.open(
                self.home / "state",
                base=log.base,
                membership=log.membership,
                migrations=MIGRATIONS,
                sessions_max=SESSIONS_MAX,
            )
            loaded = log.load(self.store.mark.index)
            node = RaftNode(self.name, loaded, OPTIONS, random=Random(self.name).random, now=trio.current_time())
            state = self.state_of(Replica(self.store, KvState().execute))
            with self.scope:
                await self.drive(node, self.log_of(log), state, task_status)
        except ConveyordError as error:
            self.trouble = error
        finally:
            self.driver = None
            log.close()
            if self.store is not None:
                self.store.close()
            self.ended.set()

    async def drive(self, node: RaftNode, log: LogPort, state: StatePort, task_status: trio.TaskStatus[None]) -> None:
        """Take part until cancelled."""
        self.driver = Driver(node, log, state, Wire(self.name, self.wires), self.policy)
        await self.driver.run(task_status=task_status)

    async def stop(self) -> None:
        self.scope.cancel()
        await self.ended.wait()

    @property
    def up(self) -> Driver:
        assert self.driver is not None
        return self.driver

    def values(self) -> dict[int, int]:
        assert self.store is not None
        with self.store.reader() as reader:
            return registers(reader.connection)


@dataclass(eq=False)
class Rig:
    home: Path
    nursery: trio.Nursery
    policy: Policy
    wires: Wires = field(default_factory=Wires)

    def add(
        self, name: NodeId, founders: Membership | None = None, *, kind: type[Member] = Member, **more: Any
    ) -> Member:
        member = kind(name, self.home / name, self.wires, founders, self.policy, **more)
        self.wires.members[name] = member
        return member

    async def start(self, *members: Member) -> None:
        for member in members:
            await self.nursery.start(member.run)

    @property
    def up(self) -> list[Driver]:
        return [member.driver for member in self.wires.members.values() if member.driver is not None]

    async def leader(self, *, but: NodeId | None = None) -> Driver:
        """Who leads, once one of those that are up does and has committed something in its term."""
        with trio.fail_after(WAIT_SECONDS):
            while True:
                for driver in self.up:
                    if driver.standing.role is Role.LEADER and driver.node_id != but:
                        try:
                            await driver.read_index()
                        except Retryable:
                            continue
                        return driver
                await trio.sleep(0.02)

    async def agree(self, values: dict[int, int]) -> None:
        """Wait until all that are up have these."""
        with trio.fail_after(WAIT_SECONDS):
            for member in self.wires.members.values():
                while member.driver is not None and member.values() != values:
                    await trio.sleep(0.02)


@asynccontextmanager
async def cluster(home: Path, *names: NodeId, policy: Policy | None = None, **more: Any) -> AsyncIterator[Rig]:
    """Nodes that founded a cluster, and are up."""
    async with trio.open_nursery() as nursery:
        rig = Rig(home, nursery, policy or Policy())
        founders = Membership(frozenset(names))
        await rig.start(*(rig.add(name, founders, **more) for name in names))
        yield rig
        for member in rig.wires.members.values():
            if member.driver is not None:
                await member.stop()


async def asked(ask: Callable[[Callable[[Outcome], None]], int]) -> Outcome:
    """The outcome of what is asked."""
    send, receive = trio.open_memory_channel[Outcome](1)
    ask(send.send_nowait)
    with trio.fail_after(WAIT_SECONDS):
        return await receive.receive()


async def proposed(driver: Driver, data: bytes, about: str | None = None) -> Outcome:
    return await asked(partial(driver.propose, data, about=about))


async def opened(driver: Driver) -> int:
    """A new session."""
    outcome = await proposed(driver, register())
    assert isinstance(outcome, Done), outcome
    return outcome.index


async def written(driver: Driver, session: int, number: int, key: int, value: int) -> Outcome:
    return await proposed(driver, command(session, number, number, ("write", key, value)), str(key))


async def reached(driver: Driver, holds: Callable[[Standing], bool]) -> Standing:
    with trio.fail_after(WAIT_SECONDS):
        return await driver.until(holds)


async def left_behind(rig: Rig, count: int) -> tuple[Member, Driver, int]:
    """A member that is stopped, and lacks what the others have compacted: only a snapshot takes it further. With the
    leader, and a session that has written 1 to `count` to register 1 since.
    """
    leader = await rig.leader()
    late = next(member for member in rig.wires.members.values() if member.up is not leader)
    await late.stop()
    session = await opened(leader)
    for number in range(1, count + 1):
        assert isinstance(await written(leader, session, number, 1, number), Done)
    await compacted(leader, 100)
    return late, leader, session


async def compacted(driver: Driver, index: int) -> None:
    """Wait until its log begins there or later."""
    with trio.fail_after(WAIT_SECONDS):
        while driver._node.state.log.base.index < index:
            await trio.sleep(0.01)
