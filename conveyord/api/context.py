"""Who asks, and what an operation is carried out with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field

import trio

from conveyord.api.codes import Declined
from conveyord.api.messages import Changed
from conveyord.cluster.ports import Cluster
from conveyord.core.state.commands import Command
from conveyord.runtime.nurseries import unwrapped
from conveyord.runtime.rpc.outcomes import TOO_MANY_REQUESTS

WAITING_MAX = 512  # queries that wait for a change; each takes a connection, and others must get one too
BACKUPS_AT_A_TIME = 2  # each reads or writes all of the state


@dataclass(frozen=True, slots=True)
class Caller:
    """actor: whom the audit names: the id of a token, `local` or `open`. role: of a token, see `operation.RANKS`.

    left: returns once it has gone and wants no answer any more; for who makes it wait. By RPC it cancels its call.
    """

    actor: str
    role: str
    left: Callable[[], Awaitable[None]] = trio.sleep_forever


@dataclass(frozen=True, slots=True)
class Context:
    """What handlers have. For the trio thread.

    rpc_address, http_address: where others reach this node. started_at: by trio's clock. now_ms: Unix time.
    election_timeout_seconds: of the cluster. backup_properties: of stores of backups, such as credentials.
    tokens_seen: waits until the tokens are known here as they are at an index. drain: set when waiting must end.
    """

    cluster: Cluster
    now_ms: Callable[[], int]
    tokens_seen: Callable[[int], Awaitable[None]]
    rpc_address: str = ""
    http_address: str = ""
    roles: tuple[str, ...] = ()
    started_at: float = 0.0
    election_timeout_seconds: float = 1.0
    backup_properties: Mapping[str, str] = field(default_factory=dict)
    drain: trio.Event = field(default_factory=trio.Event)
    waiting: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(WAITING_MAX))
    backups: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(BACKUPS_AT_A_TIME))

    async def wait_beyond(self, caller: Caller, topics: Collection[str], index: int, *, seconds: float) -> None:
        """Wait until some topic was changed behind `index`, for so long at most, and no longer than the node serves
        and the caller is there.

        Raises Declined if too many wait already, and what the cluster raises.
        """
        token = object()
        try:
            self.waiting.acquire_on_behalf_of_nowait(token)
        except trio.WouldBlock:
            raise Declined(
                TOO_MANY_REQUESTS,
                f"{self.waiting.borrowed_tokens:g} queries wait for changes here, at most so many may; ask again "
                "later, or another node",
            ) from None
        try:
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_end_after, self.drain.wait, nursery.cancel_scope)
                    nursery.start_soon(_end_after, caller.left, nursery.cancel_scope)
                    await self.cluster.wait_beyond(topics, index, seconds=seconds)
                    nursery.cancel_scope.cancel()
        finally:
            self.waiting.release_on_behalf_of(token)

    async def changed(self, command: Command, caller: Caller) -> Changed:
        """Have a command applied whose reply is the index of its object's last change. Raises as `Cluster.propose`."""
        committed = await self.cluster.propose(command, actor=caller.actor)
        assert isinstance(committed.value, int), committed
        return Changed(index=committed.index, changed=committed.value)


async def _end_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
