"""Settings of a node: what each may be, what they may not be together, and flags, which win and are named."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from conveyord.config import load_config, load_node_config
from conveyord.config.combinations import impossible, risky
from conveyord.config.model import Config
from conveyord.config.values import Address, parse_address
from conveyord.core.errors import ConfigError
from conveyord.core.state.names import ROLES

JOINING = '[cluster]\njoin = ["10.0.0.1:7400"]\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_defaults_are_possible() -> None:
    assert impossible(Config()) == []


@pytest.mark.parametrize(
    "roles", [roles for size in range(1, 6) for roles in itertools.combinations(ROLES, size)], ids=",".join
)
def test_every_combination_of_roles_is_read_in_any_order(tmp_path: Path, roles: tuple[str, ...]) -> None:
    text = f"[node]\nroles = {list(reversed(roles))}\n{JOINING}"
    assert set(load_node_config(written(tmp_path, text), {}).node.roles) == set(roles)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[node]\nid = '-x'\n", r":2: node\.id: '-x' is no id of a node; write up to 64 letters"),
        ("[node]\nroles = []\n", r":2: node\.roles: a node without a role does nothing; name one"),
        ("[node]\nroles = ['routr']\n", r":2: node\.roles\.0 must be 'builder', .*'sidecar', got 'routr'"),
        ("[node]\nroles = ['router', 'router']\n", r":2: node\.roles: 'router' stands here twice; name each once"),
        ("[rpc]\nlisten = '7400'\n", r":2: rpc\.listen: '7400' is no address; write HOST:PORT"),
        ("[rpc]\nlisten = ''\n", r":2: rpc\.listen: '' is no address"),
        ("[rpc]\ninsecure = 1\n", r":2: rpc\.insecure must be a valid boolean, got 1"),
        ("[http]\naccess = 'none'\n", r":2: http\.access must be 'tokens' or 'open', got 'none'"),
        ("[cluster]\nexpect = 2\n", r":2: cluster\.expect: 2 nodes cannot found a cluster; an odd number can, up to 9"),
        ("[cluster]\nexpect = 11\n", r":2: cluster\.expect: 11 nodes cannot found a cluster"),
        ("[cluster]\nexpect = -1\n", r":2: cluster\.expect: -1 nodes cannot found"),
        ("[cluster]\njoin = ['a:0']\n", r":2: cluster\.join\.0: 'a:0' is no join address; write host:port"),
        ("[cluster]\njoin = ['a:1', 'a:1']\n", r":2: cluster\.join: 'a:1' stands here twice"),
        ("[cluster]\nsecret = 5\n", r":2: cluster\.secret must be a valid string$"),
        (
            "[cluster]\nelection_timeout = '50ms'\n",
            r":2: cluster\.election_timeout: 0\.05 s is out of range; write 100ms to 60s",
        ),
        ("[cluster]\nelection_timeout = 1\n", r":2: cluster\.election_timeout: a duration needs a unit"),
        ("[shutdown]\ndrain = '2h'\n", r":2: shutdown\.drain: 7200 s is out of range; write 1s to 1h"),
        ("[backup]\ntoken = 12345\n", r":2: backup\.token must be a valid string$"),
        ("[rpc.tls]\ncertificat = ''\n", r":2: unknown key 'rpc\.tls\.certificat'; did you mean 'certificate'\?"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=rf"c\.toml{sentence}"):
        load_config(written(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "[http]\nlisten = '127.0.0.1:7480'\naccess = 'open'\n",
            r':3: http\.access = "open" makes an admin of .* `conveyord dev` alone; leave it out: conveyorctl',
        ),
        ("[rpc]\nlisten = '10.0.0.1:7400'\n", r":2: rpc\.listen: at 10\.0\.0\.1:7400 other machines could take part"),
        ("[rpc]\nlisten = 'db1:7400'\n", r":2: rpc\.listen: at db1:7400 other machines"),
        (
            "[rpc]\nlisten = '0.0.0.0:7400'\ninsecure = true\n",
            r":2: rpc\.listen: nobody can connect to 0\.0\.0\.0:7400; set rpc\.advertise",
        ),
        (
            "[rpc]\nlisten = '[::]:7400'\nadvertise = '0.0.0.0:7400'\ninsecure = true\n",
            r":3: rpc\.advertise: nobody can connect to 0\.0\.0\.0:7400; name the address",
        ),
        ("[http]\nadvertise = 'db1:0'\n", r":2: http\.advertise: nobody can connect to db1:0"),
        ("[http]\nlisten = '127.0.0.1:7400'\n", r":2: http\.listen: port 7400 is that of rpc\.listen"),
        (
            "[cluster]\nexpect = 3\n",
            r":2: cluster\.expect: 3 nodes found a cluster together, and this one knows no other",
        ),
        (
            "[node]\nroles = ['builder']\n[cluster]\nexpect = 3\njoin = ['a:1']\n",
            r":4: cluster\.expect: 3 routers found a cluster, and this node is none; add router",
        ),
        ("[node]\nroles = ['builder']\n", r":2: node\.roles: only a router can have a cluster of its own"),
        (
            "[http.tls]\nkey = 'k'\n",
            r":1: http\.tls\.certificate is missing; http\.tls\.certificate, http\.tls\.key belong",
        ),
        ("[rpc.tls]\ncertificate = 'c'\nkey = 'k'\n", r":1: rpc\.tls\.ca is missing"),
        ("[http.tls]\nkey = 'k'\ncertificate = 'c'\n", r":3: http\.tls\.certificate: there is no file .*/c$"),
        (
            "[rpc]\ninsecure = true\n[rpc.tls]\ncertificate = 'c'\nkey = 'k'\nca = 'ca'\n",
            r":2: rpc\.insecure is true although \[rpc\.tls\] is there",
        ),
    ],
)
def test_what_cannot_be_together_is_refused_with_its_line_for_a_node_alone(
    tmp_path: Path, text: str, sentence: str
) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError, match=re.compile(rf"c\.toml{sentence}", re.MULTILINE)):
        load_node_config(path, {})
    load_config(path)  # `conveyord run` reads the same file, and starts no node


@pytest.mark.parametrize(
    "text",
    [
        "[rpc]\nlisten = '0.0.0.0:7400'\nadvertise = 'db1.org:7400'\ninsecure = true\n[cluster]\nsecret = 's'\n",
        "[rpc]\nlisten = '[::1]:0'\n[http]\nlisten = 'localhost:0'\naccess = 'tokens'\n",
        "[http]\nlisten = '10.0.0.1:7480'\n",
        "[cluster]\nexpect = 9\njoin = ['a:1', '[::1]:2']\nelection_timeout = '250ms'\n",
        "[node]\nroles = ['builder']\n[cluster]\njoin = ['a:1']\n",
    ],
)
def test_what_can_be_together_is_taken(tmp_path: Path, text: str) -> None:
    load_node_config(written(tmp_path, text), {})


def test_what_is_risky_is_possible_and_told(tmp_path: Path) -> None:
    text = "[rpc]\nlisten = '10.0.0.1:7400'\ninsecure = true\n[http]\nlisten = '10.0.0.1:7480'\n"
    with pytest.raises(ConfigError, match=r"cluster\.secret: rpc\.insecure lets everyone reach the RPC port"):
        load_node_config(written(tmp_path, text), {})
    (clear_text,) = risky(load_node_config(written(tmp_path, f"{text}[cluster]\nsecret = 's'\n"), {}))
    assert "10.0.0.1:7480 has no certificate in [http.tls]" in clear_text
    (no_secret,) = risky(Config())
    assert "whoever can connect to 127.0.0.1:7400 on this machine can call itself a node" in no_secret
    assert risky(load_node_config(written(tmp_path, "[http]\naccess = 'open'\n"), {}, is_dev=True)) == []


def test_a_node_for_trying_things_may_be_open_on_this_machine_alone(tmp_path: Path) -> None:
    path = written(tmp_path, "[http]\naccess = 'open'\n")
    assert load_node_config(path, {}, is_dev=True).http.access == "open"
    with pytest.raises(ConfigError, match=r"^--http: conveyord dev makes an admin of everyone, and 10\.0\.0\.1:1 can"):
        load_node_config(path, {("http", "listen"): ("--http", "10.0.0.1:1")}, is_dev=True)


def test_flags_win_and_are_named_where_they_are_wrong(tmp_path: Path) -> None:
    path = written(tmp_path, "data_dir = 'there'\n[cluster]\nexpect = 3\n\n[log]\nlevel = 'debug'\n")
    flags = {("cluster", "join"): ("--join", ["a:1"]), ("data_dir",): ("--data-dir", "here")}
    config = load_node_config(path, flags)
    assert (config.cluster.expect, config.cluster.join, config.log.level) == (3, ("a:1",), "debug")
    assert config.data_dir == "here"
    with pytest.raises(ConfigError) as refused:
        load_node_config(path, {("cluster", "expect"): ("--expect", 4), ("node", "roles"): ("--roles", ["x"])})
    assert re.match(
        r"--expect: cluster\.expect: 4 nodes cannot.*\n--roles: node\.roles\.0 must be 'builder'", str(refused.value)
    )


def test_flags_alone_need_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_node_config(None, {("rpc", "listen"): ("--rpc", "[::1]:1")}).rpc.listen_address == ("::1", 1)
    with pytest.raises(ConfigError, match=r"^--expect: cluster\.expect: 3 nodes found a cluster together"):
        load_node_config(None, {("cluster", "expect"): ("--expect", 3)})


def test_a_flag_below_what_is_no_table_leaves_the_mistake_to_the_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.toml:1: cluster must be"):
        load_node_config(written(tmp_path, "cluster = 3\n"), {("cluster", "expect"): ("--expect", 3)})


def test_files_are_taken_from_the_directory_of_the_settings(tmp_path: Path) -> None:
    for name in ("c.pem", "k.pem", "ca.pem"):
        (tmp_path / name).touch()
    path = written(tmp_path, "[rpc.tls]\ncertificate = 'c.pem'\nkey = 'k.pem'\nca = 'ca.pem'\n")
    tls = load_node_config(path, {}).rpc.tls
    assert (tls.certificate, tls.key, tls.ca) == tuple(str(tmp_path / name) for name in ("c.pem", "k.pem", "ca.pem"))


def test_the_secret_and_properties_of_backups_are_resolved_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    text = '[cluster]\nsecret = "env:SECRET"\n[backup]\n"s3.region" = "here"\n"s3.secret-access-key" = "hidden"\n'
    config = load_node_config(written(tmp_path, text), {})
    assert config.resolved_secret() == "s3cret"
    assert config.resolved_backup() == {"s3.region": "here", "s3.secret-access-key": "hidden"}
    assert "hidden" not in f"{config!r} {config.model_dump_json()}"


@pytest.mark.parametrize(
    ("text", "is_loopback", "is_everywhere"),
    [
        ("127.0.0.1:1", True, False),
        ("127.8.0.1:1", True, False),
        ("localhost:1", True, False),
        ("[::1]:1", True, False),
        ("0.0.0.0:1", False, True),
        ("[::]:1", False, True),
        ("10.0.0.1:1", False, False),
        ("localhost.example.com:1", False, False),
    ],
)
def test_an_address_knows_who_can_reach_it(text: str, is_loopback: bool, is_everywhere: bool) -> None:
    address = parse_address(text)
    assert (address.is_loopback, address.is_everywhere) == (is_loopback, is_everywhere)
    assert str(address) == text


def test_an_address_of_ipv6_has_brackets() -> None:
    assert str(Address("::1", 7400)) == "[::1]:7400"
