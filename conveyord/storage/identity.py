"""Who a node is: its id, and how often it was started, in `node.json` of its data directory.

The id is what others know it by, for ever; addresses may change. The number of the start, its incarnation, tells a
message of this process from one of an earlier one, and two processes with one id from each other.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.state.names import wrong_id
from conveyord.storage.disk import make_durable_directories, write_file

FILE = "node.json"
LOG = "raft/raft.db"
ID_BYTES = 6  # 281 trillion, so that nobody has to look whether one is taken


@dataclass(frozen=True, slots=True)
class Identity:
    """node: its id. incarnation: 1 when it is started for the first time. cluster: that it belongs to, once it does.

    has_log: whether it has begun a log: if that is missing, it was lost, with all that the node has promised.
    """

    node: str
    incarnation: int
    cluster: str | None = None
    has_log: bool = False


def take_identity(data_dir: Path, *, node: str | None = None) -> Identity:
    """Start a node once more: its identity, with an incarnation that it never had. On disk on return. Blocking.

    node: the id that it must have, or is to have; None for the one that it has, or a new one. Raises Refused for
    another id than that of the directory, and for a log that has lost its identity; Corrupt for a file that is not what
    was written, and OSError.
    """
    if node is not None and (wrong := wrong_id("node", node)) is not None:
        raise Refused(wrong.message)
    make_durable_directories(data_dir)
    found = _read(data_dir / FILE)
    if found is None:
        _refuse_log(data_dir)
        found = Identity(node or f"n-{secrets.token_hex(ID_BYTES)}", 0)
    if node not in (None, found.node):
        raise Refused(
            f"{data_dir} belongs to node {found.node}, and node {node} was to be started on it; start it as "
            f"{found.node}, or give {node} a data directory of its own"
        )
    taken = replace(found, incarnation=found.incarnation + 1)
    keep_identity(data_dir, taken)
    return taken


def keep_identity(data_dir: Path, identity: Identity) -> None:
    """Put it on disk. Blocking; raises OSError."""
    write_file(data_dir / FILE, msgspec.json.encode(identity) + b"\n")


def _refuse_log(data_dir: Path) -> None:
    """A log has votes of one node, and each of its starts must have a number of its own, so it needs its identity."""
    if (data_dir / LOG).exists():
        raise Refused(
            f"{data_dir} has the log of a node, {LOG}, and no {FILE}, which says whose it is and how often that was "
            f"started; put {FILE} back from where it went, or remove the node from its cluster and start anew on an "
            "empty data directory"
        )


def _read(path: Path) -> Identity | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Identity)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise Corrupt(
            f"{path} is not what was written ({error}); remove this node from its cluster, and start a new one on an "
            "empty data directory"
        ) from error
