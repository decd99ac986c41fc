"""Operations by RPC: each is the method `api.<name>`, its payload the request as a msgpack map, its answer likewise.

A node may ask on behalf of others: then the payload is `[actor, role, request]`. A client is who its token says, which
comes with its hello.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec

from conveyord.api.access import Access
from conveyord.api.carrying_out import Desk, check_role
from conveyord.api.codes import Declined
from conveyord.api.context import Caller
from conveyord.api.handlers.events import Cursor, next_events, topics_of
from conveyord.api.operation import Operation
from conveyord.api.operations import EVENTS_AFTER, OPERATIONS
from conveyord.api.requests import wrong
from conveyord.cluster.member import NODE_ROLE
from conveyord.core.errors import ConveyordError, Retryable
from conveyord.core.state.rows import TOKENS
from conveyord.core.wire.heads import Hello
from conveyord.runtime.http_faults import MALFORMED
from conveyord.runtime.rpc.handlers import Admission, Handlers, Incoming, Outlet
from conveyord.runtime.rpc.outcomes import Unwelcome
from conveyord.storage.state.reading import StateView

DOOR = "rpc"
WATCH = "api.watch"
WATCH_SECONDS = 30.0  # before it is looked at again, though nothing was heard: a token may have expired
_ENCODER = msgspec.msgpack.Encoder()
_ON_BEHALF = msgspec.msgpack.Decoder(tuple[str, str, msgspec.Raw])
_NOTHING = b"\x80"  # an empty map


class Rpc:
    """For the trio thread."""

    def __init__(self, desk: Desk, access: Access) -> None:
        self._desk = desk
        self._access = access

    def add_to(self, handlers: Handlers) -> None:
        """Add all methods to what a node answers."""
        for operation in OPERATIONS:
            handlers.unary(operation.rpc_method, partial(self._answer, operation))
        handlers.stream(WATCH, self._watch)

    def admit_client(self, hello: Hello) -> Admission:
        """What a client may do that is no node. Raises Unwelcome."""
        try:
            caller = self._access.check(hello.credential)
        except ConveyordError as error:
            raise Unwelcome(error.code, str(error)) from error
        return Admission(caller.role)

    async def _answer(self, operation: Operation[Any, Any], incoming: Incoming) -> bytes:
        caller, request = self._told(operation, incoming)
        if incoming.caller.admission.role == NODE_ROLE:
            reply = await self._desk.carry_out_as_leader(operation, caller, request)
        else:
            reply = await self._desk.carry_out(operation, caller, request, door=DOOR)
        return _ENCODER.encode(reply)

    async def _watch(self, incoming: Incoming, outlet: Outlet) -> None:
        """Send what happens behind a cursor, as it happens; the first item is sent at once, with events or without.

        Ends with an error alone: COMPACTED or BEHIND, and UNAVAILABLE when the node stops: go on at another one then.
        """
        caller, request = self._told(EVENTS_AFTER, incoming)
        context = self._desk.context
        cursor = Cursor(request.after, request.history, topics_of(request.topics))
        is_first = True
        while True:
            if self._access.mode != "open":
                known = await context.cluster.read(StateView.topics, stale=True)
                await self._access.wait_for(known.value[TOKENS].newest)
            check_role(EVENTS_AFTER, self._told(EVENTS_AFTER, incoming)[0])  # a token may have been revoked meanwhile
            found = await next_events(context, cursor, limit=request.limit)
            if found.events or is_first:
                await outlet.send(_ENCODER.encode(found))
            is_first = False
            cursor = cursor._replace(through=found.through, history=found.history)
            if found.through >= found.index:
                await context.wait_beyond(caller, {*cursor.topics, TOKENS}, found.through, seconds=WATCH_SECONDS)
                if context.drain.is_set():
                    raise Retryable(
                        "this node is being stopped; go on at another one, from the cursor of the last item"
                    )

    def _told(self, operation: Operation[Any, Any], incoming: Incoming) -> tuple[Caller, Any]:
        """Who asks, and what. Raises Declined for what is no request, and for a token that is of no use any more: that
        it was good when the connection was made may be long ago.
        """
        admission = incoming.caller.admission
        payload = msgspec.Raw(incoming.payload or _NOTHING)
        try:
            if admission.role == NODE_ROLE:
                actor, role, payload = _ON_BEHALF.decode(payload)
                caller = Caller(actor, role)
            else:
                caller = self._access.check(incoming.caller.hello.credential)
            return caller, msgspec.msgpack.decode(payload, type=operation.request)
        except msgspec.ValidationError as error:
            raise wrong(error) from None
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Declined(
                MALFORMED, f"the payload of {operation.rpc_method} is no request in msgpack: {error}"
            ) from None
