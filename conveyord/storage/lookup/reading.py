"""What all readers of references have in common: what is wanted of one, and how much of it there may be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import ClassVar

import pyarrow as pa

from conveyord.core.errors import ConfigError
from conveyord.core.units import format_bytes

COLUMNS_NAMED_MAX = 20  # what a message lists


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be read of a reference.

    keys: the columns that rows are matched by. columns: further ones; None for all. rows_max, bytes_max: a
    reference with more is refused. The bytes are those of Arrow columns in memory, all taken together.
    """

    keys: tuple[str, ...]
    columns: tuple[str, ...] | None
    rows_max: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """A reference in memory: its keys and what was wanted beside, in one chunk, and the mark it had then."""

    mark: Hashable
    table: pa.Table


class ReferenceReader(ABC):
    """One reference, opened again and again. Used by one thread at a time."""

    text_keys: ClassVar[bool] = False
    """Keys come as text because the reference has no types, and stand for whatever the rows have."""

    name: str
    """What messages call it, such as `reference airports.csv`."""

    @abstractmethod
    def mark(self) -> Hashable:
        """What differs once the reference has changed. Cheap: no rows are read.

        Raises Retryable or ConfigError if it cannot be reached.
        """

    @abstractmethod
    def read(self, wanted: Wanted, checkpoint: Callable[[], None]) -> Loaded:
        """All rows. checkpoint: called now and then; raises to end the reading.

        Raises: ConfigError if a column is missing, a limit is exceeded or the content is not usable; Retryable
            if it cannot be reached or changed meanwhile.
        """

    def close(self) -> None:  # noqa: B027 - files need nothing
        """Let go of what is open. It may be used again after that."""


def chosen(reader: ReferenceReader, names: Sequence[str], wanted: Wanted) -> list[str]:
    """Which of the columns `names` are to be read, keys first. Raises ConfigError for one that there is not."""
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{reader.name} has more than one column {twice[0]!r}; give each its own name")
    columns = tuple(names) if wanted.columns is None else wanted.columns
    asked = dict.fromkeys((*wanted.keys, *columns))
    for name in asked:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            listed = ", ".join(names[:COLUMNS_NAMED_MAX]) + (", ..." if len(names) > COLUMNS_NAMED_MAX else "")
            raise ConfigError(f"{reader.name} has no column {name!r}; {hint}It has {listed or 'no columns'}")
    return list(asked)


class Gathering:
    """Batches on their way to one table, refused once they are more than allowed."""

    def __init__(self, reader: ReferenceReader, wanted: Wanted, checkpoint: Callable[[], None]) -> None:
        self._reader = reader
        self._wanted = wanted
        self._checkpoint = checkpoint
        self._batches: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Take one more. Raises ConfigError if that is too much."""
        self._checkpoint()
        self._batches.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        name, wanted = self._reader.name, self._wanted
        if self._rows > wanted.rows_max:
            raise ConfigError(
                f"{name} has more than {wanted.rows_max:,} rows, which cache.rows_max allows; raise that if there is "
                "memory for them, or look up in a smaller reference"
            )
        if self._bytes > wanted.bytes_max:
            raise ConfigError(
                f"{name} takes more than {format_bytes(wanted.bytes_max)} of memory, which cache.bytes_max allows; "
                "name fewer columns, look up in a smaller reference, or raise the limit"
            )

    def table(self, schema: pa.Schema) -> pa.Table:
        """Everything, every column in one chunk."""
        return pa.Table.from_batches(self._batches, schema).combine_chunks()
