"""Takes in the snapshots that leaders stream to a node: one at a time, the newest offer wins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from conveyord.core.errors import Refused
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import NodeId
from conveyord.runtime.raft.ports import Receiver

log = structlog.get_logger(__name__)

OpenReceiver = Callable[[SnapshotInfo], Receiver]
Tell = Callable[[NodeId, int, SnapshotInfo], None]


@dataclass(slots=True, eq=False)
class _Open:
    """What is coming. sender, term: who offered it last, and in which term it led."""

    sender: NodeId
    term: int
    info: SnapshotInfo
    receiver: Receiver


class Receiving:
    """For the trio thread."""

    def __init__(self, open_receiver: OpenReceiver, tell: Tell) -> None:
        """open_receiver: blocking; goes on with what came of the same snapshot before. tell: one is staged."""
        self._open_receiver = open_receiver
        self._tell = tell
        self._open: _Open | None = None
        self._busy = trio.Lock()

    async def offer(self, sender: NodeId, term: int, info: SnapshotInfo) -> int:
        """Begin, or go on, to take a snapshot. Returns from where on its bytes are wanted; all of them if none are."""
        async with self._busy:
            if self._open is None or self._open.info.digest != info.digest:
                await self._close()
                log.info("a snapshot comes", sender=sender, index=info.mark.index, file_bytes=info.file_bytes)
                receiver = await trio.to_thread.run_sync(self._open_receiver, info)
                self._open = _Open(sender, term, info, receiver)
            self._open.sender, self._open.term = sender, term
            return await self._progressed(self._open)

    async def chunk(self, digest: bytes, offset: int, data: bytes | bytearray | memoryview) -> int:
        """Take bytes of what was offered last; returns how many there are. With the last ones it is staged.

        Raises Refused if something else was offered meanwhile, and what storing and checking it raises.
        """
        async with self._busy:
            found = self._open
            if found is None or found.info.digest != digest:
                raise Refused("this snapshot is not being received here any more; offer it anew")
            await trio.to_thread.run_sync(found.receiver.append, digest, offset, bytes(data))
            return await self._progressed(found)

    async def _progressed(self, found: _Open) -> int:
        if not found.receiver.is_complete:
            return found.receiver.offset
        self._open = None
        await trio.to_thread.run_sync(_staged, found.receiver)
        self._tell(found.sender, found.term, found.info)
        return found.info.file_bytes

    async def _close(self) -> None:
        if self._open is not None:
            found, self._open = self._open, None
            await trio.to_thread.run_sync(found.receiver.close)


def _staged(receiver: Receiver) -> None:
    """Blocking."""
    try:
        receiver.stage()
    finally:
        receiver.close()
