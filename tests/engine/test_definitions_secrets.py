"""Secrets are resolved where they are used, and appear in nothing that is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, Field, SecretStr

from conveyord.core.errors import ConfigError
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.definitions import load_pipelines
from conveyord.engine.problems import DefinitionError, Problem, render
from conveyord.engine.registry import Registry
from conveyord.engine.secrets import HIDDEN, SECRET_BYTES_MAX, Secret, hidden_paths, redacted
from tests.engine.definition_samples import ERRORS, HEAD, load, sample_registry


class Login(OperatorConfig):
    user: str = ""
    password: Secret


class Config(OperatorConfig):
    url: str = ""
    token: Secret | None = Field(default=None, validation_alias=AliasChoices("token", "api_token"))
    login: Login | None = None
    logins: tuple[Login, ...] = ()
    headers: dict[str, Secret] = Field(default_factory=dict)
    old: SecretStr | None = None
    catalog: Annotated[str | dict[str, str], HIDDEN] = "lake"


OPTIONS = {
    "url": "http://x",
    "api_token": "hunter2",
    "login": {"user": "me", "password": "hunter2"},
    "logins": [{"password": "env:PASSWORD"}, {"password": "hunter2"}],
    "headers": {"Authorization": "hunter2", "X": "file:/run/secrets/x"},
    "old": "hunter2",
    "catalog": {"uri": "postgres://me:hunter2@db", "s3.secret": "env:S3"},
}


def test_only_what_is_declared_is_hidden_and_references_stay() -> None:
    shown = redacted(Config, OPTIONS)
    assert "hunter2" not in json.dumps(shown)
    assert shown["url"] == "http://x"
    assert shown["login"] == {"user": "me", "password": "***"}
    assert shown["logins"][0] == {"password": "env:PASSWORD"}
    assert shown["headers"] == {"Authorization": "***", "X": "file:/run/secrets/x"}
    assert shown["catalog"] == {"uri": "***", "s3.secret": "env:S3"}
    assert redacted(Config, {"catalog": "lake"}) == {"catalog": "lake"}


def test_a_configuration_shows_no_secret_in_any_rendering() -> None:
    config = Config.model_validate_json(json.dumps({**OPTIONS, "catalog": "lake"}), strict=True)
    for rendering in (repr(config), str(config), config.model_dump_json(), str(config.model_dump()), f"{config.token}"):
        assert "hunter2" not in rendering
    assert config.token is not None
    assert config.token.reveal() == "hunter2"
    assert config.token == Secret("hunter2")
    assert hash(config.token) == hash(Secret("hunter2"))


def test_the_json_schema_of_a_secret_is_text_that_editors_mask() -> None:
    assert Login.model_json_schema()["properties"]["password"]["format"] == "password"


@given(
    st.recursive(
        st.none() | st.text() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_options_of_the_wrong_shape_are_redacted_too(value: object) -> None:
    shown = redacted(Config, {"token": value, "login": value, "catalog": value, "logins": value})
    assert (
        isinstance(value, list | dict) or shown["token"] == "***" or str(shown["token"]).startswith(("env:", "file:"))
    )
    assert ("token",) in hidden_paths(Config, {"token": value})


def test_references_are_resolved_when_they_are_revealed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_text("s3cret\n")
    monkeypatch.setenv("A_SECRET", "from env")
    assert Secret("env:A_SECRET").reveal() == "from env"
    assert Secret(f"file:{path}").reveal() == "s3cret"
    assert str(Secret("env:A_SECRET")) == "env:A_SECRET"


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"\xff", "not UTF-8"), (b"x" * (SECRET_BYTES_MAX + 1), "more than")]
)
def test_a_secret_that_cannot_be_read_says_why(tmp_path: Path, content: bytes | None, why: str) -> None:
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=why):
        Secret(f"file:{path}").reveal()


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOT_THERE", raising=False)
    with pytest.raises(ConfigError, match="the secret env:NOT_THERE: the variable 'NOT_THERE' is not set"):
        Secret("env:NOT_THERE").reveal()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.syspath_prepend(str(ERRORS))
    return sample_registry()


@pytest.mark.parametrize(
    "sink",
    [
        "{type: sample, token: hunter2, bogus: 1}",
        "{type: sample, bogus: 1, token: &t 'hunter2'}",
        "{type: sample, table: [x], catalog: {uri: hunter2}}",
        "{type: no_such_type, password: hunter2}",
        '{type: no_such_type, "s3.secret-access-key": "hunter2, hunter2"}',
        "{type: sample, token: [hunter2]}",
        "\n    type: sample\n    table: 1\n    token: |\n      hunter2\n      hunter2",
        "{type: sample, token: hunter2, token: hunter2}",
        "{type: sample, token: hunter2",
    ],
)
def test_no_message_about_a_definition_shows_a_secret(registry: Registry, sink: str) -> None:
    with pytest.raises(DefinitionError) as refused:
        load(registry, f"{HEAD}spec:\n  source: {{type: sample, path: x}}\n  sink: {sink}\n")
    assert "hunter2" not in str(refused.value)


def test_a_reference_to_a_secret_needs_no_secret_to_be_checked(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    sink = "{type: sample, table: a.b, token: env:SURELY_NOT_SET}"
    path.write_text(f"{HEAD}spec:\n  source: {{type: sample, path: x}}\n  sink: {sink}\n")
    (pipeline,) = load_pipelines([path], registry=registry)
    assert pipeline.stage("sink").options["token"] == "env:SURELY_NOT_SET"


def test_the_caret_moves_with_what_is_hidden_before_it() -> None:
    problem = Problem("x.yaml", 1, 28, "unknown key", "{password: hunter2hunter2, b: 1}")
    assert render([problem.without_named_secrets()]).splitlines()[1:] == [
        "  {password: ***, b: 1}",
        "                  ^",
    ]


def test_a_secret_in_a_very_long_line_stays_hidden(registry: Registry) -> None:
    filler = ", ".join(f"k{index}: 1" for index in range(500))
    sink = f"{{type: sample, {filler}, token: hunter2, bogus: 1, catalog: {{a: hunter2}}, last: 1, {filler.upper()}}}"
    with pytest.raises(DefinitionError) as refused:
        load(registry, f"{HEAD}spec:\n  source: {{type: sample, path: x}}\n  sink: {sink}\n")
    assert "hunter2" not in "".join(problem.source_line for problem in refused.value.problems)
    found = next(problem for problem in refused.value.problems if "'last'" in problem.message)
    message, line, caret = render([found]).splitlines()
    assert line[caret.index("^") :].startswith("last: 1")
    assert message.startswith(f"a.yaml:6:{len('  sink: ') + sink.index('last') + 1}:")
    assert str(refused.value).endswith("more problems")


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ('{url: "http://me:pw@h/x?token=abc&b=1"}', '{url: "http://***@h/x?token=***&b=***"}'),
        ("{url: https://pw@h, to: 's3://k:p/w@b/x'}", "{url: https://***@h, to: 's3://***@b/x'}"),
        ("url: http://h:80/a?q#f", "url: http://h:80/a?q#f"),
        ("x: there?b=c", "x: there?b=c"),
    ],
)
def test_addresses_are_shown_without_users_and_values_of_queries(line: str, shown: str) -> None:
    column = line.index("h") + 1
    assert Problem("a.yaml", 1, column, "no", line).without_named_secrets().source_line == shown
