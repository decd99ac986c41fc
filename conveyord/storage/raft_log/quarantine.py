"""Moves a damaged log aside, as it is, and keeps the node that wrote it from coming back as if nothing had happened.

A node with less than it promised may vote twice in a term, or win an election without entries that it acknowledged
(etcd 14143, NATS 7567). So its name is spent: what was moved aside bears it, and as long as that lies there no log is
made for that name in this place. The node comes back as a new member, a learner first.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from conveyord.core.errors import ConveyordError
from conveyord.core.raft.types import NodeId
from conveyord.storage.disk import sync_directory, write_file

SUFFIXES = ("", "-wal", "-journal", "-shm", "-watermark")
FOLDERS = "quarantine-*"
NOTE = "raft-log.txt"  # its first line is the name of the node
MOVING = "raft-log.moving"  # the same, as long as not all has been moved


class Quarantined(ConveyordError):
    """A Raft log is not what was written, and was moved aside as it was. The node's name may not be used again."""

    code = "QUARANTINED"


def refuse_if_spent(path: Path, node: NodeId) -> None:
    """Raise Quarantined if the log of `node` at `path` was moved aside before. Blocking.

    First ends a move that a crash cut short, whoever's log it was: what is left of it is nobody's.
    """
    for moving in path.parent.glob(f"{FOLDERS}/{MOVING}"):
        _move(path, moving.parent)
    for note in sorted(path.parent.glob(f"{FOLDERS}/{NOTE}")):
        name, _, found = note.read_text(encoding="utf-8").partition("\n")
        if name == node:
            raise _sentence(path, node, found, note.parent)


def move_aside(path: Path, node: NodeId, found: str) -> Quarantined:
    """Move the files of the log at `path`, which nobody has open, and return the error that says so. Blocking.

    found: what is wrong with them.
    """
    numbered = (path.parent / FOLDERS.replace("*", str(number)) for number in itertools.count(1))
    folder = next(folder for folder in numbered if not folder.exists())
    folder.mkdir()
    sync_directory(path.parent)
    write_file(folder / MOVING, f"{node}\n{found}\n".encode())
    _move(path, folder)
    return _sentence(path, node, found, folder)


def _move(path: Path, folder: Path) -> None:
    for suffix in SUFFIXES:
        one = path.with_name(path.name + suffix)
        if one.exists():
            one.rename(folder / one.name)
    sync_directory(folder)
    sync_directory(path.parent)
    (folder / MOVING).rename(folder / NOTE)
    sync_directory(folder)


def _sentence(path: Path, node: NodeId, found: str, folder: Path) -> Quarantined:
    return Quarantined(
        f"{path}: {found.strip()}; its files lie in {folder} as they were. Node {node} does not know any more what it "
        "promised, so it must not vote under this name again: remove it from the cluster, move the state "
        "beside the log away, and start it under a new node id, which joins as a learner and gets a snapshot"
    )
