"""The format `raw`: each value as it is, one row of one column, `value`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from conveyord.engine.payloads.assembling import Piece, assembled
from conveyord.engine.payloads.contract import BadPayload, Payloads

COLUMN = "value"


class RawPayloads:
    """`PayloadDecoder` for values that nobody looks into. is_text: they are UTF-8, and the column holds strings."""

    def __init__(self, *, is_text: bool = False) -> None:
        self._is_text = is_text

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """See `PayloadDecoder.decode`. Bytes are never bad; text that is not UTF-8 is."""
        numbers = np.arange(len(values), dtype=np.int64)
        column = pa.array(values, pa.binary())
        bad: list[BadPayload] = []
        if self._is_text:
            column, numbers, bad = _texts(column, values)
        data = pa.RecordBatch.from_arrays([column], names=[COLUMN])
        return assembled([Piece(data, numbers)], schema, bad, count=len(values))


def _texts(
    column: pa.BinaryArray, values: Sequence[bytes]
) -> tuple[pa.StringArray, np.ndarray[tuple[int], np.dtype[np.int64]], list[BadPayload]]:
    numbers = np.arange(len(values), dtype=np.int64)
    try:
        return column.cast(pa.string()), numbers, []
    except pa.ArrowInvalid:
        bad = list(filter(None, map(_not_text, range(len(values)), values)))
    numbers = np.delete(numbers, [one.number for one in bad])
    return column.take(pa.array(numbers)).cast(pa.string()), numbers, bad


def _not_text(number: int, value: bytes) -> BadPayload | None:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError as error:
        return BadPayload(number, "INVALID_UTF8", f"byte {error.start} of the value is not UTF-8")
    return None
