"""How a node is, and why nobody leads."""

from __future__ import annotations

import msgspec
import trio

from conveyord import __version__
from conveyord.api.context import Caller, Context
from conveyord.api.diagnosis import Seen, Told, diagnosed
from conveyord.api.messages import Diagnosis, Peer, Status, StatusGet, WhyNoLeader
from conveyord.api.operations import STATUS
from conveyord.core.errors import ConveyordError
from conveyord.core.raft.state import Role
from conveyord.runtime.raft.driver import Standing
from conveyord.storage.state.reading import Member, StateView

VOTER, LEARNER = "voter", "learner"
ASK_SECONDS = 2.0  # what a node needs to answer, and to be dialled before that
_STATUS = msgspec.msgpack.Decoder(Status)
_NOWHERE = Standing(Role.FOLLOWER, 0, None, 0, 0)  # of a node that is in no cluster yet
_ROLES = {
    Role.LEADER: "leader",
    Role.FOLLOWER: "follower",
    Role.CANDIDATE: "candidate",
    Role.PRE_CANDIDATE: "candidate",
}


async def get(context: Context, _: Caller, __: StatusGet) -> Status:
    """See `StatusGet`."""
    cluster, standing = context.cluster, context.cluster.standing or _NOWHERE
    identity = cluster.identity
    return Status(
        index=standing.applied,
        node=identity.node,
        cluster=identity.cluster or "",
        version=__version__,
        roles=context.roles,
        phase=cluster.phase,
        waiting=cluster.waiting,
        raft="" if cluster.standing is None else await _raft(context, standing.role),
        term=standing.term,
        leader=standing.leader or "",
        commit=standing.commit,
        applied=standing.applied,
        rpc_address=context.rpc_address,
        http_address=context.http_address,
        incarnation=identity.incarnation,
        uptime_seconds=round(trio.current_time() - context.started_at, 3),
        disk=cluster.disk,
        peers=tuple(
            Peer(
                node=peer.node,
                match=peer.match,
                lag=peer.lag,
                heard_seconds=round(peer.heard_seconds, 3),
                is_caught_up=peer.is_caught_up,
                gets_snapshot=peer.gets_snapshot,
            )
            for peer in cluster.peers()
        ),
    )


async def why(context: Context, _: Caller, __: WhyNoLeader) -> Diagnosis:
    """See `WhyNoLeader`. Every other voter is asked how it is, all at once."""
    cluster, standing = context.cluster, context.cluster.standing
    node = cluster.identity.node
    members = await _members(context)
    voters = frozenset(member.node for member in members if member.standing == VOTER)
    asked = dict[str, Told | str]()
    async with trio.open_nursery() as nursery:
        for voter in sorted(voters - {node}):
            nursery.start_soon(_ask, context, voter, asked)
    verdict = diagnosed(
        Seen(
            node=node,
            phase=cluster.phase,
            waiting=cluster.waiting,
            standing=standing,
            disk=cluster.disk,
            voters=voters,
            addresses={member.node: member.row.rpc_address for member in members if member.row is not None},
            asked=asked,
        )
    )
    return Diagnosis(
        index=(standing or _NOWHERE).applied,
        has_leader=standing is not None and standing.leader is not None,
        verdict=verdict.sentence,
        findings=verdict.findings,
        remedies=verdict.remedies,
    )


async def _raft(context: Context, role: Role) -> str:
    """What the node is to Raft: a follower that does not vote is a learner."""
    if role is Role.FOLLOWER:
        node = context.cluster.identity.node
        if any(member.node == node and member.standing == LEARNER for member in await _members(context)):
            return LEARNER
    return _ROLES[role]


async def _members(context: Context) -> tuple[Member, ...]:
    """All nodes that this one knows of: none while it has no state."""
    try:
        return (await context.cluster.read(StateView.members, stale=True)).value
    except ConveyordError:
        return ()


async def _ask(context: Context, voter: str, asked: dict[str, Told | str]) -> None:
    """Hear how a voter is, or why it does not say."""
    question: tuple[str, str, dict[str, str]] = ("", STATUS.role, {})
    try:
        with trio.fail_after(2 * ASK_SECONDS):
            answer = await context.cluster.ask(
                voter, STATUS.rpc_method, msgspec.msgpack.encode(question), seconds=ASK_SECONDS
            )
        status = _STATUS.decode(answer.payload)
    except trio.TooSlowError:
        asked[voter] = f"no answer within {2 * ASK_SECONDS:g} s"
    except (ConveyordError, msgspec.MsgspecError) as error:
        asked[voter] = str(error)
    else:
        asked[voter] = Told(status.raft, status.term, status.leader, status.disk)
