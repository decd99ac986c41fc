"""Whether a history of reads, writes and compare-and-sets of one register is linearizable.

Wing and Gong's search with Lowe's memory of what was tried (as in Porcupine): take any operation that no other one
ended before, apply it, go on. An operation whose outcome is not known may take effect at any later time, or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Op:
    """One operation. kind: read, write or cas. returned: `NEVER` if its outcome is not known.

    value: what was read or is written. expected: what a cas compares with. ok: whether it found that.
    """

    kind: str
    called: float
    returned: float
    value: int | None = None
    expected: int | None = None
    ok: bool = True


def step(state: int | None, op: Op) -> tuple[bool, int | None]:
    """Whether an operation may answer as it did in `state`, and the state after it."""
    if op.kind == "read":
        return state == op.value or op.returned == NEVER, state
    if op.kind == "write":
        return True, op.value
    matches = state == op.expected
    if op.returned == NEVER:
        return True, op.value if matches else state
    return matches == op.ok, op.value if matches else state


def is_linearizable(history: Sequence[Op]) -> bool:
    """Whether some order of the operations explains what each of them answered."""
    ops = sorted((op for op in history if op.kind != "read" or op.returned != NEVER), key=lambda op: op.called)
    known = sum(op.returned != NEVER for op in ops)
    seen = set[tuple[int, int | None]]()
    stack: list[tuple[int, int | None, int]] = [(0, None, 0)]  # taken (a bit mask), state, how many known ones
    while stack:
        taken, state, done = stack.pop()
        if done == known:
            return True
        if (taken, state) in seen:
            continue
        seen.add((taken, state))
        until = NEVER
        for number, op in enumerate(ops):
            if taken >> number & 1:
                continue
            if op.called > until:
                break
            until = min(until, op.returned)
            fits, after = step(state, op)
            if fits:
                stack.append((taken | 1 << number, after, done + (op.returned != NEVER)))
    return False
