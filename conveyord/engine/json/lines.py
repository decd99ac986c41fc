"""Where the lines of a block begin and end. One line is one record; blank lines are none."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

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
    view = byte_view(block)
    if len(view) == 0:
        return pa.array([], pa.int64())
    ends = pc.indices_nonzero(pc.equal(view, _NEWLINE)).cast(pa.int64())
    starts = pa.concat_arrays([pa.array([0], pa.int64()), pc.add(ends, 1)])
    if starts[-1].as_py() == len(block):
        starts = starts.slice(0, len(starts) - 1)
    # Nearly every record opens with a brace; only the other lines are worth a look of their own.
    odd = pc.indices_nonzero(pc.not_equal(view.take(starts), _BRACE)).to_pylist()
    blank = [index for index in odd if _is_blank(block, starts[index].as_py())]
    if not blank:
        return starts
    dropped = pa.array(blank, pa.uint64())
    kept = pc.invert(pc.is_in(pa.array(range(len(starts)), pa.uint64()), value_set=dropped))
    return starts.filter(kept)


def lines_are_objects(lines: bytes) -> int | None:
    """How many lines there are, if each opens with `{` and closes with `}` and none holds a NUL; else None.

    If so, no JSON object runs over a line end: inside an object `}` is never followed by `{`, and a
    string cannot hold a raw line end. What is not shown is that a line holds only one object.
    """
    size = len(lines)
    if not size or b"\0" in lines:
        return None
    breaks = pc.indices_nonzero(pc.equal(byte_view(lines), _NEWLINE)).cast(pa.int64())
    if lines[-1:] == b"\n":
        breaks = breaks.slice(0, len(breaks) - 1)
    head, tail = lines[:1], lines.rstrip(b"\r\n")[-1:]
    if head != b"{" or tail != b"}":
        return None
    if len(breaks):
        view = byte_view(lines)
        # Either every line ends in CRLF or none does; a mixture goes the exact way.
        back = 2 if lines[breaks[0].as_py() - 1 : breaks[0].as_py()] == b"\r" else 1
        if back == 2 and not _all_equal(view.take(pc.subtract(breaks, 1)), _RETURN):
            return None
        if not _all_equal(view.take(pc.subtract(breaks, back)), _CLOSE):
            return None
        if not _all_equal(view.take(pc.add(breaks, 1)), _BRACE):
            return None
    return len(breaks) + 1


def byte_view(block: bytes) -> pa.UInt8Array:
    """`block` as an Arrow array over the same memory."""
    return pa.Array.from_buffers(pa.uint8(), len(block), [None, pa.py_buffer(block)])


_NEWLINE = pa.scalar(ord("\n"), pa.uint8())
_RETURN = pa.scalar(ord("\r"), pa.uint8())
_BRACE = pa.scalar(ord("{"), pa.uint8())
_CLOSE = pa.scalar(ord("}"), pa.uint8())


def _all_equal(found: pa.UInt8Array, wanted: pa.UInt8Scalar) -> bool:
    return pc.all(pc.equal(found, wanted)).as_py() is not False


def _is_blank(block: bytes, start: int) -> bool:
    end = block.find(b"\n", start)
    return not block[start : end if end >= 0 else len(block)].strip(_BLANK)
