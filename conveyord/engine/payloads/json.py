"""The format `json`: each value one JSON object, one row. Read as lines of files are, in bulk."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import pyarrow as pa

from conveyord.engine.decoding import BadRecord, Decoded
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.payloads.contract import BadPayload, Payloads

_DECODER = JsonLinesDecoder()
_WHITESPACE = b" \t\r\n"
_MULTIPLE = "more than one JSON value; write one record a message"


class JsonPayloads:
    """`PayloadDecoder` for JSON objects. Types are those of files: inferred from the first values, then settled."""

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """See `PayloadDecoder.decode`. A value with more than one object, or with another JSON value, is bad."""
        block = b"\n".join(values)
        if block.count(b"\n") == len(values) - 1 and b"" not in values:
            decoded = _decoded(block, schema)
            if decoded.data.num_rows + len(decoded.bad) == len(values):
                return _numbered(values, decoded)
        return _one_line_each(values, schema)


def _decoded(block: bytes, schema: pa.Schema | None) -> Decoded:
    return _DECODER.decode(block, _DECODER.infer(block, None) if schema is None else schema, None)


def _numbered(lines: Sequence[bytes], decoded: Decoded) -> Payloads:
    """What was decoded of `lines`, none of them blank and each without a line end, with bad ones by number."""
    if not decoded.bad:
        return Payloads(decoded.data, decoded.schema)
    starts = np.fromiter(accumulate((len(line) + 1 for line in lines[:-1]), initial=0), np.int64, len(lines))
    bad = np.searchsorted(starts, [record.offset for record in decoded.bad])
    good = np.delete(np.arange(len(lines), dtype=np.int64), bad)
    found = (_bad(int(number), record) for number, record in zip(bad, decoded.bad, strict=True))
    return Payloads(decoded.data, decoded.schema, good, tuple(found))


def _one_line_each(values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
    """The same for values of which some are blank or hold line ends."""
    lines: list[bytes] = []
    numbers: list[int] = []
    blank: list[int] = []
    for number, value in enumerate(values):
        # Line ends become another kind of whitespace, and not spaces: within a string both are refused.
        line = value if b"\n" not in value else value.strip(_WHITESPACE).replace(b"\n", b"\r")
        if line.strip(_WHITESPACE):
            lines.append(line)
            numbers.append(number)
        else:
            blank.append(number)
    found = _numbered(lines, _decoded(b"\n".join(lines), schema))
    given = np.array(numbers, np.int64)
    bad = [BadPayload(numbers[one.number], one.code, one.reason) for one in found.bad]
    bad += [BadPayload(number, "MALFORMED_RECORD", "the value is empty") for number in blank]
    bad.sort(key=lambda one: one.number)
    if not bad:
        return found
    return Payloads(found.data, found.schema, given if found.numbers is None else given[found.numbers], tuple(bad))


def _bad(number: int, record: BadRecord) -> BadPayload:
    reason = _MULTIPLE if record.code == "MULTIPLE_VALUES" else record.reason.replace("of the line", "of the value")
    return BadPayload(number, record.code, reason)
