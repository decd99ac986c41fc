"""Carries operations out, whatever door they came by: who may, where, how long it waits, what is logged."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
import trio

from conveyord.api.codes import FORBIDDEN, Declined
from conveyord.api.context import Caller, Context
from conveyord.api.figures import Figures
from conveyord.api.handlers.table import HANDLERS
from conveyord.api.operation import RANKS, Operation, Read, Reply, Where
from conveyord.core.errors import ConveyordError, OutcomeUnknown, Retryable
from conveyord.core.raft.types import NodeId
from conveyord.runtime.rpc.outcomes import INTERNAL, RemoteError

log = structlog.get_logger(__name__)

LEADER_SECONDS = 30.0  # for an operation that the leader carries out, elections and transfers on the way included
AGAIN_SECONDS = 0.1  # before the next attempt: an election takes several of these, a transfer one
OK = "OK"


class NotLeading(Retryable):
    """What the leader has to do was asked of a node that does not lead, or leads no more. Ask the one that does."""

    code = "NOT_LEADER"


class Desk:
    """For the trio thread. One for all doors of a node."""

    def __init__(self, context: Context, figures: Figures) -> None:
        self.context = context
        self._figures = figures

    async def carry_out(self, operation: Operation[Any, Any], caller: Caller, request: Any, *, door: str) -> Reply:
        """Do what is asked for, here or at the leader. door: what it came by, to count.

        Raises ConveyordError with a code of `codes.STATUSES`; anything else is a bug of ours.
        """
        began = trio.current_time()
        code, index = INTERNAL, None
        try:
            check_role(operation, caller)
            if operation.where is Where.LEADER:
                reply = await self._at_leader(operation, caller, request)
            else:
                reply = await self._here(operation, caller, request)
            code, index = OK, reply.index
        except ConveyordError as error:
            code = error.code
            raise
        except trio.Cancelled:
            code = "CANCELLED"
            raise
        finally:
            seconds = trio.current_time() - began
            self._figures.carried_out(door, operation.name, code, seconds)
            if not operation.is_read:
                log.info(
                    "asked for a change",
                    operation=operation.name,
                    actor=caller.actor,
                    target=operation.target(request),
                    code=code,
                    index=index,
                    seconds=round(seconds, 4),
                )
        return reply

    async def carry_out_as_leader(self, operation: Operation[Any, Any], caller: Caller, request: Any) -> Reply:
        """Do what another node passes on. Raises NotLeading if this one does not lead, and as `carry_out`.

        It is counted and logged by the node where it came in.
        """
        check_role(operation, caller)
        if operation.where is Where.HERE:
            return await self._here(operation, caller, request)
        return await self._leading(operation, caller, request)

    async def _here(self, operation: Operation[Any, Any], caller: Caller, request: Any) -> Reply:
        if isinstance(request, Read) and request.after is not None and request.wait_seconds > 0:
            await self.context.wait_beyond(caller, operation.topics, request.after, seconds=request.wait_seconds)
        return await HANDLERS[operation](self.context, caller, request)

    async def _leading(self, operation: Operation[Any, Any], caller: Caller, request: Any) -> Reply:
        """Do it as the leader. Raises NotLeading if nothing more was done because another one leads."""
        before = self._leader()
        if before[1] != self.context.cluster.identity.node:
            raise NotLeading(f"node {self.context.cluster.identity.node} does not lead; ask the leader")
        try:
            return await self._here(operation, caller, request)
        except Retryable as error:
            if self._leader() == before:
                raise
            raise NotLeading(str(error)) from error

    async def _at_leader(self, operation: Operation[Any, Any], caller: Caller, request: Any) -> Reply:
        """Have the leader do it. As long as it was not done because another node leads, it is tried again.

        So these operations may be tried again after `NotLeading`, though a part of them was done.
        """
        reason, is_under_way = "no leader is known", False
        with trio.move_on_after(LEADER_SECONDS):
            while True:
                if self.context.cluster.standing is None:
                    raise Retryable(self.context.cluster.waiting or "this node is in no cluster yet; try again later")
                leader = self._leader()[1]
                if leader is not None:
                    is_under_way = True
                    try:
                        return await self._asked(leader, operation, caller, request)
                    except ConveyordError as error:
                        was_not_sent = isinstance(error, Retryable) and not isinstance(error, RemoteError)
                        is_here = leader == self.context.cluster.identity.node
                        if error.code != NotLeading.code and (is_here or not was_not_sent):
                            raise
                        reason, is_under_way = str(error), False
                await trio.sleep(AGAIN_SECONDS)
        if is_under_way:
            raise OutcomeUnknown(
                f"{operation.name} was not answered within {LEADER_SECONDS:g} s; it may have been done: look, then "
                "repeat"
            )
        raise Retryable(f"{operation.name} was not done within {LEADER_SECONDS:g} s: {reason}; try again")

    async def _asked(self, leader: NodeId, operation: Operation[Any, Any], caller: Caller, request: Any) -> Reply:
        if leader == self.context.cluster.identity.node:
            return await self._leading(operation, caller, request)
        payload = msgspec.msgpack.encode((caller.actor, caller.role, request))
        answer = await self.context.cluster.ask(leader, operation.rpc_method, payload, seconds=LEADER_SECONDS)
        reply: Reply = msgspec.msgpack.decode(answer.payload, type=operation.reply)
        return reply

    def _leader(self) -> tuple[int, NodeId | None]:
        """The term, and who leads in it, as far as this node knows."""
        standing = self.context.cluster.standing
        return (0, None) if standing is None else (standing.term, standing.leader)


def check_role(operation: Operation[Any, Any], caller: Caller) -> None:
    """Raise Declined if the caller's role does not allow an operation."""
    if RANKS.get(caller.role, -1) < RANKS[operation.role]:
        raise Declined(
            FORBIDDEN,
            f"{operation.name} takes the role {operation.role}, and {caller.actor or 'nobody'} has "
            f"{caller.role or 'none'}; use a token with that role",
        )
