"""The same log is the same state: whatever the batches, the process and its order of sets, and across restarts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest

from tests.storage.state.rig import SESSIONS_MAX, WINDOW, Node
from tests.storage.state.script import make_log, state_of

COUNT = 1_500
REPO = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_batches_make_no_difference(tmp_path: Path, seed: int) -> None:
    log = make_log(seed, COUNT)
    assert len({state_of(log, tmp_path / str(batch), batch) for batch in (1, 7, 256, COUNT)}) == 1


def test_the_log_of_these_tests_has_something_of_everything(tmp_path: Path) -> None:
    said = state_of(make_log(2, COUNT), tmp_path / "state", COUNT)
    codes = set(re.findall(r"code='([A-Z_]+)'", said))
    assert codes >= {"CONFLICT", "NOT_FOUND", "INVALID", "EXISTS", "STALE", "WRONG_STATE", "SESSION_EXPIRED"}
    assert codes >= {"SESSION_NEEDED", "LAST_ADMIN", "PROTOCOL"}


def test_restarts_make_no_difference(tmp_path: Path) -> None:
    log, random = make_log(4, COUNT), Random(4)
    node = Node(tmp_path / "restarted", sessions_max=SESSIONS_MAX, window=WINDOW)
    replies = list[object]()
    for end in [*sorted(random.sample(range(1, COUNT), 40)), COUNT]:
        part = log.entries[node.store.mark.index : end]
        replies += node.apply(part)
        node.reopen()
    digest = node.store.state_digest()
    node.store.close()
    assert digest.hex() == state_of(log, tmp_path / "whole", 100).split(" ", 1)[0]
    assert len(replies) == COUNT


def test_a_process_makes_no_difference(tmp_path: Path) -> None:
    said = set()
    for seed in ("0", "1", "12345"):
        command = [sys.executable, "-m", "tests.storage.state.script", str(tmp_path / seed), "5", "600", "50"]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(command, env=environment, cwd=REPO, capture_output=True, text=True, check=True)
        said.add(done.stdout)
    assert len(said) == 1
