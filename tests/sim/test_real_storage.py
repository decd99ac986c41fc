"""Lives of clusters whose logs and states are the real ones."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.raft_log.quarantine import Quarantined
from tests.sim.faults import draw, profile_of
from tests.sim.real_disk import RealDisk, RealWorld
from tests.sim.run import live

MEMORY = Path("/dev/shm")


def lived_for_real(seed: int, seconds: float) -> RealWorld:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as home:
        world = RealWorld(Path(home), seed, draw(seed, profile_of(seed), frozenset()))
        try:
            live(world, seconds)
        finally:
            for server in world.servers.values():
                assert isinstance(server.disk, RealDisk)
                server.disk.close()
    return world


@pytest.mark.parametrize("seed", [1])
def test_a_short_life_on_the_real_storage(seed: int) -> None:
    assert lived_for_real(seed, 6.0).counts["snapshots"]


def test_a_log_that_forgets_a_vote_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    write = RaftLog.write
    monkeypatch.setattr(RaftLog, "write", lambda log, asked: write(log, replace(asked, hard_state=None)))
    with pytest.raises(Quarantined, match=r"has term \d+, but the node.s own is 0"):
        lived_for_real(1, 20.0)


@pytest.mark.check
@pytest.mark.parametrize("first", range(2, 26, 6))
def test_lives_on_the_real_storage(first: int) -> None:
    counts = Counter[str]()
    for seed in range(first, first + 6):
        counts += lived_for_real(seed, 60.0).counts
    assert [what for what in ("crashes", "snapshots", "installs", "truncations", "fetches") if not counts[what]] == []


@pytest.mark.soak
@pytest.mark.timeout(0)
@pytest.mark.parametrize("first", range(1_000, 1_500, 50))
def test_many_lives_on_the_real_storage(first: int) -> None:
    for seed in range(first, first + 50):
        lived_for_real(seed, 60.0)
