"""Positions advance without gaps, and cover exactly what lies below them."""

from __future__ import annotations

import pytest

from conveyord.core.flow.positions import Partition, Position, Positions, Span

A = Partition("source", "a")


def test_spans_advance_positions_and_their_marks() -> None:
    positions = Positions().advanced([Span(A, 0, 5, "x"), Span(A, 5, 9, "y")])
    assert positions[A] == Position(9, "y")


@pytest.mark.parametrize("first", [4, 6])
def test_a_gap_or_a_step_back_is_refused(first: int) -> None:
    with pytest.raises(ValueError, match="position is 5"):
        Positions({A: Position(5)}).advanced([Span(A, first, 9)])


def test_a_span_is_covered_only_if_all_of_it_is() -> None:
    positions = Positions({A: Position(5)})
    assert positions.covers(Span(A, 0, 5))
    assert not positions.covers(Span(A, 0, 6))
    assert not positions.covers(Span(Partition("source", "b"), 0, 1))


def test_positions_are_selected_by_source() -> None:
    positions = Positions({A: Position(5), Partition("other", "a"): Position(7)})
    assert positions.of_source("other") == {"a": Position(7)}
