"""Finds calls in SQL that make their result as large as a number says that is written into them.

DataFusion's memory pool bounds what sorts, groups and joins hold, and no function: `repeat('x', 2000000000)` is one
value of two gigabytes. This finds slips. A number that is computed, or comes from a column, no text shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

ARGUMENT_CHARS_MAX = 60  # longer ones are no numbers

_TOKEN = re.compile(r"\b(?:from|join)\s+\w+\s*\(|\b(\w+)\"?\s*\(|[(\[{)\]},]", re.IGNORECASE)
"""Brackets, with the name of what is called; a table that is called makes rows, which are bounded."""
_REPEATING = re.compile(r"repeat|[lr]pad|(?:array|list)_(?:repeat|resize)", re.IGNORECASE)
_RANGE = re.compile(r"range|generate_series", re.IGNORECASE)
_NUMBER = re.compile(r"([+-]?)\s*(\d+(?:\.\d*)?(?:e\+?\d+)?)\s*(?:::\s*\w+)?", re.IGNORECASE)


@dataclass(slots=True)
class _Call:
    """A call, or other brackets. at: where the next argument begins. arguments: None for what is no number."""

    name: str
    at: int
    arguments: list[float | None] = field(default_factory=list)

    def times(self) -> float:
        """What the numbers in it ask for, 0 if they ask for nothing."""
        if _REPEATING.fullmatch(self.name):
            return self.arguments[1] or 0 if len(self.arguments) > 1 else 0
        numbers = [number for number in self.arguments if number is not None]
        if not _RANGE.fullmatch(self.name) or len(numbers) < len(self.arguments):
            return 0
        match numbers:
            case [stop]:
                return abs(stop)
            case [start, stop]:
                return abs(stop - start)
            case [start, stop, step] if step:
                return abs((stop - start) / step)
        return 0


def repetitions(code: str) -> Iterator[tuple[str, float]]:
    """Every call, and how often it repeats, pads or counts, as far as numbers in it say so. code: without strings."""
    open_calls: list[_Call] = []
    for token in _TOKEN.finditer(code):
        mark = token[0][-1]
        if mark in "([{":
            open_calls.append(_Call(token[1] or "", token.end()))
        elif open_calls:
            call = open_calls[-1]
            call.arguments.append(_number(code[call.at : min(token.start(), call.at + ARGUMENT_CHARS_MAX)]))
            call.at = token.end()
            if mark != ",":
                open_calls.pop()
                yield call.name, call.times()


def _number(text: str) -> float | None:
    found = _NUMBER.fullmatch(text.strip())
    return None if found is None else float(found[1] + found[2])
