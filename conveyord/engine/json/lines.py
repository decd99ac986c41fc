"""Where the lines of a block begin and end. One line is one record; blank lines are none."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

_BLANK = b" \t\r"  # JSON's whitespace without the line end


def records(block: bytes, first: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The offset and bytes of each line of `block[first:end]` that is not blank, without its line end."""
    offset = first
    for line in block[first:end].split(b"\n"):
        if line.strip(_BLANK):
            yield offset, line.removesuffix(b"\r")
        offset += len(line) + 1


def record_starts(block: bytes) -> pa.Int64Array:
    """The offset of each line of `block` that is not blank."""
    view = np.frombuffer(block, np.uint8)
    starts = np.concatenate([np.zeros(1, np.int64), *_line_ends(view)])
    starts[1:] += 1
    starts = starts[starts < len(block)]
    # Nearly every record opens with a brace; only the other lines are worth a look of their own.
    odd = np.flatnonzero(view[starts] != _BRACE)
    blank = [index for index in odd if _is_blank(block, int(starts[index]))]
    return pa.array(np.delete(starts, blank), pa.int64())


def lines_are_objects(lines: bytes) -> int | None:
    """How many lines there are, if each opens with `{` and closes with `}` and none holds a NUL; else None.

    If so, no JSON object runs over a line end: inside an object `}` is never followed by `{`, and a
    string cannot hold a raw line end. What is not shown is that a line holds only one object.
    """
    if not lines.startswith(b"{") or not lines.endswith((b"}", b"}\n", b"}\r\n")) or b"\0" in lines:
        return None
    view = np.frombuffer(lines, np.uint8)
    inner = view[:-1] if lines.endswith(b"\n") else view
    count = 1
    back = 0
    for ends in _line_ends(inner):
        if not len(ends):
            continue
        # Either every line ends in CRLF or none does; a mixture goes the exact way.
        back = back or (2 if view[ends[0] - 1] == _RETURN else 1)
        whole = (view[ends - back] == _CLOSE) & (view[ends + 1] == _BRACE)
        if back == 2:
            whole &= view[ends - 1] == _RETURN
        if not whole.all():
            return None
        count += len(ends)
    return count


def _line_ends(view: npt.NDArray[np.uint8]) -> Iterator[npt.NDArray[np.int64]]:
    """Where the line ends of `view` stand, a stride at a time, so that what is near them is in the cache."""
    marks = np.empty(_STRIDE_BYTES, np.bool_)
    for first in range(0, len(view), _STRIDE_BYTES):
        stride = view[first : first + _STRIDE_BYTES]
        yield np.flatnonzero(np.equal(stride, _NEWLINE, out=marks[: len(stride)])) + first


_STRIDE_BYTES = 128 * 1024  # stays in the second-level cache with its marks
_NEWLINE, _RETURN, _BRACE, _CLOSE = b"\n\r{}"


def _is_blank(block: bytes, start: int) -> bool:
    end = block.find(b"\n", start)
    return not block[start : end if end >= 0 else len(block)].strip(_BLANK)
