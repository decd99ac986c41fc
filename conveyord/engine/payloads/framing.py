"""Many values as one stretch of bytes, and the framing by which a schema registry's clients name a value's schema.

A framed value is a byte 0, the schema's id (four bytes, big-endian), and what the format makes of the rest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from conveyord.engine.payloads.assembling import Numbers
from conveyord.engine.payloads.contract import BadPayload

UNUSABLE_SCHEMA = "UNUSABLE_SCHEMA"
PAD_BYTES = 16  # behind the last value, so that words can be read from any place within
FRAME_BYTES = 5
STRETCH_BYTES_MAX = 2**31 - 1
_MAGIC = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Values one after the other.

    data: their bytes, and zeros behind. numbers, starts, ends: by value, which one it is, and where it lies.
    """

    data: npt.NDArray[np.uint8]
    numbers: Numbers
    starts: Numbers
    ends: Numbers

    @classmethod
    def of(cls, values: Sequence[bytes]) -> Stretch:
        """All of `values`: together less than 2 GiB, what places of 32 bits reach. A batch has a thousandth of that."""
        data = np.frombuffer(b"".join([*values, bytes(PAD_BYTES)]), np.uint8)
        assert len(data) <= STRETCH_BYTES_MAX, f"{len(data)} bytes of values in one batch"
        ends = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
        starts = np.concatenate([np.zeros(min(1, len(ends)), np.int64), ends[:-1]])
        return cls(data, np.arange(len(values), dtype=np.int64), starts, ends)

    def only(self, keep: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> Stretch:
        """Some of the values, in order."""
        return Stretch(self.data, self.numbers[keep], self.starts[keep], self.ends[keep])


def unframed(values: Sequence[bytes]) -> tuple[list[tuple[int, Stretch]], list[BadPayload]]:
    """What stands behind the frames, by the id of the schema, in the order of their first values; and those without."""
    stretch = Stretch.of(values)
    framed = stretch.ends - stretch.starts >= FRAME_BYTES
    framed[framed] = stretch.data[stretch.starts[framed]] == _MAGIC
    bad = [_unframed(int(number), values[number]) for number in stretch.numbers[~framed]]
    good = stretch.only(framed)
    heads = stretch.data[good.starts[:, None] + np.arange(1, FRAME_BYTES)]
    ids = heads.astype(np.int64) @ np.array([1 << 24, 1 << 16, 1 << 8, 1], np.int64)
    behind = Stretch(good.data, good.numbers, good.starts + FRAME_BYTES, good.ends)
    return list(_by_id(behind, ids)), bad


def _by_id(stretch: Stretch, ids: Numbers) -> Iterator[tuple[int, Stretch]]:
    found, first = np.unique(ids, return_index=True)
    for schema_id in found[np.argsort(first)]:
        yield int(schema_id), stretch if len(found) == 1 else stretch.only(ids == schema_id)


def _unframed(number: int, value: bytes) -> BadPayload:
    what = f"begins with byte {value[0]}" if len(value) >= FRAME_BYTES else f"has {len(value)} bytes"
    reason = f"the value {what}; with a registry it begins with a byte 0 and the schema's id in four bytes"
    return BadPayload(number, "MALFORMED_RECORD", reason)
