"""Nodes: who there is, who comes and goes, who votes, who leads. Changes are made at the leader."""

from __future__ import annotations

from functools import partial

import trio

from conveyord.api.codes import QUORUM, Declined
from conveyord.api.context import Caller, Context
from conveyord.api.messages import (
    Changed,
    LeaderTransfer,
    Member,
    MemberAdd,
    MemberAdded,
    MemberDemote,
    MemberGet,
    MemberPromote,
    MemberRemove,
    Members,
    MembersList,
    OneMember,
    Transferred,
)
from conveyord.api.quorum import without_voter
from conveyord.core.errors import Retryable
from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.state import members as states
from conveyord.core.state.commands import MemberForget, MemberState
from conveyord.core.state.names import wrong_address
from conveyord.core.state.replies import INVALID, LIMIT, NOT_FOUND, WRONG_STATE
from conveyord.core.state.rows import MemberRow
from conveyord.core.state.settings import TARGET_VOTERS
from conveyord.storage.state import reading
from conveyord.storage.state.reading import Answer, StateView

ROUTER = "router"
UP = frozenset({states.JOINING, states.READY, states.DRAINING})
CHANGES_MAX = 50  # of members that others make first
AGAIN_SECONDS = 0.1  # that one of them takes
TIMEOUTS_HEARD = 3  # election timeouts in which a voter that is up has been heard


async def list_(context: Context, _: Caller, request: MembersList) -> Members:
    """See `MembersList`."""
    answer = await context.cluster.read(StateView.members, stale=request.stale)
    return Members(index=answer.index, members=tuple(_shown(context, member) for member in answer.value))


async def get(context: Context, _: Caller, request: MemberGet) -> OneMember:
    """See `MemberGet`."""
    answer = await context.cluster.read(partial(_member, node=request.node), stale=request.stale)
    if answer.value is None:
        raise _not_found(request.node, answer.index)
    return OneMember(index=answer.index, member=_shown(context, answer.value))


async def add(context: Context, _: Caller, request: MemberAdd) -> MemberAdded:
    """See `MemberAdd`."""
    if wrong := wrong_address("RPC", request.address):
        raise Declined(INVALID, wrong.message, field="address")
    node = await context.cluster.invite(request.address)
    return MemberAdded(index=_applied(context), node=node)


async def remove(context: Context, caller: Caller, request: MemberRemove) -> Changed:
    """See `MemberRemove`. Each step may have been done before: then it is passed over."""
    node = request.node
    found, membership = await _found(context, node)
    row = found.row
    if row is not None and row.state in UP and not request.force:
        raise Declined(
            WRONG_STATE,
            f"node {node} is {row.state}: it is up; stop it first, or force it: it is refused by the others then",
        )
    if node in membership.electorate:
        _keep_quorum(context, membership, node)
        await _give_up_leadership(context, node)
    # This first, or whoever keeps the members in order would take it in again.
    if row is not None and row.state != states.LEFT:
        await context.cluster.propose(MemberState(node, row.incarnation, states.LEFT), actor=caller.actor)
    await _out_of_raft(context, node)
    if row is not None:
        return await context.changed(MemberForget(node), caller)
    return _as_it_is(context)


async def promote(context: Context, _: Caller, request: MemberPromote) -> Changed:
    """See `MemberPromote`."""
    node = request.node
    found, membership = await _found(context, node)
    if node in membership.voters:
        return _as_it_is(context)
    if found.row is None or ROUTER not in found.row.roles.split(","):
        roles = "none that is known" if found.row is None else found.row.roles
        raise Declined(
            WRONG_STATE, f"node {node} has the roles {roles}; only a {ROUTER} votes: start it with that role"
        )
    if found.row.state != states.READY:
        raise Declined(WRONG_STATE, f"node {node} is {found.row.state}; only one that is ready can vote: start it")
    target, _changed = (await context.cluster.read(StateView.settings)).value[TARGET_VOTERS]
    if len(membership.voters) >= target:
        raise Declined(
            LIMIT,
            f"{len(membership.voters)} nodes vote, and {TARGET_VOTERS} is {target}; raise that setting, or demote "
            "another node first",
        )
    peer = next((peer for peer in context.cluster.peers() if peer.node == node), None)
    if peer is None or not peer.is_caught_up:
        behind = "it was not heard yet" if peer is None else f"it misses {peer.lag} entries"
        raise Declined(WRONG_STATE, f"node {node} has not caught up ({behind}); try again when it has")
    return await _change(context, Change(node, Standing.VOTER))


