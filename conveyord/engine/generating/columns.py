"""Columns of made-up values. Each is a `Column`: a value follows from its row's number and the stream alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from conveyord.engine.generating.draws import Draws, Numbers

LETTERS = b"abcdefghijkmnpqrstuvwxyz23456789"  # 32 of them, none that looks like another
LETTER_BITS = 5
WORD_LETTERS = 12  # as many as 64 random bits give
SCATTER = 0x9E3779B97F4A7C15  # odd, so multiplying by it permutes the numbers of any count of bits
DIGITS = np.frombuffer(b"".join(b"%03d" % number for number in range(1000)), np.uint8).reshape(1000, 3)
LIST_NUMBERS = 64  # numbers set aside for the elements of each list, so those of two rows never meet
UTC_MICROS = pa.timestamp("us", "UTC")

_PAIRS = np.frombuffer(bytes(byte for one in LETTERS for two in LETTERS for byte in (one, two)), np.uint8).reshape(
    -1, 2
)


class Column(Protocol):
    """What makes one column."""

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """The values of the rows `numbers`, each the same whatever rows stand beside it."""


@dataclass(frozen=True, slots=True)
class RowNumber:
    """Every row's own number, from `first` on."""

    first: int = 0

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:  # noqa: ARG002 - nothing is random here
        """See `Column.make`."""
        return pa.array(numbers.view(np.int64) + self.first)


