"""Many rows by one statement, for either driver of SQLite.

Every statement costs a microsecond of its own, and lets another thread have the interpreter: one that inserts row by
row waits for it after every row, and longer for that than for SQLite (docs/benchmarks.md, "Raft").
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import Any

ROWS = (64, 16, 4, 1)  # of one statement. More gain nothing, and few kinds stay in the drivers' caches of statements


def insert(execute: Callable[[str, Sequence[Any]], object], statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
    """Run `statement` for all rows, in their order. Its first parentheses with question marks are those of a row."""
    at = 0
    for count in ROWS:
        while at + count <= len(rows):
            execute(_for_rows(statement, count), tuple(chain.from_iterable(rows[at : at + count])))
            at += count


@cache
def _for_rows(statement: str, count: int) -> str:
    begin = statement.index("(?")
    end = statement.index(")", begin) + 1
    return statement[:begin] + ", ".join([statement[begin:end]] * count) + statement[end:]
