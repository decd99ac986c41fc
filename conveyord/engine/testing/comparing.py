"""Holds what came of an output against what a test expects of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from conveyord.engine.testing.alignment import aligned
from conveyord.engine.testing.values import Types, changed_columns, same
from conveyord.engine.testing.verdicts import Difference, JsonRow, OutputVerdict


@dataclass(frozen=True, slots=True)
class Row:
    """A row that came: its values as JSON, and the types of its columns."""

    values: Mapping[str, Any]
    types: Types


def compared(output: str, expected: Sequence[JsonRow], got: Sequence[Row]) -> OutputVerdict:
    """Rows in order, every column of every row; null and an absent column are the same."""
    changed: dict[tuple[int, int], tuple[str, ...]] = {}

    def unlike(one: int, other: int) -> float:
        if (one, other) not in changed:
            changed[one, other] = changed_columns(expected[one], got[other].values, got[other].types)
        present = {name for row in (expected[one], got[other].values) for name in row if row[name] is not None}
        return len(changed[one, other]) / max(len(present), 1)

    differences = [
        Difference(one, other, () if one is None or other is None else changed[one, other])
        for one, other in aligned(len(expected), len(got), unlike)
        if one is None or other is None or changed[one, other]
    ]
    return OutputVerdict(output, expected, [row.values for row in got], tuple(differences))


def compared_letters(output: str, expected: Sequence[JsonRow], got: Sequence[Row]) -> OutputVerdict:
    """Dead letters in any order, and of each only what the test says of it.

    A letter is taken for the expected one that it differs least from, first come first served.
    """
    left = list(range(len(got)))
    pairs: list[tuple[int, int, tuple[str, ...]]] = []
    open_rows = list(range(len(expected)))
    for allowed in range(max((len(row) for row in expected), default=0) + 1):
        for one in list(open_rows):
            for other in left:
                changed = _letter_changed(expected[one], got[other])
                if len(changed) <= allowed < max(len(expected[one]), 1):
                    pairs.append((one, other, changed))
                    left.remove(other)
                    open_rows.remove(one)
                    break
    differences = [Difference(one, other, changed) for one, other, changed in sorted(pairs) if changed]
    differences += [Difference(one, None) for one in open_rows]
    differences += [Difference(None, other) for other in left]
    return OutputVerdict(output, expected, [row.values for row in got], tuple(differences))


def _letter_changed(expected: JsonRow, got: Row) -> tuple[str, ...]:
    """What a letter has otherwise than expected. Of a message a part is enough, whatever its case."""
    changed = []
    for name, value in expected.items():
        there = got.values.get(name)
        if name == "message" and isinstance(value, str) and value.casefold() in str(there).casefold():
            continue
        if not same(value, there, got.types.get(name, pa.null())):
            changed.append(name)
    return tuple(changed)
