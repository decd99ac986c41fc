"""Snapshots between Maelstrom nodes: chunk after chunk, each answered with where to go on."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from conveyord.core.errors import OutcomeUnknown, Refused
from conveyord.core.raft.membership import decode, encode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import Mark, NodeId
from conveyord.runtime.raft.ports import SnapshotSource
from conveyord.storage.state_store.receiving import SnapshotReceiver
from tests.maelstrom.kv import MIGRATIONS

CHUNK_BYTES = 64 * 1024
ATTEMPTS = 5  # for one chunk

Body = dict[str, Any]


def _text(data: bytes) -> str:
    return b64encode(data).decode()


async def stream(snapshot: SnapshotSource, term: int, ask: Callable[[Body], Awaitable[Body]]) -> bool:
    """Send a snapshot; whether the peer has all of it and has told its node."""
    info = snapshot.info
    mark = [info.mark.index, info.mark.term, _text(info.mark.chain)]
    offer = [mark, _text(encode(info.membership)), info.state_bytes, info.file_bytes, _text(info.digest)]
    offset = failures = 0
    while failures < ATTEMPTS:
        chunk = await trio.to_thread.run_sync(snapshot.read_chunk, offset, CHUNK_BYTES)
        body = {"type": "snapshot", "term": term, "offer": offer, "offset": offset, "data": _text(chunk)}
        try:
            answer = await ask(body)
        except OutcomeUnknown:
            failures += 1
            continue
        if answer["is_done"]:
            return True
        offset, failures = answer["offset"], 0
    return False


class Incoming:
    """What comes to one node. One snapshot at a time."""

    def __init__(self, directory: Path, tell: Callable[[NodeId, int, SnapshotInfo], None]) -> None:
        self._directory = directory
        self._tell = tell
        self._busy = trio.Lock()

    async def take(self, sender: NodeId, body: Body) -> Body:
        """Take a chunk; where to go on."""
        async with self._busy:
            mark, members, state_bytes, file_bytes, digest = body["offer"]
            place = Mark(mark[0], mark[1], b64decode(mark[2]))
            offer = SnapshotInfo(place, decode(b64decode(members)), state_bytes, file_bytes, b64decode(digest))
            data = b64decode(body["data"])
            offset, is_done = await trio.to_thread.run_sync(self._append, offer, body["offset"], data)
            if is_done:
                self._tell(sender, body["term"], offer)
            return {"offset": offset, "is_done": is_done}

    def _append(self, offer: SnapshotInfo, offset: int, data: bytes) -> tuple[int, bool]:
        receiver = SnapshotReceiver(self._directory, offer, MIGRATIONS)
        try:
            try:
                receiver.append(offer.digest, offset, data)
            except Refused:
                return receiver.offset, False
            if receiver.is_complete:
                receiver.stage()
                return offer.file_bytes, True
            return receiver.offset, False
        finally:
            receiver.close()
