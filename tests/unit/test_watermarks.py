"""Watermarks of several inputs: the lowest of those that are not idle, and never back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.watermarks import WatermarkMerge

IDLE = 30.0


def merge(inputs: int) -> WatermarkMerge:
    return WatermarkMerge(inputs, idle_seconds=IDLE, now=0.0)


def test_the_lowest_goes_on_once_every_input_has_one() -> None:
    merged = merge(2)
    assert merged.advance(0, 50, 1) is None
    assert merged.advance(1, 20, 1) == 20
    assert merged.advance(1, 70, 1) == 50
    assert merged.advance(1, 80, 1) is None


def test_an_input_that_says_nothing_for_long_holds_nobody_back() -> None:
    merged = merge(2)
    assert merged.advance(0, 50, IDLE - 1) is None
    assert merged.advance(0, 60, IDLE) == 60


def test_an_input_that_sends_batches_without_watermarks_is_not_idle() -> None:
    merged = merge(2)
    merged.heard(1, IDLE - 1)
    assert merged.advance(0, 50, IDLE) is None


def test_an_input_that_wakes_up_late_does_not_turn_time_back() -> None:
    merged = merge(2)
    assert merged.advance(0, 50, IDLE) == 50
    assert merged.advance(1, 10, IDLE) is None
    assert merged.advance(0, 90, IDLE) is None
    assert merged.advance(1, 60, IDLE) == 60


def test_an_input_that_ended_holds_nobody_back() -> None:
    merged = merge(2)
    merged.advance(0, 50, 1)
    assert merged.end(1, 1) == 50
    assert merged.end(0, 1) is None


def test_a_watermark_that_goes_back_is_not_believed() -> None:
    merged = merge(1)
    assert merged.advance(0, 50, 1) == 50
    assert merged.advance(0, 40, 1) is None
    assert merged.advance(0, 51, 1) == 51


_events = st.lists(
    st.tuples(st.sampled_from(["advance", "heard", "end"]), st.integers(0, 2), st.integers(0, 100), st.integers(0, 20))
)


@given(_events)
def test_it_rises_always_and_is_never_above_an_input_that_is_awake(
    events: list[tuple[str, int, int, int]],
) -> None:
    merged, now, last = merge(3), 0.0, -1
    micros: list[int | None] = [None] * 3
    heard, ended = [0.0] * 3, [False] * 3
    for what, number, value, wait in events:
        now += wait
        if ended[number]:
            continue
        if what == "advance":
            micros[number], heard[number] = max(value, micros[number] or 0), now
            found = merged.advance(number, value, now)
        elif what == "end":
            ended[number] = True
            found = merged.end(number, now)
        else:
            heard[number], found = now, None
            merged.heard(number, now)
        if found is not None:
            assert found > last
            last = found
            awake = [n for n in range(3) if not ended[n] and now - heard[n] < IDLE]
            assert all(micros[n] is not None and micros[n] >= found for n in awake)
