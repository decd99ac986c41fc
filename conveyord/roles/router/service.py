"""What a router does while it leads: names the cluster, lets nodes in, has the right ones vote, tells who is down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import structlog
import trio

from conveyord.cluster.ports import Cluster
from conveyord.core.errors import ConveyordError
from conveyord.core.planning import voters
from conveyord.core.planning.voters import Peer, Plan, Sight
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import NodeId
from conveyord.core.state.commands import ClusterForm, MemberState, ProtocolRaise, SettingChange
from conveyord.core.state.machine import PROTOCOL_MIN
from conveyord.core.state.members import DOWN, LEFT
from conveyord.core.state.rows import CLUSTER, MEMBERS, SETTINGS, STANDINGS, ClusterRow, MemberRow
from conveyord.core.state.settings import DEAD_SERVER_SECONDS, TARGET_VOTERS
from conveyord.storage.state.reading import Answer, StateView

log = structlog.get_logger(__name__)

LOOKS_PER_TIMEOUT = 2
STEP_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _State:
    """What one look at the state gives."""

    cluster: ClusterRow
    membership: Membership
    rows: dict[NodeId, MemberRow]
    settings: dict[str, int]


def _look(view: StateView) -> Answer[_State]:
    members = view.members()
    rows = {one.node: one.row for one in members.value if one.row is not None}
    settings = {name: value for name, (value, _) in view.settings().value.items()}
    return Answer(members.index, _State(view.cluster().value, view.membership().value, rows, settings))


class RouterService:
    """A service. One for each node with the role; only that of the leader does anything."""

    name = "router"

    def __init__(self, cluster: Cluster, election_timeout_seconds: float) -> None:
        self._cluster = cluster
        self._timeout_seconds = election_timeout_seconds
        self._actor = cluster.identity.node

    async def run(self, *, drain: trio.Event, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Service`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep)
            task_status.started()
            await drain.wait()
            nursery.cancel_scope.cancel()

    async def _keep(self) -> None:
        pause = self._timeout_seconds / LOOKS_PER_TIMEOUT
        while True:
            standing = self._cluster.standing
            if standing is None or standing.role is not Role.LEADER:
                await trio.sleep(pause)
                continue
            try:
                index = await self._step()
                await self._cluster.wait_beyond((CLUSTER, MEMBERS, STANDINGS, SETTINGS), index, seconds=pause)
            except ConveyordError as error:  # leadership is lost, or a change has to wait: the next look decides anew
                log.info("the members are looked at again, as a step failed", reason=str(error))
                await trio.sleep(pause)

    async def _step(self) -> int:
        """Look, and do what is to be done. Returns the index that was looked at."""
        index, state = await self._cluster.read(_look)
        if not state.cluster.id:
            await self._form(state)
        elif (newest := self._newest_protocol(state)) > state.cluster.protocol:
            await self._cluster.propose(ProtocolRaise(newest), actor=self._actor, seconds=STEP_SECONDS)
            log.info("all members know a newer protocol, which is spoken from now on", protocol=newest)
        else:
            await self._carry_out(voters.plan(self._sight(state)), state)
        return index

    @staticmethod
    def _newest_protocol(state: _State) -> int:
        """That every member knows, this program included. Until the last one is upgraded, all may still go back."""
        known = [row.protocol_max for row in state.rows.values() if row.state != LEFT]
        return min(known, default=0)

    def _sight(self, state: _State) -> Sight:
        timeout = self._timeout_seconds
        peers = {
            one.node: Peer(one.heard_seconds / timeout, one.heard_seconds, one.is_caught_up)
            for one in self._cluster.peers()
        }
        settings = state.settings
        return Sight(
            self._actor, state.membership, state.rows, peers, settings[TARGET_VOTERS], settings[DEAD_SERVER_SECONDS]
        )

    async def _form(self, state: _State) -> None:
        cluster = self._cluster.identity.cluster
        assert cluster is not None, state
        founders = len(state.membership.voters)
        if founders > state.settings[TARGET_VOTERS]:  # who founds a cluster with five wants five to vote
            target = SettingChange(TARGET_VOTERS, founders)
            await self._cluster.propose(target, actor=self._actor, seconds=STEP_SECONDS)
        await self._cluster.propose(ClusterForm(cluster, PROTOCOL_MIN), actor=self._actor, seconds=STEP_SECONDS)
        log.info("the cluster has its name", cluster=cluster)

    async def _carry_out(self, plan: Plan, state: _State) -> None:
        if plan.changes:
            log.info("the members are changed", why=plan.why)
            await self._cluster.change_members(plan.changes, seconds=STEP_SECONDS)
        for node in plan.down:
            log.warning("a node is down", node=node, timeouts=voters.DOWN_TIMEOUTS)
            await self._mark(state.rows[node], DOWN)
        for node in plan.left:
            log.warning("a node is given up", why=plan.why)
            await self._mark(state.rows[node], LEFT)

    async def _mark(self, row: MemberRow, to: str) -> None:
        command = MemberState(row.node, row.incarnation, to, row.changed)
        await self._cluster.propose(command, actor=self._actor, seconds=STEP_SECONDS)
