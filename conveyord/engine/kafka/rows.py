"""Makes rows of the records of a job: values by their format, what stands beside them as columns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from conveyord.core.flow.positions import Partition
from conveyord.core.flow.record_log import Meta
from conveyord.engine.kafka.hopper import Job, values_of
from conveyord.engine.naming import sibling_name
from conveyord.engine.origin import Place, RecordRef
from conveyord.engine.payloads.contract import BadPayload, PayloadDecoder
from conveyord.engine.provenance import with_provenance

Column = Literal["key", "headers", "timestamp", "topic", "partition", "offset"]
PREFIX: Final = "kafka_"
METAS: Final[tuple[Meta, ...]] = ("key", "headers", "timestamp")
HEADERS: Final = pa.map_(pa.string(), pa.binary())
TIME: Final = pa.timestamp("ms", "UTC")
TOO_LARGE: Final = "RECORD_TOO_LARGE"

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RowOptions:
    """columns: what to add of what stands beside the value. keys_are_text: keys are UTF-8, else bytes.

    keeps_tombstones: a record without a value is a row of nulls, else it is left out. value_bytes_max: a larger value
    is bad.
    """

    columns: tuple[Column, ...]
    keys_are_text: bool
    keeps_tombstones: bool
    value_bytes_max: int

    @property
    def wants(self) -> frozenset[Meta]:
        """What has to be fetched beside values."""
        return frozenset(meta for meta in METAS if meta in self.columns)


@dataclass(frozen=True, slots=True)
class Rows:
    """What became of a job. numbers: by row, which of the job's records it is of. schema: that of the values.

    bad: numbers are of records likewise.
    """

    data: pa.RecordBatch
    schema: pa.Schema
    numbers: Numbers
    bad: tuple[BadPayload, ...]
    offsets: Sequence[int]
    values: Sequence[bytes | None]

    def place_of(self, partition: Partition) -> Callable[[int], Place]:
        """Which record each row is of; rows of one record are its parts."""

        def find(row: int) -> Place:
            number = int(self.numbers[row])
            part = row - int(np.searchsorted(self.numbers, number))
            return Place(self.record(partition, number), part)

        return find

    def record(self, partition: Partition, number: int) -> RecordRef:
        """One of the job's records."""
        return RecordRef(partition, self.offsets[number], self.values[number])


def rows_of(job: Job, decoder: PayloadDecoder, schema: pa.Schema | None, options: RowOptions) -> Rows:
    """The rows of a job under `schema`, grown by what it lacks. Blocking. Raises what `decoder` raises."""
    values = values_of(job.pieces)
    chosen, bad = _usable(values, options)
    given: Sequence[bytes] = values if chosen is None else [values[number] for number in chosen]  # type: ignore[assignment]
    payloads = decoder.decode(given, schema)
    numbers = np.arange(len(given), dtype=np.int64) if payloads.numbers is None else payloads.numbers
    found = [*bad, *payloads.bad]
    if chosen is not None:
        numbers = chosen[numbers] if len(numbers) else numbers
        found = [*bad, *(BadPayload(int(chosen[one.number]), one.code, one.reason) for one in payloads.bad)]
    data = payloads.data
    if options.keeps_tombstones and None in values:
        data, numbers = _with_tombstones(data, numbers, values)
    offsets = [offset for piece in job.pieces for offset in piece.offsets]
    if options.columns:
        data = _with_columns(data, job, numbers, offsets, options)
    found.sort(key=lambda one: one.number)
    return Rows(data, payloads.schema, numbers, tuple(found), offsets, values)


def with_source(rows: Rows, partition: Partition) -> pa.RecordBatch:
    """The data with the columns of provenance."""
    return with_provenance(rows.data, partition, pa.array(np.asarray(rows.offsets, np.int64)[rows.numbers]))


def _usable(values: Sequence[bytes | None], options: RowOptions) -> tuple[Numbers | None, list[BadPayload]]:
    """The numbers of the values that there are and that are not too large, None for all; and those that are."""
    limit = options.value_bytes_max
    if None not in values and max(map(len, values), default=0) <= limit:  # type: ignore[arg-type]
        return None, []
    reason = f"the record is longer than max_record_bytes ({limit}); raise that option or mend the record"
    good, bad = [], []
    for number, value in enumerate(values):
        if value is None:
            continue
        if len(value) > limit:
            bad.append(BadPayload(number, TOO_LARGE, reason))
        else:
            good.append(number)
    return np.asarray(good, np.int64), bad


def _with_tombstones(
    data: pa.RecordBatch, numbers: Numbers, values: Sequence[bytes | None]
) -> tuple[pa.RecordBatch, Numbers]:
    """`data` with a row of nulls for each record that has no value, in its place."""
    empty = np.asarray([number for number, value in enumerate(values) if value is None], np.int64)
    together = np.concatenate([numbers, empty])
    order = np.argsort(together, kind="stable")
    rows = pa.array(order, mask=order >= len(numbers))
    if data.num_columns:
        return data.take(rows), together[order]
    nulls = pa.RecordBatch.from_struct_array(pa.nulls(len(order), pa.struct([])).fill_null({}))
    return nulls, together[order]


def _with_columns(
    data: pa.RecordBatch, job: Job, numbers: Numbers, offsets: Sequence[int], options: RowOptions
) -> pa.RecordBatch:
    """`data` with what was asked for of what stands beside the values.

    A field of the value that has such a name goes to a sibling of it.
    """
    names = list(data.schema.names)
    rows = pa.array(numbers)
    for column in options.columns:
        name = f"{PREFIX}{column}"
        if name in names:
            sibling = sibling_name(name, data.schema.field(name).type)
            names[names.index(name)] = sibling
            data = data.rename_columns(names)
        data = data.append_column(name, _column(column, job, numbers, rows, offsets, options))
        names.append(name)
    return data


def _column(
    column: Column, job: Job, numbers: Numbers, rows: pa.Array, offsets: Sequence[int], options: RowOptions
) -> pa.Array:
    match column:
        case "offset":
            return pa.array(np.asarray(offsets, np.int64)[numbers] if len(numbers) else [], pa.int64())
        case "partition":
            return pa.array(np.full(len(numbers), job.partition.number, np.int32))
        case "topic":
            return pa.array([job.partition.topic] * len(numbers), pa.string())
        case "timestamp":
            times = np.asarray([time for piece in job.pieces for time in piece.times_ms or ()], np.int64)[numbers]
            return pa.array(times, pa.int64(), mask=times < 0).cast(TIME)
        case "headers":
            return pa.array([list(one) for piece in job.pieces for one in piece.headers or ()], HEADERS).take(rows)
        case "key":
            keys = [key for piece in job.pieces for key in piece.keys or ()]
            if not options.keys_are_text:
                return pa.array(keys, pa.binary()).take(rows)
            # What is no UTF-8 must not stop a stream for the sake of a column that only names things.
            texts = [None if key is None else key.decode("utf-8", "backslashreplace") for key in keys]
            return pa.array(texts, pa.string()).take(rows)
