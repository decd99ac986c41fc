"""The last service of a node: it says that the others serve, and how the node stands as that changes."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import structlog
import trio

from conveyord.cluster.ports import Cluster
from conveyord.core.errors import Retryable
from conveyord.core.raft.state import Role
from conveyord.runtime.notify import Notifier
from conveyord.storage.state.reading import StateView

log = structlog.get_logger(__name__)

LOOK_SECONDS = 1.0  # people look at it, and nothing hangs on it
ASK_AGAIN_SECONDS = 0.02


class Announcing:
    """Tells the service manager, if there is one. on_answer: called once, when the cluster answers."""

    name = "announcing"

    def __init__(
        self, cluster: Cluster, notifier: Notifier, drain_seconds: float, *, on_answer: Callable[[], None]
    ) -> None:
        self._cluster = cluster
        self._notifier = notifier
        self._drain_seconds = drain_seconds
        self._on_answer = on_answer

    async def run(self, *, drain: trio.Event, task_status: trio.TaskStatus[Any]) -> None:
        """See `Service`. It is drained first, so `drain` means that the node begins to stop."""
        # What there is by now stays. To look through it for garbage again and again would hold up heartbeats.
        gc.collect()
        gc.freeze()
        self._notifier.ready()
        task_status.started()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_answer)
            nursery.start_soon(self._tell)
            await drain.wait()
            nursery.cancel_scope.cancel()
        self._notifier.stopping(self._drain_seconds)

    async def _wait_answer(self) -> None:
        while True:
            try:
                await self._cluster.read(StateView.cluster)
            except Retryable:
                await trio.sleep(ASK_AGAIN_SECONDS)
            else:
                self._on_answer()
                return

    async def _tell(self) -> None:
        while self._notifier.is_heard:
            self._notifier.status(sentence_of(self._cluster))
            await trio.sleep(LOOK_SECONDS)


def sentence_of(cluster: Cluster) -> str:
    """Where a node stands, in a sentence."""
    identity, standing = cluster.identity, cluster.standing
    me = f"node {identity.node}"
    if standing is None:
        return f"{me} takes no part in a cluster yet: {cluster.waiting or 'it looks for one'}"
    where = f"in cluster {identity.cluster}, term {standing.term}"
    disk = "" if cluster.disk == "ok" else f"; its disk is {cluster.disk}"
    if standing.role is Role.LEADER:
        return f"{me} leads {where}{disk}"
    if standing.leader is None:
        return f"{me} knows no leader {where}{disk}"
    return f"{me} follows {standing.leader} {where}{disk}"
