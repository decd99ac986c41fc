"""What turns the values of messages into rows. Blocks of files have `engine/decoding.py`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa


@dataclass(frozen=True, slots=True)
class BadPayload:
    """A value that cannot be used. number: which of those given. code: see docs/errors.md."""

    number: int
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Payloads:
    """The rows of the good values, in order, under `schema`; and the bad values.

    numbers: by row, which of the values given it is of, never falling; None: row n is of value n, and none is bad.
    A value may have no rows without being bad.
    """

    data: pa.RecordBatch
    schema: pa.Schema
    numbers: npt.NDArray[np.int64] | None = None
    bad: tuple[BadPayload, ...] = ()


class PayloadDecoder(Protocol):
    """One format under one configuration. Blocking, thread-safe.

    What comes out depends on what is given alone (and on schemas in a registry, which never change): decoded under
    the same or a wider schema, the same values give the same rows, with nulls in columns that are not theirs.
    """

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """The rows of `values` under `schema`, grown by what it lacks as schemas of conveyord grow: columns are only
        added, and a value that does not fit its column goes to a sibling. schema None: nothing is known yet, so
        types are inferred from these values, or are the format's own.

        Raises Retryable or ConfigError if something that is needed for all of them (a registry) cannot be had.
        """
