"""Numbers that are written as programs print them, told from the bytes of a whole column at once.

A pattern looks at each value by itself, for ten times what the conversion costs. Here the conversion comes
first, which proves most of the shape; what is left are a few bytes of each value.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

_MINUS, _DOT, _ZERO, _NINE = b"-.09"


def is_plain(texts: pa.StringArray, *, whole: bool) -> bool:
    r"""Whether all of `texts` match `-?(0|[1-9][0-9]*)(\.[0-9]+)?`; if `whole`, `0|-?[1-9][0-9]*`.

    texts: without nulls, and Arrow can cast all of them to doubles (to integers, if `whole`).
    """
    data, offsets = _bytes_of(texts)
    # Besides digits this leaves "-", "." and "/", and the cast has seen to it that they stand where they may.
    if not len(data) or data.min() < _MINUS or data.max() > _NINE:
        return False
    starts, ends = offsets[:-1], offsets[1:]
    is_negative = data[starts] == _MINUS
    digits = starts + is_negative
    leading = data[digits]
    zeros = np.flatnonzero(leading == _ZERO)
    if whole:
        return not is_negative[zeros].any() and bool((ends[zeros] == digits[zeros] + 1).all())
    behind = digits[zeros] + 1
    behind = behind[behind < ends[zeros]]
    return bool((leading >= _ZERO).all() and (data[behind] == _DOT).all() and (data[ends - 1] != _DOT).all())


def lengths(texts: pa.StringArray) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    """The bytes of each value. texts: without nulls."""
    return np.diff(_bytes_of(texts)[1])


def _bytes_of(texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1]
    data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]]
    return data, offsets - offsets[0]
