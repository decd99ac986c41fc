"""Many rows by one statement, for either driver of SQLite.

Every statement costs a microsecond of its own, and lets another thread have the interpreter: one that inserts row by
row waits for it after every row, and longer for that than for SQLite (docs/benchmarks.md, "Raft").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

ROWS = (64, 16, 4, 1)  # of one statement. More gain nothing, and few kinds stay in the drivers' caches of statements


def insert(execute: Callable[[str, Sequence[Any]], object], statement: str, values: Sequence[Any]) -> None:
    """Run `statement` for all rows, in their order. Its first parentheses with question marks are those of a row.

    values: of all rows, one after the other and not as tuples, which would have to be made and taken apart again.
    """
    at, end, width = 0, len(values), _width(statement)
    for count in ROWS:
        size = count * width
        while at + size <= end:
            execute(_for_rows(statement, count), values[at : at + size])
            at += size
    assert at == end, (statement, end)


@cache
def _width(statement: str) -> int:
    return _row(statement).count("?")


@cache
def _for_rows(statement: str, count: int) -> str:
    row = _row(statement)
    return statement.replace(row, ", ".join([row] * count), 1)


def _row(statement: str) -> str:
    begin = statement.index("(?")
    return statement[begin : statement.index(")", begin) + 1]
