"""The accounting that travels with every batch, so that no record is ever unaccounted for."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of the records that a batch stands for. All counts are of records or rows.

    read: records taken from the source, bad ones included. skipped: bad records that were passed
    over on request. filtered: rows that a stage removed, or that went another way. added: rows that a
    stage made beyond one for one (an exploded list). dead: records and rows that became dead letters.
    The rows that are left follow from the five.
    """

    read: int = 0
    skipped: int = 0
    filtered: int = 0
    added: int = 0
    dead: int = 0

    @property
    def rows(self) -> int:
        return self.read - self.skipped - self.filtered + self.added - self.dead

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.read + other.read,
            self.skipped + other.skipped,
            self.filtered + other.filtered,
            self.added + other.added,
            self.dead + other.dead,
        )

    def through(self, rows_out: int) -> Tally:
        """The tally after a stage turned `self.rows` rows into `rows_out`."""
        change = rows_out - self.rows
        if change == 0:
            return self
        return self + (Tally(added=change) if change > 0 else Tally(filtered=-change))
