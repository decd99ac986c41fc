"""When a snapshot of the state is taken, the log compacted behind it, and streamed to who lacks what was compacted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from conveyord.core.errors import ConveyordError, Corrupt, Retryable
from conveyord.core.raft.messages import Event, SnapshotSent
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.types import ENTRY_BYTES, NodeId
from conveyord.runtime.raft.disk import Disk
from conveyord.runtime.raft.ports import SnapshotSource, StatePort, Transport

log = structlog.get_logger(__name__)

AGAIN_SECONDS = 60.0  # after a snapshot could not be taken


@dataclass(frozen=True, slots=True)
class Policy:
    """every_*: from one to the next, whatever comes first. kept_*: that stay in the log behind it at most, for nodes
    that are a little late. How many entries so many bytes are is judged by those in memory (`Log.window_bytes`).
    """

    every_entries: int = 50_000
    every_bytes: int = 64 << 20
    kept_entries: int = 10_000
    kept_bytes: int = 16 << 20


class Snapshots:
    """For the trio thread."""

    def __init__(
        self,
        node: RaftNode,
        disk: Disk,
        state: StatePort,
        transport: Transport,
        policy: Policy,
        tell: Callable[[Event], None],
    ) -> None:
        """tell: puts an event into the node's mailbox."""
        self._node = node
        self._disk = disk
        self._state = state
        self._transport = transport
        self._policy = policy
        self._tell = tell
        self._due = trio.Event()
        self._taking = trio.Lock()
        self._taken_index = node.state.log.base.index
        self._asked: dict[NodeId, int] = {}
        self._news = trio.Event()
        self._streams: dict[NodeId, trio.CancelScope] = {}

    async def run(self) -> None:
        """Take and send what is due, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._take_all)
            while True:
                await self._news.wait()
                self._news = trio.Event()
                asked, self._asked = self._asked, {}
                for peer, term in asked.items():
                    if peer not in self._streams:
                        self._streams[peer] = trio.CancelScope()
                        nursery.start_soon(self._send, peer, term)

    # -------------------------------------------------------------------------- taking

    def applied(self, index: int) -> None:
        """The state has entries up to this one."""
        every = self._policy.every_entries
        if (fits := self._entries_of(self._policy.every_bytes)) < every:
            every = 1 << max(0, fits.bit_length() - 1)  # a power of two: members that judge a little otherwise agree
        if self._round(index, every) > self._round(self._taken_index, every):
            self._due.set()

    def _entries_of(self, size: int) -> int:
        """How many entries have so many bytes, about."""
        log = self._node.state.log
        return size * max(1, log.last + 1 - log.window) // max(ENTRY_BYTES, log.window_bytes)

    def _round(self, index: int, every: int) -> int:
        """Snapshots that are due until an index. Members take theirs at different ones: not all are busy with it at
        once, and a leader finds a quorum that is not.
        """
        state = self._node.state
        members = sorted(state.membership.everyone | {state.node})
        return (index + every * members.index(state.node) // len(members)) // every

    def switched(self, index: int) -> None:
        """The state is that of a snapshot."""
        self._taken_index = max(self._taken_index, index)

    async def _take_all(self) -> None:
        while True:
            await self._due.wait()
            try:
                await self.take()
            except Corrupt:
                raise
            except ConveyordError as error:
                log.error("no snapshot could be taken; the log grows until one can", reason=str(error))
                await trio.sleep(AGAIN_SECONDS)
            self._due = trio.Event()  # what was applied meanwhile counts for the next one

    async def take(self) -> int:
        """Take one, and let the log be compacted behind it. Returns its index."""
        async with self._taking:
            mark = await trio.to_thread.run_sync(self._state.take_snapshot)
        self._taken_index = max(self._taken_index, mark.index)
        index = mark.index - min(self._policy.kept_entries, self._entries_of(self._policy.kept_bytes))
        state = self._node.state
        log.info("a snapshot was taken", index=mark.index, log_begins_after=max(index, state.log.base.index))
        if index > state.log.base.index:
            self._disk.compact(mark, index, state.memberships.at(index))
        return mark.index

    # -------------------------------------------------------------------------- sending

    def send(self, peer: NodeId, term: int) -> None:
        """The node asks for a stream to a peer. It asks again only when it was told how that ended."""
        self._asked[peer] = term
        self._news.set()

    def give_up(self) -> None:
        """This node leads no more."""
        for scope in self._streams.values():
            scope.cancel()

    async def _send(self, peer: NodeId, term: int) -> None:
        index = None
        try:
            with self._streams[peer]:
                snapshot = await self._opened()
                try:
                    if await self._transport.send_snapshot(peer, term, snapshot):
                        index = snapshot.info.mark.index
                finally:
                    snapshot.close()
        except ConveyordError as error:
            log.warning("a snapshot did not arrive", peer=peer, reason=str(error))
        finally:
            del self._streams[peer]
        self._tell(SnapshotSent(peer, index))

    async def _opened(self) -> SnapshotSource:
        """The newest snapshot that the log goes on from; it is taken if there is none."""
        for _ in range(2):
            since = self._node.state.log.base.index
            found = await trio.to_thread.run_sync(self._state.open_snapshot, since)
            if found is not None:
                return found
            await self.take()
        raise Retryable("the state has not come to where the log begins yet; it is tried again")
