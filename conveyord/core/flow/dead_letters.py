"""A dead letter: one record or row that failed for ever, with all that is needed to try it again.

Its key is (pipeline, source, partition, offset, stage, part): what fails again after a restart replaces
itself. It is on disk before any fence covers its record.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from conveyord.core.flow.positions import Partition

PARTS_PER_LETTER = 1 << 24
"""Parts from here on are a letter's id times this, plus the number of a row that it became when it was replayed:
rows are not numbered then as they were when the record was read. No record is made into so many rows. Below zero are
letters that made way for another with their key."""


@dataclass(frozen=True, slots=True)
class LetterKey:
    """Which record, and at which stage it failed. `part` counts the rows that one record was made into."""

    pipeline: str
    partition: Partition
    offset: int
    stage: str
    part: int = 0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One failure.

    code: stable, as in docs/errors.md. attempts: how often the stage was tried. raw: the record's own bytes
    in the source, where the source has them; for a record that could not be decoded this is all there is.
    row: the row as it arrived at the stage, as an Arrow IPC stream of one row; None where it failed at the source.
    sinks: those that lack what the record would have become, also when the pipeline does not have them any more;
    None if no sink that rows of the stage reach keeps positions.
    """

    key: LetterKey
    code: str
    message: str
    attempts: int = 1
    raw: bytes | None = None
    row: bytes | None = field(default=None, repr=False)
    sinks: frozenset[str] | None = None
