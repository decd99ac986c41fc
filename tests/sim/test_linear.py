"""The checker itself: against trying every order, and on histories that are known to be wrong."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.sim.linear import NEVER, Op, is_linearizable, step


def by_every_order(history: list[Op]) -> bool:
    """Every subset of the unknown operations, in every order that respects who ended before whom."""
    unknown = [op for op in history if op.returned == NEVER]
    known = [op for op in history if op.returned != NEVER]
    for mask in range(1 << len(unknown)):
        chosen = known + [op for at, op in enumerate(unknown) if mask >> at & 1]
        for order in permutations(chosen):
            if any(b.returned < a.called for at, a in enumerate(order) for b in order[at + 1 :]):
                continue
            state, fits = None, True
            for op in order:
                allowed, state = step(state, op)
                fits = fits and allowed
            if fits:
                return True
    return False


VALUES = st.none() | st.integers(0, 2)


@st.composite
def ops(draw: st.DrawFn) -> Op:
    called = draw(st.integers(0, 8))
    returned = draw(st.just(NEVER) | st.integers(called, 9).map(float))
    kind = draw(st.sampled_from(["read", "write", "cas"]))
    return Op(kind, called, returned, draw(VALUES), draw(VALUES), draw(st.booleans()))


@given(st.lists(ops(), max_size=5))
def test_the_checker_agrees_with_trying_every_order(history: list[Op]) -> None:
    assert is_linearizable(history) == by_every_order(history)


@pytest.mark.parametrize(
    "history",
    [
        [Op("write", 0, 1, 1), Op("read", 2, 3, None)],
        [Op("write", 0, 1, 1), Op("write", 2, 3, 2), Op("read", 4, 5, 1)],
        [Op("write", 0, 9, 1), Op("read", 1, 2, 1), Op("read", 3, 4, None)],
        [Op("read", 0, 1, 5)],
        [Op("write", 0, 1, 1), Op("cas", 2, 3, 2, 1), Op("cas", 4, 5, 3, 1)],
        [Op("write", 0, 1, 1), Op("cas", 2, 3, 2, 7, ok=True)],
        [Op("write", 0, NEVER, 1), Op("read", 1, 2, 1), Op("read", 3, 4, None), Op("read", 5, 6, 1)],
    ],
    ids=["lost", "old", "back", "invented", "twice", "unfounded", "flickering"],
)
def test_a_wrong_history_is_found(history: list[Op]) -> None:
    assert not is_linearizable(history)


def test_a_long_history_is_checked_in_no_time_and_a_single_wrong_read_in_it_is_found() -> None:
    history = list[Op]()
    for number in range(1_000):
        history.append(Op("write", number, number + 0.9, number))
        history.append(Op("read", number + 0.91, number + 0.95, number))
    assert is_linearizable(history)
    history[1_001] = Op("read", 500.91, 500.95, 499)
    assert not is_linearizable(history)