async def demote(context: Context, _: Caller, request: MemberDemote) -> Changed:
    """See `MemberDemote`."""
    node = request.node
    membership = (await _found(context, node))[1]
    if node not in membership.electorate:
        return _as_it_is(context)
    _keep_quorum(context, membership, node)
    await _give_up_leadership(context, node)
    return await _change(context, Change(node, Standing.LEARNER))


async def transfer(context: Context, _: Caller, request: LeaderTransfer) -> Transferred:
    """See `LeaderTransfer`."""
    node, leader = request.node, context.cluster.identity.node
    if node == leader:
        return Transferred(index=_applied(context), leader=leader)
    membership = (await _found(context, node or leader))[1]
    if node and node not in membership.voters:
        raise Declined(WRONG_STATE, f"node {node} does not vote, so it cannot lead; promote it first", field="node")
    if membership.voters == {leader}:
        raise Declined(QUORUM, f"node {leader} is the only voter; let another one vote first", field="node")
    leader = await context.cluster.transfer(node or None)
    return Transferred(index=_applied(context), leader=leader)


def _keep_quorum(context: Context, membership: Membership, node: str) -> None:
    """Refuse what would leave too few voters."""
    limit = TIMEOUTS_HEARD * context.election_timeout_seconds
    heard = {peer.node for peer in context.cluster.peers() if peer.heard_seconds <= limit}
    heard.add(context.cluster.identity.node)
    if why_not := without_voter(membership, node, heard):
        raise Declined(QUORUM, why_not, field="node")


async def _give_up_leadership(context: Context, node: str) -> None:
    """If it is this node that goes, have another lead, which is to go on with the request."""
    if node == context.cluster.identity.node:
        leader = await context.cluster.transfer(None)
        raise Retryable(f"node {leader} leads now, and has to do this; ask it")


async def _out_of_raft(context: Context, node: str) -> None:
    """Have Raft know a node no more. Others may be changing the members at the same time, perhaps to the same end."""
    reason = ""
    for _ in range(CHANGES_MAX):
        membership = (await context.cluster.read(StateView.membership)).value
        if node not in membership.everyone:
            return
        try:
            await context.cluster.change_members([Change(node, Standing.GONE)])
        except Retryable as error:
            reason = str(error)
            await trio.sleep(AGAIN_SECONDS)
    raise Retryable(f"node {node} is a member of Raft still: {reason}; try again")


async def _found(context: Context, node: str) -> tuple[reading.Member, Membership]:
    """A node, and Raft's members, none of which is being changed by others: Raft refuses that. Raises Declined."""
    member = await context.cluster.read(partial(_member, node=node))
    if member.value is None:
        raise _not_found(node, member.index)
    return member.value, (await context.cluster.read(StateView.membership)).value


def _not_found(node: str, index: int) -> Declined:
    return Declined(NOT_FOUND, f"no member is called {node}; list those that there are", field="node", index=index)


async def _change(context: Context, change: Change) -> Changed:
    index = await context.cluster.change_members([change])
    return Changed(index=max(index, _applied(context)), changed=index)


def _as_it_is(context: Context) -> Changed:
    """Nothing has to be changed."""
    index = _applied(context)
    return Changed(index=index, changed=index)


def _applied(context: Context) -> int:
    standing = context.cluster.standing
    return 0 if standing is None else standing.applied


def _member(view: StateView, *, node: str) -> Answer[reading.Member | None]:
    return view.member(node)


def _shown(context: Context, member: reading.Member) -> Member:
    standing = context.cluster.standing
    row = member.row or MemberRow(member.node, "", "", "", "", 0, 0, 0, "", 0, 0, 0)
    return Member(
        node=member.node,
        standing=member.standing or "",
        state=row.state,
        is_leader=standing is not None and standing.leader == member.node,
        roles=tuple(role for role in row.roles.split(",") if role),
        rpc_address=row.rpc_address,
        http_address=row.http_address,
        version=row.version,
        protocols=(row.protocol_min, row.protocol_max),
        incarnation=row.incarnation,
        joined_at_ms=row.joined_at_ms,
        changed_at_ms=row.changed_at_ms,
        changed=row.changed,
    )
