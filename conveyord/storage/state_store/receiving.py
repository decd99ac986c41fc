"""Receives a snapshot in chunks, over any number of connections and restarts."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.storage.disk import write_all
from conveyord.storage.state_store.faults import damaged_snapshot, translated
from conveyord.storage.state_store.layout import Layout
from conveyord.storage.state_store.schema import Migration
from conveyord.storage.state_store.staging import stage


class SnapshotReceiver:
    """The bytes of one snapshot that was offered. Blocking; one at a time for a directory, in any thread.

        receiver = SnapshotReceiver(directory, offer, migrations)
        while not receiver.is_complete:
            receiver.append(digest, offset, data)    # what the sender has from receiver.offset on
        receiver.stage()                             # now `StateStore.switch(offer.mark)` can be called

    Nothing is synced before `stage`: after a power cut the bytes may be wrong, which `stage` finds, and it begins anew.
    """

    def __init__(self, directory: Path, offer: SnapshotInfo, migrations: Sequence[Migration]) -> None:
        """Go on with what came of `offer` before; what came of any other snapshot is removed.

        directory, migrations: those of the store. Raises StorageFull or Retryable.
        """
        self._layout = Layout(directory)
        self._offer = offer
        self._migrations = migrations
        self._path = self._layout.partial(offer.digest)
        with translated(self._path, damaged=damaged_snapshot):
            self._layout.incoming.mkdir(parents=True, exist_ok=True)
            for other in self._layout.incoming.iterdir():
                if other != self._path:
                    other.unlink()
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
            self.offset = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        """Let go of the file. What came stays for another receiver, until it is staged."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    @property
    def is_complete(self) -> bool:
        """Whether all bytes came; what they are is not known yet."""
        return self.offset >= self._offer.file_bytes

    def append(self, digest: bytes, offset: int, data: bytes) -> None:
        """Take the next bytes of the snapshot `digest`.

        Raises Refused for another snapshot or offset, with nothing changed: ask for what is at `self.offset`. Raises
        StorageFull if there is no room: what came stays. Raises Corrupt for more bytes than were offered.
        """
        if digest != self._offer.digest:
            raise Refused(
                f"a chunk of the snapshot {digest.hex()[:16]} came, but {self._offer.digest.hex()[:16]} is being "
                "received; offer it anew"
            )
        if offset != self.offset:
            raise Refused(f"{self._path}: a chunk at {offset} came, but {self.offset} is next; send from there")
        if offset + len(data) > self._offer.file_bytes:
            self._forget()
            raise damaged_snapshot(self._path, f"more than {self._offer.file_bytes} bytes came")
        with translated(self._path, damaged=damaged_snapshot):
            write_all(self._descriptor, [data], offset)
        self.offset += len(data)

    def stage(self) -> None:
        """Check all of it, and make it a state that can be switched to; durable on return.

        It takes room for the state unpacked. Raises StorageFull if that is not there: what came stays. Raises Corrupt
        if a byte is wrong, or Refused if a newer conveyord made it: then it is removed.
        """
        assert self.is_complete, (self.offset, self._offer.file_bytes)
        try:
            stage(self._layout, self._path, self._offer, self._migrations)
        except (Corrupt, Refused):
            self._forget()
            raise
        self._forget()

    def _forget(self) -> None:
        self.close()
        self._path.unlink()
        self.offset = 0
