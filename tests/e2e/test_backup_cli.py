"""`conveyorctl backup` and `raft`, offline: what they say, and that a real node starts on what they make."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from random import Random

import pytest

from conveyord.storage.backup.switching import NOTE
from conveyord.storage.locks import owned
from conveyord.storage.state.reading import StateView
from tests.e2e.ctl.calling import CONVEYORCTL, Said, ctl
from tests.e2e.daemon.node_rig import end, start, started
from tests.storage.backup.rig import made, make_node, script

RAFT_DIRECTORY = "raft"
VALUE_2, GREEN = "dmFsdWUgMg==", "Z3JlZW4="  # base64 of `value 2` and `green`
BLUE = "Ymx1ZQ=="


@pytest.fixture
def home(tmp_path: Path) -> Path:
    made(tmp_path)
    return tmp_path


def backup(home: Path, verb: str, *arguments: str | Path) -> Said:
    return ctl(home, "backup", verb, *arguments, "--store", (home / "backups").as_uri())


def id_in(home: Path) -> str:
    """The one backup."""
    (manifest,) = (home / "backups").glob("*.json")
    return manifest.stem


def test_a_listing_shows_whole_and_damaged_backups(home: Path) -> None:
    said = backup(home, "list")
    lines = said.text.splitlines()
    assert lines[0].split() == ["ID", "CLUSTER", "INDEX", "MADE", "SIZE", "FAULT"]
    assert lines[1].split()[:4] == [id_in(home), "c1", "12", "2026-11-22T08:30:15Z"]
    whole = id_in(home)
    later = whole.replace("123Z", "124Z")
    (home / "backups" / f"{later}.json").write_bytes(b"{")
    found = json.loads(backup(home, "list", "-o", "json").out)["backups"]
    assert [one["id"] for one in found] == [later, whole]
    assert "no JSON" in found[0]["fault"]
    assert (found[1]["fault"], found[1]["state_index"], found[1]["voters"]) == ("", 12, ["a", "b", "c"])
    assert "no JSON" in backup(home, "list").text
    assert "someone" in backup(home, "list", "-o", "wide").text


def test_one_is_described(home: Path) -> None:
    said = backup(home, "describe", id_in(home))
    assert (said.code, said.err) == (0, "")
    assert "index     12 of term 1" in said.text
    assert "made      2026-11-22T08:30:15Z by someone, conveyord 0.7.0" in said.text
    assert json.loads(backup(home, "describe", id_in(home), "-o", "json").out)["backup"]["id"] == id_in(home)
    wrong = backup(home, "describe", id_in(home)[:-1])
    assert (wrong.code, wrong.sentence) == (
        1, f"there is no backup '{id_in(home)[:-1]}'; did you mean {id_in(home)}? See conveyorctl backup list"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("list", "--store", "/backups"), 2, "/backups is no place for backups; write file:///DIRECTORY"),
        (("list", "--store", "file:///nowhere/at/all"), 1, "No such file or directory; check the URL"),
        (("restore", "ID", "--store", "STORE", "--expect-cluster", "c9"), 1, "is of cluster c1, and c9 was expected"),
        (("restore", "ID", "--store", "STORE", "--node", "a b"), 2, "'a b' is no id of a node"),
    ],
)
def test_what_is_wrong_is_said_in_one_sentence(
    home: Path, arguments: tuple[str, ...], code: int, sentence: str
) -> None:
    names = {"STORE": (home / "backups").as_uri(), "ID": id_in(home)}
    given = [names.get(one, one) for one in arguments]
    said = ctl(home, "backup", *given)
    assert said.code == code
    assert sentence in said.sentence
    told = json.loads(ctl(home, "backup", *given, "-o", "json").out)
    assert sentence in told["error"]["message"]


def test_properties_of_the_store_come_from_the_configuration(home: Path) -> None:
    (home / "conveyord.toml").write_text('[backup]\n"s3.key" = "x"\n', encoding="utf-8")
    said = ctl(home, "backup", "list", "--store", "s3://bucket/x")
    assert (said.code, "no property 's3.key'" in said.sentence) == (2, True)


def test_cleanup_says_what_it_removed(home: Path) -> None:
    assert backup(home, "cleanup", "--keep", "1", "--yes").text == "nothing to remove\n"
    assert backup(home, "cleanup", "--keep", "0", "--yes").code == 2
    said = json.loads(backup(home, "cleanup", "--keep", "3", "--yes", "-o", "json").out)
    assert said == {"ids": []}


def test_cleanup_asks_before(home: Path) -> None:
    said = backup(home, "cleanup", "--keep", "1")
    assert (said.code, said.out) == (2, b"")
    assert said.sentence == (
        f"Remove all but the newest 1 of each cluster in {(home / 'backups').as_uri()} for good? Nobody can be asked "
        "here; pass --yes"
    )


def test_validation_looks_at_a_directory_only_if_it_is_named(home: Path) -> None:
    data = make_node(home / "conveyord-data", script())
    said = backup(home, "restore", id_in(home), "--validate-only")
    assert (said.code, said.text.splitlines()[-1].split()) == (0, ["valid", "yes"])
    said = backup(home, "restore", id_in(home), "--validate-only", "--data-dir", data)
    assert (said.code, said.sentence) == (
        1,
        (
            f"{data} has node.json, raft, state of node a; leave out --data-dir to check the backup alone, or name "
            "a directory without a node"
        ),
    )


def test_validation_makes_no_directory(home: Path) -> None:
    said = backup(home, "restore", id_in(home), "--validate-only", "--data-dir", home / "data")
    assert (said.code, said.text.splitlines()[-1].split()) == (0, ["valid", "yes"])
    assert not (home / "data").exists()
    path = home / "backups" / f"{id_in(home)}.snapshot"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    said = backup(home, "restore", id_in(home), "--validate-only", "--data-dir", home / "data")
    assert (said.code, said.sentence) == (
        1,
        (
            f"backup {id_in(home)} is damaged: the bytes of its snapshot are not those that were written; use another "
            "one, see conveyorctl backup list"
        ),
    )


def test_a_directory_in_use_or_with_a_node_is_refused(home: Path) -> None:
    data = make_node(home / "data", script())
    said = backup(home, "restore", id_in(home), "--data-dir", data)
    assert "--force moves that aside" in said.sentence
    with owned(data):
        for arguments in (
            ("backup", "restore", id_in(home), "--store", (home / "backups").as_uri()),
            ("raft", "recover", "--yes"),
        ):
            said = ctl(home, *arguments, "--data-dir", data)
            assert (said.code, f"in use by process {os.getpid()}" in said.sentence) == (1, True)


def test_a_recovery_asks_before(home: Path) -> None:
    data = make_node(home / "data", script(), applied=5, commit=7)
    refused = ctl(home, "raft", "recover", "--data-dir", data)
    assert (refused.code, "every entry in its log counts as committed" in refused.sentence) == (2, True)
    said = json.loads(ctl(home, "raft", "recover", "--data-dir", data, "--yes", "-o", "json").out)
    assert (said["node"], said["last"], said["known_committed"], said["lost"]) == ("a", 12, 7, ["b", "c"])
    assert (Path(said["moved_aside"]) / RAFT_DIRECTORY).is_dir()
    again = ctl(home, "raft", "recover", "--data-dir", data, "--yes")
    assert "is the only voter of its cluster and needs nobody else" in again.sentence


def test_verify_tells_what_is_there_and_ends_with_one_for_damage(home: Path) -> None:
    data = make_node(home / "data", script(), applied=9)
    said = ctl(home, "raft", "verify", "--data-dir", data)
    assert (said.code, said.text.splitlines()[-1]) == (0, "log and state are whole")
    found = json.loads(ctl(home, "raft", "verify", "--data-dir", data, "-o", "json").out)
    assert (found["ok"], found["last"]["index"], found["applied"]["index"]) == (True, 12, 9)
    (data / RAFT_DIRECTORY / "raft.db-watermark").write_bytes(b"x")
    said = ctl(home, "raft", "verify", "--data-dir", data)
    assert (said.code, said.err) == (1, "")
    assert said.text.splitlines()[-1] == ("DAMAGE: the log of node a is damaged: the watermark is not what was written")
    found = json.loads(ctl(home, "raft", "verify", "--data-dir", data, "-o", "json").out)
    assert (found["ok"], len(found["faults"])) == (False, 1)


# ------------------------------------------------------------------------------ with real nodes


def test_a_real_node_starts_on_a_restored_directory(home: Path) -> None:
    said = json.loads(backup(home, "restore", id_in(home), "--expect-cluster", "c1", "--node", "a", "-o", "json").out)
    assert (said["node"], said["cluster"], said["state_index"]) == ("a", "c1", 12)
    with started(home, "--node-id", "a") as node:
        assert VALUE_2 in node.get("/api/v1/config/k/2").text
        assert node.put("k/2", GREEN).status_code == 200
        node.stop()
    assert ctl(home, "raft", "verify").code == 0
    with StateView(home / "conveyord-data" / "state") as view:
        assert (view.cluster().value.id, view.cluster().value.history) == ("c1", said["history"])
        assert [(member.node, member.standing) for member in view.members().value] == [("a", "voter")]


def test_a_node_is_backed_up_wiped_and_restored(tmp_path: Path) -> None:
    data, url = tmp_path / "conveyord-data", (tmp_path / "backups").as_uri()
    with started(tmp_path, "--node-id", "a") as node:
        assert node.put("k", GREEN).status_code == 200
        server = ("--server", node.http)
        # A cluster that was founded just now has no name for a moment, in which there is nothing to back up.
        assert eventually(lambda: ctl(tmp_path, "backup", "create", "--store", url, *server).code == 0)
        assert node.put("k", BLUE).status_code == 200
        node.stop()
    data.rename(tmp_path / "lost")
    (listed,) = json.loads(ctl(tmp_path, "backup", "list", "--store", url, "-o", "json").out)["backups"]
    said = json.loads(ctl(tmp_path, "backup", "restore", listed["id"], "--store", url, "-o", "json").out)
    assert said["cluster"] == listed["cluster"]
    with started(tmp_path) as node:
        assert GREEN in node.get("/api/v1/config/k").text
        assert node.put("k", BLUE).status_code == 200


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return True


@pytest.mark.check
def test_a_recovered_node_takes_nodes_with_nothing_and_refuses_those_of_before(tmp_path: Path) -> None:
    for name in ("a", "c"):
        make_node(tmp_path / name, script(), node=name)
    said = json.loads(ctl(tmp_path, "raft", "recover", "--data-dir", tmp_path / "a", "--yes", "-o", "json").out)
    assert said["lost"] == ["b", "c"]
    with ExitStack() as stack:
        alone = stack.enter_context(started(tmp_path, "--node-id", "a", "--data-dir", tmp_path / "a"))
        rpc = next(line["rpc"] for line in alone.logs() if "rpc" in line)
        empty = stack.enter_context(
            started(tmp_path, "--node-id", "b", "--data-dir", tmp_path / "b-anew", "--join", rpc)
        )
        assert VALUE_2 in empty.get("/api/v1/config/k/2").text
        settings = tmp_path / "node.toml"
        old = start(tmp_path, "--config", settings, "--node-id", "c", "--data-dir", tmp_path / "c", "--join", rpc)
        stack.callback(end, old)
        assert old.running.saw("belongs to cluster c1"), old.running.err()
        assert alone.put("k/2", GREEN).status_code == 200
        members = alone.get("/api/v1/members").text
        assert '"a"' in members
        assert '"b"' in members
        assert '"c"' not in members


@pytest.mark.check
def test_a_restore_that_is_killed_is_run_again(tmp_path: Path) -> None:
    """At any moment: the node of before is there as it was, or no node starts until the restore is run again."""
    made(tmp_path, script(4_000))
    make_node(tmp_path / "old", script(), applied=5)
    id_, url, random = id_in(tmp_path), (tmp_path / "backups").as_uri(), Random(5)
    cut_off = 0
    for number in range(24):
        data = tmp_path / f"data-{number}"
        shutil.copytree(tmp_path / "old", data)
        arguments = ("backup", "restore", id_, "--store", url, "--data-dir", str(data), "--force")
        with subprocess.Popen(
            [CONVEYORCTL, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            while process.poll() is None and not (data / NOTE).exists():
                time.sleep(0.001)  # the note is there for some ten milliseconds alone
            with suppress(subprocess.TimeoutExpired):
                process.wait(random.uniform(0, 0.02))
            process.kill()
        report = json.loads(ctl(tmp_path, "raft", "verify", "--data-dir", data, "-o", "json").out)
        if any("was cut off here; run it again" in fault for fault in report["faults"]):
            cut_off += 1
        else:
            assert (report["faults"], report["applied"]["index"]) in (([], 5), ([], 4_006))
        again = ctl(tmp_path, *arguments)
        assert again.code == 0, again.err
        report = json.loads(ctl(tmp_path, "raft", "verify", "--data-dir", data, "-o", "json").out)
        assert (report["faults"], report["applied"]["index"]) == ([], 4_006)
        shutil.rmtree(data)
    assert cut_off > 0  # how many depends on the disk