@dataclass(frozen=True, slots=True)
class Longs:
    """Whole numbers in `[low, high]`; only `distinct` different ones, evenly spread, if that is given."""

    low: int
    high: int
    distinct: int | None = None

    def values(self, draws: Draws, numbers: Numbers) -> npt.NDArray[np.int64]:
        """The values as a numpy array."""
        span = self.high - self.low + 1
        steps = span if self.distinct is None else min(self.distinct, span)
        values = draws.below(numbers, steps)
        values *= np.uint64(span // steps)
        # Two's complement: adding a negative bound wraps to the right value.
        values += np.uint64(self.low % 2**64)
        return values.view(np.int64)

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        return pa.array(self.values(draws, numbers))


@dataclass(frozen=True, slots=True)
class Doubles:
    """Doubles in `[low, high)`, of `digits` decimals if that is given, which may round up to `high`."""

    low: float
    high: float
    digits: int | None = None
    distinct: int | None = None

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        if self.distinct is None:
            values = draws.fractions(numbers)
        else:
            values = draws.below(numbers, self.distinct).astype(np.float64)
            values /= self.distinct
        values *= self.high - self.low
        values += self.low
        return pa.array(values if self.digits is None else np.round(values, self.digits))


@dataclass(frozen=True, slots=True)
class Booleans:
    """True for `share` of the rows."""

    share: float = 0.5

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        return pa.array(draws.chosen(numbers, self.share))


@dataclass(frozen=True, slots=True)
class Instants:
    """Times in `[low, high]`, microseconds since the epoch, in UTC."""

    low: int
    high: int
    distinct: int | None = None

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        return pa.array(Longs(self.low, self.high, self.distinct).values(draws, numbers)).cast(UTC_MICROS)


@dataclass(frozen=True, slots=True)
class Ticks:
    """Times that advance by `step` microseconds a row, in UTC."""

    first: int
    step: int

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:  # noqa: ARG002 - nothing is random here
        """See `Column.make`."""
        return pa.array(numbers.view(np.int64) * self.step + self.first).cast(UTC_MICROS)


@dataclass(frozen=True, slots=True)
class Days:
    """Dates in `[low, high]`, days since the epoch."""

    low: int
    high: int
    distinct: int | None = None

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        days = Longs(self.low, self.high, self.distinct).values(draws, numbers)
        return pa.array(days.astype(np.int32)).cast(pa.date32())


@dataclass(frozen=True, slots=True)
class Choices:
    """One of `values`, each as likely as the others; none of them is null."""

    values: tuple[Any, ...]
    type: pa.DataType | None = None

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        picked = pa.array(draws.below(numbers, len(self.values)))
        return pa.array(self.values, self.type).take(picked)


@dataclass(frozen=True, slots=True)
class Words:
    """`prefix` and `letters` random letters; exactly `distinct` different words at most, if that is given."""

    letters: int
    prefix: str = ""
    distinct: int | None = None

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        prefix = np.frombuffer(self.prefix.encode(), np.uint8)
        width = len(prefix) + self.letters
        text = np.empty((len(numbers), width + 1), np.uint8)  # one more: letters are laid down in pairs
        text[:, : len(prefix)] = prefix
        words = numbers if self.distinct is None else draws.below(numbers, self.distinct)
        for first in range(0, self.letters, WORD_LETTERS):
            count = min(WORD_LETTERS, self.letters - first)
            if self.distinct is None or first:
                bits = draws.named(str(first)).of(words)
            else:  # a permutation, so that different numbers are different words
                bits = words * np.uint64(SCATTER)
                bits &= np.uint64(2 ** (LETTER_BITS * count) - 1)
            for at in range(0, count, 2):
                pair = (bits >> np.uint64(LETTER_BITS * at)) & np.uint64(2 ** (2 * LETTER_BITS) - 1)
                place = len(prefix) + first + at
                text[:, place : place + 2] = _PAIRS[_swapped(pair)]
        return fixed_width(np.ascontiguousarray(text[:, :width]))


def _swapped(pair: Numbers) -> npt.NDArray[np.intp]:
    """The low letter first, so that a word of an odd count of letters keeps the one its bits are for."""
    low = pair & np.uint64(31)
    low <<= np.uint64(LETTER_BITS)
    pair >>= np.uint64(LETTER_BITS)
    low |= pair
    return low.astype(np.intp)


@dataclass(frozen=True, slots=True)
class Numbered:
    """`before`, a number below 10**`digits` written with its leading zeros, and `after`."""

    before: str
    digits: int
    after: str = ""
    distinct: int | None = None

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        before, after = (np.frombuffer(part.encode(), np.uint8) for part in (self.before, self.after))
        values = draws.below(numbers, self.distinct or 10**self.digits)
        groups = -(-self.digits // 3)
        spare = 3 * groups - self.digits  # zeros that the first group of three begins with
        text = np.empty((len(numbers), len(before) + self.digits + len(after)), np.uint8)
        text[:, : len(before)] = before
        text[:, len(before) + self.digits :] = after
        for group in reversed(range(groups)):
            values, rest = np.divmod(values, np.uint64(1000))
            place = len(before) + 3 * group - spare
            cut = spare if group == 0 else 0
            text[:, place + cut : place + 3] = DIGITS[rest.astype(np.intp)][:, cut:]
        return fixed_width(text)


def fixed_width(text: npt.NDArray[np.uint8]) -> pa.StringArray:
    """The rows of a matrix of ASCII bytes as strings."""
    count, width = text.shape
    offsets = np.arange(0, count * width + 1, width, dtype=np.int32) if width else np.zeros(count + 1, np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))


@dataclass(frozen=True, slots=True)
class Nullable:
    """Another column, null in about `share` of the rows."""

    column: Column
    share: float

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        values = self.column.make(draws, numbers)
        absent = pa.array(draws.named("null").chosen(numbers, self.share))
        return pc.if_else(absent, pa.scalar(None, values.type), values)


@dataclass(frozen=True, slots=True)
class Struct:
    """An object of several columns."""

    columns: Mapping[str, Column]

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        names, arrays = made(self.columns, draws, numbers)
        return pa.StructArray.from_arrays(arrays, names=names)


@dataclass(frozen=True, slots=True)
class Lists:
    """A list of `low` to `high` elements, which is at most `LIST_NUMBERS`."""

    elements: Column
    low: int
    high: int

    def make(self, draws: Draws, numbers: Numbers) -> pa.Array:
        """See `Column.make`."""
        lengths = draws.named("length").below(numbers, self.high - self.low + 1).astype(np.int32) + np.int32(self.low)
        offsets = np.zeros(len(numbers) + 1, np.int32)
        np.cumsum(lengths, out=offsets[1:])
        within = np.arange(offsets[-1], dtype=np.uint64) - np.repeat(offsets[:-1], lengths).astype(np.uint64)
        inner = np.repeat(numbers * np.uint64(LIST_NUMBERS), lengths) + within
        return pa.ListArray.from_arrays(pa.array(offsets), self.elements.make(draws.named("element"), inner))


def made(columns: Mapping[str, Column], draws: Draws, numbers: Numbers) -> tuple[Sequence[str], list[pa.Array]]:
    """Every one of `columns`, each from a stream of its own name."""
    return list(columns), [column.make(draws.named(name), numbers) for name, column in columns.items()]
