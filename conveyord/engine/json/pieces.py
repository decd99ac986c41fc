"""Cutting a block so that what needs the exact path costs only its neighbourhood.

A range of lines is first read in bulk. If bulk stands aside, the range is cut into parts and each is
tried again, down to ranges small enough to be read record by record. Where part after part fails the
data is of a kind that bulk cannot read, and the rest of the range is not tried again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

LEAF_BYTES = 16 * 1024  # read record by record: about a millisecond
PARTS = 8  # of a range that failed: a lone bad record makes a block cost about a seventh more
FAILURES_MAX = 3  # parts that may fail before the rest of a range goes the exact way untried

Read = TypeVar("Read")


def read_range(
    block: bytes,
    *,
    first: int,
    end: int,
    bulk: Callable[[int, int], Read | None],
    exact: Callable[[int, int], Read],
) -> tuple[list[Read], bool]:
    """What `bulk` or `exact` gave for the ranges that tile `block[first:end]`, in order; whether bulk did all.

    bulk: gives None for a range that it cannot read. Both are given the first byte of a line and the
    end of a later one, and are called in order, so that `exact` may change what `bulk` does next.
    """
    read = bulk(first, end)
    if read is not None:
        return [read], True
    parts = list(ranges(block, first=first, end=end, bytes_max=max(LEAF_BYTES, (end - first) // PARTS)))
    if len(parts) <= 1:  # one line, or none at all
        return [exact(first, end)], False
    reads: list[Read] = []
    failures = 0
    for part_first, part_end in parts:
        if failures == FAILURES_MAX:
            reads.append(exact(part_first, part_end))
            continue
        part, clean = read_range(block, first=part_first, end=part_end, bulk=bulk, exact=exact)
        reads += part
        failures += not clean
    return reads, False


def ranges(block: bytes, *, first: int, end: int, bytes_max: int) -> Iterator[tuple[int, int]]:
    """Ranges of whole lines that tile `block[first:end]`, of `bytes_max` or less, or of one longer line."""
    while first < end:
        stop = end
        if end - first > bytes_max:
            stop = block.rfind(b"\n", first, first + bytes_max) + 1
            if stop == 0:
                stop = block.find(b"\n", first + bytes_max, end) + 1 or end
        yield first, stop
        first = stop
