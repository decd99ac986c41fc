"""JSON records, a line each, as rows: for sources whose offsets count records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import pyarrow as pa
import structlog

from conveyord.core.errors import RecordError
from conveyord.core.flow.positions import Partition
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorConfig, OperatorContext, Rejected
from conveyord.engine.decoding import BadRecord
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.provenance import with_provenance
from conveyord.engine.schema_memory import remembered_schema, schema_to_remember

log = structlog.get_logger(__name__)

ANY = OperatorConfig()  # JSON is typed alike under all options, so that a schema outlives a change of them
_DECODER = JsonLinesDecoder()


@dataclass(frozen=True, slots=True)
class Rows:
    """What became of records `[first, end)`, ready to be sent. schema: to be stored with their end."""

    data: pa.RecordBatch
    first: int
    end: int
    tally: Tally
    raw_bytes: int
    schema: str
    place_of: Callable[[int], Place] | None


@dataclass(frozen=True, slots=True)
class _Decoded:
    """Lines decoded: the good ones as rows, the number of each row's line, and the bad ones by number."""

    data: pa.RecordBatch
    good: Sequence[int]
    bad: Mapping[int, BadRecord]
    schema: str


class RecordReader:
    """Makes rows of lines, under one schema that grows. One task at a time."""

    def __init__(self, context: OperatorContext) -> None:
        self._context = context
        self._schema: pa.Schema | None = None

    def recall(self, states: Sequence[str | None]) -> None:
        """Take up the schema of an earlier run, if one of `states` holds one."""
        self._schema = remembered_schema(ANY, states) or self._schema

    async def rows(
        self, partition: Partition, lines: Sequence[bytes], *, first: int, ends: Sequence[int]
    ) -> tuple[list[Rows], RecordError | None]:
        """The rows of `lines`, of which the first is record `first`, in pieces that end at `ends` and at the last line.

        ends: offsets, in any order; those elsewhere do not matter. A bad record becomes a dead letter or is passed
        over, as the context says; else the pieces end before it, and it is the error that comes with them.
        """
        letters = self._context.dead_letters
        decoded = await self._context.in_thread(self._decoded, lines)
        count, error = len(lines), None
        if decoded.bad and letters is None and not self._context.skip_bad:
            count = min(decoded.bad)
            error = _error(partition, first + count, decoded.bad[count])
        elif decoded.bad:
            await self._set_aside(partition, decoded.bad, lines, first)
        data = decoded.data
        if self._context.provenance:
            offsets = pa.array([first + number for number in decoded.good], pa.int64())
            data = with_provenance(data, partition, offsets)
        cuts = sorted({end - first for end in ends if 0 < end - first < count} | ({count} if count else set()))
        pieces = []
        for start, stop in pairwise([0, *cuts]):
            good = [row for row, number in enumerate(decoded.good) if start <= number < stop]
            bad = stop - start - len(good)
            dead, skipped = (bad, 0) if letters is not None else (0, bad)
            numbers = [decoded.good[row] for row in good]
            piece = Rows(
                data=data.slice(good[0] if good else 0, len(good)),
                first=first + start,
                end=first + stop,
                tally=Tally(read=stop - start, skipped=skipped, dead=dead),
                raw_bytes=sum(map(len, lines[start:stop])),
                schema=decoded.schema,
                place_of=None if letters is None else _places(partition, lines, numbers, first),
            )
            pieces.append(piece)
        return pieces, error

    def _decoded(self, lines: Sequence[bytes]) -> _Decoded:
        """Blocking."""
        block = b"".join(line + b"\n" for line in lines)
        if self._schema is None:
            self._schema = _DECODER.infer(block, None)
        found = _DECODER.decode(block, self._schema, None)
        self._schema = found.schema
        starts = accumulate((len(line) + 1 for line in lines[:-1]), initial=0)
        number_at = {start: number for number, start in enumerate(starts)} if found.bad else {}
        bad = {number_at[record.offset]: record for record in found.bad}
        good = [number for number in range(len(lines)) if number not in bad]
        return _Decoded(found.data, good, bad, schema_to_remember(ANY, found.schema))

    async def _set_aside(
        self, partition: Partition, bad: Mapping[int, BadRecord], lines: Sequence[bytes], first: int
    ) -> None:
        errors = {number: _error(partition, first + number, record) for number, record in bad.items()}
        if self._context.dead_letters is None:
            for error in errors.values():
                log.warning("passing over a bad record", place=error.place, code=error.code, reason=error.reason)
            return
        place_of = _places(partition, lines, list(errors), first)
        await self._context.dead_letters.put(
            [Rejected(place_of(index), error) for index, error in enumerate(errors.values())]
        )


def decoded_alone(raw: bytes, state: str | None) -> pa.RecordBatch:
    """The row of one record. Blocking. state: holds the types of the last run. Raises RecordError if it is bad."""
    line = raw.replace(b"\r", b" ").replace(b"\n", b" ")
    schema = remembered_schema(ANY, [state]) or _DECODER.infer(line, None)
    found = _DECODER.decode(line, schema, None)
    if found.bad:
        raise RecordError("the record", found.bad[0].reason, code=found.bad[0].code)
    return found.data


def _places(partition: Partition, lines: Sequence[bytes], numbers: Sequence[int], first: int) -> Callable[[int], Place]:
    """Which record each of so many rows is. numbers: by row, that of its line; the first line is record `first`."""
    return lambda row: Place(RecordRef(partition, first + numbers[row], lines[numbers[row]]))


def _error(partition: Partition, offset: int, bad: BadRecord) -> RecordError:
    return RecordError(f"{partition.name} (record {offset})", bad.reason, code=bad.code)
