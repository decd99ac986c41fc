"""A node's part in a cluster: its log, its state, and the tasks and threads that run them.

async with opened(settings, identity, side, founders) as member:
    await nursery.start(member.run)
    await member.propose(command, actor=..., seconds=...)
    await member.read(lambda view: view.config("key"))
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from random import Random, SystemRandom
from typing import TypeVar

import trio

from conveyord.cluster.ports import CommandRefused, Committed
from conveyord.cluster.reading import Reader
from conveyord.cluster.settings import NodeSettings
from conveyord.cluster.watching import WatchedState, Watches
from conveyord.core.errors import OutcomeUnknown, Refused, Retryable, StorageFull
from conveyord.core.raft.membership import NOBODY, Change, Membership
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import NodeId
from conveyord.core.state.codec import Codec, decode_reply
from conveyord.core.state.commands import Command
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.proposing import Request, SessionWriter
from conveyord.core.state.replies import PROTOCOL, No
from conveyord.runtime.nurseries import unwrapped
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.network import Network
from conveyord.runtime.raft.outcomes import Done, Outcome
from conveyord.runtime.raft.proposer import Proposer
from conveyord.runtime.rpc.greeting import Side
from conveyord.runtime.rpc.handlers import Incoming
from conveyord.storage.identity import Identity, keep_identity
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.reading import Answer, StateView
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore

T = TypeVar("T")
READ_SECONDS = 10.0  # for a leader to confirm a read, elections on the way included
CLOSE_SECONDS = 10.0
TRANSFER_TIMEOUTS = 4  # in election timeouts: a leader gives it up after one, and another one may have to be found
SETTLE_SECONDS = 0.05  # between two looks at whether a change of members is complete
NODE_ROLE = "node"
"""What `Admission.role` of another node is."""


@dataclass(slots=True)
class _Opened:
    """What is on this node's disk, opened."""

    log: RaftLog
    store: StateStore
    loaded: Loaded


def _open(settings: NodeSettings, identity: Identity, founders: frozenset[NodeId]) -> _Opened:
    """Blocking. founders: with whom a log that holds nothing begins; nobody for one that is told by others."""
    path, node = settings.data_dir / "raft" / "raft.db", identity.node
    if identity.has_log and not path.exists():
        raise Refused(
            f"{path} is missing, and node {node} has had it: votes and entries that others count on are lost with it; "
            "put it back, or remove the node from its cluster and start it on an empty data directory"
        )
    log = RaftLog(path, node=node)
    try:
        keep_identity(settings.data_dir, replace(identity, has_log=True))
        if founders and log.membership == NOBODY:
            log.found(Membership(founders))
        store = StateStore.open(
            settings.data_dir / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS
        )
        try:
            return _Opened(log, store, log.load(store.mark.index))
        except BaseException:  # whatever it is, cancellation included: nothing is held, and it goes on
            store.close()
            raise
    except BaseException:  # likewise
        log.close()
        raise


@asynccontextmanager
async def opened(
    settings: NodeSettings, identity: Identity, side: Side, founders: frozenset[NodeId]
) -> AsyncIterator[Member]:
    """The member whose log and state are in the data directory; they are let go of at the end.

    founders: the first voters of the cluster, if this node is one of them; else nobody. Raises what the log and the
    state raise: Refused, Corrupt, StorageFull, Retryable.
    """
    found = await trio.to_thread.run_sync(_open, settings, identity, founders)
    try:
        yield Member(settings, identity, side, found)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):  # a disk that hangs must not keep the process
            await trio.to_thread.run_sync(_close, found, abandon_on_cancel=True)


def _close(found: _Opened) -> None:
    try:
        found.store.close()
    finally:
        found.log.close()


