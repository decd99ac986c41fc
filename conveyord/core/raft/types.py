"""What is kept on disk and what a node is told: entries, the hard state, snapshots' marks, options.

Times are seconds of a monotonic clock that the caller reads; sizes of entries are as `size_of` counts them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum, unique
from functools import partial
from hashlib import blake2b
from itertools import count, repeat
from typing import NamedTuple

NodeId = str
CHAIN_BYTES = 8
ENTRY_BYTES = 64
"""What an entry counts for beside its data: about what it takes on the wire. So small ones are limited too."""
ROOT_CHAIN = bytes(CHAIN_BYTES)
"""The chain before the first entry."""

_HEAD = struct.Struct("<QQB")
_LINK = struct.Struct("<QQI")


@unique
class Kind(IntEnum):
    """What an entry is for."""

    NOOP = 0
    """A leader's first entry: committing it commits what earlier leaders left (Raft paper, 5.4.2 and 8)."""
    COMMAND = 1
    MEMBERSHIP = 2
    BUNDLE = 3
    """Several commands, see `bundles.py`."""


class Entry(NamedTuple):
    """One entry of the log. crc: of all fields before it. chain: of every entry up to this one, itself included.

    Equal chains at one index mean equal logs up to it; so a replica that took other bytes than its leader is found
    when the next entry arrives, not when somebody reads a wrong state.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which looks for a value: nobody does
    term: int
    kind: Kind
    data: bytes
    crc: int
    chain: bytes


_entry = partial(tuple.__new__, Entry)  # of a tuple: a class of named ones takes twice as long to make one by itself


class HardState(NamedTuple):
    """What must survive a crash beside the log. commit: a hint; less than what is committed is never wrong."""

    term: int = 0
    vote: NodeId | None = None
    commit: int = 0


class Mark(NamedTuple):
    """A place in the log: that of a snapshot, or where a compacted log begins."""

    index: int = 0  # type: ignore[assignment]  # as in `Entry`
    term: int = 0
    chain: bytes = ROOT_CHAIN


BLANK = HardState()
BEGINNING = Mark()
"""Before the first entry of a cluster."""


def crc_of(index: int, term: int, kind: int, data: bytes) -> int:
    """The checksum that travels and is stored with an entry."""
    return zlib.crc32(data, zlib.crc32(_HEAD.pack(index, term, kind)))


def chain_after(chain: bytes, index: int, term: int, crc: int) -> bytes:
    """The rolling hash after an entry. `crc` stands for its data."""
    return blake2b(chain + _LINK.pack(index, term, crc), digest_size=CHAIN_BYTES).digest()


def make_entry(previous: bytes, index: int, term: int, kind: Kind, data: bytes) -> Entry:
    """An entry with its checksum and chain. previous: the chain of the entry before it."""
    return make_entries(previous, index, term, kind, (data,))[0]


def make_entries(previous: bytes, first: int, term: int, kind: Kind, datas: Sequence[bytes]) -> list[Entry]:
    """The same for entries that follow one another, from index `first` on."""
    # A leader does it with every command: calls of `crc_of` and `chain_after` would take half as long again.
    crc32, head, link, chain, chains = zlib.crc32, _HEAD.pack, _LINK.pack, previous, list[bytes]()
    crcs = [crc32(data, crc32(head(index, term, kind))) for index, data in enumerate(datas, first)]
    for index, crc in enumerate(crcs, first):
        chain = blake2b(chain + link(index, term, crc), digest_size=CHAIN_BYTES).digest()
        chains.append(chain)
    return list(map(_entry, zip(count(first), repeat(term), repeat(kind), datas, crcs, chains, strict=False)))


def are_whole(entries: Iterable[Entry]) -> bool:
    """Whether entries have the bytes that they were made with. Says nothing of their chain."""
    crc32, head = zlib.crc32, _HEAD.pack
    return all(crc == crc32(data, crc32(head(index, term, kind))) for index, term, kind, data, crc, _ in entries)


def size_of(entries: Collection[Entry]) -> int:
    """Bytes that entries count for, wherever a limit is one of bytes."""
    return sum([len(entry.data) for entry in entries]) + ENTRY_BYTES * len(entries)


@dataclass(frozen=True, slots=True)
class Options:
    """Limits and times of one node; every node of a cluster should have the same times.

    election_timeout_seconds: T. A follower that hears nobody campaigns after T to 2 T, and no vote is given within T
    of hearing a leader. append_bytes: of the entries of one message. inflight_*: sent to a peer and not acknowledged;
    how much, between `inflight_bytes_min` and `inflight_bytes`, is as `progress.py` says.
    uncommitted_bytes: proposals beyond it are dropped, as a leader that cannot commit must not fill its disk; so they
    are where its own disk lags that much. window_bytes: of committed entries held in memory; older ones are read from
    the disk. promotion_lag: how many entries a learner may miss and still be made a voter. reads: that wait to be
    confirmed, and then for the state. tell_seconds: for which others learn later what is committed, unless entries
    tell them; 0 tells them at once.
    """

    election_timeout_seconds: float = 1.0
    heartbeat_seconds: float = 0.2
    tell_seconds: float = 0.002
    append_bytes: int = 1 << 20
    inflight_messages: int = 64
    inflight_bytes: int = 8 << 20
    inflight_bytes_min: int = 256 << 10
    uncommitted_bytes: int = 64 << 20
    apply_bytes: int = 4 << 20
    window_bytes: int = 16 << 20
    promotion_lag: int = 250
    reads: int = 10_000
