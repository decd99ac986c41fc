"""A node: it listens, comes into a cluster, takes part in it, and leaves it in good order. A service (`supervisor.py`).

| phase | on | becomes |
|---|---|---|
| seeking | a cluster is founded with it, or lets it in | member |
| member | `drain` is set | draining: hands leadership over, says that it is down, and ends |
| member | the cluster does not know it any more | ended, by `Removed` |
| member | its log, state or disk fails; another process has its id | ended, by an error |
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import structlog
import trio

from conveyord.cluster import meeting
from conveyord.cluster.founding_file import load_promises
from conveyord.cluster.meeting import Joined, Joining, ask_at, decoded
from conveyord.cluster.member import NODE_ROLE, Member, opened
from conveyord.cluster.ports import CommandRefused, Committed, PeerStatus
from conveyord.cluster.presence import Presence
from conveyord.cluster.seeking import Seeking
from conveyord.cluster.settings import NodeSettings
from conveyord.core.errors import ConveyordError, Refused, Retryable
from conveyord.core.hosts import is_loopback
from conveyord.core.planning.founding import Introduction
from conveyord.core.raft.membership import Change
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import NodeId
from conveyord.core.state.commands import Command
from conveyord.core.state.members import LEFT
from conveyord.core.wire.frames import Body
from conveyord.core.wire.heads import Hello
from conveyord.runtime.nurseries import unwrapped
from conveyord.runtime.raft.driver import Standing
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Admission, Handlers, Incoming
from conveyord.runtime.rpc.handlers import Answer as RpcAnswer
from conveyord.runtime.rpc.limits import Counters
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.runtime.rpc.server import RpcServer
from conveyord.storage.identity import Identity, keep_identity
from conveyord.storage.state.reading import Answer, StateView
from conveyord.storage.state_store.snapshot_file import SnapshotFile

log = structlog.get_logger(__name__)

T = TypeVar("T")
LEAVE_SECONDS = 5.0  # to hand over and to say goodbye; without a majority neither is possible
JOIN_SECONDS = 10.0  # less than who asks waits for the answer

AdmitClient = Callable[[Hello], Admission]
"""Says what a client may do that is no node. Raises Unwelcome. Must not block."""


def no_clients(_: Hello) -> Admission:
    """Admits nobody."""
    raise Unwelcome("CLIENT", "this node takes connections of nodes alone; use its HTTP address")


class Node:
    """For the trio thread. `Cluster` of `ports.py`."""

    name = "cluster"

    def __init__(
        self,
        settings: NodeSettings,
        identity: Identity,
        listeners: list[trio.SocketListener],
        *,
        admit_client: AdmitClient = no_clients,
    ) -> None:
        """listeners: for RPC; closed when the node ends. Handlers of others are added before it runs."""
        self._settings = settings
        self._identity = identity
        self._listeners = listeners
        self._is_local = all(is_loopback(listener.socket.getsockname()[0]) for listener in listeners)
        self._admit_client = admit_client
        self._is_draining = False
        self._member: Member | None = None
        self._seeking: Seeking | None = None
        self._presence: Presence | None = None
        self.side = Side(self._me, Handlers(), settings.limits, Counters())
        self.side.handlers.unary(meeting.MEET, self._on_meet)
        self.side.handlers.unary(meeting.PROMISE, self._on_promise)
        self.side.handlers.unary(meeting.JOIN, self._on_join)
        self.side.handlers.unary(meeting.INVITE, self._on_invite)
        self.side.handlers.unary(meeting.STANDING, self._on_standing)

    # ------------------------------------------------------------------------------- what it is

    @property
    def identity(self) -> Identity:
        """See `Cluster`."""
        return self._identity

    @property
    def settings(self) -> NodeSettings:
        """What the node was told when it was started."""
        return self._settings

    @property
    def handlers(self) -> Handlers:
        """See `Cluster`."""
        return self.side.handlers

    @property
    def phase(self) -> str:
        """See `Cluster`."""
        if self._is_draining:
            return "draining"
        return "seeking" if self._member is None else "member"

    @property
    def waiting(self) -> str:
        """See `Cluster`."""
        if self._member is None:
            return self._seeking.waiting if self._seeking is not None else "its log and state are being opened"
        if self._member.driver.standing.leader is None:
            return "no leader is known"
        return self._presence.waiting if self._presence is not None else ""

    @property
    def standing(self) -> Standing | None:
        """See `Cluster`."""
        return None if self._member is None else self._member.driver.standing

    @property
    def disk(self) -> str:
        """See `Cluster`."""
        return "ok" if self._member is None else self._member.driver.trouble or "ok"

    @property
    def member(self) -> Member:
        """Its part in a cluster. Raises Retryable while there is none."""
        if self._member is None:
            raise Retryable(f"this node is in no cluster yet: {self.waiting or 'it looks for one'}; try again")
        return self._member

    def peers(self) -> Sequence[PeerStatus]:
        """See `Cluster`."""
        return () if self._member is None else self._member.driver.peers()

    # ------------------------------------------------------------------------------- its life

    async def run(self, *, drain: trio.Event, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Service`. Started when it listens; it may have to wait long for others before it is in a cluster."""
        is_over = trio.Event()
        server = RpcServer(self.side, self._admit, tls=self._settings.tls, on_connection=self._on_connection)

        async def serve() -> None:
            await server.serve(self._listeners, drain=is_over)

        with unwrapped():
            async with trio.open_nursery() as serving:
                serving.start_soon(serve)
                task_status.started()
                async with trio.open_nursery() as living:
                    living.start_soon(self._live)
                    await drain.wait()
                    await self._leave()
                    living.cancel_scope.cancel()
                is_over.set()

    async def _live(self) -> None:
        founders, addresses = await self._come_in()
        async with opened(self._settings, self._identity, self.side, frozenset(founders)) as member:
            self._presence = Presence(member, self._settings, self._identity, self.side, addresses)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(member.run)
                    self._member = member
                    nursery.start_soon(self._presence.run)
            finally:
                self._member = None

    async def _come_in(self) -> tuple[Collection[NodeId], Mapping[NodeId, str]]:
        """Be in a cluster, if that is not so. Returns its first voters, if this is one of them, and known addresses."""
        directory, identity = self._settings.data_dir, self._identity
        promises = await trio.to_thread.run_sync(load_promises, directory)
        kept = promises.kept
        if identity.cluster is not None:
            voters = kept.voters if kept is not None and kept.cluster == identity.cluster else {}
            return voters, voters
        self._seeking = Seeking(self._settings, identity, self.side, promises)
        way = await self._seeking.run()
        self._identity = replace(identity, cluster=way.cluster)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(keep_identity, directory, self._identity)
        return way.founders, way.addresses

    async def _leave(self) -> None:
        """Hand over what others can go on with. That may fail: then they find out by themselves."""
        self._is_draining = True
        if self._member is None or self._presence is None:
            return
        with trio.move_on_after(LEAVE_SECONDS):
            try:
                if self._member.driver.standing.role is Role.LEADER and len(self._member.driver.membership.voters) > 1:
                    leader = await self._member.transfer(None, seconds=LEAVE_SECONDS / 2)
                    log.info("leadership was handed over, as this node is being stopped", leader=leader)
                await self._presence.leave(seconds=LEAVE_SECONDS / 2)
            except ConveyordError as error:
                log.warning("the others could not be told that this node is being stopped", reason=str(error))

    # ---------------------------------------------------------------------- what is asked of it

    async def read(self, question: Callable[[StateView], Answer[T]], *, stale: bool = False) -> Answer[T]:
        """See `Cluster`."""
        return await self.member.read(question, stale=stale)

    async def wait_beyond(self, topics: Collection[str], index: int, *, seconds: float) -> None:
        """See `Cluster`."""
        await self.member.watches.wait_beyond(topics, index, seconds=seconds)

    async def propose(self, command: Command, *, actor: str, seconds: float = 30.0) -> Committed:
        """See `Cluster`."""
        return await self.member.propose(command, actor=actor, seconds=seconds)

    async def change_members(self, changes: Sequence[Change], *, seconds: float = 30.0) -> int:
        """See `Cluster`."""
        return await self.member.change_members(changes, seconds=seconds)

    async def transfer(self, to: NodeId | None, *, seconds: float = 30.0) -> NodeId:
        """See `Cluster`."""
        return await self.member.transfer(to, seconds=seconds)

    async def ask(
        self, node: NodeId, method: str, payload: bytes, body: Body = b"", *, seconds: float = 30.0
    ) -> RpcAnswer:
        """See `Cluster`."""
        return await self.member.network.peer(node).call(method, payload, body, deadline_seconds=seconds)

    async def invite(self, address: str, *, seconds: float = 30.0) -> NodeId:
        """See `Cluster`."""
        ours = (self._settings.rpc_address, *(await self._addresses()).values())
        return await ask_at(self.side, self._settings.tls, address, meeting.INVITE, ours, str, seconds=seconds)

    async def take_snapshot(self) -> SnapshotFile:
        """See `Cluster`."""
        return await self.member.take_snapshot()

    async def _addresses(self) -> dict[NodeId, str]:
        found = await self.member.read(lambda view: view.members(), stale=True)
        return {one.node: one.row.rpc_address for one in found.value if one.row is not None}

    # ------------------------------------------------------------------------ what others ask it

    def _me(self) -> Me:
        one = self._identity
        return Me(one.node, one.incarnation, one.cluster, self._settings.secret, self._settings.version)

    def _admit(self, hello: Hello, _names: frozenset[str] | None) -> Admission:
        if not hello.node:
            if hello.credential and self._settings.tls is None and not self._is_local:
                raise Unwelcome(
                    "TLS_REQUIRED",
                    "a token came in clear text to an address that is not this machine's alone; set [rpc.tls], or use "
                    "the HTTP address with TLS",
                )
            return self._admit_client(hello)
        secret = self._settings.secret
        if secret is not None and not hmac.compare_digest(secret.encode(), (hello.credential or "").encode()):
            raise Unwelcome(
                "WRONG_SECRET",
                f"node {hello.node} does not know the secret of this cluster; give it the same `cluster.secret`",
            )
        return Admission(NODE_ROLE)

    def _on_connection(self, connection: Connection) -> None:
        if self._member is not None:
            self._member.network.met(connection)

    def _of_node(self, incoming: Incoming) -> NodeId:
        if incoming.caller.admission.role != NODE_ROLE:
            raise Refused(f"{incoming.method} is for nodes alone")
        return incoming.caller.node

    async def _on_meet(self, incoming: Incoming) -> bytes:
        self._of_node(incoming)
        if self._seeking is not None and self._identity.cluster is None:
            return await self._seeking.on_meet(incoming)
        return self._introduced()

    def _introduced(self) -> bytes:
        settings, identity = self._settings, self._identity
        return meeting.encode(
            Introduction(identity.node, settings.rpc_address, settings.roles, settings.expect, identity.cluster)
        )

    async def _on_promise(self, incoming: Incoming) -> bytes:
        self._of_node(incoming)
        if self._seeking is None or self._identity.cluster is not None:
            return self._introduced()
        return await self._seeking.on_promise(incoming)

    async def _on_invite(self, incoming: Incoming) -> bytes:
        self._of_node(incoming)
        if self._seeking is None or self._identity.cluster is not None:
            raise Refused(
                f"node {self._identity.node} is in cluster {self._identity.cluster} already; only one that is in none "
                "can be invited"
            )
        return await self._seeking.on_invite(incoming)

    async def _on_join(self, incoming: Incoming) -> bytes:
        node, asking = self._of_node(incoming), decoded(incoming.payload, Joining)
        one = asking.command
        if one.node != node:
            raise Refused(f"node {node} asks for node {one.node} to be let in; a node asks for itself")
        if not asking.has_data:
            await self._refuse_without_data(node)
        done = await self.member.propose(one, actor=node, seconds=JOIN_SECONDS)
        addresses = await self._addresses()
        return meeting.encode(Joined(self._identity.cluster or "", addresses, done.index))

    async def _refuse_without_data(self, node: NodeId) -> None:
        """A member that has lost its disk has lost votes and entries that others count on: it is another node."""
        known = await self.member.read(lambda view: view.membership())
        if node in known.value.everyone:
            raise CommandRefused(
                meeting.WITHOUT_DATA,
                f"node {node} is a member, and comes without its data; if that is lost, remove the node (conveyorctl "
                f"members remove {node}), then start it again; else start it on its data directory",
            )

    async def _on_standing(self, incoming: Incoming) -> bytes:
        node = self._of_node(incoming)
        if self.member.driver.standing.leader is None:
            raise Retryable("no leader is known here, so this node may be behind; ask another one")
        found = await self.member.read(lambda view: view.member(node), stale=True)
        one = found.value
        if one is None or (one.standing is None and one.row is not None and one.row.state == LEFT):
            return meeting.encode(meeting.GONE)
        return meeting.encode(one.standing or "known")
