"""Backoff: waits stay within their bounds and spread over all of them."""

from __future__ import annotations

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.retry import Backoff


@given(st.integers(1, 10_000), st.integers(0, 2**32))
def test_no_wait_is_longer_than_the_cap_however_many_failures(attempt: int, seed: int) -> None:
    backoff = Backoff(base_seconds=0.1, cap_seconds=5.0)
    assert 0.0 <= backoff.delay_seconds(attempt, Random(seed)) <= min(5.0, 0.1 * 2.0 ** min(attempt - 1, 32))


def test_waits_of_several_writers_spread_over_the_whole_interval() -> None:
    backoff = Backoff(base_seconds=1.0, cap_seconds=8.0)
    waits = [backoff.delay_seconds(4, Random(seed)) for seed in range(200)]
    assert min(waits) < 1.0
    assert max(waits) > 7.0


def test_the_same_seed_gives_the_same_wait() -> None:
    backoff = Backoff(base_seconds=1.0, cap_seconds=8.0)
    assert backoff.delay_seconds(3, Random(1)) == backoff.delay_seconds(3, Random(1))
