"""The log of a node and the state beside it: how a node comes back whose log was moved aside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

from conveyord.core.errors import Refused
from conveyord.core.raft.messages import Install, Write
from conveyord.core.raft.types import BLANK, HardState
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.raft_log.quarantine import Quarantined
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.store import StateStore
from tests.storage.kv_state import MEMBERS, advance, check_state, entries, open_store
from tests.storage.raft_log_rig import RESERVE_BYTES
from tests.storage.state_store_rig import receive, snapshot_of

APPLIED, SENT, END = 100, 150, 200


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotFile]:
    """A leader's snapshot."""
    with snapshot_of(tmp_path_factory.mktemp("leader"), SENT) as found:
        yield found


@contextmanager
def started(home: Path, node: str) -> Iterator[tuple[RaftLog, StateStore]]:
    """The two as a node opens them."""
    with ExitStack() as held:
        log = RaftLog(home / "raft" / "raft.db", node=node, reserve_bytes=RESERVE_BYTES)
        held.callback(log.close)
        state = held.enter_context(closing(open_store(home / "state", base=log.base)))
        log.load(state.mark.index)
        yield log, state


def live(home: Path, node: str) -> None:
    """A first life of a founder."""
    with started(home, node) as (log, state):
        log.found(MEMBERS)
        log.write(Write(1, HardState(END, None, APPLIED), None, tuple(entries(1, APPLIED + 1)), None))
        advance(state, APPLIED)


def folders(home: Path) -> list[str]:
    """Of logs that were moved aside."""
    return sorted(path.name for path in (home / "raft").glob("quarantine-*"))


def test_a_node_whose_log_was_moved_aside_comes_back_as_its_sentence_says(home: Path, sent: SnapshotFile) -> None:
    live(home, "a")
    (home / "raft" / "raft.db-watermark").write_bytes(b"damaged")
    for _ in range(2):
        with pytest.raises(Quarantined, match="move the state beside the log away, and start it under a new node id"):
            started(home, "a").__enter__()
    (home / "state").rename(home / "state-of-a")
    with started(home, "b") as (log, state):
        assert (log.base.index, state.mark.index) == (0, 0)
        receive(home / "state", sent.path.read_bytes(), sent.info)
        hard = HardState(END, None, SENT)
        log.write(
            Write(1, hard, None, tuple(entries(SENT + 1, END + 1)), Install(sent.info.mark, sent.info.membership))
        )
        state.switch(sent.info.mark)
        advance(state, END)
    with started(home, "b") as (log, state):
        assert (log.base.index, check_state(state)) == (SENT, END)
    assert folders(home) == ["quarantine-1"]


def test_a_state_that_was_left_beside_a_new_log_is_no_damage_of_that(home: Path) -> None:
    """Nor does it take the new name."""
    live(home, "a")
    (home / "raft" / "raft.db-watermark").write_bytes(b"damaged")
    with pytest.raises(Quarantined):
        started(home, "a").__enter__()
    for _ in range(2):
        with pytest.raises(Refused, match="log of node b is new, and the state beside it has applied entry 100"):
            started(home, "b").__enter__()
    assert folders(home) == ["quarantine-1"]
    (home / "state").rename(home / "state-of-a")
    with started(home, "b") as (log, _):
        assert log.load(0).hard_state == BLANK


def test_a_node_whose_log_was_deleted_is_told_that_its_name_is_spent(home: Path) -> None:
    live(home, "a")
    for path in (home / "raft").iterdir():
        path.unlink()
    with pytest.raises(Refused, match="was a member before, .* it must not vote under this name again"):
        started(home, "a").__enter__()


def test_a_log_that_lost_its_entries_is_damaged_however_few_it_has(home: Path) -> None:
    """It has voted: it is older than the state, or was put in its place."""
    with started(home, "a") as (log, _):
        log.write(Write(1, HardState(3, "a", 0), None, (), None))
    with closing(open_store(home / "state")) as state:
        advance(state, APPLIED)
    with pytest.raises(Quarantined, match="ends with entry 0, but the state beside it has applied entry 100"):
        started(home, "a").__enter__()
