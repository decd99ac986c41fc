"""Where 64-bit integers stand in an array: by direct addressing where they lie close, else by hashing.

Everything is done for a whole batch at a time in numpy; docs/decisions/0004-lookup-index.md has the figures.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int32]

MISS = -1
DENSE_SLOTS_PER_KEY = 4  # direct addressing costs 4 bytes a slot: up to here it takes no more than hashing
_LOAD_NUMERATOR, _LOAD_DENOMINATOR = 8, 5  # 1.6 slots a key: 19 bytes a key, and most are found at their first slot

_FACTORS = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))  # of splitmix64's finalizer
_LOW_HALF = np.uint64(32)


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """A permutation of the 64-bit integers that leaves no pattern in them (splitmix64's finalizer)."""
    values = values ^ (values >> np.uint64(30))
    values *= _FACTORS[0]
    values ^= values >> np.uint64(27)
    values *= _FACTORS[1]
    values ^= values >> np.uint64(31)
    return values


class IntegerIndex:
    """Finds the place of each of distinct 64-bit integers. Immutable, so any number of threads may use it."""

    def __init__(self, keys: Ints, rows: Rows) -> None:
        """keys: each once. rows: what `find` gives for each."""
        self._first = 0
        self._dense: Rows | None = None
        if not len(keys):
            self._dense = np.full(1, MISS, np.int32)
            return
        first, last = int(keys.min()), int(keys.max())
        if last - first < DENSE_SLOTS_PER_KEY * len(keys):
            self._first = first
            self._dense = np.full(last - first + 2, MISS, np.int32)  # the last slot is for all that lies outside
            self._dense[keys - first] = rows
            return
        self._hash(keys, rows)

    def find(self, values: Ints) -> Rows:
        """For each value the row of its key, or MISS."""
        if self._dense is not None:
            # Below the first key the difference wraps around to a large number, which is outside as well.
            away = values.view(np.uint64) - np.uint64(self._first & 0xFFFF_FFFF_FFFF_FFFF)
            found: Rows = self._dense.take(np.minimum(away, np.uint64(len(self._dense) - 1)).view(np.int64))
            return found
        slots = self._homes(values)
        held, found = self._keys.take(slots), self._rows.take(slots)
        rest = np.flatnonzero((held != values) & (held != self._empty))
        slots, values = slots[rest], values[rest]
        while len(rest):
            slots += 1
            held = self._keys.take(slots)
            found[rest] = self._rows.take(slots)
            on = np.flatnonzero((held != values) & (held != self._empty))
            rest, slots, values = rest[on], slots[on], values[on]
        # A value that went on to an empty slot has found the MISS that is there.
        return found

    def _homes(self, values: Ints) -> Ints:
        """The slot where the search for each value begins: the upper half of its hash, scaled to the slots."""
        scaled: Any = (mixed(values.view(np.uint64)) >> _LOW_HALF) * self._slots >> _LOW_HALF
        return scaled.view(np.int64)  # type: ignore[no-any-return]

    def _hash(self, keys: Ints, rows: Rows) -> None:
        """Linear probing, filled all at once: in the order of their homes, each key takes the next free slot."""
        self._slots = np.uint64(len(keys) * _LOAD_NUMERATOR // _LOAD_DENOMINATOR + 1)
        homes = self._homes(keys)
        order = np.argsort(homes, kind="stable")
        homes, count = homes[order], np.arange(len(keys))
        slots = count + np.maximum.accumulate(homes - count)
        # What runs over the end goes on behind it; one more is always empty, so that every search ends.
        size = max(int(self._slots), int(slots[-1]) + 1) + 1
        self._empty = _absent(keys)
        self._keys = np.full(size, self._empty, np.int64)
        self._rows = np.full(size, MISS, np.int32)
        self._keys[slots] = keys[order]
        self._rows[slots] = rows[order]


def _absent(keys: Ints) -> np.int64:
    """An integer that is none of `keys`: what marks a slot as empty. As its row is MISS, it may be looked up too."""
    low, high = int(keys.min()), int(keys.max())
    if low > np.iinfo(np.int64).min:
        return np.int64(low - 1)
    if high < np.iinfo(np.int64).max:
        return np.int64(high + 1)
    ordered = np.sort(keys)
    # Spread over all integers there are, so there is a gap: they are far fewer.
    gap = int(np.argmax(np.diff(ordered.view(np.uint64)) > 1))
    return np.int64(int(ordered[gap]) + 1)
