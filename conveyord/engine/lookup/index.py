"""Finds the row of a reference for each key of a batch, of one column or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conveyord.core.errors import ConfigError
from conveyord.engine.lookup.integers import MISS, IntegerIndex, Ints, Rows
from conveyord.engine.lookup.keys import as_bytes, as_integers, is_hashed
from conveyord.engine.lookup.texts import TextIndex, distinct_hashes

Duplicates = Literal["fail", "first", "last"]
Mask = npt.NDArray[np.bool_]

CODES_MAX = 1 << 62  # combined codes stay below it; columns beyond are numbered anew first


class KeyIndex:
    """The row of each key of a reference. A key with a null in it is none. Immutable, for any number of threads."""

    def __init__(self, columns: list[pa.Array], names: list[str], *, duplicates: Duplicates, name: str) -> None:
        """columns: the key's columns, of types that `keys.common_type` gives; fewer than 2**31 rows.

        name: what messages call the reference. Raises ConfigError for a key that stands there twice, unless
        `duplicates` says which of its rows to take.
        """
        self._steps: list[_Step] = []
        valid = np.ones(len(columns[0]), np.bool_)
        for column in columns:
            valid &= _valid(column)
        rows = np.flatnonzero(valid).astype(np.int32)
        if len(columns) == 1:
            self._only, repeated = _index(columns[0], rows, duplicates, name)
        else:
            codes = self._combined(columns, rows, name)
            self._last, repeated = _integer_index(codes, rows, duplicates)
        if repeated is not None:
            raise _duplicate(repeated, columns, names, name)

    def find(self, columns: list[pa.Array]) -> Rows:
        """For each row of a batch the row of the reference, or MISS. columns: of the types of the reference's."""
        valid = np.ones(len(columns[0]), np.bool_)
        for column in columns:
            valid &= _valid(column)
        if len(columns) == 1:
            found = _find(self._only, columns[0])
        else:
            codes = np.zeros(len(columns[0]), np.int64)
            for column, step in zip(columns, self._steps, strict=True):
                code = _find(step.index, column)
                valid &= code != MISS
                codes = codes * step.count + code
                if step.renumbered is not None:
                    codes = step.renumbered.find(codes).astype(np.int64)
                    valid &= codes != MISS
            found = self._last.find(codes)
        found[~valid] = MISS
        return found

    def _combined(self, columns: list[pa.Array], rows: Rows, name: str) -> Ints:
        """One number for each of `rows`, equal where all columns are, and the steps to find it for other rows."""
        codes = np.zeros(len(rows), np.int64)
        size = 1
        for column in columns:
            taken = column.take(pa.array(rows)).dictionary_encode()
            values = taken.dictionary
            count = max(len(values), 1)
            index, _ = _index(values, np.arange(len(values), dtype=np.int32), "first", name)
            codes = codes * count + taken.indices.to_numpy(zero_copy_only=False)
            size *= count
            renumbered = None
            if size * max(len(rows), 1) > CODES_MAX:
                distinct, codes = np.unique(codes, return_inverse=True)
                renumbered = IntegerIndex(distinct, np.arange(len(distinct), dtype=np.int32))
                size = len(distinct)
            self._steps.append(_Step(index, count, renumbered))
        return codes


@dataclass(frozen=True, slots=True)
class _Step:
    """One column of a key: how its values are numbered, and then all columns so far, if their numbers grow large."""

    index: IntegerIndex | TextIndex
    count: int
    renumbered: IntegerIndex | None


def _find(index: IntegerIndex | TextIndex, values: pa.Array) -> Rows:
    return index.find(as_bytes(values)) if isinstance(index, TextIndex) else index.find(as_integers(values))


def _valid(column: pa.Array) -> Mask | np.bool_:
    if column.null_count == 0:
        return np.True_
    return np.asarray(column.is_valid().to_numpy(zero_copy_only=False), np.bool_)


def _index(
    column: pa.Array, rows: Rows, duplicates: Duplicates, name: str
) -> tuple[IntegerIndex | TextIndex, tuple[int, int] | None]:
    """The index of a column's values in `rows`, and two rows of the same value if that is not allowed."""
    if not is_hashed(column.type):
        return _integer_index(as_integers(column)[rows], rows, duplicates)
    keys = as_bytes(column)
    hashes, seed = distinct_hashes(keys, name)
    kept, repeated = _distinct(hashes[rows], rows, duplicates)
    return TextIndex(keys, hashes, seed, kept), repeated


def _integer_index(keys: Ints, rows: Rows, duplicates: Duplicates) -> tuple[IntegerIndex, tuple[int, int] | None]:
    places = np.arange(len(keys), dtype=np.int32)
    kept, repeated = _distinct(keys, places, duplicates)
    pair = None if repeated is None else (int(rows[repeated[0]]), int(rows[repeated[1]]))
    return IntegerIndex(keys[kept], rows[kept]), pair


def _distinct(keys: Ints, rows: Rows, duplicates: Duplicates) -> tuple[Rows, tuple[int, int] | None]:
    """Of the `rows` with these keys one for each key, and the first two with the same, if that is not allowed."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    is_new = np.ones(len(keys), np.bool_)
    is_new[1:] = ordered[1:] != ordered[:-1]
    if is_new.all():
        return rows, None
    if duplicates == "fail":
        again = np.flatnonzero(~is_new)
        at = again[np.argmin(order[again])]  # the first row, from the top, with a key that was there before
        return rows[:0], (int(rows[order[at - 1]]), int(rows[order[at]]))
    if duplicates == "last":
        is_new = np.append(is_new[1:], True)
    return rows[np.sort(order[is_new])], None


def _duplicate(repeated: tuple[int, int], columns: list[pa.Array], names: list[str], name: str) -> ConfigError:
    first, second = repeated
    key = ", ".join(f"{column} = {shown(values[first])}" for column, values in zip(names, columns, strict=True))
    return ConfigError(
        f"{name} has a key twice: {key} in rows {first + 1:,} and {second + 1:,}; mend it, add a column to `on`, "
        "or say which row counts by `duplicates: first` or `last`"
    )


def shown(value: pa.Scalar) -> str:
    """A key's value in a message, cut to where it still helps."""
    text = repr(value.as_py()) if isinstance(value, pa.StringScalar | pa.BinaryScalar) else str(value)
    return text if len(text) <= SHOWN_CHARS_MAX else text[:SHOWN_CHARS_MAX] + "…"


SHOWN_CHARS_MAX = 60
