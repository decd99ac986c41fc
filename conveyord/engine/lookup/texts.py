"""Where strings and byte strings stand in an array, by hashing.

A hash of 64 bits finds the candidate, and Arrow compares it with what was asked: the answer is exact.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import ConfigError
from conveyord.core.units import counted
from conveyord.engine.lookup.integers import MISS, IntegerIndex, Ints, Rows, mixed

KEY_BYTES_MAX = 4_096  # of a reference's key: a hash takes a step for every eight of the longest
SEEDS_MAX = 4  # two keys in ten million share a hash once in 300,000 tries; four times in a row they never do
CHUNK_ROWS = 65_536  # hashed at a time, so that building copies little

_WORD = 8
_UINT64 = np.dtype("<u8")
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(_WORD)] + [(1 << 64) - 1], _UINT64)
"""Masks that keep so many of the first bytes of a word."""


class TextIndex:
    """Finds the row of each of distinct strings, or byte strings. Immutable."""

    def __init__(self, keys: pa.Array, hashes: Ints, seed: int, rows: Rows) -> None:
        """keys: the whole column. hashes: of its rows, by `distinct_hashes`. rows: which to find; each a key once."""
        self._keys = keys
        self._seed = seed
        lengths = pc.max(pc.binary_length(keys)).as_py()
        self._longest_bytes = 0 if lengths is None else int(lengths)
        self._index = IntegerIndex(hashes[rows], rows)

    def find(self, values: pa.Array) -> Rows:
        """For each value the row of its key, or MISS. values: of the type of the keys."""
        if not len(values):
            return np.empty(0, np.int32)
        found = self._index.find(hashes_of(values, seed=self._seed, longest_bytes=self._longest_bytes))
        candidates = self._keys.take(pa.array(np.maximum(found, 0))) if len(self._keys) else pa.nulls(len(values))
        same = pc.equal(candidates, values) if len(self._keys) else pa.repeat(False, len(values))
        found[~np.asarray(same.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)] = MISS
        return found


def distinct_hashes(keys: pa.Array, name: str) -> tuple[Ints, int]:
    """A hash of each row, and the seed for which equal hashes mean equal keys. Nulls hash to anything.

    Raises ConfigError if a key is longer than KEY_BYTES_MAX.
    """
    longest = pc.max(pc.binary_length(keys)).as_py() or 0
    if longest > KEY_BYTES_MAX:
        raise ConfigError(
            f"{name}: a key has {counted(longest, 'byte')}, more than {KEY_BYTES_MAX:,}; look up by something shorter"
        )
    hashes = np.empty(len(keys), np.int64)
    for seed in range(SEEDS_MAX):
        for first in range(0, len(keys), CHUNK_ROWS):
            part = keys.slice(first, CHUNK_ROWS)
            hashes[first : first + len(part)] = hashes_of(part, seed=seed, longest_bytes=longest)
        if _tells_apart(keys, hashes):
            return hashes, seed
    raise ConfigError(f"{name}: its keys cannot be told apart by {SEEDS_MAX} hashes; they were made to be alike")


def _tells_apart(keys: pa.Array, hashes: Ints) -> bool:
    """Whether rows of the same hash have the same key."""
    valid = np.flatnonzero(np.asarray(keys.is_valid().to_numpy(zero_copy_only=False), np.bool_))
    order = valid[np.argsort(hashes[valid], kind="stable")]
    alike = np.flatnonzero(np.diff(hashes[order]) == 0)
    if not len(alike):
        return True
    one, next_one = keys.take(pa.array(order[alike])), keys.take(pa.array(order[alike + 1]))
    return bool(pc.all(pc.equal(one, next_one)).as_py())


def hashes_of(values: pa.Array, *, seed: int, longest_bytes: int) -> Ints:
    """A 64-bit hash of each string. Those longer than `longest_bytes`, and nulls, get any."""
    words, starts, lengths = _words(values)
    lengths = np.minimum(lengths, longest_bytes)
    hashes = mixed(lengths.view(np.uint64) * _SPREAD + np.uint64(seed))
    longest = int(lengths.max(initial=0))
    rows: Ints | None = None  # those that go on; None: all
    for at in range(0, longest, _WORD):
        left = lengths - at
        if rows is None and at and int(left.min()) <= 0:
            rows = np.arange(len(lengths))
        if rows is None:
            hashes = _with_word(hashes, words[starts + at] & _FIRST_BYTES.take(left, mode="clip"))
            continue
        on = np.flatnonzero(left > 0)
        rows, starts, lengths, left = rows[on], starts[on], lengths[on], left[on]
        hashes[rows] = _with_word(hashes[rows], words[starts + at] & _FIRST_BYTES.take(left, mode="clip"))
    return hashes.view(np.int64)


def _with_word(hashes: npt.NDArray[np.uint64], words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Each hash with one more word: a bijection of either, and quick. The index mixes what comes of it."""
    hashes = hashes ^ words
    hashes *= _SPREAD
    hashes ^= hashes >> _HALF
    return hashes


def _words(values: pa.Array) -> tuple[npt.NDArray[np.uint64], Ints, Ints]:
    """Eight bytes from every byte on, and where each string begins and how long it is."""
    _, offset_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, len(values) + 1, values.offset * 4).astype(np.int64)
    first, end = int(offsets[0]), int(offsets[-1])
    # A word may begin at the last byte, so there must be some behind it.
    data = np.zeros(end - first + _WORD, np.uint8)
    if end > first:
        data[: end - first] = np.frombuffer(data_buffer, np.uint8, end - first, first)
    words: npt.NDArray[np.uint64] = np.ndarray((end - first + 1,), _UINT64, data, strides=(1,))
    return words, offsets[:-1] - first, np.diff(offsets)
