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
    starts = np.concatenate(([0], line_ends(view) + 1)).astype(np.int64)
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
    if not lines.startswith(b"{") or not lines.rstrip(b"\r\n").endswith(b"}") or b"\0" in lines:
        return None
    view = np.frombuffer(lines, np.uint8)
    ends = line_ends(view)
    if lines.endswith(b"\n"):
        ends = ends[:-1]
    if not len(ends):
        return 1
    # Either every line ends in CRLF or none does; a mixture goes the exact way.
    back = 2 if view[ends[0] - 1] == _RETURN else 1
    whole = (view[ends - back] == _CLOSE) & (view[ends + 1] == _BRACE)
    if back == 2:
        whole &= view[ends - 1] == _RETURN
    return len(ends) + 1 if whole.all() else None


def line_ends(view: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Where the line ends of `view` stand."""
    # Eight bytes at a time: numpy looks for nonzero elements one by one, and most words have no line end.
    marks = np.zeros(-(-len(view) // 8) * 8, np.bool_)
    np.equal(view, _NEWLINE, out=marks[: len(view)])
    words = np.flatnonzero(marks.view(np.uint64))
    rows, columns = np.nonzero(marks.reshape(-1, 8)[words])
    return words[rows] * 8 + columns


_NEWLINE, _RETURN, _BRACE, _CLOSE = b"\n\r{}"


def _is_blank(block: bytes, start: int) -> bool:
    end = block.find(b"\n", start)
    return not block[start : end if end >= 0 else len(block)].strip(_BLANK)
