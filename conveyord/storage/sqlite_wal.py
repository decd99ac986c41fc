"""How SQLite's write-ahead log lies on the disk: https://www.sqlite.org/fileformat2.html#the_write_ahead_log

The file is written from its beginning again once all of it is in the database: a new generation, by another salt in its
header and frames. Frames of former ones may lie behind those of the present.
"""

from __future__ import annotations

import os
import struct

HEADER = struct.Struct(">IIIIIIII")  # magic, version, page size, checkpoint, two salts, two checksums
FRAME = struct.Struct(">IIIIII")  # page, pages of the database if it ends a transaction, two salts, two checksums


def has_frames(descriptor: int, count: int) -> bool:
    """Whether there are at least so many frames of the present generation. count: 1 or more. Raises OSError."""
    header = os.pread(descriptor, HEADER.size, 0)
    if len(header) < HEADER.size:
        return False
    _, _, page_bytes, _, *salts, _, _ = HEADER.unpack(header)
    frame = os.pread(descriptor, FRAME.size, HEADER.size + (count - 1) * (FRAME.size + page_bytes))
    return len(frame) == FRAME.size and list(FRAME.unpack(frame)[2:4]) == salts
