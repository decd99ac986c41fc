"""Whom a verb asks: options, environment, contexts and what is usual, and which token goes to whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conveyord.cli.ctl.target import Flags, target
from conveyord.core.errors import ConfigError

CONTEXTS = """
current = "here"
[contexts.here]
servers = ["http://127.0.0.1:1"]
token = "token-of-here"
[contexts.prod]
servers = ["https://a:2", "https://b:2"]
token = "env:PROD"
ca = "/prod.pem"
[contexts.bare]
servers = ["https://c:3"]
"""


@pytest.fixture
def contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "contexts.toml"
    path.write_text(CONTEXTS)
    path.chmod(0o600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PROD", "token-of-prod")
    return path


def chosen(path: Path | None, environment: dict[str, str] | None = None, **flags: object) -> tuple[list[str], str, str]:
    """Servers, token and CA."""
    found = target(Flags(contexts_file=path, **flags), environment or {})  # type: ignore[arg-type]
    return [str(server) for server in found.servers], found.token, str(found.ca or "")


def test_without_anything_it_is_a_node_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert chosen(tmp_path / "none.toml") == (["http://127.0.0.1:7480"], "", "")


def test_a_node_on_this_machine_lets_in_who_can_read_its_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conveyord-data").mkdir()
    (tmp_path / "conveyord-data/local-token").write_text("cvd_local_x\n")
    monkeypatch.chdir(tmp_path)
    assert chosen(tmp_path / "none.toml") == (["http://127.0.0.1:7480"], "cvd_local_x", "")
    assert chosen(tmp_path / "none.toml", servers=("http://[::1]:5",))[1] == "cvd_local_x"
    assert chosen(tmp_path / "none.toml", servers=("https://a:5",))[1] == ""
    assert chosen(tmp_path / "none.toml", token="other")[1] == "other"


@pytest.mark.parametrize(
    ("flags", "environment", "is_local"),
    [
        ({}, {}, True),
        ({"servers": ("http://127.0.0.1:5",)}, {}, True),
        ({"data_dir": Path("conveyord-data")}, {}, True),
        ({"data_dir": Path("conveyord-data"), "token": "other"}, {}, False),
        ({"token": "other"}, {}, False),
        ({}, {"CONVEYORD_TOKEN": "other"}, False),
        ({"servers": ("https://a:5",)}, {}, False),
    ],
)
def test_only_the_token_of_a_data_directory_may_change_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], environment: dict[str, str], is_local: bool
) -> None:
    (tmp_path / "conveyord-data").mkdir()
    (tmp_path / "conveyord-data/local-token").write_text("cvd_local_x\n")
    monkeypatch.chdir(tmp_path)
    assert target(Flags(contexts_file=tmp_path / "none.toml", **flags), environment).is_local == is_local


def test_the_current_context_is_used_where_none_is_named(contexts: Path) -> None:
    assert chosen(contexts) == (["http://127.0.0.1:1"], "token-of-here", "")


def test_a_context_may_be_named(contexts: Path) -> None:
    prod = (["https://a:2", "https://b:2"], "token-of-prod", "/prod.pem")
    assert chosen(contexts, context="prod") == prod
    assert chosen(contexts, {"CONVEYORD_CONTEXT": "prod"}) == prod
    assert chosen(contexts, {"CONVEYORD_CONTEXT": "bare"}, context="prod") == prod


def test_options_win_over_the_environment_and_that_over_the_current_context(contexts: Path) -> None:
    environment = {"CONVEYORD_SERVER": "https://e:4,https://f:4", "CONVEYORD_TOKEN": "token-of-environment"}
    assert chosen(contexts, environment) == (["https://e:4", "https://f:4"], "token-of-environment", "")
    assert chosen(contexts, environment, servers=("https://g:5",), token="t") == (["https://g:5"], "t", "")
    assert chosen(contexts, environment, context="prod")[:2] == (["https://a:2", "https://b:2"], "token-of-prod")
    assert chosen(contexts, {"CONVEYORD_TOKEN": "t"})[:2] == (["http://127.0.0.1:1"], "t")


@pytest.mark.parametrize("environment", [{}, {"CONVEYORD_CONTEXT": "prod"}])
def test_a_context_s_token_goes_to_no_other_server(contexts: Path, environment: dict[str, str]) -> None:
    assert chosen(contexts, environment, servers=("https://elsewhere:6",)) == (["https://elsewhere:6"], "", "")
    assert chosen(contexts, {"CONVEYORD_SERVER": "https://elsewhere:6"}) == (["https://elsewhere:6"], "", "")


def test_but_to_one_that_is_named_beside_the_context(contexts: Path) -> None:
    found = chosen(contexts, context="prod", servers=("https://third:2",))
    assert found == (["https://third:2"], "token-of-prod", "/prod.pem")


def test_a_context_without_a_token_takes_the_environment_s_but_not_the_local_one(contexts: Path) -> None:
    (contexts.parent / "conveyord-data").mkdir()
    (contexts.parent / "conveyord-data/local-token").write_text("cvd_local_x\n")
    assert chosen(contexts, context="bare")[1] == ""
    assert chosen(contexts, {"CONVEYORD_TOKEN": "t"}, context="bare")[1] == "t"


def test_server_and_context_of_the_environment_exclude_each_other(contexts: Path) -> None:
    with pytest.raises(ConfigError, match="both set"):
        chosen(contexts, {"CONVEYORD_SERVER": "https://e:4", "CONVEYORD_CONTEXT": "prod"})


def test_a_data_directory_is_of_a_node_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "local-token").write_text("cvd_local_x\n")
    assert chosen(tmp_path / "none.toml", data_dir=tmp_path)[1] == "cvd_local_x"
    with pytest.raises(ConfigError, match="for the node there alone"):
        chosen(tmp_path / "none.toml", data_dir=tmp_path, servers=("http://127.0.0.1:1", "https://a:2"))


@pytest.mark.parametrize(
    ("host", "is_loopback"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("[::1]", True), ("localhost", True)]
    + [("10.0.0.1", False), ("0.0.0.0", False), ("localhost.evil.example", False), ("[::ffff:10.0.0.1]", False)],
)
def test_a_token_goes_in_clear_text_to_this_machine_alone(host: str, is_loopback: bool, tmp_path: Path) -> None:
    from conveyord.api.client import Client

    found = target(Flags(servers=(f"http://{host}:1",), token="t", contexts_file=tmp_path / "none"), {})
    if is_loopback:
        Client(found.servers, token=found.token)
    else:
        with pytest.raises(ConfigError, match="clear text"):
            Client(found.servers, token=found.token)
