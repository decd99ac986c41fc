"""What came of a test: for each output the rows expected, the rows that came, and how they differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

JsonRow = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where the rows of an output go apart.

    expected, got: indexes of the rows, from 0; None where there is no counterpart. columns: those that
    differ between two rows; empty where one is missing.
    """

    expected: int | None
    got: int | None
    columns: tuple[str, ...] = ()

    @property
    def kind(self) -> Literal["changed", "missing", "unexpected"]:
        """What became of the expected row, or that the row was not expected."""
        if self.got is None:
            return "missing"
        return "unexpected" if self.expected is None else "changed"


@dataclass(frozen=True, slots=True)
class OutputVerdict:
    """The rows of one output, as JSON values. notes: sentences on where rows may have gone."""

    output: str
    expected: Sequence[JsonRow]
    got: Sequence[JsonRow]
    differences: tuple[Difference, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether every row is as expected."""
        return not self.differences


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one test. error: why the pipeline could not run to its end, a sentence; else None."""

    pipeline: str
    test: str
    outputs: tuple[OutputVerdict, ...]
    seconds: float
    error: str | None = None
    code: str | None = None

    @property
    def passed(self) -> bool:
        """Whether all is as expected."""
        return self.error is None and all(output.passed for output in self.outputs)
