"""Watermarks of several inputs: the lowest of those that are not idle, and never back."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.watermarks import PartitionWatermarks, WatermarkMerge

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


# ---------------------------------------------------------------------------- of partitions


def partitions(*names: str, lateness: int = 0) -> PartitionWatermarks:
    found = PartitionWatermarks(lateness_micros=lateness, idle_seconds=IDLE)
    for name in names:
        found.reads(name, 0.0)
    return found


def test_the_slowest_partition_holds_event_time_and_lateness_is_allowed_for() -> None:
    watermarks = partitions(lateness=5)
    assert watermarks.saw("a", 50, 1) == 45
    assert watermarks.saw("b", 20, 1) is None, "it never goes back"
    assert watermarks.saw("a", 90, 2) is None
    assert watermarks.saw("b", 70, 3) == 65


def test_a_partition_from_which_nothing_came_holds_event_time_until_it_is_idle() -> None:
    watermarks = partitions("a", "b")
    assert watermarks.saw("a", 50, IDLE - 1) is None
    assert watermarks.saw("a", 60, IDLE) == 60


def test_an_older_time_in_a_partition_does_not_turn_its_time_back() -> None:
    watermarks = partitions("a")
    assert watermarks.saw("a", 50, 1) == 50
    assert watermarks.saw("a", 10, 2) is None
    assert watermarks.saw("a", 51, 3) == 51


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-1000, 1000), st.floats(0, 2 * IDLE)), max_size=40),
    st.integers(0, 50),
)
def test_no_watermark_is_beyond_what_a_partition_that_is_not_idle_has_shown(
    steps: list[tuple[str, int, float]], lateness: int
) -> None:
    watermarks = partitions("a", "b", "c", lateness=lateness)
    newest: dict[str, tuple[int | None, float]] = dict.fromkeys("abc", (None, 0.0))
    now, emitted = 0.0, list[int]()
    for name, micros, passed in steps:
        now += passed
        before = newest[name][0]
        newest[name] = micros if before is None else max(before, micros), now
        found = watermarks.saw(name, micros, now)
        active = [one for one, heard_at in newest.values() if now - heard_at < IDLE]
        if found is not None:
            assert None not in active
            assert found == min(one for one in active if one is not None) - lateness
            emitted.append(found)
        else:
            reached = emitted[-1] if emitted else None
            lowest = None if None in active else min(one for one in active if one is not None) - lateness
            assert lowest is None or (reached is not None and lowest <= reached)
    assert emitted == sorted(set(emitted))
