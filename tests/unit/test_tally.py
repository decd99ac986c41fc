"""No record is unaccounted for: rows are always read - skipped - filtered + added."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.tally import Tally


@given(st.integers(0, 100), st.lists(st.integers(0, 100)))
def test_the_rows_follow_from_the_counts_through_any_stages(read: int, stages: list[int]) -> None:
    tally = Tally(read=read)
    for rows_out in stages:
        tally = tally.through(rows_out)
        assert tally.rows == rows_out
    assert tally.read == read
    assert min(tally.filtered, tally.added, tally.skipped) >= 0


def test_tallies_add_up_field_by_field() -> None:
    assert Tally(1, 2, 3, 4) + Tally(10, 20, 30, 40) == Tally(11, 22, 33, 44)
