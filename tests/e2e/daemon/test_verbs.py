"""`conveyord dev`, `check-config` and `doctor`, as processes."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path

import httpx
import pytest

from tests.e2e.daemon.node_rig import ANSWERS, end, run, start, started
from tests.e2e.harness import CONVEYORD, Running
from tests.runtime.rpc.node_certificates import DAY, NodeAuthority


def findings(home: Path, *arguments: str | Path, code: int) -> dict[str, dict[str, str]]:
    free = [] if "--rpc" in arguments else ["--rpc", "127.0.0.1:0"]
    ended = run(home, "doctor", "-o", "json", *free, "--http", "127.0.0.1:0", *arguments)
    ended.orderly(code)
    shown = json.loads(ended.out)
    assert shown["ok"] == (code == 0)
    return {one["check"]: one for one in shown["findings"]}


# ---------------------------------------------------------------------------------- dev


def test_dev_says_where_it_serves_and_keeps_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "conveyord.toml").write_text(
        "[node]\nroles = ['builder']\n[rpc]\nlisten = '10.0.0.1:1'\n[cluster]\nexpect = 3\njoin = ['a:1']\n"
    )
    for incarnation in (1, 2):
        dev = Running(
            [str(CONVEYORD), "dev", "--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0", "--log-format", "json"], tmp_path
        )
        try:
            out = Path(f"/proc/{dev.pid}/fd/1")
            assert dev.until(lambda out=out: "Ctrl-C stops it" in out.read_text())
            banner = out.read_text()
            api = re.search(r"API +(http://127\.0\.0\.1:\d+)/api/v1, open to everyone on this machine", banner)
            assert api is not None, banner
            assert f"data     {tmp_path / 'conveyord-data'}, in SQLite" in banner
            assert "roles    router" in banner
            assert f"look     conveyorctl status --server {api[1]}\n" in banner
            status = httpx.get(f"{api[1]}/api/v1/status", timeout=30).json()
            assert (status["raft"], status["incarnation"]) == ("leader", incarnation)
            assert httpx.get(f"{api[1]}/docs", timeout=30).status_code == 200
        finally:
            dev.send(signal.SIGINT)
        dev.wait().orderly(0)


def test_dev_is_never_open_to_other_machines(tmp_path: Path) -> None:
    ended = run(tmp_path, "dev", "--http", "10.0.0.1:0")
    ended.failed(r"--http: conveyord dev makes an admin of everyone, and 10\.0\.0\.1:0 can be reached", code=2)


# ---------------------------------------------------------------------------------- check-config


def test_check_config_prints_what_is_in_force_without_secrets(tmp_path: Path) -> None:
    (tmp_path / "conveyord.toml").write_text(
        '[cluster]\nsecret = "a-secret"\nelection_timeout = "250ms"\n[backup]\n"s3.secret-access-key" = "a-secret"\n'
        '[catalogs.prod]\ncredential = "a-secret"\n'
    )
    for arguments in ((), ("conveyord.toml",), ("conveyord.toml", "-o", "json")):
        ended = run(tmp_path, "check-config", *arguments)
        ended.orderly(0)
        assert "a-secret" not in ended.out
    assert json.loads(ended.out)["cluster"]["election_timeout"] == 0.25
    lines = run(tmp_path, "check-config").out.splitlines()
    assert re.search(r"^rpc\.tls\.certificate += \"\"$", "\n".join(lines), re.MULTILINE)
    assert re.search(r"^cluster\.election_timeout += 0\.25$", "\n".join(lines), re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[cluster]\nexpect = 3\n", r"conveyord\.toml:2: cluster\.expect: 3 nodes found a cluster together"),
        ('[cluster]\nsecret = "env:NOT_SET"\n', r"cluster\.secret refers to the environment variable 'NOT_SET'"),
        ('[backup]\nx = "file:/none"\n', r"backup\.x refers to the file '/none'"),
        ('[node]\nroles = ["router", "ingestion"]\n', r"the role ingestion is not built yet"),
    ],
)
def test_check_config_refuses_what_start_would_refuse(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "conveyord.toml").write_text(text)
    run(tmp_path, "check-config").failed(sentence, code=2)


def test_check_config_tells_of_a_file_that_is_not_there(tmp_path: Path) -> None:
    run(tmp_path, "check-config", "gone.toml").failed(r"gone\.toml: cannot be read", code=2)


# ---------------------------------------------------------------------------------- doctor


def test_a_machine_that_is_well_has_nothing_wrong(tmp_path: Path) -> None:
    found = findings(tmp_path, code=0)
    assert found["python"]["verdict"] == found["packages"]["verdict"] == found["sqlite"]["verdict"] == "ok"
    assert "will be made below it" in found["data directory"]["found"]
    assert found["syncs"]["found"].startswith("4 KiB are on disk after ")
    assert list(tmp_path.iterdir()) == []
    table = run(tmp_path, "doctor", "--rpc", "127.0.0.1:0", "--http", "127.0.0.1:0")
    assert re.search(r"^ok +python +Python 3", table.out, re.MULTILINE)


def test_doctor_beside_a_running_node_looks_at_it_without_harm(tmp_path: Path) -> None:
    with started(tmp_path, "--node-id", "n1") as node:
        rpc = node.status()["rpc_address"]
        found = findings(tmp_path, "--rpc", rpc, "--join", "127.0.0.1:1", code=0)
        assert found["owner"]["found"].startswith(f"process {node.running.pid} runs on ")
        assert found["port of RPC"]["verdict"] == "info"
        assert "node n1 of cluster c-" in found["identity"]["found"]
        assert found["node at 127.0.0.1:1"]["verdict"] == "warning"
        assert node.put("a", "aGk=").status_code == 200
        (other := tmp_path / "other").mkdir()
        found = findings(other, "--join", rpc, "--node-id", "n2", code=0)
        assert re.search(
            r"^it is node n1 of cluster c-\w+, conveyord .*; its clock is [+-]0\.", found[f"node at {rpc}"]["found"]
        )
        found = findings(other, "--join", rpc, "--node-id", "n1", code=1)
        assert "(OWN_ID)" in found[f"node at {rpc}"]["found"]


def test_doctor_tells_what_a_node_answers_that_knows_another_secret(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[cluster]\nsecret = "right"\n')
    with started(tmp_path) as node:
        rpc = node.status()["rpc_address"]
        (other := tmp_path / "other").mkdir()
        (other / "conveyord.toml").write_text('[cluster]\nsecret = "wrong"\n')
        found = findings(other, "--join", rpc, "--node-id", "n2", code=1)
        assert "(WRONG_SECRET)" in found[f"node at {rpc}"]["found"]
        assert "right" not in node.running.err()


def test_doctor_tells_what_is_wrong_with_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "c.toml").write_text('data_dir = "file"\n')
    assert findings(tmp_path, "--config", "c.toml", code=1)["data directory"]["verdict"] == "wrong"
    (tmp_path / "conveyord-data").mkdir()
    (tmp_path / "conveyord-data" / "node.json").write_text("{")
    assert findings(tmp_path, code=1)["identity"]["verdict"] == "wrong"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        found = findings(tmp_path, "--data-dir", "empty", "--rpc", place, code=1)
    assert found["port of RPC"]["found"].startswith(f"another process listens at {place}")


def with_certificate(home: Path, *names: str, **options: object) -> None:
    files = NodeAuthority(home).issue(*names, **options)  # type: ignore[arg-type]
    (home / "conveyord.toml").write_text(
        f"[rpc.tls]\ncertificate = '{files.certificate}'\nkey = '{files.key}'\nca = '{files.ca}'\n"
        f"[http.tls]\ncertificate = '{files.certificate}'\nkey = '{files.key}'\n"
    )


def test_doctor_looks_at_certificates(tmp_path: Path) -> None:
    with_certificate(tmp_path, "n1")
    found = findings(tmp_path, "--node-id", "n1", code=0)
    assert found["certificate of RPC"]["verdict"] == found["certificate of HTTP"]["verdict"] == "warning"
    assert re.search(r"is valid until .*, 2 days from now", found["certificate of RPC"]["found"])
    assert found["name in the certificate"]["verdict"] == "ok"
    found = findings(tmp_path, "--node-id", "n2", code=1)
    assert "names n1, and this node is n2" in found["name in the certificate"]["found"]


def test_doctor_tells_of_a_certificate_that_has_expired(tmp_path: Path) -> None:
    with_certificate(tmp_path, "n1", age=4 * DAY)
    found = findings(tmp_path, "--node-id", "n1", code=1)
    assert "certificate has expired" in found["certificate of RPC"]["found"]
    assert "certificate has expired" in found["certificate of HTTP"]["found"]


def test_a_node_with_certificates_serves_https_and_the_first_token_is_beside_its_data(tmp_path: Path) -> None:
    with_certificate(tmp_path, "n1")
    node = start(tmp_path, "--node-id", "n1")
    try:
        assert node.running.saw(ANSWERS), node.running.err()
        https = next(line["http"] for line in node.logs() if line["event"] == "the cluster answers")
        assert https.startswith("https://")
        token = (tmp_path / "conveyord-data" / "local-token").read_text().strip()
        answer = httpx.get(f"{https}/api/v1/status", verify=False, timeout=30)
        assert answer.status_code == 401
        answer = httpx.get(
            f"{https}/api/v1/status", verify=False, timeout=30, headers={"authorization": f"Bearer {token}"}
        )
        assert answer.json()["node"] == "n1"
        assert token not in node.running.err()
        node.stop().orderly(0)
    finally:
        end(node)


def test_a_node_whose_certificate_cannot_be_used_says_so(tmp_path: Path) -> None:
    with_certificate(tmp_path, "n1")
    (tmp_path / "n1.key").write_text("no key")
    start(tmp_path).running.wait().failed(r"n1\.pem and .*n1\.key are no certificate and its key", code=2)
    assert not (tmp_path / "conveyord-data").exists()
