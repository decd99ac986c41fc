"""A node that is in no cluster looks for others, and founds one with them or joins theirs.

Every round it meets all whose addresses it knows, decides (`core/planning/founding.py`), and does one thing. What it
has promised is on disk before anybody is told.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import TypeVar

import structlog
import trio

from conveyord.cluster import meeting
from conveyord.cluster.founding_file import keep_promises
from conveyord.cluster.meeting import WITHOUT_DATA, Joined, Joining, ask_at, decoded
from conveyord.cluster.settings import NodeSettings
from conveyord.core.errors import ConveyordError, Refused, Retryable
from conveyord.core.planning.founding import (
    Ask,
    Found,
    Introduction,
    Join,
    Promise,
    Promises,
    Proposal,
    Propose,
    TakeBack,
    Wait,
    decide,
    promised,
    taken_back,
)
from conveyord.core.raft.types import NodeId
from conveyord.core.state.commands import MemberJoin
from conveyord.core.state.machine import PROTOCOL_MAX, PROTOCOL_MIN
from conveyord.core.state.names import wrong_address
from conveyord.core.state.replies import DUPLICATE_NODE, INVALID, PROTOCOL, STALE
from conveyord.runtime.rpc.greeting import Side
from conveyord.runtime.rpc.handlers import Incoming
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.storage.identity import Identity

log = structlog.get_logger(__name__)

T = TypeVar("T")
ROUND_SECONDS = 0.5  # between two rounds; half of it by chance
KNOWN_MAX = 64  # addresses that others told of
CLUSTER_ID_BYTES = 6
FINAL = frozenset({STALE, DUPLICATE_NODE, PROTOCOL, INVALID, WITHOUT_DATA, "FOREIGN_CLUSTER"})
"""Codes of a refusal that would be the same if it were asked again."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a node came into its cluster. founders: with their addresses, if it is one of them. addresses: of nodes."""

    cluster: str
    founders: Mapping[NodeId, str]
    addresses: Mapping[NodeId, str]


