"""Whether SQLite's write-ahead log ends where a crash cut it, or is damaged before its end.

SQLite reads frames up to the first one that does not fit, and takes the rest for a transaction that was never
committed. We sync each transaction before the next is begun, and begin a new generation of frames (another salt) when
we load; so at most one transaction of a generation is ever incomplete, and it is the last. What follows the first
frame that does not fit can therefore be of one transaction only. If it is of two, the former was acknowledged.

What this cannot tell is damage to the last transaction of all from a crash before it was acknowledged: `Watermark` can,
unless the power went before that reached the disk.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, checkpoint, two salts, two checksums
FRAME = struct.Struct(">IIIIII")  # page, pages of the database if it ends a transaction, two salts, two checksums
MAGIC = 0x377F0682  # with the lowest bit set where checksums are of big-endian words
WORD = 0xFFFFFFFF


def lost(path: Path, *, accepted: int) -> str | None:
    """What shows that acknowledged transactions cannot be read any more; None if nothing does. Blocking.

    path: of the write-ahead log, which may be missing. accepted: how many frames of it SQLite has taken.
    """
    try:
        with path.open("rb") as file:
            return _lost(file, accepted)
    except FileNotFoundError:
        return None


def _lost(file: BinaryIO, accepted: int) -> str | None:
    header = file.read(HEADER.size)
    if len(header) < HEADER.size or not file.read(FRAME.size):
        return None
    _, _, page_bytes, _, *salts, _, _ = HEADER.unpack(header)
    if not _is_whole(header):
        # It is synced before the first frame is written, and lies within one sector: no crash leaves it like this.
        return "the head of its write-ahead log is damaged"
    seen, is_ended = set[int](), False
    at = accepted
    while len(frame := _frame(file, at, page_bytes)) == FRAME.size:
        at += 1
        page, ends, *its_salts, _, _ = FRAME.unpack(frame)
        if its_salts != salts:
            continue
        if is_ended or page in seen:
            return f"frame {accepted + 1} of its write-ahead log is damaged, and an acknowledged write follows it"
        seen.add(page)
        is_ended = ends != 0
    return None


def _frame(file: BinaryIO, at: int, page_bytes: int) -> bytes:
    file.seek(HEADER.size + at * (FRAME.size + page_bytes))
    return file.read(FRAME.size)


def _is_whole(header: bytes) -> bool:
    magic, *_, first, second = HEADER.unpack(header)
    words = struct.unpack((">" if magic & 1 else "<") + "6I", header[: 6 * 4])
    s0 = s1 = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        s0 = (s0 + even + s1) & WORD
        s1 = (s1 + odd + s0) & WORD
    return magic & ~1 == MAGIC and (s0, s1) == (first, second)
