"""Random numbers that are looked up rather than drawn in turn.

The 64 bits for row `n` are a hash of `n` under a key, so any row can be made at any time, alone or among
others, and is always the same: that is what lets a source of made-up rows go on from a position. The hash
is SplitMix64's (Steele, Lea and Flood: Fast Splittable Pseudorandom Number Generators), whose step makes it
exactly this: a mix of `key + n * constant`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Numbers: TypeAlias = npt.NDArray[np.uint64]
"""Row numbers, or random bits, one element for each row."""

GOLDEN = 0x9E3779B97F4A7C15
MIX_FIRST = 0xBF58476D1CE4E5B9
MIX_SECOND = 0x94D049BB133111EB
SMALL_SPAN = 2**32  # below this, 32 random bits choose a value with a bias under 2**-32 per value


@dataclass(frozen=True, slots=True)
class Draws:
    """One stream of random bits. `named` gives a stream that is independent of it."""

    key: int

    def named(self, name: str) -> Draws:
        """The stream for a part of what this one is for, such as a column."""
        digest = hashlib.sha256(self.key.to_bytes(8, "little") + name.encode()).digest()
        return Draws(int.from_bytes(digest[:8], "little"))

    def of(self, numbers: Numbers) -> Numbers:
        """64 random bits for each of `numbers`."""
        bits = numbers * np.uint64(GOLDEN)
        bits += np.uint64(self.key)
        other = bits >> np.uint64(30)
        bits ^= other
        bits *= np.uint64(MIX_FIRST)
        np.right_shift(bits, np.uint64(27), out=other)
        bits ^= other
        bits *= np.uint64(MIX_SECOND)
        np.right_shift(bits, np.uint64(31), out=other)
        bits ^= other
        return bits

    def below(self, numbers: Numbers, span: int) -> Numbers:
        """A whole number in `[0, span)` for each of `numbers`; `span` is at most 2**64."""
        bits = self.of(numbers)
        if span >= 2**64:
            return bits
        if span > SMALL_SPAN:
            return bits % np.uint64(span)
        bits >>= np.uint64(32)
        bits *= np.uint64(span)
        bits >>= np.uint64(32)
        return bits

    def fractions(self, numbers: Numbers) -> npt.NDArray[np.float64]:
        """A double in `[0, 1)` for each of `numbers`."""
        bits = self.of(numbers)
        bits >>= np.uint64(11)
        fractions = bits.astype(np.float64)
        fractions *= 2.0**-53
        return fractions

    def chosen(self, numbers: Numbers, share: float) -> npt.NDArray[np.bool_]:
        """True for about `share` of `numbers`."""
        return self.fractions(numbers) < share
