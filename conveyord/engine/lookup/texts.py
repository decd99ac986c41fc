"""Where strings and byte strings stand in an array, by hashing.

A hash of 64 bits finds the candidate, which is compared with what was asked: the answer is exact. Strings are taken as
words of eight bytes. Those of usual length are laid out in rows of as many words as the longest key has, so that numpy
hashes and compares a column of words at a time; longer ones stay where they lie.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import ConfigError
from conveyord.core.units import counted
from conveyord.engine.lookup.integers import MISS, IntegerIndex, Ints, Rows, mixed
from conveyord.engine.lookup.tags import TaggedIndex

KEY_BYTES_MAX = 4_096  # of a reference's key: a hash takes a step for every eight of the longest
LAID_BYTES_MAX = 64  # of the longest key, so that rows of words take no more than this for each key
SEEDS_MAX = 4  # two keys in ten million share a hash once in 300,000 tries; four times in a row they never do
CHUNK_ROWS = 65_536  # hashed at a time, so that building copies little

_WORD = 8
_UINT64 = np.dtype("<u8")
_SPREAD = np.uint64(0x9E3779B97F4A7C15)
_HALF = np.uint64(32)
_LAST_BYTE = np.uint64(56)
_FIRST_BYTES = np.array([(1 << 8 * count) - 1 for count in range(_WORD)] + [(1 << 64) - 1], _UINT64)
"""Masks that keep so many of the first bytes of a word."""

Words = npt.NDArray[np.uint64]
Marks = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Laid:
    """Strings in rows of words, zeros behind their ends, their lengths in the last byte of the last word.

    Of those that are longer than all keys the beginning, and a length that no key has.
    """

    words: Words

    def hashes(self, seed: int) -> Words:
        """A hash of each."""
        hashes = mixed(self.words[:, -1] + np.uint64(seed))
        for at in range(self.words.shape[1] - 1):
            hashes ^= self.words[:, at]
            _stir(hashes)
        return hashes

    def same(self, keys: _Laid, rows: Rows) -> Marks:
        """Which of them are the keys in these rows."""
        found = keys.words.take(rows, axis=0)
        found ^= self.words
        differs = found[:, 0]
        for at in range(1, self.words.shape[1]):
            differs |= found[:, at]
        same: Marks = differs == 0
        return same


@dataclass(frozen=True, slots=True)
class _Lying:
    """Strings where Arrow has them. longest_bytes: of the keys; what stands behind that is not hashed."""

    values: pa.Array
    longest_bytes: int

    def hashes(self, seed: int) -> Words:
        """A hash of each."""
        words, starts, lengths = _words(self.values, _WORD)
        lengths = np.minimum(lengths, self.longest_bytes)
        hashes = mixed(lengths.view(np.uint64) * _SPREAD + np.uint64(seed))
        rows = np.arange(len(lengths))
        for at in range(0, int(lengths.max(initial=0)), _WORD):
            left = lengths - at
            on = np.flatnonzero(left > 0)
            if len(on) < len(left):
                rows, starts, lengths, left = rows[on], starts[on], lengths[on], left[on]
            masks = _FIRST_BYTES.take(left, mode="clip")
            going_on = hashes[rows] ^ (words[starts + at].view(_UINT64) & masks)
            _stir(going_on)
            hashes[rows] = going_on
        return hashes

    def same(self, keys: _Lying, rows: Rows) -> Marks:
        """Which of them are the keys in these rows."""
        same = pc.equal(keys.values.take(pa.array(rows)), self.values).fill_null(False)
        return np.asarray(same.to_numpy(zero_copy_only=False), np.bool_)


Strings = _Laid | _Lying


class TextIndex:
    """Finds the row of each of distinct strings, or byte strings. Immutable."""

    def __init__(self, keys: pa.Array, hashes: Ints, seed: int, rows: Rows) -> None:
        """keys: the whole column. hashes: of its rows, by `distinct_hashes`. rows: which to find; each a key once."""
        self._seed = seed
        self._longest_bytes = longest_bytes(keys)
        self._keys = strings(keys, self._longest_bytes)
        self._index = TaggedIndex.of(hashes[rows], rows) or IntegerIndex(hashes[rows], rows)
        self._is_empty = not len(rows)

    def find(self, values: pa.Array) -> Rows:
        """For each value the row of its key, or MISS; for nulls either. values: of the type of the keys."""
        if self._is_empty:
            return np.full(len(values), MISS, np.int32)
        asked: Any = strings(values, self._longest_bytes)
        found = self._index.find(hashes_of(asked, seed=self._seed))
        found[~asked.same(self._keys, np.maximum(found, 0))] = MISS
        return found


def distinct_hashes(keys: pa.Array, name: str) -> tuple[Ints, int]:
    """A hash of each row, and the seed for which equal hashes mean equal keys. Nulls hash to anything.

    Raises ConfigError if a key is longer than KEY_BYTES_MAX.
    """
    longest = longest_bytes(keys)
    if longest > KEY_BYTES_MAX:
        raise ConfigError(
            f"{name}: a key has {counted(longest, 'byte')}, more than {KEY_BYTES_MAX:,}; look up by something shorter"
        )
    hashes = np.empty(len(keys), np.int64)
    for seed in range(SEEDS_MAX):
        for first in range(0, len(keys), CHUNK_ROWS):
            part = keys.slice(first, CHUNK_ROWS)
            hashes[first : first + len(part)] = hashes_of(strings(part, longest), seed=seed)
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


def longest_bytes(keys: pa.Array) -> int:
    """How long the longest of some strings is."""
    return int(pc.max(pc.binary_length(keys)).as_py() or 0)


def hashes_of(values: Strings, *, seed: int) -> Ints:
    """A 64-bit hash of each string. Those longer than the longest key, and nulls, get any."""
    return values.hashes(seed).view(np.int64)


def strings(values: pa.Array, longest: int) -> Strings:
    """Strings as they are hashed and compared where the longest key has so many bytes."""
    if longest > LAID_BYTES_MAX:
        return _Lying(values, longest)
    count = longest // _WORD + 1  # so that a byte is left for the length
    if len(values) <= CHUNK_ROWS:
        return _Laid(_laid(values, longest, count))
    laid = np.empty((len(values), count), _UINT64)
    for first in range(0, len(values), CHUNK_ROWS):
        laid[first : first + CHUNK_ROWS] = _laid(values.slice(first, CHUNK_ROWS), longest, count)
    return _Laid(laid)


def _laid(values: pa.Array, longest: int, count: int) -> Words:
    if not len(values):
        return np.empty((0, count), _UINT64)
    rows, starts, lengths = _words(values, count * _WORD)
    laid = rows[starts].view(_UINT64).reshape(-1, count)
    for at in range(int(lengths.min()) // _WORD, count - 1):
        laid[:, at] &= _FIRST_BYTES.take(lengths - at * _WORD, mode="clip")
    known = np.minimum(lengths, longest + 1)
    laid[:, -1] &= _FIRST_BYTES.take(np.minimum(known, longest) - (count - 1) * _WORD, mode="clip")
    laid[:, -1] |= known.view(np.uint64) << _LAST_BYTE
    return laid


def _stir(hashes: Words) -> None:
    """Spread every bit over others, in place: a bijection, and quick. The index mixes what comes of it."""
    hashes *= _SPREAD
    hashes ^= hashes >> _HALF


def _words(values: pa.Array, width: int) -> tuple[npt.NDArray[np.void], Ints, Ints]:
    """`width` bytes from every byte on, and where each string begins and how long it is."""
    _, offset_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, len(values) + 1, values.offset * 4).astype(np.int64)
    first, end = int(offsets[0]), int(offsets[-1])
    # What is taken may begin at the last byte, so there must be some behind it.
    data = np.empty(end - first + width, np.uint8)
    if end > first:
        data[: end - first] = np.frombuffer(data_buffer, np.uint8, end - first, first)
    data[end - first :] = 0
    # Bytes without a type, which may begin anywhere: numpy takes integers that are not aligned far more slowly.
    words: npt.NDArray[np.void] = np.ndarray((end - first + 1,), f"V{width}", data, strides=(1,))
    return words, offsets[:-1] - first, np.diff(offsets)
