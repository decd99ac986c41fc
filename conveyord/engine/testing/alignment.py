"""Which expected row is which row that came: the alignment with the fewest changes that keeps their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

PAIRS_MAX = 160_000  # comparing 400 rows with 400 takes about a second; beyond that rows are paired by number

Pair = tuple[int | None, int | None]

_GAP = 1.0  # the cost of a row without a counterpart; two rows with nothing in common cost two of these


def aligned(expected: int, got: int, unlike: Callable[[int, int], float]) -> Iterator[Pair]:
    """Pairs of row numbers in order, None for no counterpart; of `expected` and `got` rows.

    unlike: how much two rows differ, from 0 for not at all to 1 for entirely.
    """
    start = 0
    while start < min(expected, got) and unlike(start, start) == 0:
        yield start, start
        start += 1
    tail = 0
    while tail < min(expected, got) - start and unlike(expected - 1 - tail, got - 1 - tail) == 0:
        tail += 1
    rows, columns = expected - start - tail, got - start - tail
    middle = _in_turn(rows, columns)
    if rows * columns <= PAIRS_MAX:
        middle = _cheapest(rows, columns, lambda row, column: unlike(start + row, start + column))
    for one, other in middle:
        yield None if one is None else start + one, None if other is None else start + other
    for step in range(tail, 0, -1):
        yield expected - step, got - step


def _in_turn(rows: int, columns: int) -> list[Pair]:
    longest = max(rows, columns)
    return [(at if at < rows else None, at if at < columns else None) for at in range(longest)]


def _cheapest(rows: int, columns: int, unlike: Callable[[int, int], float]) -> list[Pair]:
    # cost[r][c]: the least for the rows from r on and the columns from c on.
    cost = [[_GAP * (rows - row + columns - column) for column in range(columns + 1)] for row in range(rows + 1)]
    paired = [[2 * _GAP * unlike(row, column) for column in range(columns)] for row in range(rows)]
    for row in range(rows - 1, -1, -1):
        for column in range(columns - 1, -1, -1):
            both = paired[row][column] + cost[row + 1][column + 1]
            cost[row][column] = min(both, _GAP + cost[row + 1][column], _GAP + cost[row][column + 1])
    pairs: list[Pair] = []
    row = column = 0
    while row < rows or column < columns:
        left = cost[row][column]
        if row < rows and column < columns and left == paired[row][column] + cost[row + 1][column + 1]:
            pairs.append((row, column))
            row, column = row + 1, column + 1
        elif row < rows and left == _GAP + cost[row + 1][column]:
            pairs.append((row, None))
            row += 1
        else:
            pairs.append((None, column))
            column += 1
    return pairs
