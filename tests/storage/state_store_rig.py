"""What tests of snapshots share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from tests.storage.kv_state import MIGRATIONS, advance, open_store


@contextmanager
def snapshot_of(directory: Path, count: int) -> Iterator[SnapshotFile]:
    """A leader's snapshot of the first entries."""
    with closing(open_store(directory)) as leader:
        advance(leader, count)
        leader.snapshots.take()
        newest = leader.snapshots.newest()
        assert newest is not None
        with newest:
            yield newest


def receive(directory: Path, content: bytes, offer: SnapshotInfo, *, chunk_bytes: int = 1_000) -> None:
    with closing(SnapshotReceiver(directory, offer, MIGRATIONS)) as receiver:
        while not receiver.is_complete:
            receiver.append(offer.digest, receiver.offset, content[receiver.offset :][:chunk_bytes])
        receiver.stage()


def names(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if "generation-" not in str(path)}