class Seeking:
    """For the trio thread. One use."""

    def __init__(self, settings: NodeSettings, identity: Identity, side: Side, promises: Promises) -> None:
        """promises: what `load_promises` found."""
        self._settings = settings
        self._side = side
        self._identity = identity
        self._random = Random()  # noqa: S311 - for the times of rounds
        self._turn = trio.Lock()
        self._is_joining = False
        self._heard_of = dict.fromkeys(settings.join)  # in the order in which they came
        self._unreached: set[str] = set()
        self._invited = trio.Event()
        others = set(settings.join) - {settings.rpc_address}
        expect = 0 if settings.expect == 1 and others else settings.expect  # who is told of others found no own cluster
        self._me = Introduction(identity.node, settings.rpc_address, settings.roles, expect, promises=promises)
        self.waiting = ""
        """What is waited for, in a sentence."""

    @property
    def introduction(self) -> Introduction:
        """What this node says of itself."""
        return replace(self._me, heard_of=tuple(self._heard_of)[:KNOWN_MAX])

    # ------------------------------------------------------------------------ what others ask

    async def on_meet(self, incoming: Incoming) -> bytes:
        """Somebody introduces itself."""
        other = decoded(incoming.payload, Introduction)
        self._hear_of(other.address)
        return meeting.encode(self.introduction)

    async def on_promise(self, incoming: Incoming) -> bytes:
        """Somebody wants this node for a founder."""
        proposal = decoded(incoming.payload, Proposal)
        if proposal.voters.get(self._me.node) is None:
            raise Refused(f"node {self._me.node} is no voter of the cluster that it is asked to found")
        if self._is_joining:
            raise Retryable(f"node {self._me.node} is asking to be let in elsewhere; ask again")
        async with self._turn:
            if self._me.cluster is None:
                await self._bind(promised(self._me.promises, proposal))
        return meeting.encode(self.introduction)

    async def on_invite(self, incoming: Incoming) -> bytes:
        """A cluster wants this node in."""
        for address in decoded(incoming.payload, tuple[str, ...]):
            self._hear_of(address)
        self._invited.set()
        log.info("this node was invited to a cluster", by=incoming.caller.node)
        return meeting.encode(self._me.node)

    def _hear_of(self, address: str) -> None:
        if wrong_address("RPC", address) is None and len(self._heard_of) < KNOWN_MAX:
            self._heard_of.setdefault(address)

    # ------------------------------------------------------------------------------- the rounds

    async def run(self) -> Way:
        """Seek until there is a cluster with this node in it. Raises Refused where one does not want it, for good."""
        while True:
            others = await self._meet_all()
            way = await self._act(others)
            if way is not None:
                return way
            self._invited = trio.Event()
            with trio.move_on_after(ROUND_SECONDS * self._random.uniform(0.5, 1.0)):
                await self._invited.wait()

    async def _meet_all(self) -> list[Introduction]:
        """Those who answer, each once."""
        found = dict[NodeId, Introduction]()
        self._unreached.clear()

        async def meet(address: str) -> None:
            try:
                other = await self._ask(address, meeting.MEET, self.introduction, Introduction)
            except Unwelcome as refusal:
                if refusal.code != "OWN_ID":  # its own address, as others reach it
                    self._unreached.add(f"{address} ({refusal})")
            except ConveyordError as error:
                self._unreached.add(f"{address} ({error})" if isinstance(error, Refused) else address)
            else:
                found[other.node] = other
                for more in (other.address, *other.heard_of):
                    self._hear_of(more)

        async with trio.open_nursery() as nursery:
            for address in self._heard_of:
                if address != self._me.address:
                    nursery.start_soon(meet, address)
        return list(found.values())

    async def _act(self, others: list[Introduction]) -> Way | None:
        """Do what is decided. The way into the cluster, if that was the end of it."""
        async with self._turn:
            step = decide(self._me, others, self._unreached)
            if isinstance(step, Propose):
                await self._propose(dict(step.voters))
                step = decide(self._me, others)  # whoever founds alone has all promises already
            if isinstance(step, Found):
                return self._found()
            if isinstance(step, Promise):
                log.info("this node promises to be a founder", cluster=step.proposal.cluster)
                await self._bind(promised(self._me.promises, step.proposal))
            elif isinstance(step, TakeBack):
                log.info("a proposal of a cluster has failed", cluster=_kept(self._me).cluster)
                await self._bind(taken_back(self._me.promises))
            self._is_joining = isinstance(step, Join)
        if isinstance(step, Wait):
            self._wait(step.why)
        elif isinstance(step, Ask):  # without the turn: those who are asked may be asking this node
            await self._ask_for_promises(step.nodes, others)
        elif isinstance(step, Join):
            return await self._join(step.address)
        return None

    async def _propose(self, voters: dict[NodeId, str]) -> None:
        proposal = Proposal(f"c-{secrets.token_hex(CLUSTER_ID_BYTES)}", voters)
        log.info("this node proposes a cluster", cluster=proposal.cluster, voters=sorted(voters))
        await self._bind(promised(self._me.promises, proposal))

    def _found(self) -> Way:
        proposal = _kept(self._me)
        self._me = replace(self._me, cluster=proposal.cluster)
        log.info("a cluster is founded", cluster=proposal.cluster, voters=sorted(proposal.voters))
        return Way(proposal.cluster, proposal.voters, proposal.voters)

    async def _ask_for_promises(self, nodes: tuple[NodeId, ...], others: list[Introduction]) -> None:
        proposal = _kept(self._me)
        for other in others:
            if other.node in nodes:
                try:
                    await self._ask(other.address, meeting.PROMISE, proposal, Introduction)
                except ConveyordError as error:
                    self._wait(f"node {other.node} was asked to found a cluster: {error}")

    async def _join(self, address: str) -> Way | None:
        asking = Joining(joining(self._settings, self._identity), has_data=False)
        try:
            joined = await self._ask(address, meeting.JOIN, asking, Joined, seconds=meeting.JOIN_SECONDS)
        except ConveyordError as error:
            raise_if_final(error)
            self._wait(f"{address} was asked to let this node in: {error}")
            return None
        self._me = replace(self._me, cluster=joined.cluster)
        log.info("this node has joined a cluster", cluster=joined.cluster, by=address)
        return Way(joined.cluster, {}, joined.addresses)

    async def _ask(
        self, address: str, method: str, what: object, kind: type[T], *, seconds: float = meeting.MEET_SECONDS
    ) -> T:
        return await ask_at(self._side, self._settings.tls, address, method, what, kind, seconds=seconds)

    async def _bind(self, promises: Promises) -> None:
        if promises != self._me.promises:
            with trio.CancelScope(shield=True):  # what is on disk and what is told must be the same
                await trio.to_thread.run_sync(keep_promises, self._settings.data_dir, promises)
                self._me = replace(self._me, promises=promises)

    def _wait(self, why: str) -> None:
        if why != self.waiting:
            log.info("waiting", why=why)
        self.waiting = why


def joining(settings: NodeSettings, identity: Identity) -> MemberJoin:
    """As what a node asks to be let in, or tells that it was started again."""
    return MemberJoin(
        identity.node,
        settings.rpc_address,
        settings.http_address,
        settings.roles,
        settings.version,
        PROTOCOL_MIN,
        PROTOCOL_MAX,
        identity.incarnation,
    )


def raise_if_final(error: ConveyordError) -> None:
    """Raise Refused if asking again would lead to the same answer."""
    if error.code in FINAL:
        raise Refused(f"the cluster does not let this node in: {error}") from error


def _kept(me: Introduction) -> Proposal:
    assert me.promises.kept is not None
    return me.promises.kept
