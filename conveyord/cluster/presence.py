"""How a member keeps the cluster told of itself, itself of the others' addresses, and notices that it is not wanted."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import TypeVar

import structlog
import trio

from conveyord.cluster import meeting
from conveyord.cluster.meeting import Joined, Joining, ask_at
from conveyord.cluster.member import Member
from conveyord.cluster.ports import CommandRefused, Removed
from conveyord.cluster.seeking import joining, raise_if_final
from conveyord.cluster.settings import NodeSettings, parse_address
from conveyord.core.errors import ConveyordError, Refused, Retryable
from conveyord.core.raft.types import NodeId
from conveyord.core.state.commands import MemberState
from conveyord.core.state.members import DOWN, JOINING, LEFT, READY
from conveyord.core.state.rows import CLUSTER, MEMBERS, STANDINGS, MemberRow
from conveyord.runtime.rpc.greeting import Side
from conveyord.storage.identity import Identity
from conveyord.storage.state.reading import Answer, StateView

log = structlog.get_logger(__name__)

T = TypeVar("T")
AGAIN_SECONDS = 0.5  # before the cluster is told again what it has not heard
LONELY_TIMEOUTS = 5  # without a leader, before others are asked whether this node is still a member
PROPOSE_SECONDS = 10.0
FOREVER_SECONDS = 3600.0


class Presence:
    """For the trio thread."""

    def __init__(
        self,
        member: Member,
        settings: NodeSettings,
        identity: Identity,
        side: Side,
        addresses: Mapping[NodeId, str],
    ) -> None:
        """addresses: of nodes that the state may not tell of yet."""
        self._member = member
        self._settings = settings
        self._identity = identity
        self._side = side
        self._early = dict(addresses)
        self._addresses = dict(addresses)
        self._know()
        self._is_leaving = False
        self.waiting = ""
        """What is waited for, in a sentence; empty if for nothing."""

    async def run(self) -> None:
        """Until cancelled. Raises Removed, and Refused if another process has this node's id."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_addresses)
            nursery.start_soon(self._announce)
            nursery.start_soon(self._notice)

    async def leave(self, *, seconds: float) -> None:
        """Say that this node is being stopped. Raises as `propose`."""
        self._is_leaving = True
        await self._tell(DOWN, seconds=seconds)

    # -------------------------------------------------------------------------------- the others

    async def _follow_addresses(self) -> None:
        member = self._member
        while True:
            found = await self._look(lambda view: view.members())
            rows = {one.node: one.row.rpc_address for one in found.value if one.row is not None}
            if rows:
                self._early = {one.node: self._early[one.node] for one in found.value if one.node in self._early}
            self._addresses = self._early | rows
            self._know()
            cluster = await self._look(lambda view: view.cluster())
            member.protocol = cluster.value.protocol
            await member.watches.wait_beyond((MEMBERS, STANDINGS, CLUSTER), found.index, seconds=FOREVER_SECONDS)

    def _know(self) -> None:
        self._member.network.know({node: parse_address(address) for node, address in self._addresses.items()})

    # ---------------------------------------------------------------------------------- this node

    async def _announce(self) -> None:
        """Tell the cluster of this start, until it knows; then that the node is ready, whenever it is not known so."""
        is_known = False
        while not self._is_leaving:
            index, row = await self._row()
            if is_known and (row is None or row.state == LEFT):
                await self._end_once_unneeded(index)
                continue
            if row is None or row.incarnation < self._identity.incarnation:
                await self._introduce()
                await self._member.watches.wait_beyond((MEMBERS,), index, seconds=AGAIN_SECONDS)
                continue
            if row.incarnation > self._identity.incarnation:
                raise Refused(
                    f"node {row.node} was started again at {row.rpc_address} (incarnation {row.incarnation}, this is "
                    f"{self._identity.incarnation}): two processes run with one id; give each a data directory"
                )
            is_known = True
            if row.state in (JOINING, DOWN) and not self._is_leaving:
                await self._be_ready()
                continue
            self.waiting = ""
            await self._member.watches.wait_beyond((MEMBERS,), index, seconds=FOREVER_SECONDS)

    async def _be_ready(self) -> None:
        """Say so once, and wait until the state of this node has it: it may be behind, and would be told so again."""
        try:
            index = await self._tell(READY, seconds=PROPOSE_SECONDS)
        except ConveyordError as error:
            self.waiting = f"the cluster was not told that this node is ready: {error}"
            await trio.sleep(AGAIN_SECONDS)
        else:
            await self._member.driver.until(lambda now: now.applied >= index)
            await trio.sleep(0 if index else AGAIN_SECONDS)

    async def _end_once_unneeded(self, index: int) -> None:
        """Raise Removed, unless this node is a member yet: the others may need its vote to let it go.

        Its own log says so up to the joint membership alone, whose successor is agreed on without it.
        """
        found = await self._look(lambda view: view.membership())
        now = found.value
        if self._identity.node not in now.voters | now.learners | now.demoted:
            raise self._removed()
        self.waiting = "this node is being removed"
        await self._member.watches.wait_beyond((MEMBERS, STANDINGS), index, seconds=AGAIN_SECONDS)

    async def _row(self) -> tuple[int, MemberRow | None]:
        node = self._identity.node
        found = await self._look(lambda view: view.member(node))
        return found.index, None if found.value is None else found.value.row

    async def _look(self, question: Callable[[StateView], Answer[T]]) -> Answer[T]:
        """What the state of this node says; between two states there may be none for a moment."""
        while True:
            try:
                return await self._member.read(question, stale=True)
            except Retryable as error:
                self.waiting = f"the state of this node cannot be read: {error}"
                await trio.sleep(AGAIN_SECONDS)

    async def _introduce(self) -> None:
        """By Raft where the leader is known; else by whoever can be reached, as the leader may not know the address."""
        command = joining(self._settings, self._identity)
        if self._member.driver.standing.leader is not None:
            try:
                await self._member.propose(command, actor=self._identity.node, seconds=PROPOSE_SECONDS)
            except ConveyordError as error:
                raise_if_final(error)
                self.waiting = f"the cluster was not told that this node was started: {error}"
            else:
                return
        for address in self._others():
            try:
                joined = await ask_at(
                    self._side,
                    self._settings.tls,
                    address,
                    meeting.JOIN,
                    Joining(command, has_data=True),
                    Joined,
                    seconds=meeting.JOIN_SECONDS,
                )
            except ConveyordError as error:
                raise_if_final(error)
                self.waiting = f"{address} was told that this node was started: {error}"
            else:
                self._early |= joined.addresses
                self._addresses |= joined.addresses
                self._know()
                return

    def _others(self) -> list[str]:
        """Where others may be, in an order of chance, so that not all are asked at one node."""
        known = {*self._addresses.values(), *self._settings.join} - {self._settings.rpc_address}
        return sorted(known, key=lambda _: secrets.randbits(32))

    async def _tell(self, state: str, *, seconds: float) -> int:
        """Returns the index at which that is so; 0 if the cluster does not take it, as something has changed."""
        one = self._identity
        command = MemberState(one.node, one.incarnation, state, None)
        try:
            return (await self._member.propose(command, actor=one.node, seconds=seconds)).index
        except CommandRefused as error:
            log.info("the cluster does not take it that this node changes", state=state, reason=str(error))
            return 0

    async def _notice(self) -> None:
        """Ask whether this node is still wanted, where no leader has been heard of for long."""
        driver, timeout = self._member.driver, self._settings.election_timeout_seconds
        while True:
            await driver.until(lambda now: now.leader is None)
            with trio.move_on_after(LONELY_TIMEOUTS * timeout):
                await driver.until(lambda now: now.leader is not None)
                continue
            for address in self._others():
                await self._ask_standing(address)

    async def _ask_standing(self, address: str) -> None:
        try:
            said = await ask_at(
                self._side,
                self._settings.tls,
                address,
                meeting.STANDING,
                None,
                str,
                seconds=meeting.MEET_SECONDS,
            )
        except Retryable:
            return
        except ConveyordError as error:
            if error.code == "STALE_INCARNATION":
                raise Refused(f"{address} says: {error}") from error
            return
        if said == meeting.GONE:
            raise self._removed()

    def _removed(self) -> Removed:
        one = self._identity
        return Removed(
            f"node {one.node} was removed from cluster {one.cluster}; start it again to let it join anew, or remove "
            "its data directory"
        )
