"""The token bucket: never more than its rate allows, and as much as that."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.token_bucket import TokenBucket

RATES = st.sampled_from([0.125, 0.5, 1.0, 3.0, 1000.0, 2.0**30])
STEPS = st.lists(st.tuples(st.floats(0, 50), st.floats(0, 500)), max_size=30)
SLACK = 1e-9  # of the amounts: what floats lose


def test_what_is_there_passes_at_once_and_more_waits_until_it_has_come() -> None:
    bucket = TokenBucket(10, capacity=20)
    assert bucket.pay(20, now_seconds=0) == 0
    assert bucket.pay(5, now_seconds=0) == 0.5
    assert bucket.pay(5, now_seconds=0) == 1.0, "who comes second waits behind the first"
    assert bucket.pay(5, now_seconds=1) == 0.5
    assert bucket.pay(20, now_seconds=100) == 0, "it fills up to its capacity"
    assert bucket.pay(1, now_seconds=100) == 0.1


def test_more_than_the_capacity_is_paid_for_as_debt() -> None:
    bucket = TokenBucket(1, capacity=2)
    assert bucket.pay(10, now_seconds=0) == 8
    assert bucket.affordable(each=1, now_seconds=8) == 0
    assert bucket.affordable(each=1, now_seconds=9) == 1


def test_a_thing_larger_than_the_capacity_passes_when_the_bucket_is_full() -> None:
    bucket = TokenBucket(1, capacity=2)
    assert bucket.affordable(each=5, now_seconds=0) == 1
    bucket.pay(5, now_seconds=0)
    assert bucket.affordable(each=5, now_seconds=4.9) == 0
    assert bucket.affordable(each=5, now_seconds=5) == 1


def test_what_costs_nothing_has_no_limit() -> None:
    assert TokenBucket(1, capacity=1).affordable(each=0, now_seconds=0) is None


def test_a_clock_that_goes_back_gives_no_tokens() -> None:
    bucket = TokenBucket(1, capacity=1)
    bucket.pay(1, now_seconds=10)
    assert bucket.pay(0, now_seconds=5) == 0
    assert bucket.pay(1, now_seconds=10) == 1, "the second between 5 and 10 was not counted twice"


@given(RATES, st.floats(0.01, 1000), STEPS)
def test_what_has_passed_is_never_more_than_capacity_and_rate_allow(
    rate: float, capacity: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now, passed = TokenBucket(rate, capacity), 0.0, 0.0
    for pause, cost in steps:
        now += pause
        at = now + bucket.pay(cost, now_seconds=now)
        passed += cost
        assert passed <= (capacity + rate * at) * (1 + SLACK) + SLACK


@given(RATES, st.floats(0.01, 1000), STEPS)
def test_nothing_waits_for_tokens_that_have_come(
    rate: float, capacity: float, steps: list[tuple[float, float]]
) -> None:
    """Without pauses to fill up in, the last leaves exactly when all of it is paid for."""
    bucket, paid = TokenBucket(rate, capacity), 0.0
    for _, cost in steps:
        paid += cost
        wait = bucket.pay(cost, now_seconds=0)
        assert wait == pytest.approx(max(0.0, (paid - capacity) / rate), rel=1e-6, abs=1e-6)


@given(RATES, st.floats(1, 1000), st.floats(0.01, 2000), STEPS)
def test_what_is_affordable_needs_no_wait_and_one_more_would(
    rate: float, capacity: float, each: float, steps: list[tuple[float, float]]
) -> None:
    bucket, now = TokenBucket(rate, capacity), 0.0
    for pause, _ in steps:
        now += pause
        count = bucket.affordable(each=each, now_seconds=now)
        assert count is not None
        if each > capacity:
            assert count <= 1
            bucket.pay(count * each, now_seconds=now)
        else:
            assert bucket.pay(count * each, now_seconds=now) <= SLACK
            assert bucket.balance < each * (1 + SLACK)
