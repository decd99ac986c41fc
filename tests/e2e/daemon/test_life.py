"""A node as a process: it starts, serves, drains, is killed, and comes back with all that it had acknowledged."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.daemon.node_rig import NodeProcess, events, run, start, started


def test_it_serves_and_drains_in_order(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        assert node.get("/readyz").status_code == 200
        assert node.put("a/b", "aGk=").status_code == 200
        assert node.get("/api/v1/config/a/b").json()["entry"]["value"] == "aGk="
        status = node.status()
        assert (status["phase"], status["roles"], status["incarnation"]) == ("member", ["router"], 1)
        ended = node.stop()
    ended.orderly(0)
    lines = [json.loads(line) for line in ended.err.splitlines()]
    said = events(lines)
    assert said[0] == "starting"
    assert said[-1] == "stopped"
    drained = [line["service"] for line in lines if line["event"] == "draining"]
    assert drained == ["announcing", "router", "http", "cluster"]
    own = [line for line in lines if "signal" not in line]
    assert all(line["node"] == status["node"] for line in own), own
    assert all({"timestamp", "level", "event"} <= line.keys() for line in lines)


def test_what_it_keeps_is_for_who_runs_it(tmp_path: Path) -> None:
    """Whatever the usual mode of files is."""
    before = os.umask(0o000)
    try:
        with started(tmp_path, "--data-dir", tmp_path / "new" / "data") as node:
            assert node.put("a", "aGk=").status_code == 200
            node.stop().orderly(0)
    finally:
        os.umask(before)
    data = tmp_path / "new" / "data"
    found = {str(path.relative_to(data)): path.stat().st_mode & 0o777 for path in (data, *data.rglob("*"))}
    assert {".", "lock", "node.json", "local-token", "raft/raft.db", "raft/raft.db-wal"} <= found.keys()
    assert any(name.endswith("/state.db") for name in found)
    assert not {name: oct(mode) for name, mode in found.items() if mode & 0o077}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ten_nodes_end_in_order_whatever_they_are_at(tmp_path: Path, number: signal.Signals) -> None:
    """A task that asks for the state while all are cancelled must not make a failure of the end."""
    with started(tmp_path) as node:
        node.put("a", "aGk=")
        node.running.send(number)
        node.running.wait().orderly(0)
    for _ in range(4):
        again = start(tmp_path, "--config", tmp_path / "node.toml")
        assert again.running.saw('"service":"announcing"')
        again.running.send(number)
        again.running.wait().orderly(0)


def test_a_killed_node_has_all_that_it_acknowledged_and_a_new_incarnation(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        for number in range(20):
            assert node.put(f"k{number}", "aGk=").status_code == 200
        first = node.status()
        node.running.send(signal.SIGKILL)
        assert node.running.wait().code == -signal.SIGKILL
    with started(tmp_path) as node:
        second = node.status()
        for number in range(20):
            assert node.get(f"/api/v1/config/k{number}").json()["entry"]["value"] == "aGk="
        node.stop().orderly(0)
    assert (second["node"], second["cluster"]) == (first["node"], first["cluster"])
    assert second["incarnation"] == first["incarnation"] + 1


def half_a_request(node: NodeProcess) -> socket.socket:
    """A request that a draining node waits for."""
    place = urlsplit(node.http)
    assert place.hostname is not None
    sender = socket.create_connection((place.hostname, place.port or 80), timeout=30)
    sender.sendall(
        b"PUT /api/v1/config/slow HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n"
        b"authorization: %b\r\n\r\n{" % node.local["authorization"].encode()
    )
    return sender


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_second_signal_stops_at_once(tmp_path: Path, number: signal.Signals, code: int) -> None:
    with started(tmp_path) as node, half_a_request(node):
        assert node.put("a", "aGk=").status_code == 200
        node.running.send(signal.SIGTERM)
        assert node.running.saw('"service":"http","event":"draining"')
        node.running.send(number)
        node.running.wait().orderly(code)


def test_requests_that_do_not_end_are_cut_off_in_time_for_the_cluster_to_drain(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[shutdown]\ndrain = "1s"\n')
    with started(tmp_path) as node, half_a_request(node):
        ended = node.stop()
    ended.orderly(0)
    assert "requests took too long to end, and are cut off" in ended.err
    assert '"service":"cluster","event":"draining"' in ended.err
    assert "not drained in time" not in ended.err


def test_a_goodbye_that_nobody_hears_is_cut_off_and_the_exit_code_says_so(tmp_path: Path) -> None:
    """Whoever leads has stopped answering, and it takes longer to give it up than this node may take to drain."""
    (tmp_path / "second").mkdir()
    (tmp_path / "second" / "node.toml").write_text('[shutdown]\ndrain = "1s"\n')
    with (
        started(tmp_path) as first,
        started(tmp_path / "second", "--join", first.status()["rpc_address"]) as second,
    ):
        assert second.put("a", "aGk=").status_code == 200
        first.running.send(signal.SIGSTOP)
        ended = second.stop()
    ended.orderly(1)
    said = [json.loads(line) for line in ended.err.splitlines()]
    (cut,) = [line for line in said if line["event"] == "not drained in time, and cancelled"]
    assert cut["services"] == ["cluster"]
    assert (said[-1]["event"], said[-1]["in_order"]) == ("stopped", False)


def test_a_hangup_reads_the_log_level_again_and_a_wrong_file_changes_nothing(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        settings = tmp_path / "node.toml"
        settings.write_text('[log]\nlevel = "wrong"\n')
        node.running.send(signal.SIGHUP)
        assert node.running.saw("the settings are wrong now, and nothing of them is taken")
        settings.write_text('[log]\nlevel = "warning"\n')
        node.running.send(signal.SIGHUP)
        settings.write_text('[log]\nlevel = "info"\n')
        assert node.running.until(lambda: True)
        node.running.send(signal.SIGHUP)
        assert node.running.saw("the settings of logs were read again")
        assert node.get("/readyz").status_code == 200


def test_a_port_that_is_taken_is_told_with_its_flag(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for flag in ("rpc", "http"):
            other = "http" if flag == "rpc" else "rpc"
            ended = run(tmp_path, "start", f"--{flag}", place, f"--{other}", "127.0.0.1:0")
            ended.failed(rf"^{flag}\.listen: another process listens at {place}; .*--{flag} HOST:PORT", code=2)
        ended = run(tmp_path, "dev", "--rpc", place, "--http", "127.0.0.1:0")
        ended.failed(rf"^rpc\.listen: another process listens at {place}", code=2)
    assert not (tmp_path / "conveyord-data").exists()


def test_a_data_directory_has_one_node(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        ended = start(tmp_path, "--data-dir", tmp_path / "conveyord-data").running.wait()
        ended.failed(rf"data directory .*conveyord-data is in use by process {node.running.pid}; ")
        assert node.get("/readyz").status_code == 200


def test_a_data_directory_keeps_its_id(tmp_path: Path) -> None:
    with started(tmp_path, "--node-id", "n1") as node:
        assert node.status()["node"] == "n1"
        node.stop().orderly(0)
    ended = start(tmp_path, "--node-id", "n2", "--data-dir", tmp_path / "conveyord-data").running.wait()
    ended.failed("belongs to node n1, and node n2 was to be started on it")


@pytest.mark.parametrize(
    ("arguments", "sentences", "code"),
    [
        (
            ("--roles", "router,builder"),
            [r"the role builder is not built yet; this version of conveyord has router"],
            2,
        ),
        (
            ("--roles", "scheduler,builder", "--join", "127.0.0.1:1"),
            [r"the roles builder, scheduler are not built yet"],
            2,
        ),
        (("--roles", "routr"), [r"--roles: node\.roles\.0 must be 'builder'"], 2),
        (("--expect", "3"), [r"--expect: cluster\.expect: 3 nodes found a cluster together"], 2),
        (
            ("--http", "0.0.0.0:0"),
            [r"--http: http\.listen: nobody can connect to 0\.0\.0\.0:0; set http\.advertise"],
            2,
        ),
        (("--rpc", "10.1.2.3:1"), [r"--rpc: rpc\.listen: at 10\.1\.2\.3:1 other machines could take part"], 2),
        (("--config", "gone.toml"), [r"gone\.toml: cannot be read"], 2),
        (("--data-dir", "/proc/none"), [r"data directory /proc/none: "], 1),
    ],
)
def test_what_cannot_be_started_is_refused_in_a_sentence(
    tmp_path: Path, arguments: tuple[str, ...], sentences: list[str], code: int
) -> None:
    start(tmp_path, *arguments).running.wait().failed(*sentences, code=code)
    assert not (tmp_path / "conveyord-data").exists()


@pytest.mark.parametrize("option", ["--data-dir", "--config"])
def test_an_empty_path_is_not_the_directory_that_one_is_in(tmp_path: Path, option: str) -> None:
    ended = start(tmp_path, option, "").running.wait()
    ended.orderly(2)
    assert f"Invalid value for '{option}': it is empty; name a path" in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[cluster]\nsecret = "file:nofile"\n', r"cluster\.secret refers to the file 'nofile', which cannot be read"),
        ('[backup]\nx = "env:NOT_SET"\n', r"backup\.x refers to the environment variable 'NOT_SET'"),
        (
            '[cluster]\nsecret = "file:node.bin"\n',
            r"cluster\.secret refers to the file 'node\.bin', which is not UTF-8",
        ),
        ('[http.tls]\ncertificate = "c"\nkey = "k"\n', r"http\.tls\.certificate: there is no file .*/c$"),
        ('data_dir = ""\n', r"data_dir: it is empty; name a directory, or leave it out"),
    ],
)
def test_what_settings_refer_to_is_looked_at_before_anything_is_written(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "node.bin").write_bytes(b"\xff")
    (tmp_path / "node.toml").write_text(text)
    ended = start(tmp_path, "--config", tmp_path / "node.toml").running.wait()
    ended.orderly(2)
    assert re.search(sentence, ended.err, re.MULTILINE), ended.err
    assert sorted(one.name for one in tmp_path.iterdir()) == ["node.bin", "node.toml"]


def test_all_wrong_lines_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        "[rpc]\nlisten = '0.0.0.0:7400'\n\n[http]\nacces = 'open'\n[cluster]\nexpect = 4\n"
    )
    ended = start(tmp_path, "--config", "c.toml").running.wait()
    ended.orderly(2)
    assert "c.toml:5: unknown key 'http.acces'; did you mean 'access'?" in ended.err
    assert "c.toml:7: cluster.expect: 4 nodes cannot found a cluster" in ended.err


def test_a_damaged_log_ends_the_process_with_a_sentence(tmp_path: Path) -> None:
    with started(tmp_path) as node:
        node.put("a-needle", "aGk=")
        node.stop().orderly(0)
    damaged = 0
    for path in (tmp_path / "conveyord-data" / "raft").glob("raft.db*"):
        content = path.read_bytes()
        damaged += content.count(b"a-needle")
        path.write_bytes(content.replace(b"a-needle", b"a-noodle"))
    assert damaged > 0
    ended = start(tmp_path, "--config", tmp_path / "node.toml").running.wait()
    ended.failed("raft.db")


def test_options_without_a_verb_start_a_node_and_nothing_shows_help(tmp_path: Path) -> None:
    ended = run(tmp_path, "--roles", "sidecar", "--join", "127.0.0.1:1")
    ended.failed("the role sidecar is not built yet", code=2)
    shown = run(tmp_path, "--help")
    assert shown.code == 0
    for verb in ("start", "dev", "check-config", "doctor", "run"):
        assert f"\n  {verb} " in shown.out
    assert run(tmp_path).out == "" or "Usage:" in run(tmp_path).out
    assert "Usage: conveyord [OPTIONS] COMMAND" in run(tmp_path).out + run(tmp_path).err
    assert list(tmp_path.iterdir()) == []
