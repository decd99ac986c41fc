"""A dead letter: one record or row that failed for ever, with all that is needed to try it again.

Its key is (pipeline, source, partition, offset, stage, part, variant): what fails again after a restart
replaces itself. It is on disk before any fence covers its record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from conveyord.core.flow.positions import Partition

ROWS_PER_WAY = 1 << 24
"""Parts count the rows that a record was made into; no record is made into so many. Where branches meet again, each
adds this, times the number of its way, so that stages below may go on counting."""

PARTS_PER_LETTER = ROWS_PER_WAY << 12
"""Parts from here on are a letter's id times this, plus the part of a row that it became when it was replayed: rows
are not numbered then as they were when the record was read."""

KEEPS_NONE = "sinks that keep no positions"
"""Stands among the sinks of a letter for those, all together: what they have nobody knows."""


@dataclass(frozen=True, slots=True)
class LetterKey:
    """Which record, and at which stage it failed. `part` counts the rows that one record was made into.

    variant: 0 for what failed there last. Below it are other rows that made way for that, because some sinks lack
    them still; above it rows that came together with it under its key, which only a mistake in `part` can bring about.
    """

    pipeline: str
    partition: Partition
    offset: int
    stage: str
    part: int = 0
    variant: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One failure.

    code: stable, as in docs/errors.md. attempts: how often the stage was tried. raw: the record's own bytes
    in the source, where the source has them; for a record that could not be decoded this is all there is.
    row: the row as it arrived at the stage, as an Arrow IPC stream of one row; None where it failed at the source.
    sinks: those that lack what the record would have become, by what they write to (`Sink.destination`), also when
    the pipeline does not have them any more.
    """

    key: LetterKey
    code: str
    message: str
    attempts: int = 1
    raw: bytes | None = None
    row: bytes | None = field(default=None, repr=False)
    sinks: frozenset[str] = frozenset([KEEPS_NONE])
