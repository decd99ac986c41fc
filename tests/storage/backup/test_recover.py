"""Quorum is lost for good: one node goes on alone with all that it has. And looking at a node changes nothing."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from conveyord.core.errors import ConfigError, ConveyordError, Corrupt, Refused
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Write
from conveyord.core.raft.types import HardState
from conveyord.core.state.commands import ClusterForm, ConfigPut
from conveyord.storage.backup import alone, recovering, switching
from conveyord.storage.backup.recovering import Recovered, recover
from conveyord.storage.backup.restoring import restore
from conveyord.storage.backup.verifying import Report, verify
from conveyord.storage.identity import Identity, keep_identity
from conveyord.storage.locks import owned
from conveyord.storage.raft_log.log import RaftLog
from tests.storage.backup.rig import ABOUT, RESERVE_BYTES, made, make_node, script, start
from tests.storage.backup.test_restore import STEPS, check_whole, content, is_new, node_content, refusal
from tests.storage.crash_rig import Crashed, crashing
from tests.storage.state.rig import Log, Node
from tests.storage.state.script import make_log

NOW_MS = 1_795_336_300_000


def recovered(data_dir: Path, history: str = "h1") -> Recovered:
    return recover(data_dir, history, actor="conveyorctl", at_ms=NOW_MS)


def verified(data_dir: Path, scratch: Path) -> Report:
    scratch.mkdir()
    try:
        return verify(data_dir, scratch)
    finally:
        shutil.rmtree(scratch)


@pytest.mark.parametrize(("applied", "compacted"), [(0, 0), (5, 0), (12, 0), (9, 7), (7, 7)])
def test_everything_in_the_log_counts_whatever_was_applied(tmp_path: Path, applied: int, compacted: int) -> None:
    data = make_node(tmp_path / "data", script(), applied=applied, compacted=compacted, commit=applied)
    done = recovered(data)
    assert done == Recovered(Identity("a", 3, "c1.h1", has_log=True), 12, applied, ("b", "c"), data / "before-h1")
    assert verified(data, tmp_path / "scratch").faults == []
    node = start(data)
    assert (node.identity.incarnation, node.cluster, node.history) == (4, "c1", "h1")
    assert (node.members, node.rows, node.standings) == (("a",), (), {"a": "voter"})
    assert dict(node.config) == {f"k/{n}": b"value %d" % n for n in range(2, 8)} | {"started": b"yes"}


def test_recovery_and_restore_of_the_same_entries_lead_to_the_same_state(tmp_path: Path) -> None:
    """Whether they were applied before or now."""
    digests = set()
    for applied in (0, 12):
        data = make_node(tmp_path / f"data-{applied}", script(), applied=applied)
        recovered(data)
        digests.add(start(data).digest)
    assert len(digests) == 1


def test_members_of_a_change_that_was_under_way_are_gone(tmp_path: Path) -> None:
    log = script()
    log.membership(Membership(frozenset({"a", "d"}), frozenset(), frozenset({"a", "b", "c"})))
    log.command(ConfigPut("late", b"x"), 5, 8, 8)
    data = make_node(tmp_path / "data", log, applied=12)
    assert recovered(data).lost == ("b", "c", "d")
    node = start(data)
    assert (node.members, node.standings, node.config["late"]) == (("a",), {"a": "voter"}, b"x")


def test_a_log_that_was_compacted_before_the_state_was_on_disk_is_recovered_by_the_snapshot(tmp_path: Path) -> None:
    """A power cut may leave an older state; its own snapshot leads over the gap."""
    data = make_node(tmp_path / "data", script(), applied=9, compacted=7)
    shutil.rmtree(data / "state" / "generation-00000001")
    assert recovered(data).last == 12
    assert start(data).config["k/7"] == b"value 7"


def test_what_was_there_can_be_put_back(tmp_path: Path) -> None:
    data = make_node(tmp_path / "data", script(), applied=5)
    before = node_content(data)
    done = recovered(data)
    assert node_content(done.aside) == before


@pytest.mark.parametrize("members", [Membership(frozenset({"a"})), Membership(frozenset({"a"}), frozenset({"b"}))])
def test_a_node_that_needs_nobody_is_refused(tmp_path: Path, members: Membership) -> None:
    log = script()
    log.membership(members)
    data = make_node(tmp_path / "data", log)
    with pytest.raises(Refused, match="node a is the only voter of its cluster and needs nobody else; start it"):
        recovered(data)
    assert not (data / switching.BUILDING).exists()


def test_a_node_of_no_cluster_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no such directory"):
        recovered(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "data").mkdir()
    with pytest.raises(Refused, match="no node's directory: it has no node.json"):
        recovered(tmp_path / "data")
    keep_identity(tmp_path / "data", Identity("a", 1))
    with pytest.raises(Corrupt, match="there is no log"):
        recovered(tmp_path / "data")
    RaftLog(tmp_path / "data" / "raft" / "raft.db", node="a", reserve_bytes=RESERVE_BYTES).close()
    with pytest.raises(Refused, match="node a never was a member of a cluster"):
        recovered(tmp_path / "data")
    unformed = make_node(tmp_path / "unformed", Log())
    with pytest.raises(Refused, match="node a is in no cluster yet"):
        recovered(unformed)
    with pytest.raises(ConfigError, match="no id of a history"):
        recovered(unformed, "a b")


def test_a_running_node_is_refused(tmp_path: Path) -> None:
    data = make_node(tmp_path / "data", script())
    for held in (data, data / "raft"):
        with owned(held):
            with pytest.raises(Refused, match=f"in use by process {os.getpid()}"):
                recovered(data)
            with pytest.raises(Refused, match="is in use by a process that runs; stop the node"):
                verified(data, tmp_path / "scratch")


def test_a_damaged_log_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    data = make_node(tmp_path / "data", script())
    spoil(data / "raft" / "raft.db", lambda db: db.execute("UPDATE entries SET data = x'00' WHERE \"index\" = 7"))
    before = node_content(data)
    with pytest.raises(Corrupt, match="the log of node a is damaged: the checksum of entry 7 is wrong"):
        recovered(data)
    assert node_content(data) == before
    assert not list(data.glob("raft/quarantine-*"))


def test_a_crash_anywhere_in_a_recovery_is_taken_back_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_node(tmp_path / "old", script(), applied=5)
    steps = [step for step in STEPS if step[0] is not alone] + [(recovering, "copy_state"), (recovering, "begin_alone")]
    steps = [step for step in steps if hasattr(*step)]
    at, done, refused = 0, False, 0
    while not done:
        data = tmp_path / f"data-{at}"
        shutil.copytree(tmp_path / "old", data)
        before = node_content(data)
        with crashing(monkeypatch, steps, at):
            try:
                recovered(data)
                done = True
            except Crashed:
                pass
        told = refusal(data)
        if told is not None:
            assert "the recovery of node a was cut off here; run it again" in told
            refused += 1
            assert any("was cut off here" in fault for fault in verified(data, tmp_path / "scratch").faults)
        elif not is_new(data):
            assert node_content(data) == before
        if told is not None or not is_new(data):
            assert recovered(data).last == 12
        check_whole(data, at)
        (aside,) = data.glob("before-*")
        assert node_content(aside) == before
        shutil.rmtree(data)
        at += 1
    assert refused > 10


# ------------------------------------------------------------------------------ verify


def spoil(path: Path, act: Callable[[sqlite3.Connection], object]) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        act(connection)


def times(directory: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in directory.rglob("*")}


def test_a_whole_node_has_no_fault_and_is_not_touched(tmp_path: Path) -> None:
    data = make_node(tmp_path / "data", script(), applied=9, compacted=7, commit=10)
    before, stamps = content(data), times(data)
    report = verified(data, tmp_path / "scratch")
    assert (report.faults, report.snapshots) == ([], [7])
    assert (report.node, report.cluster, report.term, report.vote, report.commit) == ("a", "c1", 1, "a", 10)
    assert report.base is not None and report.last is not None and report.applied is not None
    assert (report.base.index, report.last.index, report.applied.index) == (7, 12, 9)
    assert report.membership == Membership(frozenset({"a", "b", "c"}))
    assert (content(data), times(data)) == (before, stamps)


def test_a_directory_that_may_only_be_read_is_verified(tmp_path: Path) -> None:
    data = make_node(tmp_path / "data", script())
    for path in [*data.rglob("*"), data]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert verified(data, tmp_path / "scratch").faults == []


def test_nodes_at_one_index_are_compared_by_what_the_reports_say(tmp_path: Path) -> None:
    reports = []
    for node in ("a", "b"):
        data = make_node(tmp_path / node, script(), node=node)
        reports.append(verified(data, tmp_path / "scratch"))
    assert reports[0].digest == reports[1].digest
    assert reports[0].last == reports[1].last


DAMAGE: list[tuple[str, Callable[[Path], object]]] = [
    (
        "the checksum of entry 7 is wrong",
        lambda data: spoil(
            data / "raft/raft.db", lambda db: db.execute("UPDATE entries SET data = x'00' WHERE \"index\" = 7")
        ),
    ),
    (
        "after entry 5 follows entry 7",
        lambda data: spoil(data / "raft/raft.db", lambda db: db.execute('DELETE FROM entries WHERE "index" = 6')),
    ),
    ("there is no log", lambda data: (data / "raft/raft.db").unlink()),
    ("file is not a database", lambda data: (data / "raft/raft.db").write_bytes(b"x" * 8192)),
    ("the watermark is not what was written", lambda data: (data / "raft/raft.db-watermark").write_bytes(b"x")),
    (
        "log does not follow|is of another log",
        lambda data: spoil(state_of(data), lambda db: db.execute("UPDATE raft_applied SET chain = x'00112233'")),
    ),
    (
        "ends with entry 12, but the state beside it has applied entry 99",
        lambda data: spoil(state_of(data), lambda db: db.execute('UPDATE raft_applied SET "index" = 99')),
    ),
    (
        "the log knows other members than the state: a, b, c, and z",
        lambda data: spoil(
            state_of(data),
            lambda db: db.execute("UPDATE raft_applied SET membership = x'9491a17a909090'"),
        ),
    ),
    ("the state is damaged", lambda data: state_of(data).write_bytes(b"x" * 8192)),
    ("this snapshot is damaged", lambda data: flip(data / "state/snapshots/00000000000000000007.snapshot")),
    ("has no node.json", lambda data: (data / "node.json").unlink()),
    ("is not what was written", lambda data: (data / "node.json").write_bytes(b"{")),
    ("no snapshot leads over the gap", lambda data: shutil.rmtree(data / "state")),
]


def state_of(data: Path) -> Path:
    return data / "state/generation-00000001/state.db"


def flip(path: Path) -> None:
    changed = bytearray(path.read_bytes())
    changed[len(changed) // 2] ^= 1
    path.write_bytes(changed)


@pytest.mark.parametrize(("fault", "spoiling"), DAMAGE, ids=[fault.replace(" ", "-") for fault, _ in DAMAGE])
def test_damage_is_reported_and_left_as_it_is(tmp_path: Path, fault: str, spoiling: Callable[[Path], object]) -> None:
    is_compacted = "snapshot" in fault
    data = make_node(tmp_path / "data", script(), applied=9, compacted=7 if is_compacted else 0)
    spoiling(data)
    before = content(data)
    report = verified(data, tmp_path / "scratch")
    assert any(re.search(fault, found) for found in report.faults), report.faults
    assert not any("scratch" in found for found in report.faults)
    assert content(data) == before


def test_a_log_that_was_moved_aside_is_told(tmp_path: Path) -> None:
    data = make_node(tmp_path / "data", script())
    (data / "raft/raft.db-watermark").write_bytes(b"x")
    with pytest.raises(ConveyordError):
        RaftLog(data / "raft/raft.db", node="a", reserve_bytes=RESERVE_BYTES)
    (fault,) = verified(data, tmp_path / "scratch").faults
    assert "the log was damaged (the watermark is not what was written) and lies in" in fault
    with pytest.raises(Corrupt, match="quarantine-1"):
        recovered(data)


def test_bytes_flipped_anywhere_in_the_log_never_crash_a_look_at_it(tmp_path: Path) -> None:
    data = make_node(tmp_path / "data", script())
    path, random = data / "raft/raft.db", Random(3)
    whole = path.read_bytes()
    found = 0
    for place in [*range(0, 120, 3), *random.sample(range(len(whole)), 60)]:
        changed = bytearray(whole)
        changed[place] ^= 1 << random.randrange(8)
        path.write_bytes(changed)
        found += bool(verified(data, tmp_path / "scratch").faults)
    path.write_bytes(whole)
    assert found > 10
    assert verified(data, tmp_path / "scratch").faults == []


def test_a_log_of_the_old_node_is_not_for_the_recovered_one_only_by_its_name(tmp_path: Path) -> None:
    """It may vote on under its name: its term is beyond all that it promised."""
    data = make_node(tmp_path / "data", script())
    with closing(RaftLog(data / "raft/raft.db", node="a", reserve_bytes=RESERVE_BYTES)) as log:
        log.load(12)
        log.write(Write(0, HardState(9, "b", 3), None, (), None))
    recovered(data)
    with closing(RaftLog(data / "raft/raft.db", node="a", reserve_bytes=RESERVE_BYTES)) as log:
        hard = log.load(12).hard_state
    assert (hard.term, hard.vote) == (10, "a")


# ------------------------------------------------------------------------------ whatever was agreed on


@pytest.mark.parametrize("seed", [*range(6), *(pytest.param(seed, marks=pytest.mark.check) for seed in range(6, 60))])
def test_restore_and_recovery_agree_on_any_history(tmp_path: Path, seed: int) -> None:
    """Commands of every kind, refused ones and sessions among them; the nodes had applied more or less of it."""
    log, random = make_log(seed, 150), Random(seed)
    log.command(ClusterForm("c1", 1))
    backups, manifest = made(tmp_path, log, replace(ABOUT, cluster=cluster_of(log, tmp_path / "whole")))
    restore(
        backups, manifest.id, tmp_path / "restored", node="a", new_history="h1", expect_cluster=None, force=False,
        actor="conveyorctl", at_ms=NOW_MS,
    )  # fmt: skip
    digests = {start(tmp_path / "restored").digest}
    for number in range(2):
        applied = random.randint(0, len(log.entries))
        data = make_node(tmp_path / f"node-{number}", log, applied=applied, compacted=random.choice([0, applied]))
        assert recovered(data).last == len(log.entries)
        digests.add(start(data).digest)
    assert len(digests) == 1


def cluster_of(log: Log, directory: Path) -> str:
    node = Node(directory)
    node.follow(log)
    with node.view() as view:
        found = view.cluster().value.id
    node.store.close()
    return found