class Member:
    """For the trio thread. Use `opened`."""

    def __init__(self, settings: NodeSettings, identity: Identity, side: Side, found: _Opened) -> None:
        self._directory = settings.data_dir / "state"
        self._store = found.store
        self._cluster = identity.cluster
        self._timeout_seconds = settings.election_timeout_seconds
        self._codec = Codec(MACHINE.commands)
        node, random = identity.node, SystemRandom()
        state = WatchedState(found.store)
        self.network = Network(
            node,
            side,
            Random(),  # noqa: S311 - for the times of attempts
            self._receiver,
            tls=settings.tls,
            may_speak=self._may_speak,
            vet=self._vet,
        )
        raft = RaftNode(node, found.loaded, settings.options, random=random.random, now=trio.current_time())
        self.driver = Driver(raft, found.log, state, self.network, settings.policy)
        self._proposer = Proposer(self.driver, self.network, SessionWriter(self._codec, node))
        self._reader = Reader(self._directory, lambda: found.store.generation)
        self.watches = Watches(self._reader, state.take_touched)
        self.protocol = 1
        """Of the cluster: commands of a newer one must not get into the log."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. What the log or the state raises ends the process (see `Driver`)."""
        with unwrapped():
            async with trio.open_nursery() as nursery:
                await nursery.start(self._reader.run)
                nursery.start_soon(self.network.run, self.driver)
                await nursery.start(self.driver.run)
                await nursery.start(self.watches.run, self.driver)
                task_status.started()

    # ------------------------------------------------------------------------------ what can be asked

    async def read(self, question: Callable[[StateView], Answer[T]], *, stale: bool = False) -> Answer[T]:
        """Ask the state. Linearizable unless `stale`; Raises Retryable if no leader confirms it in time."""
        if not stale:
            await self._confirm()
        return await self._reader.ask(question)

    async def _confirm(self) -> None:
        with trio.move_on_after(READ_SECONDS):
            while True:
                with suppress(Retryable):
                    await self.driver.read_index()
                    return
                await self.driver.until(lambda now: now.leader is not None)
                await trio.sleep(SETTLE_SECONDS)
        raise Retryable(
            f"no leader confirmed this read within {READ_SECONDS:g} s; ask again, or ask for a stale answer"
        )

    async def propose(self, command: Command, *, actor: str, seconds: float) -> Committed:
        """See `Cluster.propose`."""
        self._check_protocol(command)
        if self.driver.trouble and self.driver.membership.electorate == {self.driver.node_id}:
            raise StorageFull(f"{self.driver.trouble}; no other node votes, so nothing can be written until then")
        request = Request(command, actor, time.time_ns() // 1_000_000)
        done = await self._proposer.propose(request, seconds=seconds)
        reply = decode_reply(done.reply)
        if isinstance(reply, No):
            raise CommandRefused(reply.code, reply.message)
        return Committed(done.index, reply.value)

    async def change_members(self, changes: Sequence[Change], *, seconds: float) -> int:
        """See `Cluster.change_members`."""
        send, receive = trio.open_memory_channel[Outcome](1)
        with trio.move_on_after(seconds):
            number = self.driver.change_members(changes, send.send_nowait)
            try:
                outcome = await receive.receive()
            finally:
                self.driver.forget(number)
            if not isinstance(outcome, Done):
                raise Retryable(f"the members were not changed: {outcome.reason}")
            await self.driver.until(lambda _: not self.driver.membership.is_joint)
            return outcome.index
        raise OutcomeUnknown(f"the members were not changed within {seconds:g} s, but may be yet; look again")

    async def transfer(self, to: NodeId | None, *, seconds: float) -> NodeId:
        """See `Cluster.transfer`."""
        if self.driver.standing.role is not Role.LEADER:
            raise Retryable("this node does not lead, so it has nothing to hand over; ask the leader")
        if to is not None and to not in self.driver.membership.voters:
            raise Refused(f"node {to} does not vote, so it cannot lead; promote it first")
        if to == self.driver.node_id:
            return to
        timeout = self._timeout_seconds
        silent = [
            one.heard_seconds for one in self.driver.peers() if one.node == to and one.heard_seconds > 3 * timeout
        ]
        if silent:
            raise Refused(f"node {to} has not answered for {silent[0]:.1f} s, so it cannot lead; name another one")
        self.driver.transfer(to)
        with trio.move_on_after(min(seconds, TRANSFER_TIMEOUTS * timeout)):
            standing = await self.driver.until(lambda now: now.leader is not None and now.role is not Role.LEADER)
            assert standing.leader is not None
            return standing.leader
        raise Retryable("leadership was not handed over in time; this node leads on, try again or name another one")

    async def take_snapshot(self) -> SnapshotFile:
        """A new snapshot of the state as this node has it. It is not cancelled, so that no file is left open."""
        return await trio.to_thread.run_sync(self._store.snapshots.take_open)

    # ------------------------------------------------------------------------------ below

    def _receiver(self, info: SnapshotInfo) -> SnapshotReceiver:
        return SnapshotReceiver(self._directory, info, MIGRATIONS)

    def _may_speak(self, incoming: Incoming) -> bool:
        """Raft is for nodes that know that they are in this cluster: one that seeks one yet has none of its data."""
        caller = incoming.caller
        return caller.admission.role == NODE_ROLE and caller.hello.cluster == self._cluster

    def _vet(self, data: bytes) -> str | None:
        """Raise Refused for what must not get into the log: a command that some member does not know would stop it."""
        command: Command = self._codec.decode(data).command
        self._check_protocol(command)
        return command.about

    def _check_protocol(self, command: Command) -> None:
        if command.protocol > self.protocol:
            raise CommandRefused(
                PROTOCOL,
                f"{command.operation()} needs protocol {command.protocol}, the cluster speaks {self.protocol}; upgrade "
                "all members, then raise it",
            )
