"""A copy of what a stopped node has, to look at or to go on from: opening the files themselves would change them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conveyord.core.errors import Corrupt
from conveyord.core.raft.types import NodeId
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.raft_log.quarantine import FOLDERS, NOTE, SUFFIXES, Quarantined
from conveyord.storage.sqlite_errors import translated

LOG = "raft.db"
RESERVE_BYTES = 4096  # a copy leads nothing
PROMISE = "nothing was changed"
NOT_COPIED = ("*-shm", "incoming", "building-*", "*.tmp")  # what a start makes anew, or removes


def copy_log(data_dir: Path, target: Path) -> None:
    """Blocking. Copy the log of a node into the directory `target`. Raises Corrupt if there is none, or StorageFull."""
    source = data_dir / "raft"
    for note in sorted(source.glob(f"{FOLDERS}/{NOTE}")):
        _, _, found = note.read_text(encoding="utf-8").partition("\n")
        raise Corrupt(f"{source}: the log was damaged ({found.strip()}) and lies in {note.parent}")
    if not (source / LOG).exists():
        raise Corrupt(f"{source}: there is no log")
    with translated(target, damaged=Corrupt, promise=PROMISE):
        target.mkdir()
        for suffix in SUFFIXES:
            one = source / f"{LOG}{suffix}"
            if one.exists() and suffix != "-shm":
                shutil.copyfile(one, target / one.name)


def copy_state(data_dir: Path, target: Path) -> None:
    """Blocking. Copy the state of a node to `target`, which is not there. Snapshots, which never change, are linked."""
    with translated(target, damaged=Corrupt, promise=PROMISE):
        if (data_dir / "state").is_dir():
            _copy_tree(data_dir / "state", target)


@contextmanager
def opened_log(directory: Path, node: NodeId) -> Iterator[RaftLog]:
    """The log that was copied to `directory`. Raises Corrupt, wherever in it that is found, if it is damaged."""
    try:
        log = RaftLog(directory / LOG, node=node, reserve_bytes=RESERVE_BYTES)
        try:
            yield log
        finally:
            log.close()
    except Quarantined as error:
        # Its sentence is about the copy, and names a remedy for the node that has it.
        raise Corrupt(f"the log of node {node} is damaged: {error.__cause__}") from error


def _copy_tree(source: Path, target: Path) -> None:
    """As `shutil.copytree`, which goes on after an error, and in the end does not say that the disk is full."""
    target.mkdir()
    for path in sorted(source.iterdir()):
        if any(path.match(pattern) for pattern in NOT_COPIED):
            continue
        if path.is_dir():
            _copy_tree(path, target / path.name)
        elif path.suffix == ".snapshot":
            _link(path, target / path.name)
        else:
            shutil.copyfile(path, target / path.name)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # on another file system, or on one without links
        shutil.copyfile(source, target)
