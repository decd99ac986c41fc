"""conveyord.toml: the sample is complete and means the defaults, and mistakes are named with their line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from conveyord.config import Config, RunConfig, load_config
from conveyord.core.errors import ConfigError

SAMPLE = Path(__file__).resolve().parents[2] / "conveyord.toml"


def every_key(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        nested = field.annotation if isinstance(field.annotation, type) else None
        if nested is not None and issubclass(nested, BaseModel):
            keys += every_key(nested, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def test_the_sample_means_the_defaults() -> None:
    loaded = load_config(SAMPLE)
    assert loaded == Config(data_dir=str(SAMPLE.parent / Config().data_dir))


def test_every_key_is_in_the_sample_under_its_table_with_a_comment_above() -> None:
    table, before, found = "", "", []
    for line in SAMPLE.read_text(encoding="utf-8").splitlines():
        if header := re.fullmatch(r"\[([\w.]+)\]", line):
            table = header[1] + "."
            found.append(header[1])
        elif key := re.match(r"(\w+) = ", line):
            assert before.startswith("#"), f"{table}{key[1]} has no comment"
            found.append(table + key[1])
        before = line
    assert set(every_key(Config)) <= set(found)


def test_without_a_file_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(None) == Config()


def test_a_file_in_the_working_directory_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("conveyord.toml").write_text("[run]\nchannel_capacity = 3\n", encoding="utf-8")
    assert load_config(None).run.channel_capacity == 3


def test_a_relative_data_dir_is_taken_from_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('data_dir = "here"\n', encoding="utf-8")
    assert load_config(tmp_path / "c.toml").data_dir == str(tmp_path / "here")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[run]\nthread = 2\n", r"c\.toml:2: unknown key 'run\.thread'; did you mean 'threads'\?"),
        (
            "zzz = 2\n",
            r"c\.toml:1: unknown key 'zzz'; the keys here are data_dir, node, rpc, http, cluster, shutdown, run, log, ",
        ),
        (
            "[run]\n\nchannel_capacity = 0\n",
            r":3: run\.channel_capacity must be greater than or equal to 1, got 0",
        ),
        ('[run]\nthreads = "2"\n', r":2: run\.threads must be a valid integer, got '2'"),
        ('[run]\nmetrics = "9464"\n', r":2: run\.metrics: '9464' is no address; write HOST:PORT"),
        ('[run]\nmetrics = "localhost:99999"\n', r":2: run\.metrics: 'localhost:99999' is no address"),
        ('[run]\nmetrics = "http://localhost:9464"\n', r":2: run\.metrics: 'http://localhost:9464' is no address"),
        ('[run]\nmetrics = "localhost:9464/x"\n', r":2: run\.metrics: 'localhost:9464/x' is no address"),
        ('[run]\nmetrics = "[::1:9464"\n', r":2: run\.metrics: '\[::1:9464' is no address"),
        ("[run]\nmetrics = 9464\n", r":2: run\.metrics must be a valid string, got 9464"),
        ('log.level = "INFO"\n', r":1: log\.level must be 'debug', 'info', 'warning' or 'error', got 'INFO'"),
        ("a = [\n", r"c\.toml.*: not TOML: "),
        ("a = \x01\n", r"c\.toml:1:5: not TOML: "),
        ("[catalogs.lake]\nuri = 'x'\n", r":1: catalogs\.lake: 'lake' is the embedded catalog"),
        ("[catalogs.prod]\ntoken = 123456\n", r":2: catalogs\.prod\.token must be a valid string$"),
    ],
)
def test_a_mistake_is_refused_with_its_line(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "c.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        load_config(tmp_path / "c.toml")


def test_all_mistakes_are_told_at_once_in_order(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("x = 1\ndata_dir = 2\n[log]\nformat = 3\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_config(tmp_path / "c.toml")
    assert re.findall(r":(\d+): ", str(refused.value)) == ["1", "2", "4"]


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: cannot be read: No such file"):
        load_config(tmp_path / "gone.toml")


def test_secrets_are_resolved_at_use_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "key").write_text("from-file\n", encoding="utf-8")
    (tmp_path / "c.toml").write_text(
        f'[catalogs.prod]\nuri = "https://x"\ntoken = "env:TOKEN"\npassword = "literal"\nkey = "file:{tmp_path}/key"\n',
        encoding="utf-8",
    )
    config = load_config(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match=r"catalogs\.prod\.token refers to the environment variable 'TOKEN'"):
        config.resolved_catalogs()
    monkeypatch.setenv("TOKEN", "from-env")
    resolved = config.resolved_catalogs()["prod"]
    assert resolved == {"uri": "https://x", "token": "from-env", "key": "from-file", "password": "literal"}
    assert "literal" not in f"{config!r} {config} {config.model_dump_json()}"


def test_a_file_uri_is_no_reference(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[catalogs.prod]\nwarehouse = "file:///srv/lake"\n', encoding="utf-8")
    assert load_config(tmp_path / "c.toml").resolved_catalogs() == {"prod": {"warehouse": "file:///srv/lake"}}


def test_a_secret_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[catalogs.prod]\ntoken = "file:/nowhere/token"\n', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"catalogs\.prod\.token refers to the file '/nowhere/token'"):
        load_config(tmp_path / "c.toml").resolved_catalogs()


def test_zero_threads_are_the_cores_of_the_process() -> None:
    assert Config().thread_count() >= 1
    assert Config.model_validate({"run": {"threads": 3}}).thread_count() == 3


@pytest.mark.parametrize(
    ("metrics", "port", "address"),
    [
        ("", None, None),
        ("", 0, ("127.0.0.1", 0)),
        ("", 9464, ("127.0.0.1", 9464)),
        ("0.0.0.0:9464", None, ("0.0.0.0", 9464)),
        ("0.0.0.0:9464", 1, ("0.0.0.0", 1)),
        ("localhost:0", None, ("localhost", 0)),
        ("[::1]:9464", None, ("::1", 9464)),
    ],
)
def test_a_port_wins_over_the_one_of_the_settings_and_keeps_their_host(
    metrics: str, port: int | None, address: tuple[str, int] | None
) -> None:
    assert RunConfig(metrics=metrics).metrics_address(port) == address


@pytest.mark.parametrize("path", sorted((SAMPLE.parent / "conf").glob("*.toml")), ids=lambda path: path.name)
def test_every_sample_in_conf_loads_and_writes_no_secret(path: Path) -> None:
    config = load_config(path)
    secret = re.compile(r"(credential|secret|password|token|access-key)")
    for properties in config.catalogs.values():
        for name, value in properties.items():
            assert not secret.search(name) or value.get_secret_value().startswith(("env:", "file:")), name
