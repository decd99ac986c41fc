"""Bugs that real systems had are found by the simulation: else it would not find the next one either."""

from __future__ import annotations

import pytest

from tests.sim.planted import BUGS, KNOWN, Patch
from tests.sim.run import Life, failure

FOUND_WITHIN_SEEDS = 200
A_FEW = 40  # where the seed that was known lives another life since


def seeds_until_found(seeds: list[int]) -> int | None:
    return next((count for count, seed in enumerate(seeds, 1) if failure(Life(seed)) is not None), None)


def test_there_is_a_seed_for_every_planted_bug() -> None:
    assert list(KNOWN) == [bug.__name__ for bug in BUGS]


@pytest.mark.check
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found_by_the_seed_that_is_known_or_by_one_of_a_few(
    bug: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    assert seeds_until_found([KNOWN[bug.__name__], *range(A_FEW)]) is not None


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_found_within_two_hundred_seeds(bug: Patch, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    assert seeds_until_found(list(range(FOUND_WITHIN_SEEDS))) is not None
