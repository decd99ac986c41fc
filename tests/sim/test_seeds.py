"""Whole lives of clusters, one per seed: `python -m tests.sim.run --seed N` lives through one again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.sim.faults import ACTS, PROFILES, RATES, draw, profile_of
from tests.sim.planted import every_append_truncates
from tests.sim.regressions import REGRESSIONS
from tests.sim.run import WRONG, Life, failure, live, shrunk

ROOT = Path(__file__).resolve().parents[2]
SEEDS = 300
SOAK_SEEDS = 10_000
CHUNK = 50
HAPPENED = (
    *("elections", "truncations", "installs", "snapshots", "streams", "streams that failed", "late streams", "fetches"),
    *("memberships", "joint memberships", "promotions", "leaders that left", "replaced", "transfers", "changes"),
    *("cuts", "rings", "flaps", "resets", "lost by resets", "losses", "duplicates", "reordered", "tails", "damaged"),
    *("crashes", "fuses", "crashes before Persisted", "crashes at commit", "crashes of receivers"),
    *("hunted", "raced snapshots", "freezes"),
    *("clock jumps", "stalls", "late writes", "full disks", "ended for want of space", "fsync errors"),
    *("flipped bits", "lost disks", "quarantines", "bursts"),
    *("calls", "reads", "retries", "repeated", "expired", "lost", "dropped", "lost answers"),
)


def lived(seeds: range, profile: str = "") -> Counter[str]:
    found = Counter[str]()
    for seed in seeds:
        life = Life(seed, profile=profile)
        world = life.world()
        try:
            live(world, life.seconds)
        except WRONG as error:
            raise AssertionError(f"{life.command()}: at {world.now:.3f} s: {error!r}\n{world.faults.told()}") from error
        found += world.counts
    return found


def all_of_it_happened(counts: Counter[str]) -> None:
    assert [what for what in HAPPENED if not counts[what]] == [], "what did not happen was not tested"


@pytest.mark.parametrize("profile", PROFILES)
def test_a_short_life_keeps_every_invariant(profile: str) -> None:
    assert failure(Life(1, 15.0, profile)) is None


@pytest.mark.parametrize(("life", "bug"), REGRESSIONS, ids=[life.command() for life, _ in REGRESSIONS])
def test_what_a_seed_found_once_stays_mended(life: Life, bug: str) -> None:
    assert failure(life) is None, bug


@pytest.mark.check
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_many_lives_keep_every_invariant(first: int) -> None:
    all_of_it_happened(lived(range(first, first + CHUNK)))


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("first", range(SEEDS, SOAK_SEEDS, 5 * CHUNK))
def test_very_many_lives_keep_every_invariant(first: int) -> None:
    all_of_it_happened(lived(range(first, min(first + 5 * CHUNK, SOAK_SEEDS))))


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("profile", PROFILES)
def test_very_many_lives_of_one_profile_keep_every_invariant(profile: str) -> None:
    lived(range(SOAK_SEEDS, SOAK_SEEDS + 10 * CHUNK), profile)


def test_a_seed_stands_for_one_history_whatever_the_hashes() -> None:
    def told(hash_seed: str) -> str:
        command = [sys.executable, "-m", "tests.sim.run", "--seed", "3", "--seconds", "8", "--tail"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout

    life, traces = Life(3, 8.0), list[str]()
    for _ in range(2):
        world = life.world()
        live(world, life.seconds)
        traces.append(world.told_trace())
    assert traces[0] == traces[1]
    first = told("1")
    assert f"trace: {traces[0]}" in first
    assert told("2") == first


def test_every_fault_of_the_menu_is_drawn_by_some_seed_and_none_by_all() -> None:
    drawn = [draw(seed, profile_of(seed)) for seed in range(400)]
    acts = Counter(act for faults in drawn for act in faults.acts)
    rates = Counter(name for faults in drawn for name in RATES if getattr(faults, name))
    assert all(20 < acts[name] < 400 for name in ACTS)
    assert all(20 < rates[name] < 400 for name in RATES)


def test_a_fault_that_is_switched_off_changes_no_other() -> None:
    whole, fewer = draw(7, "three"), draw(7, "three", frozenset({"crash", "loss"}))
    assert fewer.acts == tuple(act for act in whole.acts if act != "crash")
    assert fewer.loss == 0.0
    assert all(getattr(fewer, name) == getattr(whole, name) for name in RATES if name != "loss")


@pytest.mark.check
def test_a_life_that_ends_badly_is_shrunk_to_a_smaller_one_that_does_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    every_append_truncates(monkeypatch)
    life = next(one for one in (Life(seed, 20.0) for seed in range(100)) if failure(one) is not None)
    small = shrunk(life)
    assert failure(small) is not None
    assert len(small.without) > 10
    assert small.seconds <= life.seconds
