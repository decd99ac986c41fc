"""Where hashes stand in an array, for those who then look whether what stands there is what they asked for.

A slot is one integer: half of a hash, the tag, above the row. So one access to memory tells what `IntegerIndex` takes
two for. The other half of the hash says where the search begins. No two keys that a search may meet have the same tag,
so it ends at the key if that is there.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import numpy.typing as npt

from conveyord.engine.lookup.integers import Ints, Rows, mixed

_LOAD_NUMERATOR, _LOAD_DENOMINATOR = 5, 2  # 2.5 slots a key: 20 bytes a key, and most are found at their first slot
_EMPTY = np.int64(-1)  # the row in its lower half is MISS
_HALF = np.uint64(32)

Hashes = npt.NDArray[np.uint64]


class TaggedIndex:
    """Finds a row for each of distinct hashes. Immutable, so any number of threads may use it."""

    def __init__(self, slots: Ints, homes: int) -> None:
        """slots: as `of` lays them out. homes: at how many of them a search may begin."""
        self._slots = slots
        self._count = np.uint64(homes)

    @classmethod
    def of(cls, hashes: Ints, rows: Rows) -> Self | None:
        """An index of hashes, each of which is there once, or None if two that a search would meet have one tag.

        That is so once in some thousand times for a million hashes, unless they were chosen for it.
        """
        count = len(hashes) * _LOAD_NUMERATOR // _LOAD_DENOMINATOR + 1
        homes, tags = _homes_and_tags(hashes, np.uint64(count))
        order = np.argsort(homes, kind="stable")
        homes, tags, numbers = homes[order], tags[order], np.arange(len(hashes))
        # Linear probing, filled all at once: in the order of their homes, each takes the next free slot.
        places = numbers + np.maximum.accumulate(homes - numbers)
        if _meet_alike(places, tags):
            return None
        # What runs over the end goes on behind it; one more is always empty, so that every search ends.
        slots = np.full(max(count, int(places[-1]) + 1 if len(places) else 0) + 1, _EMPTY, np.int64)
        slots[places] = (tags | rows[order].astype(np.uint64)).view(np.int64)
        return cls(slots, count)

    def find(self, hashes: Ints) -> Rows:
        """For each hash its row; for others MISS, or the row of some other."""
        places, tags = _homes_and_tags(hashes, self._count)
        found = self._slots.take(places)
        rest = np.flatnonzero(_is_other(found, tags))
        places, tags = places[rest], tags[rest]
        while len(rest):
            places += 1
            slots = self._slots.take(places)
            found[rest] = slots
            on = np.flatnonzero(_is_other(slots, tags))
            rest, places, tags = rest[on], places[on], tags[on]
        return found.astype(np.int32)  # the lower half, which is MISS in an empty slot


def _homes_and_tags(hashes: Ints, count: np.uint64) -> tuple[Ints, Hashes]:
    """Where the search for each hash begins, and its tag in the upper half of an integer."""
    spread = mixed(hashes.view(np.uint64))
    homes: Any = (spread >> _HALF) * count >> _HALF
    return homes.view(np.int64), spread << _HALF


def _is_other(slots: Ints, tags: Hashes) -> npt.NDArray[np.bool_]:
    """Which slots hold another tag than the one that is looked for."""
    other: npt.NDArray[np.bool_] = ((slots.view(np.uint64) ^ tags) >> _HALF != 0) & (slots != _EMPTY)
    return other


def _meet_alike(places: Ints, tags: Hashes) -> bool:
    """Whether two of the same tag stand in slots that follow each other without an empty one between."""
    runs = np.cumsum(np.diff(places, prepend=places[:1]) > 1).astype(np.uint64)
    marks = np.sort(runs << _HALF | tags >> _HALF)
    return bool((marks[1:] == marks[:-1]).any())
