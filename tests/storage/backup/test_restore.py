"""A backup becomes a node that leads a cluster of one, whatever happens on the way."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conveyord.core.errors import ConfigError, ConveyordError, Corrupt, Refused
from conveyord.storage.backup import alone, restoring, switching
from conveyord.storage.backup.backups import Backups
from conveyord.storage.backup.manifest import About, Manifest
from conveyord.storage.backup.restoring import Restored, restore, validate
from conveyord.storage.backup.switching import refuse_unfinished
from conveyord.storage.backup.verifying import verify
from conveyord.storage.identity import Identity, keep_identity, take_identity
from conveyord.storage.locks import owned
from tests.storage.backup.rig import made, make_node, script, start
from tests.storage.crash_rig import Crashed, crashing

NOW_MS = 1_795_336_300_000


def restored(backups: Backups, manifest: Manifest, data_dir: Path, **more: object) -> Restored:
    options = {"node": "a", "new_history": "h1", "expect_cluster": None, "force": False}
    return restore(backups, manifest.id, data_dir, actor="conveyorctl", at_ms=NOW_MS, **{**options, **more})


def test_a_restored_node_leads_alone_with_the_state_and_a_history_of_its_own(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    done = restored(backups, manifest, tmp_path / "data")
    assert done == Restored(Identity("a", 1, "c1.h1", has_log=True), manifest, None)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    assert verify(tmp_path / "data", scratch).faults == []
    node = start(tmp_path / "data")
    assert (node.identity, node.cluster, node.history) == (Identity("a", 2, "c1.h1", has_log=True), "c1", "h1")
    assert (node.members, node.rows, node.standings) == (("a",), (), {"a": "voter"})
    assert dict(node.config) == {f"k/{n}": b"value %d" % n for n in range(2, 8)} | {"started": b"yes"}
    assert start(tmp_path / "data").identity.incarnation == 3
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["lock", "node.json", "raft", "state"]


def test_two_restores_of_one_backup_are_clusters_that_refuse_each_other(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    first = restored(backups, manifest, tmp_path / "one", new_history="h1")
    second = restored(backups, manifest, tmp_path / "two", new_history="h2")
    assert len({"c1", first.identity.cluster, second.identity.cluster}) == 3
    assert start(tmp_path / "one").digest != start(tmp_path / "two").digest


@pytest.mark.parametrize(
    ("cluster", "history", "name"),
    [("c", "h", "c.h"), ("c" * 64, "h" * 10, "c" * 53 + "." + "h" * 10), ("c" * 64, "h" * 64, "h" * 64)],
)
def test_what_nodes_call_a_restored_cluster_is_an_id_that_tells_histories_apart(
    cluster: str, history: str, name: str
) -> None:
    assert alone.cluster_name(cluster, history) == name
    assert len(name) <= alone.NAME_CHARS_MAX


@pytest.mark.parametrize(
    ("name", "cluster", "is_so"),
    [
        ("c1", "c1", True), ("c1.h", "c1", True), ("c1.h.i", "c1", True), ("c.1.h", "c.1", True), ("c2", "c1", False),
        ("c1h", "c1", False), ("c" * 53 + "." + "h" * 10, "c" * 60, True), ("c" * 53 + "." + "h" * 10, "c" * 53, True),
        ("c" * 53 + "." + "h" * 10, "c" * 52 + "d", False), ("", "c1", False),
    ],
)  # fmt: skip
def test_a_name_tells_of_which_cluster_a_directory_is(name: str, cluster: str, is_so: bool) -> None:
    assert alone.is_named_after(name, cluster) is is_so


def test_a_restored_cluster_can_be_backed_up_and_restored_again(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    restored(backups, manifest, tmp_path / "data")
    start(tmp_path / "data")
    done = restored(backups, manifest, tmp_path / "data", node=None, new_history="h2", force=True)
    assert done.identity == Identity("a", 2, "c1.h2", has_log=True)
    assert done.aside == tmp_path / "data" / f"before-{manifest.id}"
    assert sorted(path.name for path in done.aside.iterdir()) == ["node.json", "raft", "state"]
    assert start(tmp_path / "data").history == "h2"
    again = restored(backups, manifest, tmp_path / "data", new_history="h3", force=True)
    assert again.aside == tmp_path / "data" / f"before-{manifest.id}-2"


def test_a_directory_that_has_a_node_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    make_node(tmp_path / "data", script())
    before = content(tmp_path / "data")
    with pytest.raises(Refused, match=r"has node.json, raft, state of node a; --force moves that aside"):
        restored(backups, manifest, tmp_path / "data")
    assert content(tmp_path / "data") == before
    with pytest.raises(Refused, match="of node a; leave out --data-dir to check the backup alone"):
        validate(backups, manifest.id, tmp_path, expect_cluster=None, data_dir=tmp_path / "data", force=False)


@pytest.mark.parametrize("force", [False, True])
def test_the_directory_of_another_cluster_is_refused_whatever_is_forced(tmp_path: Path, force: bool) -> None:
    backups, manifest = made(tmp_path)
    (tmp_path / "data").mkdir()
    keep_identity(tmp_path / "data", Identity("a", 1, "c2"))
    with pytest.raises(Refused, match="belongs to cluster c2, and backup .* is of cluster c1"):
        restored(backups, manifest, tmp_path / "data", force=force)


def test_tables_beside_the_node_stay_where_they_are(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    make_node(tmp_path / "data", script())
    (tmp_path / "data" / "warehouse").mkdir()
    (tmp_path / "data" / "catalog.db").write_bytes(b"tables")
    restored(backups, manifest, tmp_path / "data", force=True)
    assert (tmp_path / "data" / "catalog.db").read_bytes() == b"tables"
    assert (tmp_path / "data" / "warehouse").is_dir()


def test_a_directory_of_somebody_else_is_not_removed(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    (tmp_path / "data" / switching.BUILDING / "mine").mkdir(parents=True)
    with pytest.raises(Refused, match="building is in the way"):
        restored(backups, manifest, tmp_path / "data")
    assert (tmp_path / "data" / switching.BUILDING / "mine").is_dir()
    assert not (tmp_path / "data" / switching.NOTE).exists()


def test_the_directory_of_a_node_that_runs_is_refused(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    make_node(tmp_path / "data", script())
    for held in (tmp_path / "data", tmp_path / "data" / "raft"):
        with owned(held), pytest.raises(Refused, match=f"in use by process {os.getpid()}"):
            restored(backups, manifest, tmp_path / "data", force=True)


def test_another_cluster_than_was_expected_is_refused_before_anything_is_copied(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    with pytest.raises(Refused, match="is of cluster c1, and c9 was expected"):
        restored(backups, manifest, tmp_path / "data", expect_cluster="c9")
    assert not (tmp_path / "data").exists()


def test_a_backup_of_a_newer_protocol_is_refused_with_both(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path, about=About("c1", "c1", 7, "9.1.0", "someone", NOW_MS))
    with pytest.raises(Refused, match=r"speaks protocol 7 \(conveyord 9.1.0\), a newer version than this.* knows 1"):
        restored(backups, manifest, tmp_path / "data")


def test_a_manifest_that_names_another_cluster_than_the_state_is_damage(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path, about=About("c2", "c1", 1, "0.7.0", "someone", NOW_MS))
    with pytest.raises(Corrupt, match="says that it is of cluster c2, and its state is of c1"):
        restored(backups, manifest, tmp_path / "data")
    assert content(tmp_path / "data") == {}


@pytest.mark.parametrize(("node", "history"), [("a b", "h"), ("a", ""), ("a", "x" * 65)])
def test_what_is_no_id_is_refused(tmp_path: Path, node: str, history: str) -> None:
    backups, manifest = made(tmp_path)
    with pytest.raises(ConfigError, match="no id of a"):
        restored(backups, manifest, tmp_path / "data", node=node, new_history=history)


def test_validation_makes_nothing(tmp_path: Path) -> None:
    backups, manifest = made(tmp_path)
    before = content(tmp_path / "backups")
    (tmp_path / "scratch").mkdir()
    found = validate(
        backups, manifest.id, tmp_path / "scratch", expect_cluster="c1", data_dir=tmp_path / "data", force=False
    )
    assert found == manifest
    assert not (tmp_path / "data").exists()
    assert content(tmp_path / "backups") == before


# ------------------------------------------------------------------------------ crashes


STEPS = [(switching, name) for name in ("write_file", "sync_directory", "_sync_all", "_remove", "files_there")] + [
    (Path, "rename"),
    (Path, "mkdir"),
    (Path, "unlink"),
    (restoring, "stage"),
    (restoring, "begin_alone"),
    (alone, "keep_identity"),
    (shutil, "rmtree"),
]


@pytest.mark.parametrize("has_old", [pytest.param(False, marks=pytest.mark.check), True])
def test_a_crash_anywhere_leaves_a_directory_that_starts_or_one_that_says_to_run_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_old: bool
) -> None:
    backups, manifest = made(tmp_path)
    if has_old:
        make_node(tmp_path / "old", script(2), applied=3)
    at, done, outcomes = 0, False, dict[str, int]()
    while not done:
        data_dir = tmp_path / f"data-{at}"
        if has_old:
            shutil.copytree(tmp_path / "old", data_dir)
        before = node_content(data_dir)
        with crashing(monkeypatch, STEPS, at):
            try:
                restored(backups, manifest, data_dir, force=has_old)
                done = True
            except Crashed:
                pass
        if (told := refusal(data_dir)) is not None:
            assert f"the restore of backup {manifest.id} was cut off here; run it again" in told
            outcome = "refused"
            if has_old and at % 3 == 0:  # what is asked for without force takes back what was done, and no more
                with pytest.raises(Refused, match="--force moves that aside"):
                    restored(backups, manifest, data_dir)
                assert node_content(data_dir) == before
                refuse_unfinished(data_dir)
            restored(backups, manifest, data_dir, force=has_old)
            check_whole(data_dir, at)
        elif is_new(data_dir):
            outcome = "new"
            check_whole(data_dir, at)
        else:
            outcome = "as before"
            assert node_content(data_dir) == before
        if has_old and is_new(data_dir):
            (aside,) = data_dir.glob("before-*")
            assert node_content(aside) == before
        assert not (data_dir / switching.BUILDING).exists() or outcome == "as before"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        shutil.rmtree(data_dir, ignore_errors=True)
        at += 1
    assert outcomes["refused"] > 20
    assert outcomes["new"] >= 1


@pytest.mark.parametrize("has_old", [pytest.param(False, marks=pytest.mark.check), True])
def test_an_error_anywhere_leaves_the_directory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_old: bool
) -> None:
    """A disk that fails once, at any step: either the restore is done, or nothing happened, or it must be run again."""
    backups, manifest = made(tmp_path)
    if has_old:
        make_node(tmp_path / "old", script(2), applied=3)
    at, done, as_before = 0, False, 0
    while not done:
        data_dir = tmp_path / f"data-{at}"
        if has_old:
            shutil.copytree(tmp_path / "old", data_dir)
        before = node_content(data_dir)
        try:
            with failing_once(monkeypatch, at):
                restored(backups, manifest, data_dir, force=has_old)
                done = True
        except ConveyordError:
            pass
        if not done and not (data_dir / switching.NOTE).exists() and not is_new(data_dir):
            assert node_content(data_dir) == before
            assert not (data_dir / switching.BUILDING).exists()
            as_before += 1
        if not is_new(data_dir) or refusal(data_dir) is not None:
            restored(backups, manifest, data_dir, force=has_old)
        check_whole(data_dir, at)
        shutil.rmtree(data_dir)
        at += 1
    assert as_before > 10


@contextmanager
def failing_once(monkeypatch: pytest.MonkeyPatch, at: int) -> Iterator[None]:
    """One step fails, the others do what they do."""
    calls = itertools.count()

    def failing(real: Callable[..., Any]) -> Callable[..., Any]:
        def step(*arguments: Any, **options: Any) -> Any:
            if next(calls) == at:
                raise OSError(errno.EIO, "Input/output error")
            return real(*arguments, **options)

        return step

    with monkeypatch.context() as patch:
        for owner, name in (*STEPS[:2], *STEPS[5:8], *STEPS[10:]):
            patch.setattr(owner, name, failing(getattr(owner, name)))
        yield


def check_whole(data_dir: Path, at: int) -> None:
    """The directory has all that makes a node of it. Every fifth is started, which takes longer than looking."""
    if at % 5 == 0:
        assert start(data_dir).history == "h1"
        return
    with tempfile.TemporaryDirectory() as scratch:
        report = verify(data_dir, Path(scratch))
    assert (report.faults, report.cluster) == ([], "c1.h1")


def refusal(data_dir: Path) -> str | None:
    """What a node is told that is to start there."""
    try:
        refuse_unfinished(data_dir)
    except Refused as error:
        return str(error)
    return None


def is_new(data_dir: Path) -> bool:
    return (data_dir / "node.json").exists() and b"c1.h1" in (data_dir / "node.json").read_bytes()


def content(directory: Path) -> dict[str, bytes]:
    """All files but locks."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def node_content(directory: Path) -> dict[str, bytes]:
    """Those of the node."""
    found = content(directory) if directory.exists() else {}
    return {name: data for name, data in found.items() if name.split("/")[0] in switching.NODE_FILES}


def test_an_identity_survives_that_the_node_was_started_more_often(tmp_path: Path) -> None:
    """So that a message of before fits no life of the restored node."""
    backups, manifest = made(tmp_path)
    make_node(tmp_path / "data", script())
    take_identity(tmp_path / "data")
    assert restored(backups, manifest, tmp_path / "data", force=True).identity == Identity(
        "a", 4, "c1.h1", has_log=True
    )
    assert restored(backups, manifest, tmp_path / "data", force=True, node="z").identity == Identity(
        "z", 0, "c1.h1", has_log=True
    )
