"""The one row beside the entries: what a node promised, where its log begins, and where it must end.

Every transaction writes it, with a sequence number one higher. So a log whose entries do not reach to `last`, or whose
sequence is behind one that is known to have been on disk, has lost something; it does not look like a shorter log.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgpack

from conveyord.core.errors import Corrupt
from conveyord.core.raft.membership import NOBODY, encode
from conveyord.core.raft.types import BEGINNING, BLANK, ROOT_CHAIN, HardState, Mark, NodeId

Row = tuple[Any, ...]

COLUMNS = (
    "node", "sequence", "term", "vote", "commit_hint", "base_index", "base_term", "base_chain", "members", "last_index",
    "last_chain", "crc",
)  # fmt: skip


class Head(NamedTuple):
    """What the row says. members: the membership at `base`, as `membership.encode` writes it."""

    node: NodeId
    sequence: int = 0
    hard_state: HardState = BLANK
    base: Mark = BEGINNING
    members: bytes = encode(NOBODY)
    last_index: int = 0
    last_chain: bytes = ROOT_CHAIN


def row_of(head: Head) -> Row:
    """The columns, the last of them the checksum of those before it."""
    fields = (head.node, head.sequence, *head.hard_state, *head.base, head.members, head.last_index, head.last_chain)
    return (*fields, _crc(fields))


def head_of(rows: Sequence[Row]) -> Head:
    """The inverse of `row_of`, of all rows of the table. Raises Corrupt if they are not one row, as it was written."""
    if len(rows) != 1:
        raise Corrupt(f"its head has {len(rows)} rows instead of one")
    *fields, crc = rows[0]
    if _crc(fields) != crc:
        raise Corrupt("the checksum of its head is wrong")
    node, sequence, term, vote, commit, base_index, base_term, base_chain, members, last_index, last_chain = fields
    base = Mark(base_index, base_term, base_chain)
    return Head(node, sequence, HardState(term, vote, commit), base, members, last_index, last_chain)


def _crc(fields: Sequence[object]) -> int:
    return zlib.crc32(msgpack.packb(fields))
